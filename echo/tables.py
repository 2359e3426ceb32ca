"""The Dice tables: from one row a frame to the paper's row, beside the paper's own numbers."""

import pandas as pd

from echo.labels import STRUCTURES
from echo.paths import PAPER_RESULTS

TRAIN_NAMES = {"real": "real-only", "synthetic": "synthetic-only"}


def paper_results(source: str = "published abstract") -> pd.DataFrame:
    """The paper's numbers: dice_mean, dice_sd and relative_gain in %, indexed by structure."""
    table = pd.read_csv(PAPER_RESULTS)
    return table[table["source"] == source].set_index("structure").drop(columns="source")


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
    table[["dice_mean", "dice_sd"]] = (100 * table[["dice_mean", "dice_sd"]]).round(2)
    return table


def comparison(dice: pd.DataFrame) -> pd.DataFrame:
    """structure | paper | real-only | synthetic-only | difference: mean ± sd in %, means over segmenter seeds.

    The difference is ours, synthetic-only less real-only, in Dice points. The paper published no real-only row.
    """
    ours = dice.groupby(["structure", "train"])[["dice_mean", "dice_sd"]].mean()
    paper = paper_results()
    rows = []
    for structure in STRUCTURES:
        row = {"structure": structure, "paper": spread(paper.loc[structure])}
        for train, name in TRAIN_NAMES.items():
            row[name] = spread(ours.loc[structure, train])
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


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, index first."""
    header = [table.index.name or "", *map(str, table.columns)]
    rows = [header, ["---"] * len(header), *([str(v) for v in row] for row in table.itertuples())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
