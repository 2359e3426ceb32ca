"""The experiment grid: every training of a segmenter that the tables compare, declared in one place.

A row of a table is a kind of training set; a cell is one training, a row with one seed.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from echo.config import Profile, SegmenterConfig
from echo.frames import Frames
from echo.segmenter import load_segmenter
from reproduction.datasets.camus import Camus
from reproduction.evaluation.segmentation import score

OWN = "own"  # the generator that is trained on the very patients a cell is


def percent(share: float) -> str:
    """0.125 as "12.5%"."""
    return f"{100 * share:g}%"


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        row: its name in the tables.
        seed: of the segmenter.
        real, synthetic: shares of the training patients, and of the synthetic images, that it sees.
        finetuned: on the synthetic images first, then on the real ones; else on both at once, half a batch each.
        recipe: "own" is the profile's `segmenter`, "other" its `other_segmenter`.
        generator: what painted the synthetic images: "run", the run's own; "again K", the same with a seed K higher;
            "own SHARE", one that was trained on this cell's patients alone.
        drop_worst: percentage of the synthetic images left out, by label fidelity (`synthetic_set.filter_worst`).
    """

    row: str
    seed: int
    real: float = 0.0
    synthetic: float = 0.0
    finetuned: bool = False
    recipe: str = "own"
    generator: str = "run"
    drop_worst: float = 0.0

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.row.lower()).strip('-')}-{self.seed}"


def main_cells(profile: Profile, seed: int) -> list[Cell]:
    """The rows of the main table, each with every seed of its recipe: real only, synthetic only, both, synthetic and
    then real; and the first two by the other recipe. Rows with synthetic images of other seeds of the generator have
    one seed of the segmenter."""
    other = f"{profile.other_segmenter.recipe} recipe"
    rows = [
        Cell("real", 0, real=1.0),
        Cell("synthetic", 0, synthetic=1.0),
        Cell("both", 0, real=1.0, synthetic=1.0),
        Cell("finetuned", 0, real=1.0, synthetic=1.0, finetuned=True),
        Cell(f"real, {other}", 0, real=1.0, recipe="other"),
        Cell(f"synthetic, {other}", 0, synthetic=1.0, recipe="other"),
    ]
    cells = [replace(row, seed=seed + k) for row in rows for k in range(recipe(row, profile).seeds)]
    for k in range(1, profile.generators):
        cells.append(Cell(f"synthetic, generator {k + 1}", seed, synthetic=1.0, generator=f"again {k}"))
        cells.append(Cell(f"both, generator {k + 1}", seed, real=1.0, synthetic=1.0, generator=f"again {k}"))
    return cells


def study_cells(profile: Profile, seed: int) -> list[Cell]:
    """What the study of notebook 09 adds: fewer synthetic images, and the best of them; fewer patients, with and
    without synthetic images of the run's generator, and of one trained on those patients alone; a second seed of the
    generator."""
    grid = profile.grid
    cells = [Cell(f"synthetic {percent(share)}", seed, synthetic=share) for share in grid.synthetic_shares]
    for worst in grid.drop_worst:
        cells.append(Cell(f"synthetic, worst {worst:g}% dropped", seed, synthetic=1.0, drop_worst=worst))
    for share in grid.real_shares:
        cells.append(Cell(f"real {percent(share)}", seed, real=share))
        cells.append(Cell(f"real {percent(share)} + synthetic", seed, real=share, synthetic=1.0))
    for share in grid.own_shares:
        cells.append(Cell(f"synthetic of {percent(share)}", seed, 0.0, 1.0, generator=f"{OWN} {share}"))
        cells.append(
            Cell(f"real {percent(share)} + synthetic of {percent(share)}", seed, share, 1.0, generator=f"{OWN} {share}")
        )
    again = Cell("synthetic, generator again", seed, synthetic=1.0, generator="again 1")
    cells += [again] * grid.generator_again

    def seeds(cell: Cell) -> int:
        return grid.few_seeds if cell.real in grid.own_shares or cell.generator.startswith(OWN) else 1

    return [replace(cell, seed=seed + k) for cell in cells for k in range(seeds(cell))]


def some_patients(frames: Frames, share: float, seed: int) -> Frames:
    """The frames of a share of the patients, two at least. Smaller shares are part of larger ones."""
    patients = np.random.default_rng((seed, 0x9A7)).permutation(frames.index["patient"].unique())
    chosen = patients[: max(2, round(share * len(patients)))]
    return frames.select(frames.index["patient"].isin(chosen).to_numpy())


def recipe(cell: Cell, profile: Profile) -> SegmenterConfig:
    """The segmenter of a cell."""
    return profile.segmenter if cell.recipe == "own" else profile.other_segmenter


def score_cells(cells: list[Cell], profile: Profile, segmenters: Path, raw: Camus) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score trained segmenters on the real test frames: `segmenter.score`'s tables, with the columns train (the row)
    and seed before."""
    parts = []
    for cell in cells:
        config = recipe(cell, profile)
        network = load_segmenter(config, segmenters / cell.name)
        found = score(network, raw, raw.patients("testing"), profile.image_size, config.flip_test)
        for table in found:
            table.insert(0, "train", cell.row)
            table.insert(1, "seed", cell.seed)
        parts.append(found)
    scores, volumes = (pd.concat(found, ignore_index=True) for found in zip(*parts, strict=True))
    return scores, volumes
