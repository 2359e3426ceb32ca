"""What a sampler, its number of steps and its guidance scale are worth."""

import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from monai.networks.nets import UNet

from echo.config import GenerationConfig, Profile
from echo.dice import frame_dice
from echo.frames import Frames
from echo.resume import read_csv, write_csv
from echo.sampler import SCHEDULERS, paint_all
from echo.segmenter import predict
from echo.unet import SemanticUNet
from reproduction.evaluation.images import (
    features,
    frechet_distance,
    kernel_distance,
    ms_ssim,
    or_nan,
)
from reproduction.evaluation.segmentation import mean_dice
from reproduction.evaluation.tables import with_dashes


def settings(profile: Profile) -> list[tuple[str, int, float]]:
    """What to compare: (sampler, steps, guidance scale). Guidance is swept for the profile's own sampler and steps, if
    its network was trained with label dropout."""
    config, chosen = profile.study, profile.generation
    fast = [(sampler, steps, 1.0) for sampler, steps in product(SCHEDULERS, config.steps)]
    scales = config.guidance if profile.training.label_dropout else ()
    guided = [(chosen.scheduler, chosen.num_inference_steps, scale) for scale in scales]
    return list(dict.fromkeys([*fast, ("ddpm", config.ddpm_steps, 1.0), *guided]))


def measures(images: np.ndarray, frames: Frames, segmenter: UNet) -> dict[str, float]:
    """What a segmenter trained on real images finds in synthetic ones, uint8 (2, N, S, S): two for each of N frames.

    Label fidelity: Dice in % of its label maps against those the images were painted for. Realism: Frechet and kernel
    distance of its features to those of the frames' own real images. Diversity: MS-SSIM of the two images of one label
    map, lower being more diverse. NaN where there are too few images.
    """
    both = images.reshape(-1, *images.shape[2:])
    labels = np.concatenate([frames.labels] * len(images))
    dice = frame_dice(predict(segmenter, both), labels, frames.classes).mean() * 100
    found, real = features(segmenter, both), features(segmenter, frames.images)
    return dice.to_dict() | {
        "mean Dice": dice.mean(),
        "frechet_distance": or_nan(frechet_distance, found, real),
        "kernel_distance": or_nan(kernel_distance, found, real),
        "ms_ssim": float(ms_ssim(*images).mean()),
    }


def sampler_study(
    models: dict[int, SemanticUNet], frames: Frames, segmenter: UNet, profile: Profile, file: Path, seed: int
) -> pd.DataFrame:
    """Paint two images for every frame's label map by each sampler, number of steps and guidance scale; measure them.

    Rows are written to `file` (CSV) as they are made, and those there are kept. `seconds_per_image` is of this
    machine, in the batches of the profile.
    """
    rows = read_csv(file).to_dict("records") if file.exists() else []
    done = {(r["sampler"], r["steps"], r["guidance_scale"]) for r in rows}
    classes = frames.index["class_label"].to_numpy()
    for setting in settings(profile):
        if setting in done:
            continue
        sampler, steps, scale = setting
        options = {"scheduler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
        images = np.zeros((2, *frames.images.shape), np.uint8)
        clock = time.perf_counter()
        for k in range(2):
            seeds = seed + 2 * np.arange(len(frames)) + k
            images[k] = paint_all(models, profile, frames.sdm_labels, classes, seeds, **options)
        seconds = (time.perf_counter() - clock) / (2 * len(frames))
        row = {"sampler": sampler, "steps": steps, "guidance_scale": scale, "seconds_per_image": seconds}
        rows.append(row | measures(images, frames, segmenter))
        write_csv(file, pd.DataFrame(rows), float_format="%.6g")
        print(
            f"{sampler}, {steps} steps, guidance {scale}: {rows[-1]['mean Dice']:.1f} % Dice, {seconds:.3f} s an image"
        )
    return pd.DataFrame(rows)


def references(training: Frames, frames: Frames, segmenter: UNet) -> pd.Series:
    """The `measures` of real images: Dice in % of the frames' own, distances of other patients' images (as many)."""
    dice = mean_dice(segmenter, frames)
    others = training.images[np.linspace(0, len(training) - 1, min(len(training), 2 * len(frames))).astype(int)]
    found, real = features(segmenter, others), features(segmenter, frames.images)
    measures = {"frechet_distance": frechet_distance, "kernel_distance": kernel_distance}
    distances = {name: or_nan(measure, found, real) for name, measure in measures.items()}
    return pd.Series(dice.to_dict() | {"mean Dice": dice.mean()} | distances)


def by_steps(study: pd.DataFrame, measure: str, digits: int) -> pd.DataFrame:
    """A measure of `sampler_study` without guidance: a row for each number of steps, a column for each sampler."""
    table = study[study["guidance_scale"] == 1].pivot(index="steps", columns="sampler", values=measure)
    return with_dashes(table[list(SCHEDULERS)].round(digits))


def guidance_sweep(study: pd.DataFrame, generation: GenerationConfig) -> pd.DataFrame:
    """The rows of `sampler_study` with the profile's own sampler and steps, in the order of their guidance scale."""
    chosen = study[["sampler", "steps"]] == [generation.scheduler, generation.num_inference_steps]
    return study[chosen.all(axis=1)].sort_values("guidance_scale", ignore_index=True)
