"""The tables: from one row a frame to the paper's row and beyond, and from each cell back to where it came from."""

from pathlib import Path

import pandas as pd

from echo.config import VIEW_PHASES
from echo.labels import STRUCTURES
from echo.resume import write_csv, write_text
from reproduction import PAPER_RESULTS
from reproduction.datasets.anatomy import QUALITIES
from reproduction.evaluation.statistics import bland_altman, differences, summary

# The main rows of the experiment, and what readers call them; other rows go by their own name.
TRAIN_NAMES = {
    "real": "real-only",
    "synthetic": "synthetic-only",
    "both": "real + synthetic",
    "finetuned": "synthetic, then real",
}
FRAME = ["train", "seed", "patient", "view", "phase", "quality"]
DISTANCES = {"hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm"}
VOLUMES = {"ef": "EF, points", "edv_ml": "EDV, mL", "esv_ml": "ESV, mL"}
MEASURES = {"bias": "bias", "limits": "limits of agreement", "mae": "mean absolute difference", "r": "r"}


def paper_results(source: str = "published abstract") -> pd.DataFrame:
    """The paper's numbers: dice_mean, dice_sd and relative_gain in %, indexed by structure."""
    table = pd.read_csv(PAPER_RESULTS)
    return table[table["source"] == source].set_index("structure").drop(columns="source")


def published_columns() -> dict[str, dict[str, str]]:
    """Table 1's columns that are not ours: the paper's mean ± sd, and the previous state of the art that its relative
    gains imply."""
    paper = paper_results()
    implied = paper["dice_mean"] / (1 + paper["relative_gain"] / 100)
    return {
        "paper": {name: spread(paper.loc[name]) for name in STRUCTURES},
        "previous (implied)": {name: f"{implied[name]:.1f}" for name in STRUCTURES},
    }


def dice_frames(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a frame, with the raw Dice in [0, 1] of each structure in a column, from tidy scores."""
    raw = scores[scores["processing"] == "raw"].set_index([*FRAME, "structure"])["dice"]
    return raw.unstack("structure", sort=False)[list(STRUCTURES)].reset_index().rename_axis(columns=None)


def dice_table(frames: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over frames, in %, as the paper gives them.

    Args:
        frames: one row a frame, with columns train, seed and Dice in [0, 1] of each structure.

    Returns:
        Columns train, structure, seed, n_frames, dice_mean, dice_sd. A structure absent from both label and
        prediction is left out of mean and count.
    """
    long = frames.melt(["train", "seed"], list(STRUCTURES), var_name="structure", value_name="dice")
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

    The difference is ours, synthetic-only less real-only, in Dice points. The paper published no real-only row.
    """
    ours = dice.groupby(["structure", "train"])[["dice_mean", "dice_sd"]].mean()
    paper = paper_results()
    rows = []
    for structure in STRUCTURES:
        row = {"structure": structure, "paper": spread(paper.loc[structure])}
        row |= {TRAIN_NAMES[train]: spread(ours.loc[structure, train]) for train in main_rows(dice["train"])}
        gap = ours.loc[(structure, "synthetic"), "dice_mean"] - ours.loc[(structure, "real"), "dice_mean"]
        rows.append(row | {"difference": f"{gap:+.1f}"})
    return pd.DataFrame(rows).set_index("structure")


def ratios(dice: pd.DataFrame) -> dict[str, float]:
    """Synthetic-only Dice as a fraction of real-only, for each structure."""
    means = dice.groupby(["structure", "train"])["dice_mean"].mean().unstack()
    return {name: round(float(means.loc[name, "synthetic"] / means.loc[name, "real"]), 3) for name in STRUCTURES}


def spread(row: pd.Series) -> str:
    """A row's mean ± sd."""
    return f"{row['dice_mean']:.1f} ± {row['dice_sd']:.1f}"


def table_rows(number: int) -> dict[str, tuple[dict[str, str], str, str]]:
    """The rows of a table by name: which scores each selects, the column it reads, and the measure it takes of it.

    1: Dice. 2: Dice by view and phase, and by image quality. 3: distances in mm, raw and after keeping the largest
    component; missing structures; agreement of ejection fraction and volumes with those of the expert's labels.
    """
    raw = {name: {"structure": name, "processing": "raw"} for name in STRUCTURES}
    if number == 1:
        return {name: (selection, "dice", "mean") for name, selection in raw.items()}
    if number == 2:
        groups = {f"{view} {phase}": {"view": view, "phase": phase} for view, phase in VIEW_PHASES}
        groups |= {quality: {"quality": quality} for quality in QUALITIES}
        return {f"{n}, {g}": (raw[n] | groups[g], "dice", "mean") for n in STRUCTURES for g in groups}
    if number == 3:
        rows, kept = {}, {"processing": "largest component"}
        for name, selection in raw.items():
            rows |= {f"{name}, {title}": (selection, c, "mean") for c, title in DISTANCES.items()}
            rows |= {f"{name}, {t}, largest component": (selection | kept, c, "mean") for c, t in DISTANCES.items()}
            rows[f"{name}, missing"] = (selection, "hd95_mm", "missing")
        return rows | {f"{t}, {m}": ({}, c, measure) for c, t in VOLUMES.items() for measure, m in MEASURES.items()}
    raise ValueError(f"there is no table {number}: choose 1, 2 or 3")


def select(row: tuple[dict[str, str], str, str], train: str, scores: pd.DataFrame, volumes: pd.DataFrame):
    """The rows of `scores` or `volumes` that a table's cell is made of."""
    selection, column, _measure = row
    source = volumes if column in VOLUMES else scores
    return source[(source[["train", *selection]] == [train, *selection.values()]).all(axis=1)]


def cell(row: tuple[dict[str, str], str, str], rows: pd.DataFrame, seed: int) -> str:
    """A cell's text from the rows that `select` found.

    A mean: mean ± sd over frames [95 % interval over patients], seeds ± sd over seeds, Dice in %, distances in mm.
    Missing structures: how many of those that label or prediction has, over all seeds. Agreement: means over seeds.
    """
    _selection, column, measure = row
    if measure == "missing":
        return f"{(rows['dice'].notna() & rows[column].isna()).sum()} of {rows['dice'].count()}"
    if not rows[column].count():
        return "–"
    if measure == "mean":
        s, scale, digits = summary(rows, column, seed), *((100, 1) if column == "dice" else (1, 2))
        mean, sd, low, high, seed_sd = (
            f"{scale * s[name]:.{digits}f}" for name in ("mean", "sd", "low", "high", "seed_sd")
        )
        interval = f" [{low}, {high}]" if s["patients"] > 1 else ""
        return f"{mean} ± {sd}{interval}" + (f", seeds ± {seed_sd}" if s["seeds"] > 1 else "")
    found = agreement(rows, column)
    if measure == "limits":
        return f"{found['low']:+z.1f} to {found['high']:+z.1f}"
    return f"{found[measure]:{ {'bias': '+z.1f', 'mae': '.1f', 'r': '.2f'}[measure] }}"


def agreement(volumes: pd.DataFrame, column: str) -> pd.Series:
    """`statistics.bland_altman` of a training set's `column` against the expert's, averaged over training seeds."""
    seeds = volumes.groupby("seed")
    return pd.DataFrame([bland_altman(rows[column], rows[f"expert_{column}"]) for _seed, rows in seeds]).mean()


def table(number: int, scores: pd.DataFrame, volumes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Table 1, 2 or 3 (`table_rows`), with a column for each training set; see `cell`.

    Table 1 has `published_columns` first.

    Args:
        scores, volumes: as `segmenter.score` returns them, with the columns train and seed.
        seed: of the bootstrap.
    """
    columns = published_columns() if number == 1 else {}
    for train, title in all_rows(scores["train"]).items():
        columns[title] = {
            name: cell(row, select(row, train, scores, volumes), seed) for name, row in table_rows(number).items()
        }
    return pd.DataFrame(columns).rename_axis(["structure", "structure and frames", "measure"][number - 1])


def difference_table(scores: pd.DataFrame, seed: int, pairs: list[tuple[str, str]] | None = None) -> pd.DataFrame:
    """`statistics.differences` as text; by default each main row less real-only, and synthetic less real of any other
    recipe."""
    names = all_rows(scores["train"])
    if pairs is None:
        others = [(train, train.replace("synthetic, ", "real, ")) for train in names if train.startswith("synthetic, ")]
        pairs = [(train, "real") for train in main_rows(scores["train"]) if train != "real"]
        pairs += [pair for pair in others if pair[1] in names]
    found = differences(scores, pairs, seed)
    found[["training set", "less"]] = found[["train", "reference"]].replace(names)
    intervals = found[["difference", "low", "high"]].to_numpy()
    found["difference"] = [f"{gap:+z.1f} [{low:+z.1f}, {high:+z.1f}]" for gap, low, high in intervals]
    found["seeds"] = [f"± {se:.1f}" if se == se else "–" for se in found["seed_se"]]
    for column in ("p", "p_holm"):
        found[column] = [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in found[column]]
    found["equivalent"] = found["equivalent"].map({True: "yes", False: "no"})
    return found.set_index("structure")[["training set", "less", "difference", "seeds", "p", "p_holm", "equivalent"]]


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, index first."""
    header = [table.index.name or "", *map(str, table.columns)]
    rows = [header, ["---"] * len(header), *([str(v) for v in row] for row in table.itertuples())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_scores(scores: pd.DataFrame, volumes: pd.DataFrame, folder: Path) -> None:
    """Write `scores.csv`, `volumes.csv` and, from the scores, `dice_frames.csv`, all rounded."""
    scores = scores.round({"dice": 5, "hd95_mm": 3, "assd_mm": 3})
    for name, table in (("scores", scores), ("volumes", volumes.round(3)), ("dice_frames", dice_frames(scores))):
        write_csv(folder / f"{name}.csv", table)


def write_tables(scores: pd.DataFrame, volumes: pd.DataFrame, folder: Path, seed: int) -> None:
    """Write scores, volumes (`write_scores`) and all that is made of them.

    `table_1`, `table_2`, `table_3` and `differences`, each as .csv, .md and .tex; and the Dice alone: `dice.csv` and
    `comparison.md`. Tables are made of the files, whose scores are rounded, so they can be made again from them.
    """
    write_scores(scores, volumes, folder)
    scores, volumes, frames = (pd.read_csv(folder / f"{name}.csv") for name in ("scores", "volumes", "dice_frames"))
    dice = dice_table(frames)
    named = {f"table_{n}": table(n, scores, volumes, seed) for n in (1, 2, 3)}
    named["differences"] = difference_table(scores, seed)
    files = {"dice.csv": dice.to_csv(index=False), "comparison.md": markdown(comparison(dice)) + "\n"}
    for name, made in named.items():
        files[f"{name}.csv"], files[f"{name}.md"] = made.to_csv(), markdown(made) + "\n"
        files[f"{name}.tex"] = made.reset_index().to_latex(index=False, escape=True).replace("±", r"$\pm$")
    for name, text in files.items():
        write_text(folder / name, text)
