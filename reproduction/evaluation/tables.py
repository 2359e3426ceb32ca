"""The tables: from the scores of single frames to the paper's row and beyond."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from echo.config import VIEW_PHASES
from echo.resume import read_csv, write_csv, write_text
from reproduction import PAPER_RESULTS
from reproduction.datasets.anatomy import QUALITIES
from reproduction.evaluation.segmentation import NSD_TOLERANCE_MM
from reproduction.evaluation.statistics import (
    bland_altman,
    differences,
    frame_names,
    generator_differences,
    structures_of,
    summary,
)

# The main rows of the experiment, and what readers call them; other rows go by their own name.
TRAIN_NAMES = {
    "real": "real-only",
    "synthetic": "synthetic-only",
    "both": "real + synthetic",
    "finetuned": "synthetic, then real",
}
FRAME = ["train", "seed", "patient", "view", "phase", "case", "condition", "quality"]  # a source has some of them
DISTANCES = {"hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm", "hd95_px": "HD95, pixels", "assd_px": "ASSD, pixels"}
NSD = f"NSD at {NSD_TOLERANCE_MM:g} mm, %"
VOLUMES = {"ef": "EF, points", "edv_ml": "EDV, mL", "esv_ml": "ESV, mL"}
AGREEMENT = {  # measure: what a row's name calls it, format of its numbers
    "bias": ("bias", "+z.1f"),
    "limits": ("limits of agreement", "+z.1f"),
    "mae": ("mean absolute difference", ".1f"),
    "r": ("r", ".2f"),
}
ABSENT, NONE = "absent", "–"  # no label and no prediction has the structure; there is no such number


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        selection: the scores that it is made of, as column and value; empty for patients' volumes.
        column: what it reads of them.
        measure: "mean", "missing", or one of `AGREEMENT`.
        format: of its numbers.
        scale: what values are multiplied with.
    """

    selection: dict[str, str]
    column: str
    measure: str
    format: str
    scale: int = 1


def paper_results(source: str = "published abstract") -> pd.DataFrame:
    """The paper's numbers: dice_mean, dice_sd and relative_gain in %, indexed by structure."""
    table = pd.read_csv(PAPER_RESULTS)
    return table[table["source"] == source].set_index("structure").drop(columns="source")


def published_columns(structures: list[str]) -> dict[str, dict[str, str]]:
    """Table 1's columns that are not ours, where it has the paper's structures: the paper's mean ± sd, and the previous
    state of the art that its relative gains imply."""
    paper = paper_results()
    if structures != list(paper.index):
        return {}
    implied = paper["dice_mean"] / (1 + paper["relative_gain"] / 100)
    return {
        "paper": {name: spread(paper.loc[name]) for name in structures},
        "previous (implied)": {name: f"{implied[name]:.1f}" for name in structures},
    }


def prepared(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores as the tables read them.

    A structure that no label has is absent: its Dice, which is 0 wherever a network found some, becomes NaN. A quality
    in another spelling of upper and lower case is the known one; any other stays as it is.
    """
    if "labelled" in scores:  # scores of earlier versions lack the column: there, every label was complete
        absent = ~scores.groupby("structure")["labelled"].transform("any")
        scores = scores.assign(dice=scores["dice"].mask(absent))
    if "quality" not in scores:
        return scores
    spelling = {quality.lower(): quality for quality in QUALITIES}
    known = {name: spelling.get(str(name).strip().lower(), str(name)) for name in scores["quality"].dropna().unique()}
    return scores.assign(quality=scores["quality"].map(known))


def dice_frames(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each frame, with the raw Dice in [0, 1] of each structure in a column, from tidy scores."""
    scores = prepared(scores)
    raw = scores[scores["processing"] == "raw"].set_index([*(n for n in FRAME if n in scores), "structure"])["dice"]
    return raw.unstack("structure", sort=False)[structures_of(scores)].reset_index().rename_axis(columns=None)


def dice_table(frames: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over frames, in %, as the paper gives them.

    Args:
        frames: a row for each frame, with columns train, seed and Dice in [0, 1] of each structure.

    Returns:
        Columns train, structure, seed, n_frames, dice_mean, dice_sd. A structure absent from both label and
        prediction is left out of mean and count.
    """
    long = frames.melt(["train", "seed"], [n for n in frames if n not in FRAME], "structure", "dice")
    groups = long.groupby(["train", "structure", "seed"], sort=False)["dice"]
    table = groups.agg(n_frames="count", dice_mean="mean", dice_sd="std").reset_index()
    table[["dice_mean", "dice_sd"]] = (100 * table[["dice_mean", "dice_sd"]]).round(4)
    return table


def main_rows(trains: pd.Series) -> list[str]:
    """The main rows among some training sets, in the tables' order."""
    return [train for train in TRAIN_NAMES if train in set(trains)]


def all_rows(trains: pd.Series) -> dict[str, str]:
    """Every training set by what the tables call it: the main rows first."""
    return {train: TRAIN_NAMES.get(train, train) for train in [*main_rows(trains), *trains.unique()]}


def comparison(dice: pd.DataFrame) -> pd.DataFrame:
    """structure | paper | each main row | difference: mean ± sd in %, means over segmenter seeds.

    The difference is ours, synthetic-only less real-only, in Dice points; a dash where one is missing.
    """
    ours = dice.groupby(["structure", "train"])[["dice_mean", "dice_sd"]].mean()
    means, structures = ours["dice_mean"].unstack("train").reindex(columns=list(TRAIN_NAMES)), structures_of(dice)
    paper, rows = published_columns(structures).get("paper"), []
    for structure in structures:
        row = {"structure": structure} | ({"paper": paper[structure]} if paper else {})
        row |= {TRAIN_NAMES[train]: spread(ours.loc[structure, train]) for train in main_rows(dice["train"])}
        gap = means.loc[structure, "synthetic"] - means.loc[structure, "real"]
        rows.append(row | {"difference": NONE if np.isnan(gap) else f"{gap:+.1f}"})
    return pd.DataFrame(rows).set_index("structure")


def ratios(dice: pd.DataFrame) -> dict[str, float]:
    """Synthetic-only Dice as a fraction of real-only, for each structure that is there."""
    means = dice.groupby(["structure", "train"])["dice_mean"].mean().unstack()
    fractions = (means["synthetic"] / means["real"]).reindex(structures_of(dice)).dropna()
    return {name: round(float(value), 3) for name, value in fractions.items()}


def spread(row: pd.Series) -> str:
    """A row's mean ± sd, the mean alone where one frame has no sd; "absent" without a mean."""
    if np.isnan(row["dice_mean"]):
        return ABSENT
    return f"{row['dice_mean']:.1f}" + ("" if np.isnan(row["dice_sd"]) else f" ± {row['dice_sd']:.1f}")


def in_order(values: set, known: Iterable) -> list:
    """These values, the known ones in their order, then the others in theirs."""
    return [value for value in known if value in values] + sorted(values - set(known))


def table_rows(number: int, scores: pd.DataFrame, volumes: pd.DataFrame) -> dict[str, Row]:
    """The rows of a table by name, of what a source has. 1: Dice. 2: Dice by view and phase, or condition, and by image
    quality. 3: distances and surface Dice, raw and of the largest component; missing structures; agreement of ejection
    fraction and volumes with the expert's."""
    raw = {name: {"structure": name, "processing": "raw"} for name in structures_of(scores)}
    distances = {column: title for column, title in DISTANCES.items() if column in scores}
    if number == 1:
        return {name: Row(selection, "dice", "mean", ".1f", 100) for name, selection in raw.items()}
    if number == 2:
        has = scores.reindex(columns=["view", "phase", "condition", "quality"])
        pairs = set(has[["view", "phase"]].dropna().itertuples(index=False, name=None))
        groups = {f"{v} {phase}": {"view": v, "phase": phase} for v, phase in in_order(pairs, VIEW_PHASES)}
        for column, known in (("condition", ()), ("quality", QUALITIES)):
            groups |= {name: {column: name} for name in in_order(set(has[column].dropna()), known)}
        return {f"{n}, {g}": Row(raw[n] | groups[g], "dice", "mean", ".1f", 100) for n in raw for g in groups}
    if number == 3:
        rows, kept = {}, {"processing": "largest component"}
        for name, selection in raw.items():
            for title, processing in (("", {}), (", largest component", kept)):
                for column, distance in distances.items():
                    rows[f"{name}, {distance}{title}"] = Row(selection | processing, column, "mean", ".2f")
                if "nsd" in scores:  # scores of earlier versions lack it
                    rows[f"{name}, {NSD}{title}"] = Row(selection | processing, "nsd", "mean", ".1f", 100)
            rows[f"{name}, missing"] = Row(selection, next(iter(distances)), "missing", "d")
        for column, title in VOLUMES.items():
            found = AGREEMENT.items() if column in volumes else ()
            rows |= {f"{title}, {name}": Row({}, column, m, form) for m, (name, form) in found}
        return rows
    raise ValueError(f"there is no table {number}: choose 1, 2 or 3")


def select(row: Row, train: str, scores: pd.DataFrame, volumes: pd.DataFrame) -> pd.DataFrame:
    """The rows of `scores` or `volumes` that a table's cell is made of."""
    source = volumes if row.column in VOLUMES else scores
    return source[(source[["train", *row.selection]] == [train, *row.selection.values()]).all(axis=1)]


def cell(row: Row, rows: pd.DataFrame, seed: int) -> str:
    """A cell's text from the rows that `select` found.

    A mean: mean ± sd over frames [95 % interval over patients], seeds ± sd over seeds, Dice in %, distances in mm.
    Missing structures: how many of those that label or prediction has, over all seeds. Agreement: means over seeds.
    What one frame, one patient or one seed cannot say is left out.
    """
    if row.column not in VOLUMES and len(rows) and not rows["dice"].count():
        return ABSENT
    if row.measure == "missing":
        return f"{(rows['dice'].notna() & rows[row.column].isna()).sum()} of {rows['dice'].count()}"
    if row.column not in rows or not rows[row.column].count():
        return NONE

    def text(value: float) -> str:
        return format(row.scale * value, row.format)

    if row.measure == "mean":
        found = summary(rows, row.column, seed)
        spread = "" if np.isnan(found["sd"]) else f" ± {text(found['sd'])}"
        interval = f" [{text(found['low'])}, {text(found['high'])}]" if found["patients"] > 1 else ""
        seeds = f", seeds ± {text(found['seed_sd'])}" if found["seeds"] > 1 else ""
        return text(found["mean"]) + spread + interval + seeds
    found = agreement(rows, row.column)
    values = found[["low", "high"] if row.measure == "limits" else [row.measure]]
    return NONE if values.isna().any() else " to ".join(map(text, values))


def agreement(volumes: pd.DataFrame, column: str) -> pd.Series:
    """`statistics.bland_altman` of a training set's `column` against the expert's, averaged over training seeds."""
    seeds = volumes.groupby("seed")
    return pd.DataFrame([bland_altman(rows[column], rows[f"expert_{column}"]) for _seed, rows in seeds]).mean()


def table(number: int, scores: pd.DataFrame, volumes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Table 1, 2 or 3 (`table_rows`), with a column for each training set; see `cell`.

    Table 1 has `published_columns` first.

    Args:
        scores, volumes: as `segmentation.score` returns them, with the columns train and seed.
        seed: of the bootstrap.
    """
    scores = prepared(scores)
    rows, columns = table_rows(number, scores, volumes), published_columns(structures_of(scores)) if number == 1 else {}
    for train, title in all_rows(scores["train"]).items():
        columns[title] = {name: cell(row, select(row, train, scores, volumes), seed) for name, row in rows.items()}
    return pd.DataFrame(columns).rename_axis(["structure", "structure and frames", "measure"][number - 1])


def difference_table(scores: pd.DataFrame, seed: int, pairs: list[tuple[str, str]] | None = None) -> pd.DataFrame:
    """`statistics.differences` as text; by default each main row less real-only, and synthetic less real of any other
    recipe."""
    names = all_rows(scores["train"])
    if pairs is None:
        others = [(train, train.replace("synthetic, ", "real, ")) for train in names if train.startswith("synthetic, ")]
        pairs = [(train, "real") for train in main_rows(scores["train"]) if train != "real"]
        pairs += [pair for pair in others if pair[1] in names]
    found = differences(prepared(scores), pairs, seed)
    found[["training set", "less"]] = found[["train", "reference"]].replace(names)
    texts = []
    for row in found.itertuples():
        interval = f" [{row.low:+z.1f}, {row.high:+z.1f}]" if row.low == row.low else ""
        texts.append(f"{row.difference:+z.1f}{interval}" if row.patients else ABSENT)
    found["difference"] = texts
    found["seeds"] = [f"± {se:.1f}" if se == se else NONE for se in found["seed_se"]]
    for column in ("p", "p_holm"):
        found[column] = [NONE if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in found[column]]
    found["equivalent"] = found["equivalent"].map({True: "yes", False: "no"}).fillna(NONE)
    return found.set_index("structure")[["training set", "less", "difference", "seeds", "p", "p_holm", "equivalent"]]


def mean_dice(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean raw Dice over frames, in %: a row for each training set, a column for each structure, and how many seeds."""
    raw = prepared(scores[scores["processing"] == "raw"])
    means = raw.groupby(["train", "structure"], sort=False)["dice"].mean().unstack("structure")
    return (100 * means[structures_of(raw)]).assign(seeds=raw.groupby("train")["seed"].nunique())


def beside_whole_run(live: pd.DataFrame, scores: pd.DataFrame, train: str = "synthetic") -> pd.DataFrame:
    """Mean raw Dice of a few frames' scores beside that of all scores of a training set, in %."""
    some = mean_dice(live.assign(train=train, seed=0)).loc[train]
    both = {"Dice of these frames, %": some, "of the whole run": mean_dice(scores).loc[train]}
    return pd.DataFrame(both).drop("seeds")


def compare_runs(dice: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The `comparison` of each run, from their Dice tables by name (`runs.run.all_results`), one below the other."""
    return with_dashes(pd.concat({name: comparison(table) for name, table in dice.items()}, names=["run"]))


def typical_frames(scores: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """The (patient, view, phase) of the worst, the median and the best frame by mean raw Dice, each by its title with
    that Dice in %; fewer when there are fewer frames."""
    raw = scores[scores["processing"] == "raw"]
    order = raw.groupby(frame_names(raw))["dice"].mean().dropna().sort_values()
    places = {"best": len(order) - 1, "median": len(order) // 2, "worst": 0}
    chosen = {place: name for name, place in places.items() if len(order)}  # of one frame, the worst alone
    return {
        f"{chosen[k]}: {' '.join(order.index[k][1:])}, {100 * order.iloc[k]:.0f} %": order.index[k]
        for k in sorted(chosen)
    }


def with_dashes(table: pd.DataFrame) -> pd.DataFrame:
    """A table to be read: a dash for what is missing."""
    return table.astype(object).where(table.notna(), NONE)


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, index first. pandas's own writer needs another package for these four lines."""
    header = [table.index.name or "", *map(str, table.columns)]
    rows = [header, ["---"] * len(header), *([str(v) for v in row] for row in table.itertuples())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_scores(scores: pd.DataFrame, volumes: pd.DataFrame, folder: Path) -> None:
    """Write `scores.csv`, `volumes.csv` and, from the scores, `dice_frames.csv`, all rounded."""
    scores = scores.round({"dice": 5, "nsd": 5} | dict.fromkeys(DISTANCES, 3))
    for name, table in (("scores", scores), ("volumes", volumes.round(3)), ("dice_frames", dice_frames(scores))):
        write_csv(folder / f"{name}.csv", table)


def write_tables(scores: pd.DataFrame, volumes: pd.DataFrame, folder: Path, seed: int) -> None:
    """Write scores, volumes (`write_scores`) and all that is made of them.

    `table_1`, `table_2`, `table_3`, `differences`, of several generators `generators`, each as .csv, .md and .tex; and
    the Dice alone: `dice.csv` and `comparison.md`. Tables are made of the files, whose scores are rounded, so that they
    can be made again from them.
    """
    write_scores(scores, volumes, folder)
    scores, volumes, frames = (read_csv(folder / f"{name}.csv") for name in ("scores", "volumes", "dice_frames"))
    dice = dice_table(frames)
    named = {f"table_{n}": made for n in (1, 2, 3) if len(made := table(n, scores, volumes, seed))}
    named["differences"] = difference_table(scores, seed)
    if len(generators := generator_differences([scores], seed)):
        named["generators"] = generators.round(2).set_index("train")
    files = {"dice.csv": dice.to_csv(index=False), "comparison.md": markdown(comparison(dice)) + "\n"}
    for name, made in named.items():
        files[f"{name}.csv"], files[f"{name}.md"] = made.to_csv(), markdown(made) + "\n"
        files[f"{name}.tex"] = made.reset_index().to_latex(index=False, escape=True).replace("±", r"$\pm$")
    for name, text in files.items():
        write_text(folder / name, text)
