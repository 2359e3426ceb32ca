"""The experiment grid: every training of a segmenter that the tables compare, declared in one place.

A row of a table is a training set; a training is a row with one seed.
"""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from echo.config import Profile, SegmenterConfig
from echo.frames import Frames
from echo.segmenter import load_segmenter
from reproduction.datasets.prepare import Source
from reproduction.evaluation.segmentation import score
from reproduction.evaluation.tables import with_dashes


def percent(share: float) -> str:
    """0.125 as "12.5%"."""
    return f"{100 * share:g}%"


@dataclass(frozen=True)
class Training:
    """One training of a segmenter.

    Attributes:
        row: its name in the tables.
        seed: of the segmenter.
        real, synthetic: shares of the training patients, and of the synthetic images, that it sees.
        finetuned: on the synthetic images first, then on the real ones; else on both at once, half a batch each.
        recipe: "strong" or "paper", of the profile's two segmenters; empty for the profile's first.
        generator_seed: how much higher the seed of its generator is than the run's.
        generator_patients: the share of the training patients that its generator was trained on.
        drop_worst: percentage of the synthetic images left out, by label fidelity (`synthetic_set.filter_worst`).
    """

    row: str
    seed: int
    real: float = 0.0
    synthetic: float = 0.0
    finetuned: bool = False
    recipe: str = ""
    generator_seed: int = 0
    generator_patients: float = 1.0
    drop_worst: float = 0.0

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.row.lower()).strip('-')}-{self.seed}"

    @property
    def generator(self) -> str:
        """The name of its generator's folder; empty for the run's own generator."""
        if self.generator_patients < 1:
            return f"own-{self.generator_patients}"
        return f"again-{self.generator_seed}" if self.generator_seed else ""

    def record(self, profile: Profile) -> dict:
        """What `inputs.json` keeps of it, in the words of the first runs, so that those stay valid."""
        kept = {k: v for k, v in asdict(self).items() if not k.startswith("generator_")}
        recipe = "own" if self.recipe in ("", profile.segmenter.recipe) else "other"
        return kept | {"recipe": recipe, "generator": self.generator.replace("-", " ") or "run"}


def segmenter_of(training: Training, profile: Profile) -> SegmenterConfig:
    """The profile's segmenter of the training's recipe."""
    first, second = profile.segmenter, profile.other_segmenter
    return first if training.recipe in ("", first.recipe) else second


def main_trainings(profile: Profile, seed: int) -> list[Training]:
    """The rows of the main table, each with every seed of its recipe: real only, synthetic only, both, synthetic and
    then real; and the first two by the profile's second recipe. Rows with synthetic images of other seeds of the
    generator have one seed of the segmenter."""
    second = profile.other_segmenter.recipe
    rows = [
        Training("real", 0, real=1.0),
        Training("synthetic", 0, synthetic=1.0),
        Training("both", 0, real=1.0, synthetic=1.0),
        Training("finetuned", 0, real=1.0, synthetic=1.0, finetuned=True),
        Training(f"real, {second} recipe", 0, real=1.0, recipe=second),
        Training(f"synthetic, {second} recipe", 0, synthetic=1.0, recipe=second),
    ]
    trainings = [replace(row, seed=seed + k) for row in rows for k in range(segmenter_of(row, profile).seeds)]
    for k in range(1, profile.generators):
        trainings.append(Training(f"synthetic, generator {k + 1}", seed, synthetic=1.0, generator_seed=k))
        trainings.append(Training(f"both, generator {k + 1}", seed, real=1.0, synthetic=1.0, generator_seed=k))
    return trainings


def study_trainings(profile: Profile, seed: int) -> list[Training]:
    """What the study of notebook 09 adds: fewer synthetic images, and the best of them; fewer patients, with and
    without synthetic images of the run's generator, and of one trained on those patients alone; a second seed of the
    generator."""
    grid = profile.grid
    rows = [Training(f"synthetic {percent(share)}", seed, synthetic=share) for share in grid.synthetic_shares]
    for worst in grid.drop_worst:
        rows.append(Training(f"synthetic, worst {worst:g}% dropped", seed, synthetic=1.0, drop_worst=worst))
    for share in grid.real_shares:
        rows.append(Training(f"real {percent(share)}", seed, real=share))
        rows.append(Training(f"real {percent(share)} + synthetic", seed, real=share, synthetic=1.0))
    for share in grid.own_shares:
        of_few = Training(f"synthetic of {percent(share)}", seed, synthetic=1.0, generator_patients=share)
        rows += [of_few, replace(of_few, row=f"real {percent(share)} + {of_few.row}", real=share)]
    if grid.generator_again:
        rows.append(Training("synthetic, generator again", seed, synthetic=1.0, generator_seed=1))

    def seeds(row: Training) -> int:
        return grid.few_seeds if row.real in grid.own_shares or row.generator_patients < 1 else 1

    return [replace(row, seed=seed + k) for row in rows for k in range(seeds(row))]


def some_patients(frames: Frames, share: float, seed: int) -> Frames:
    """The frames of a share of the patients, two at least. Smaller shares are part of larger ones."""
    patients = np.random.default_rng((seed, 0x9A7)).permutation(frames.index["patient"].unique())
    chosen = patients[: max(2, round(share * len(patients)))]
    return frames.select(frames.index["patient"].isin(chosen).to_numpy())


def score_trainings(
    trainings: list[Training], profile: Profile, segmenters: Path, source: Source
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score trained segmenters on the real test frames: `segmentation.score`'s tables, with the columns train (the row)
    and seed before."""
    found = []
    for training in trainings:
        config = segmenter_of(training, profile)
        network = load_segmenter(config, segmenters / training.name, source.classes)
        scored = score(network, source, source.patients("testing"), profile.image_size, config.flip_test)
        for table in scored:
            table.insert(0, "train", training.row)
            table.insert(1, "seed", training.seed)
        found.append(scored)
    scores, volumes = (pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True))
    return scores, volumes


def training_sets(trainings: list[Training], profile: Profile) -> pd.DataFrame:
    """What each row of the tables is trained on: an attribute of `Training` a column, and how many seeds it has."""
    table = pd.DataFrame([replace(t, recipe=segmenter_of(t, profile).recipe) for t in trainings])
    seeds = table["row"].value_counts()
    return table.drop(columns="seed").drop_duplicates("row").set_index("row").assign(seeds=seeds)


def raw_scores(tables: list[pd.DataFrame], rows: pd.DataFrame) -> pd.DataFrame:
    """The test scores, as predicted, of the rows of `training_sets`, from the scores of several stages."""
    scores = pd.concat(tables)
    return scores[(scores["processing"] == "raw") & scores["train"].isin(rows.index)]


def points(scores: pd.DataFrame, series: dict[str, pd.Series]) -> pd.DataFrame:
    """Mean Dice (0 to 1) of each structure, series (train), amount (x) and seed.

    Args:
        series: by name, the amount that each of its rows was trained on, by row.
    """
    found = [
        scores[scores["train"].isin(amounts.index)].assign(x=lambda s, a=amounts: s["train"].map(a), train=name)
        for name, amounts in series.items()
    ]
    keys = ["structure", "train", "x", "seed"]
    return pd.concat(found).groupby(keys, as_index=False, sort=False)["dice"].mean()


def dice_by_images(scores: pd.DataFrame, rows: pd.DataFrame, images: int, name: str) -> pd.DataFrame:
    """`points` of the rows with synthetic images alone, of the run's own generator, over the number of these images.

    Args:
        rows: of `training_sets`.
        images: synthetic training images of the run.
        name: of the series.
    """
    plain = (rows[["real", "drop_worst", "generator_seed"]] == 0).all(axis=1) & (rows["generator_patients"] == 1)
    return points(scores, {name: images * rows.loc[plain, "synthetic"]})


def dice_by_patients(scores: pd.DataFrame, rows: pd.DataFrame, patients: int) -> pd.DataFrame:
    """`points` over the number of training patients, with synthetic images and without.

    Args:
        rows: of `training_sets`.
        patients: training patients of the run.
    """
    few, real = rows["generator_patients"] < 1, rows["real"] > 0
    all_images = ~few & (rows["synthetic"] == 1) & ~rows["finetuned"]
    kinds = {
        "real": real & (rows["synthetic"] == 0),
        "real + synthetic of all patients": real & all_images,
        "real + synthetic of the same patients": real & few | (rows.index == "both"),
        "synthetic of the same patients": ~real & few | (rows.index == "synthetic"),
    }
    count = (patients * rows["real"].where(real, rows["generator_patients"])).round().astype(int)
    return points(scores, {name: count[kind] for name, kind in kinds.items()})


def comparisons(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of rows to be compared: what is added against what it is added to, and each synthetic-only row against the
    full one."""
    added = [(row, row.split(" + ")[0]) for row in rows.index if " + " in row]
    return added + [(row, "synthetic") for row in rows.index if row.startswith("synthetic") and row != "synthetic"]


def scaling_table(points: pd.DataFrame) -> pd.DataFrame:
    """`points` as a table: mean Dice over structures and seeds in %; a row is a series, a column an amount."""
    table = points.pivot_table(index="train", columns="x", values="dice").reindex(points["train"].unique())
    return with_dashes((100 * table).round(1).rename_axis("mean Dice, %"))
