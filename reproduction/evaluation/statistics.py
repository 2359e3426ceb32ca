"""Statistics of scores: means over frames, intervals over patients, paired tests, equivalence, agreement.

A patient's four frames are alike, so patients, not frames, are what is resampled and tested. Scores are tidy: a
row for each frame, structure and processing, as `segmentation.score` returns them, after the columns train and seed.
"""

from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from echo.config import BOOTSTRAP_RESAMPLES, EQUIVALENCE_MARGIN
from echo.labels import STRUCTURES


def bootstrap_interval(values: ArrayLike, patients: ArrayLike, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over values (N,), with whole patients (N,) resampled.

    NaN values are left out; fewer than 2 patients give (NaN, NaN). The interval holds for the networks trained: the
    spread over training seeds is not in it.
    """
    values = pd.Series(np.asarray(values, float), index=np.asarray(patients)).dropna()
    sums = values.groupby(level=0).agg(["sum", "count"])
    if len(sums) < 2:
        return np.nan, np.nan
    interval = stats.bootstrap(
        (sums["sum"].to_numpy(), sums["count"].to_numpy()),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        n_resamples=BOOTSTRAP_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def frame_names(table: pd.DataFrame) -> list[str]:
    """The columns that together name a frame, whatever its source."""
    return [name for name in ("patient", "view", "phase", "case") if name in table.columns]


def structures_of(table: pd.DataFrame) -> list[str]:
    """The structures that a table has rows of: the paper's in its order, then others in theirs."""
    found = list(table["structure"].unique())
    return [name for name in STRUCTURES if name in found] + [name for name in found if name not in STRUCTURES]


def summary(rows: pd.DataFrame, column: str, seed: int) -> dict[str, float]:
    """Of one training set's scores: mean and sd over frames (of each training seed, then averaged, as the paper gives
    them), the mean's `bootstrap_interval` low and high, seed_sd (sd of the seeds' means; NaN for one seed), and the
    numbers of frames, patients and seeds. NaN scores are left out."""
    rows = rows.dropna(subset=column)
    by_seed = rows.groupby("seed")[column]
    low, high = bootstrap_interval(rows[column], rows["patient"], seed)
    return {
        "mean": by_seed.mean().mean(),
        "sd": by_seed.std().mean(),
        "low": low,
        "high": high,
        "seed_sd": by_seed.mean().std(),
        "frames": len(rows[frame_names(rows)].drop_duplicates()),
        "patients": rows["patient"].nunique(),
        "seeds": rows["seed"].nunique(),
    }


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p-values (m,) corrected for m tests (Holm 1979, Scand. J. Stat. 6(2):65-70); NaN is no test.

    Five lines instead of statsmodels, which nothing else here needs.
    """
    p = np.asarray(p, float)
    corrected, order = np.full_like(p, np.nan), np.argsort(p)[: np.isfinite(p).sum()]  # NaN is last
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected


def differences(scores: pd.DataFrame, pairs: list[tuple[str, str]], seed: int) -> pd.DataFrame:
    """Paired differences in raw Dice between training sets: each pair's first less its second.

    A frame's Dice is averaged over training seeds first. Interval and test hold for the networks trained; how far
    others may differ is said by seed_se, the standard error that the spread over seeds gives the difference. The test
    is Wilcoxon's signed-rank over patients' mean differences, two-sided, Holm-corrected over all rows of the table.
    Equivalent means that the 95 % interval lies within `config.EQUIVALENCE_MARGIN`: two one-sided tests at 2.5 % each.

    Returns:
        A row for each pair and structure: train, reference, structure, patients, difference, low, high and seed_se in
        Dice points (seed_se is NaN for one seed), p, p_holm, equivalent. Of a structure that is nowhere to be found in
        both label and prediction there is nothing to compare: patients is 0, all else missing. One patient has a
        difference, and neither interval nor test.

    Raises:
        ValueError: for a training set without scores.
    """
    if unknown := {name for pair in pairs for name in pair} - set(scores["train"]):
        raise ValueError(f"no scores of {', '.join(sorted(unknown))}: there are {', '.join(scores['train'].unique())}")
    raw = scores[scores["processing"] == "raw"]
    frames = 100 * raw.groupby(["structure", "train", *frame_names(raw)])["dice"].mean().unstack("train")
    seeds = (100 * raw.groupby(["structure", "train", "seed"])["dice"].mean()).groupby(level=[0, 1])
    variance, structures = (seeds.var() / seeds.count()).unstack("train"), structures_of(scores)
    rows = []
    for (train, reference), structure in product(pairs, structures):
        both = frames[frames.index.get_level_values("structure") == structure][[train, reference]].dropna()
        found = both.to_numpy().any()  # by one of the two, in some frame
        gap = both[train] - both[reference] if found else pd.Series(dtype=float, index=both.index[:0])
        low, high = bootstrap_interval(gap, gap.index.get_level_values("patient"), seed)
        patients = gap.groupby("patient").mean()
        row = {"train": train, "reference": reference, "structure": structure, "patients": len(patients)}
        row |= {"difference": gap.mean(), "low": low, "high": high}
        row["seed_se"] = np.sqrt(variance.loc[structure, [train, reference]].sum(skipna=False)) if found else np.nan
        row["p"] = np.nan if len(patients) < 2 else stats.wilcoxon(patients).pvalue if patients.any() else 1.0
        rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"])
    equivalent = (table["low"] > -EQUIVALENCE_MARGIN) & (table["high"] < EQUIVALENCE_MARGIN)
    table["equivalent"] = equivalent.astype(object).where(table["low"].notna(), None)
    return table


def network_interval(
    dice: pd.DataFrame, reference: pd.DataFrame, seed: int, resamples: int = BOOTSTRAP_RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of the difference of two means, with patients, generators and segmenter seeds resampled.

    Each resample draws patients, the same for both sides, then generators, then as many segmenters of each as it has,
    all with replacement: a bootstrap crossed over patients and networks (Owen 2007, Ann. Appl. Stat. 1(2):386-411). Of
    n generators a bootstrap sees (n - 1) / n of their variance: with two or three the interval is too narrow.

    Args:
        dice: a row for each frame, a column for each network: (generator, seed). Its index has the level patient.
        reference: the same of the training set compared with.
        resamples: how many.

    Returns:
        Low and high; (NaN, NaN) for fewer than 2 patients.
    """
    rng, codes = np.random.default_rng(seed), dice.index.get_level_values("patient").factorize()[0]
    patients = codes.max() + 1
    if patients < 2:
        return np.nan, np.nan
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples)  # (R, P)
    sides = []
    for table in (dice, reference):
        by_patient = table.groupby(codes)
        means = (weights @ by_patient.sum().to_numpy()) / (weights @ by_patient.count().to_numpy())  # (R, networks)
        generators = table.columns.get_level_values(0)
        segmenters = [np.flatnonzero(generators == name) for name in generators.unique()]
        drawn = np.empty((resamples, len(segmenters)))  # a drawn generator's mean over its drawn segmenters
        for k in range(len(segmenters)):
            generator = rng.integers(len(segmenters), size=resamples)
            for g, networks in enumerate(segmenters):
                rows = np.flatnonzero(generator == g)
                chosen = rng.choice(networks, size=(len(rows), len(networks)))
                drawn[rows, k] = means[rows[:, None], chosen].mean(axis=1)
        sides.append(drawn.mean(axis=1))
    low, high = np.percentile(sides[0] - sides[1], [2.5, 97.5])
    return float(low), float(high)


def generator_differences(tables: list[pd.DataFrame], seed: int) -> pd.DataFrame:
    """Synthetic-only and real + synthetic less real-only in raw Dice points, over several generators: rows of scores
    whose training set is "synthetic, generator 2" are by another one than "synthetic".

    Args:
        tables: of scores, such as the main table's and the grid's.

    Returns:
        A row for each training set with more than one generator, and each structure: generators, segmenters,
        difference (mean over generators of each one's mean over seeds), generator_sd (of these means), low and high
        (`network_interval`), equivalent. Empty where there is one generator.
    """
    scores = pd.concat(tables, ignore_index=True)
    raw = scores[scores["processing"] == "raw"]
    kind = raw["train"].str.partition(", generator ")
    raw = raw.assign(kind=kind[0], generator=kind[2])
    wide = 100 * raw.pivot_table("dice", ["structure", *frame_names(raw)], ["kind", "generator", "seed"])
    rows = []
    for train, structure in product(("synthetic", "both"), structures_of(scores)):
        if train not in set(raw["kind"]) or raw.loc[raw["kind"] == train, "generator"].nunique() < 2:
            continue
        frames = wide.loc[structure]
        ours, reference = frames[train].dropna(axis=1, how="all"), frames["real"].dropna(axis=1, how="all")
        means = ours.mean().groupby(level="generator").mean()
        low, high = network_interval(ours, reference, seed)
        row = {"train": train, "structure": structure, "generators": len(means), "segmenters": ours.shape[1]}
        row |= {"difference": means.mean() - reference.mean().mean(), "generator_sd": means.std()}
        rows.append(row | {"low": low, "high": high, "equivalent": max(-low, high) < EQUIVALENCE_MARGIN})
    return pd.DataFrame(rows)


def bland_altman(measured: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Agreement of two measurements (N,) of the same patients (Bland and Altman 1986, Lancet 327:307-310).

    Returns:
        patients (pairs without NaN), bias (mean of measured less reference), low and high (limits of agreement,
        bias -/+ 1.96 sd), mae (mean absolute difference), r (Pearson).
    """
    pairs = pd.DataFrame({"measured": np.asarray(measured, float), "reference": np.asarray(reference, float)}).dropna()
    gap = pairs["measured"] - pairs["reference"]
    bias, spread = gap.mean(), 1.96 * gap.std()
    limits = {"low": bias - spread, "high": bias + spread}
    r = pairs["measured"].corr(pairs["reference"])
    return {"patients": len(pairs), "bias": bias, **limits, "mae": gap.abs().mean(), "r": r}
