"""Generation: a synthetic, labelled data set, painted for augmented label maps of real patients.

Training images come from training patients' label maps and validation images from validation patients', so a
segmenter can be trained and chosen on synthetic images alone.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from skimage.io import imread, imsave

from echo.augment import augment
from echo.config import PAPER, VIEW_PHASES, Profile
from echo.dataset import Frames
from echo.device import autocast, get_device, tune_cpu
from echo.labels import one_hot, sector_of, to_camus, to_sdm
from echo.paths import atomic
from echo.progress import tqdm
from echo.sampler import SemanticDiffusionPipeline, make_scheduler
from echo.unet import SemanticUNet


def paint(
    unet: SemanticUNet,
    profile: Profile,
    sdm_labels: NDArray[np.uint8],
    class_labels: NDArray,
    seeds: list[int],
    **options,
) -> NDArray[np.uint8]:
    """Echoes uint8 (B, S, S) for SDM label maps (B, S, S), sampled as the profile says.

    Args:
        class_labels: places in `config.VIEW_PHASES` (B,).
        seeds: one for each image.
        options: `scheduler`, `num_inference_steps`, `guidance_scale` or `trajectory`, to depart from the profile.
    """
    tune_cpu()
    generation, training = profile.generation, profile.training
    name = options.pop("scheduler", generation.scheduler)
    scheduler = make_scheduler(
        name, training.prediction_type, profile.unet.learned_variance, training.num_train_timesteps
    )
    pipeline = SemanticDiffusionPipeline(unet, scheduler)
    settings = {
        "num_inference_steps": generation.num_inference_steps,
        "guidance_scale": generation.guidance_scale,
    } | options
    labels = torch.tensor(np.asarray(class_labels).tolist())
    with autocast(training.precision, unet.device):
        images = pipeline(one_hot(sdm_labels), labels, seeds=seeds, **settings)
    return (images.mean(1) * 255).round().to(torch.uint8).numpy()


def paint_released(
    checkpoint: str | Path, sdm_labels: NDArray[np.uint8], seeds: list[int], **options
) -> NDArray[np.uint8]:
    """Echoes uint8 (B, S, S) for SDM label maps (B, S, S), by one of the authors' checkpoints; S is 256 for theirs.

    Args:
        checkpoint: `ema_0.9999_050000_*.pt`; there is one for each view and phase.
        options: as for `paint`; by default the paper's 1000 steps of DDPM.

    Raises:
        ValueError: when the file is not such a checkpoint.
    """
    unet = SemanticUNet.from_released(checkpoint, image_size=sdm_labels.shape[-1])
    unet.to(get_device(), memory_format=torch.channels_last)
    return paint(unet, PAPER, sdm_labels, np.zeros(len(sdm_labels), int), seeds, **options)


def augmented_map(frames: Frames, source: int, seed: int, profile: Profile) -> tuple[NDArray[np.uint8], int]:
    """The augmented SDM label map (S, S) of a source frame, a function of `seed`, and the draws it rejected."""
    sector = sector_of(frames.sdm_labels[source])
    new = augment(frames.labels[source], profile.augmentation, np.random.default_rng(seed))
    return to_sdm(new.label, sector), new.rejected


def plan(training: Frames, validation: Frames, profile: Profile, seed: int) -> pd.DataFrame:
    """One row an image to paint: id, split, source (row of its split), patient, view, phase, class_label, seed.

    Sources are taken in turn from a shuffled order, so each is used equally often; rows are sorted by view and phase,
    which makes batches of one class for profiles with a model each.
    """
    rng = np.random.default_rng((seed, 0xEC40))
    tables = []
    for split, frames, count in (
        ("training", training, profile.generation.images),
        ("validation", validation, profile.generation.validation_images),
    ):
        rounds = -(-count // len(frames))
        sources = np.concatenate([rng.permutation(len(frames)) for _ in range(rounds)])[:count]
        table = frames.index.iloc[sources][["patient", "view", "phase", "class_label"]].reset_index(drop=True)
        table.insert(0, "split", split)
        table.insert(1, "source", sources)
        tables.append(table)
    table = pd.concat(tables).sort_values(["split", "class_label"], kind="stable", ignore_index=True)
    table.insert(0, "id", [f"{k:06d}" for k in range(len(table))])
    table["seed"] = rng.integers(2**31, size=len(table))
    return table


def generate(
    models: dict[int, SemanticUNet],
    training: Frames,
    validation: Frames,
    profile: Profile,
    folder: Path,
    seed: int,
) -> pd.DataFrame:
    """Paint the whole data set into `folder`; images already there are kept.

    Each image is `images/ID.png` (8-bit grey), with its label map in CAMUS classes in `labels/ID.png` and in SDM
    classes, as the network was given it, in `conditions/ID.png`; `manifest.csv` has the plan's row of each, with the
    draws that its augmentation rejected. Batches have one fixed size (the last one of a class is padded), so that an
    image does not change with its batch's company.

    Args:
        models: the network for each class label of `config.VIEW_PHASES`.
    """
    table = plan(training, validation, profile, seed)
    size = profile.generation.batch_size
    frames = {"training": training, "validation": validation}
    bar = tqdm(total=len(table), desc="synthetic images", unit="image")
    rejected = []
    for (split, class_label), rows in table.groupby(["split", "class_label"], sort=False):
        for first in range(0, len(rows), size):
            batch = rows.iloc[first : first + size]
            maps, redraws = zip(
                *[augmented_map(frames[split], r.source, r.seed, profile) for r in batch.itertuples()],
                strict=True,
            )
            rejected += redraws
            targets = [folder / "images" / f"{k}.png" for k in batch["id"]]
            if not all(path.exists() for path in targets):
                take = np.resize(np.arange(len(batch)), size)
                seeds = batch["seed"].to_numpy()[take].tolist()
                classes = np.full(size, class_label)
                images = paint(models[class_label], profile, np.stack(maps)[take], classes, seeds)
                for path, image, label in zip(targets, images, maps, strict=False):
                    # The image is written last: where it exists, its label maps do too.
                    files = {"labels": to_camus(label), "conditions": label, "images": image}
                    for kind, pixels in files.items():
                        with atomic(folder / kind / path.name) as temporary:
                            imsave(temporary, pixels, check_contrast=False)
            bar.update(len(batch))
    bar.close()
    table["rejected"] = rejected
    with atomic(folder / "manifest.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def load_synthetic(folder: Path, split: str) -> Frames:
    """A split of the data set that `generate` wrote.

    Raises:
        FileNotFoundError: when the generation stage has not run.
    """
    if not (folder / "manifest.csv").exists():
        raise FileNotFoundError(
            f"{folder}: no synthetic images; run notebook 03 or `python -m echo reproduce --only generation`"
        )
    table = pd.read_csv(folder / "manifest.csv", dtype={"id": str}).query("split == @split").reset_index(drop=True)
    arrays = [
        np.stack([imread(folder / kind / f"{k}.png") for k in table["id"]])
        for kind in ("images", "labels", "conditions")
    ]
    return Frames(*arrays, table)


def load_models(folder: Path, profile: Profile) -> dict[int, SemanticUNet]:
    """The trained network for each class label: one for all, or one each (`profile.per_view_phase`).

    Raises:
        FileNotFoundError: when the diffusion stage has not run.
    """
    networks, models = {}, {}
    for k, group in enumerate(model_groups(profile)):
        path = folder / group / "model"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no diffusion model; run notebook 02 or `python -m echo reproduce --only diffusion`"
            )
        if group not in networks:
            networks[group] = (
                SemanticUNet.from_pretrained(path, torch_dtype=torch.float32)
                .to(get_device(), memory_format=torch.channels_last)
                .eval()
            )
        models[k] = networks[group]
    return models


def model_groups(profile: Profile) -> list[str]:
    """The name of the model that serves each class label of `config.VIEW_PHASES`."""
    return [f"{view}_{phase}" if profile.per_view_phase else "all" for view, phase in VIEW_PHASES]
