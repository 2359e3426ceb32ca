"""The trainings that a run consists of: each in a folder of its own, with its inputs; a finished one is loaded."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from monai.networks.nets import UNet

from echo.config import Profile
from echo.frames import Frames
from echo.resume import digest, write_json
from echo.segmenter import load_segmenter, train_segmenter
from echo.training import second_stage, train
from reproduction.runs.inputs import begin, recorded
from reproduction.runs.table import segmenter_settings
from reproduction.studies.grid import OWN, Cell, main_cells, recipe, some_patients
from reproduction.synthesis.generate import ENLARGER, generate, model_groups
from reproduction.synthesis.synthetic_set import load_synthetic


def train_cell(
    cell: Cell,
    profile: Profile,
    real: tuple[Frames, Frames],
    painted: Path,
    segmenters: Path,
    seed: int,
) -> UNet:
    """Train a cell's segmenter, or load it if nothing that it depends on has changed.

    A cell that sees no real image chooses its best epoch on synthetic images too; one with a share of the patients, on
    that share of the validation patients.

    Args:
        real: training and validation frames, all of them.
        painted: the run's synthetic set; its `inputs.json` stands for the data too. What another `Cell.generator`
            paints is made when it is missing.
        segmenters: the folder to keep networks in; other generators are kept beside it.
        seed: of the run; it chooses the patients of a share.
    """
    folder, config = segmenters / cell.name, recipe(cell, profile)
    (before, _), source, one = recorded(painted), painted, replace(config, seeds=1)
    inputs, old = {"synthetic": before}, before
    if cell.generator != "run":
        inputs |= {"seed": seed, "own_steps": profile.grid.own_steps}
        old = digest(before, seed, profile.grid.own_steps)
    training = {"seed": seed, "training": asdict(cell), "segmenter": segmenter_settings(one)}
    begin(folder, inputs | training, lambda: digest(old, seed, repr(cell), repr(one)))
    if (folder / "model.safetensors").exists():
        return load_segmenter(config, folder, real[0].classes)
    if cell.generator != "run":
        source = segmenters.with_name("generators") / cell.generator.replace(" ", "-")
        begin(source, inputs, lambda: old)
        source = other_generator(cell.generator, profile, *real, source, seed)
    sets, validation, start = [], None, None
    if cell.synthetic and not cell.finetuned:
        synthetic = [load_synthetic(source, split, cell.drop_worst) for split in ("training", "validation")]
        # The plan is sorted by view and phase, so every k-th row is a fair share of each.
        rows = np.arange(0, len(synthetic[0]), round(1 / cell.synthetic))
        sets, validation = [synthetic[0].select(rows)], synthetic[1]
    if cell.finetuned:
        wanted = replace(cell, real=0.0, finetuned=False)
        first = next(c for c in main_cells(profile, seed) if replace(c, row=cell.row) == wanted)
        start = train_cell(first, profile, real, painted, segmenters, seed)
    if cell.real:
        sets = [some_patients(real[0], cell.real, seed), *sets]
        validation = some_patients(real[1], cell.real, seed)
    profile = replace(profile, segmenter=config)
    return train_segmenter(profile, sets, validation, folder, cell.seed, f"{cell.row}, seed {cell.seed}", start)


def train_cells(
    cells: list[Cell], profile: Profile, real: tuple[Frames, Frames], painted: Path, segmenters: Path, seed: int
) -> None:
    """`train_cell` for each; their names go into `planned.json` first."""
    write_json(segmenters / "planned.json", [cell.name for cell in cells])
    for cell in cells:
        train_cell(cell, profile, real, painted, segmenters, seed)


def train_generator(profile: Profile, training: Frames, validation: Frames, folder: Path, seed: int) -> None:
    """Train the diffusion model, or one for each view and phase that the training frames have, below `folder`, and a
    cascade's second stage, which serves all; resumes."""
    groups = np.array(model_groups(profile, training.classes))
    of_frames = [groups[f.index["class_label"]] for f in (training, validation)]
    for group in dict.fromkeys(groups):
        if group in of_frames[0]:
            parts = (f.select(of == group) for f, of in zip((training, validation), of_frames, strict=True))
            train(profile, *parts, folder / group, seed)
    if profile.enlarger:
        train(profile, training, validation, folder / ENLARGER, seed, second_stage)


def other_generator(
    generator: str, profile: Profile, training: Frames, validation: Frames, folder: Path, seed: int
) -> Path:
    """Train a `Cell.generator` other than the run's and paint its synthetic set, below `folder`; resumes.

    Returns:
        The folder of the set.
    """
    kind, _, share = generator.partition(" ")  # "own 0.05", or "again 1"
    if kind == OWN:
        training, validation = (some_patients(f, float(share), seed) for f in (training, validation))
        steps = round(profile.training.steps * profile.grid.own_steps)
        profile = replace(profile, training=replace(profile.training, steps=steps))
    else:
        seed += int(share)
    if not (folder / "synthetic" / "manifest.csv").exists():
        train_generator(profile, training, validation, folder / "diffusion", seed)
        generate(folder / "diffusion", training, validation, profile, folder / "synthetic", seed)
    return folder / "synthetic"
