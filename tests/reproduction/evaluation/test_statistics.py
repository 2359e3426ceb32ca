import numpy as np
import pandas as pd
import pytest
from scipy import stats

from echo.labels import STRUCTURES
from reproduction.evaluation import statistics
from reproduction.evaluation.statistics import (
    bland_altman,
    bootstrap_interval,
    differences,
    generator_differences,
    holm,
    summary,
)


def make_scores(gaps: dict[str, float], patients: int = 12, seeds: int = 2) -> pd.DataFrame:
    """Tidy scores: Dice of 0.9 with spread over patients and frames, the same in each row but for a gap."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (patients, 1, 3)) + rng.normal(0, 0.01, (patients, 4, 3))
    rows = []
    for train, gap in gaps.items():
        for seed in range(seeds):
            own = noise + gap + rng.normal(0, 0.002, noise.shape)
            for (p, f, s), dice in np.ndenumerate(0.9 + own):
                facts = {"train": train, "seed": seed, "patient": f"p{p}", "view": "24"[f // 2] + "CH"}
                facts |= {"phase": ("ED", "ES")[f % 2], "quality": "Good", "structure": list(STRUCTURES)[s]}
                rows += [facts | {"processing": p, "dice": dice} for p in ("raw", "largest component")]
    return pd.DataFrame(rows)


def test_interval_is_of_patients_not_of_frames():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 4)
    means = rng.normal(0, 1, 40)
    values = means[patients]  # frames of a patient are all alike
    low, high = bootstrap_interval(values, patients, seed=0)
    # For a mean the bootstrap's standard error is sd / sqrt(n), n being the number of patients.
    assert (high - low) / 2 == pytest.approx(1.96 * means.std() / np.sqrt(40), rel=0.05)
    assert low < values.mean() < high
    assert bootstrap_interval(values, patients, seed=0) == (low, high)
    assert bootstrap_interval(values, patients, seed=1) != (low, high)
    # Moved by a constant, it moves along; a missing frame is left out.
    assert bootstrap_interval(values + 5, patients, seed=0) == pytest.approx((low + 5, high + 5))
    values[3] = np.nan
    assert bootstrap_interval(values, patients, seed=0) == pytest.approx((low, high), abs=0.02)
    assert np.isnan(bootstrap_interval(values[:4], patients[:4], seed=0)).all()


def test_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", 400)
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(40), 4)
    covered = 0
    for trial in range(300):
        values = rng.normal(0, 1, 40)[patients] + rng.normal(0, 0.5, 160)
        low, high = bootstrap_interval(values, patients, seed=trial)
        covered += low < 0 < high
    assert 0.90 < covered / 300 < 0.98  # 95 %, with the error of 300 trials


def test_summary_against_pandas():
    scores = make_scores({"real": 0.0})
    rows = scores[(scores["processing"] == "raw") & (scores["structure"] == "LA")].copy()
    found = summary(rows, "dice", seed=0)
    by_seed = [r["dice"] for _seed, r in rows.groupby("seed")]
    assert found["mean"] == pytest.approx(rows["dice"].mean())
    assert found["sd"] == pytest.approx(np.mean([r.std(ddof=1) for r in by_seed]))
    assert found["seed_sd"] == pytest.approx(np.std([r.mean() for r in by_seed], ddof=1))
    assert (found["frames"], found["patients"], found["seeds"]) == (48, 12, 2)
    assert found["low"] < found["mean"] < found["high"]
    rows.loc[rows["view"] == "2CH", "dice"] = np.nan  # rightly absent there
    assert summary(rows, "dice", seed=0)["frames"] == 24


def test_holm_on_a_worked_example():
    # Four tests: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04, which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1]


def test_differences_are_paired():
    scores = make_scores({"real": 0.0, "synthetic": -0.005, "both": 0.03})
    table = differences(scores, [("synthetic", "real"), ("both", "real")], seed=0)
    assert list(table["structure"]) == 2 * list(STRUCTURES)
    near, far = table[table["train"] == "synthetic"], table[table["train"] == "both"]
    assert near["difference"].to_numpy() == pytest.approx(-0.5, abs=0.1)
    assert far["difference"].to_numpy() == pytest.approx(3, abs=0.1)
    # Paired: the spread between patients, 2 points, drops out.
    assert (table["high"] - table["low"]).max() < 0.2
    assert near["equivalent"].all()
    assert not far["equivalent"].any()

    raw = scores[scores["processing"] == "raw"]
    means = raw.groupby(["structure", "train", "patient"])["dice"].mean()
    expected = stats.wilcoxon(means["LA", "synthetic"], means["LA", "real"]).pvalue
    row = near[near["structure"] == "LA"].iloc[0]
    assert row["p"] == pytest.approx(expected)
    assert row["p_holm"] == pytest.approx(6 * expected)  # all six are this small: 12 patients, all of one sign
    seeds = 100 * raw.groupby(["structure", "train", "seed"])["dice"].mean()
    expected = np.sqrt(sum(seeds["LA", train].var() / 2 for train in ("synthetic", "real")))
    assert row["seed_se"] == pytest.approx(expected)


def test_a_wide_interval_is_not_equivalence():
    scores = make_scores({"real": 0.0, "synthetic": 0.0}, patients=4)
    rough = scores["train"] == "synthetic"
    scores.loc[rough, "dice"] += scores.loc[rough, "patient"].map({"p0": 0.1, "p1": -0.1, "p2": 0.1, "p3": -0.1})
    table = differences(scores, [("synthetic", "real")], seed=0)
    assert (table["difference"].abs() < 1).all()
    assert not table["equivalent"].any()
    assert (table["p"] > 0.5).all()


def test_equal_rows_and_unknown_rows():
    scores = make_scores({"real": 0.0})
    table = differences(pd.concat([scores, scores.assign(train="copy")]), [("copy", "real")], seed=0)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all()
    with pytest.raises(ValueError, match="no scores of both: there are real"):
        differences(scores, [("both", "real")], seed=0)


def test_bland_altman_in_closed_form():
    reference = np.array([40.0, 50, 60, 70, np.nan])
    measured = np.array([41.0, 53, 61, 73, 50])
    found = bland_altman(measured, reference)
    assert found["patients"] == 4
    assert found["bias"] == 2
    sd = np.sqrt(4 / 3)  # of 1, 3, 1, 3
    assert (found["low"], found["high"]) == pytest.approx((2 - 1.96 * sd, 2 + 1.96 * sd))
    assert found["mae"] == 2
    assert found["r"] == pytest.approx(stats.pearsonr(measured[:4], reference[:4]).statistic)
    assert bland_altman(reference, reference + 3)["mae"] == 3
    assert bland_altman(reference, reference + 3)["bias"] == -3


@pytest.mark.parametrize("sign", [-1, 1])
def test_equivalence_needs_both_ends_of_the_interval(sign):
    scores = make_scores({"real": 0.0, "synthetic": 0.0}, patients=4)
    rough = scores["train"] == "synthetic"
    scores.loc[rough & (scores["patient"] == "p0"), "dice"] += sign * 0.06  # the others do not differ
    table = differences(scores, [("synthetic", "real")], seed=0)
    inner = table["high"] if sign < 0 else table["low"]
    assert (table["difference"].abs() < 2).all()
    assert (inner.abs() < 2).all()
    assert not table["equivalent"].any()


def several_generators(shift: float, patients: int = 12) -> pd.DataFrame:
    """Real-only, and synthetic-only by three generators, of which the second and third are off by -/+ `shift`."""
    scores = make_scores({"real": 0.0, "synthetic": 0.0}, patients)
    others = [make_scores({"synthetic": gap}, patients).assign(train=f"synthetic, generator {k}")
              for k, gap in ((2, -shift), (3, shift))]  # fmt: skip
    return pd.concat([scores, *others])


def test_generators_widen_the_interval_and_leave_the_mean():
    alike, unlike = (generator_differences([several_generators(shift)], seed=0) for shift in (0.0, 0.03))
    assert unlike[["generators", "segmenters"]].eq([3, 6]).all(axis=None)
    np.testing.assert_allclose(alike["difference"], unlike["difference"], atol=1e-9)
    np.testing.assert_allclose(unlike["generator_sd"], 3, atol=0.3)  # of -3, 0 and 3 points
    # The bootstrap's standard error of the mean of three: sd / sqrt(3), by (n - 1) / n of its variance.
    widths = (unlike["high"] - unlike["low"]) / (2 * 1.96)
    np.testing.assert_allclose(widths, 3 * np.sqrt(2 / 3) / np.sqrt(3), rtol=0.15)
    assert (alike["high"] - alike["low"] < 0.5).all()
    assert alike["equivalent"].all() and not unlike["equivalent"].any()


def test_one_generator_has_no_spread_and_one_patient_no_interval():
    assert generator_differences([make_scores({"real": 0.0, "synthetic": -0.02})], seed=0).empty
    one = generator_differences([several_generators(0.01, patients=1)], seed=0)
    assert one["low"].isna().all() and not one["equivalent"].any() and one["difference"].notna().all()
