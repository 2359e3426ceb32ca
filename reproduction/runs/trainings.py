"""The trainings that a run consists of: each in a folder of its own, with its inputs; a finished one is loaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from monai.networks.nets import UNet

from echo.config import SPLITS, Profile
from echo.frames import Frames
from echo.resume import digest, write_json
from echo.segmenter import load_segmenter, train_segmenter
from echo.training import second_stage, train
from reproduction.runs.inputs import begin, recorded
from reproduction.runs.table import segmenter_settings
from reproduction.studies.grid import Training, main_trainings, segmenter_of, some_patients
from reproduction.synthesis.generate import ENLARGER, generate, model_groups
from reproduction.synthesis.synthetic_set import load_synthetic


def generator_inputs(training: Training, profile: Profile, synthetic: Path, seed: int) -> dict:
    """What a training depends on by its generator; the digest of the run's synthetic dataset stands for the frames."""
    inputs = {"synthetic": recorded(synthetic)[0]}
    return inputs | ({"seed": seed, "own_steps": profile.grid.own_steps} if training.generator else {})


def begin_generator(training: Training, profile: Profile, synthetic: Path, segmenters: Path, seed: int) -> Path:
    """Open the folder of a training's own generator, beside that of the segmenters."""
    folder = segmenters.with_name("generators") / training.generator
    inputs = generator_inputs(training, profile, synthetic, seed)
    begin(folder, inputs, lambda: digest(inputs["synthetic"], seed, profile.grid.own_steps))
    return folder


def train_one(
    training: Training,
    profile: Profile,
    real: tuple[Frames, Frames],
    synthetic: Path,
    segmenters: Path,
    seed: int,
) -> UNet:
    """Train one segmenter, or load it if nothing that it depends on has changed.

    A training that sees no real image chooses its best epoch on synthetic images too; one with a share of the patients,
    on that share of the validation patients.

    Args:
        real: training and validation frames, all of them.
        synthetic: the folder of the run's synthetic dataset; its `inputs.json` stands for the real frames too. What
            another generator makes is made when it is missing.
        segmenters: the folder to keep networks in; other generators are kept beside it.
        seed: of the run; it chooses the patients of a share.
    """
    folder, config = segmenters / training.name, segmenter_of(training, profile)
    inputs, dataset = generator_inputs(training, profile, synthetic, seed), synthetic
    settings = {"seed": seed, "training": training.record(profile)}
    begin(folder, inputs | settings | {"segmenter": segmenter_settings(replace(config, seeds=1))})
    if (folder / "model.safetensors").exists():
        return load_segmenter(config, folder, real[0].classes)
    if training.generator:
        generator = begin_generator(training, profile, synthetic, segmenters, seed)
        dataset = train_other_generator(training, profile, *real, generator, seed)
    seen, validation, start = [], None, None
    if training.synthetic and not training.finetuned:
        images, validation = (load_synthetic(dataset, split, training.drop_worst) for split in SPLITS[:2])
        # The plan is sorted by view and phase, so every k-th row is a fair share of each.
        seen = [images.select(np.arange(0, len(images), round(1 / training.synthetic)))]
    if training.finetuned:
        wanted = replace(training, real=0.0, finetuned=False)
        first = next(t for t in main_trainings(profile, seed) if replace(t, row=training.row) == wanted)
        start = train_one(first, profile, real, synthetic, segmenters, seed)
    if training.real:
        some, validation = (some_patients(frames, training.real, seed) for frames in real)
        seen = [some, *seen]
    profile, title = replace(profile, segmenter=config), f"{training.row}, seed {training.seed}"
    return train_segmenter(profile, seen, validation, folder, training.seed, title, start)


def train_each(
    trainings: list[Training],
    profile: Profile,
    real: tuple[Frames, Frames],
    synthetic: Path,
    segmenters: Path,
    seed: int,
) -> None:
    """`train_one` for each; their names go into `planned.json` first."""
    write_json(segmenters / "planned.json", [training.name for training in trainings])
    for training in trainings:
        train_one(training, profile, real, synthetic, segmenters, seed)


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


def train_other_generator(
    training: Training, profile: Profile, real: Frames, validation: Frames, folder: Path, seed: int
) -> Path:
    """Train the generator of a training that has another than the run's, below `folder`, and make its synthetic
    dataset; resumes.

    Returns:
        The folder of the dataset.
    """
    if training.generator_patients < 1:
        real, validation = (some_patients(f, training.generator_patients, seed) for f in (real, validation))
        steps = round(profile.training.steps * profile.grid.own_steps)
        profile = replace(profile, training=replace(profile.training, steps=steps))
    seed += training.generator_seed
    if not (folder / "synthetic" / "manifest.csv").exists():
        train_generator(profile, real, validation, folder / "diffusion", seed)
        generate(folder / "diffusion", real, validation, profile, folder / "synthetic", seed)
    return folder / "synthetic"
