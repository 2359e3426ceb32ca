"""Generation: a synthetic, labelled dataset, painted for augmented label maps of real patients.

Training images come from training patients' label maps and validation images from validation patients', so a
segmenter can be trained and chosen on synthetic images alone.
"""

import hashlib
import json
import re
import tempfile
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import ModelMixin
from numpy.typing import NDArray

from echo.augment import augment
from echo.config import Profile
from echo.device import device_name, dividing_threads, get_device, supported_precision
from echo.enlarger import Enlarger
from echo.frames import Frames
from echo.labels import CAMUS, Classes, sector_of, to_sdm
from echo.progress import tqdm
from echo.resume import DamagedFile, read_csv, whole, write_csv, write_json
from echo.sampler import Cascade, paint
from echo.unet import SemanticUNet
from reproduction.datasets.layout import write_png
from reproduction.synthesis.shapes import ShapeModel, fit_shapes, sample_shape
from reproduction.synthesis.synthetic_set import KINDS, files_digest, png, read_facts, read_manifest

ENLARGER = "enlarger"  # the folder of a cascade's second stage, beside those of `model_groups`


def augmented_map(
    frames: Frames, source: int, seed: int, profile: Profile
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict]:
    """A source frame's augmented label map, a function of `seed`.

    The condition, which the network paints, ends at the sector: nothing is painted outside. The label does not, since
    experts draw walls and atria on beyond the sector: on CAMUS's validation patients labels that end there have a Dice
    of 98.7 % (LV epi) and 99.1 % (LA) with the experts'. A shape drawn from the model takes the source's sector, and
    the place, tilt and size of its heart.

    Returns:
        The condition (S, S) in SDM classes; the label (S, S) in the source's; and what was drawn for them: the
        augmentation's parameters, and `rejected`, the draws thrown away before.
    """
    rng, share = np.random.default_rng(seed), profile.augmentation.shape_model
    if share and rng.random() < share:
        classes = frames.index["class_label"].to_numpy()
        model = class_shapes(frames, classes[source])
        place = np.count_nonzero(classes[:source] == classes[source])
        new = sample_shape(model, rng, frames.labels.shape[-1], place)
    else:
        new = augment(frames.labels[source], profile.augmentation, rng, frames.classes)
    sector = sector_of(frames.sdm_labels[source]) if frames.classes.sector else None
    inside = new.label if sector is None else np.where(sector, new.label, np.uint8(0))
    return to_sdm(inside, sector, frames.classes), new.label, {"rejected": new.rejected} | new.parameters


@lru_cache(maxsize=8)  # four views and phases, training and validation
def class_shapes(frames: Frames, class_label: int) -> ShapeModel:
    """The shape model of a split's label maps of one view and phase."""
    return fit_shapes(frames.labels[frames.index["class_label"] == class_label])


def shape_models(frames: Frames) -> list[ShapeModel]:
    """The shape model of each view and phase that a split has; empty where one has too few label maps for it."""
    try:
        return [class_shapes(frames, k) for k in sorted(frames.index["class_label"].unique())]
    except ValueError:
        return []


def plan(training: Frames, validation: Frames, profile: Profile, seed: int) -> pd.DataFrame:
    """One row for each image to paint: id, split, source (row of its split), what names its frame (patient, view, phase
    or case), class_label, size of a pixel in mm, seed, batch.

    Sources are taken in turn from a shuffled order, so each is used equally often. Rows are sorted by view and phase;
    a batch is `batch_size` of them (the last of a view and phase fewer) that share these, and so their network.
    """
    rng = np.random.default_rng((seed, 0xEC40))
    columns = training.index.columns.drop(["quality", "ef"], errors="ignore")
    tables = []
    for split, frames, count in (
        ("training", training, profile.generation.images),
        ("validation", validation, profile.generation.validation_images),
    ):
        rounds = -(-count // len(frames))
        sources = np.concatenate([rng.permutation(len(frames)) for _ in range(rounds)])[:count]
        table = frames.index.iloc[sources][columns].round(5).reset_index(drop=True)
        table.insert(0, "split", split)
        table.insert(1, "source", sources)
        tables.append(table)
    table = pd.concat(tables).sort_values(["split", "class_label"], kind="stable", ignore_index=True)
    table.insert(0, "id", [f"{k:06d}" for k in range(len(table))])
    table["seed"] = rng.integers(2**31, size=len(table))
    while (twice := table["seed"].duplicated()).any():
        table.loc[twice, "seed"] = rng.integers(2**31, size=twice.sum())
    groups = ["split", "class_label"]
    place = table.groupby(groups).cumcount() // profile.generation.batch_size
    table["batch"] = table.groupby([*groups, place], sort=False).ngroup()
    return table


def set_facts(diffusion: Path, profile: Profile, seed: int, classes: Classes) -> dict:
    """All that the bits of a set depend on, beside its data: profile, seed, weights (SHA-256 of each file), device and
    its precision, versions; and the classes of its labels, if they are others than CAMUS's. JSON-able.

    Raises:
        FileNotFoundError: when the diffusion stage has not run.
    """
    groups = [*trained_groups(diffusion, profile, classes), *([ENLARGER] if profile.enlarger else [])]
    weights = {group: model_folder(diffusion, group) / "diffusion_pytorch_model.safetensors" for group in groups}
    facts = {
        "profile": profile.name,
        "image_size": profile.image_size,
        "generation": asdict(profile.generation),
        **({"enlarger": asdict(profile.enlarger)} if profile.enlarger else {}),
        "augmentation": asdict(profile.augmentation),
        "seed": seed,
        "checkpoints": {group: hashlib.sha256(path.read_bytes()).hexdigest() for group, path in weights.items()},
        "device": device_name(),
        "precision": supported_precision(profile.training.precision, get_device()),
        "packages": {package: version(package) for package in ("torch", "diffusers", "numpy", "scipy")},
    }
    if classes != CAMUS:
        facts["classes"] = classes.to_json()
    return json.loads(json.dumps(facts))


def check_facts(folder: Path, facts: dict) -> None:
    """Raise ValueError when the set in `folder` was made from other `set_facts`."""
    held = read_facts(folder)
    if other := [name for name in facts if held.get(name) != facts[name]]:
        raise ValueError(f"{folder} was painted with another {' and '.join(other)}: remove it, or go back to those")


def paint_batch(
    model: SemanticUNet | Cascade, frames: Frames, profile: Profile, batch: pd.DataFrame, folder: Path
) -> pd.DataFrame:
    """Paint a batch of the plan into `folder`; returns its rows, with what was drawn for each label map, the sampler,
    and the SHA-256 of the files.

    The batch is padded to `batch_size` with itself: a network may round otherwise in a batch of another shape.
    """
    generation = profile.generation
    augmented = [augmented_map(frames, r.source, r.seed, profile) for r in batch.itertuples()]
    conditions, labels, drawn = zip(*augmented, strict=True)
    take = np.resize(np.arange(len(batch)), generation.batch_size)
    classes, seeds = (batch[name].to_numpy()[take] for name in ("class_label", "seed"))
    with dividing_threads(generation.batch_size):
        images = paint(model, profile, np.stack(conditions)[take], classes, seeds.tolist())
    for name, *arrays in zip(batch["id"], labels, conditions, images, strict=False):
        pixels = dict(zip(KINDS, arrays, strict=True))
        for kind in KINDS:
            write_png(png(folder, kind, name), pixels[kind])
    return batch.assign(
        **pd.DataFrame(drawn, batch.index).round(5),
        sampler=generation.scheduler,
        steps=generation.num_inference_steps,
        guidance=generation.guidance_scale,
        sha256=[files_digest(folder, name) for name in batch["id"]],
    )


def generate(
    diffusion: Path,
    training: Frames,
    validation: Frames,
    profile: Profile,
    folder: Path,
    seed: int,
    shard: tuple[int, int] = (0, 1),
) -> pd.DataFrame | None:
    """Paint a set (`synthetic_set`) into `folder`, or the k-th of N shards of it: every N-th batch.

    The set is the same bit for bit in whatever shards, order and pieces it is painted. `batches/` has the rows of
    each batch, written when its images are there: finished batches are kept, also after a kill. Whoever finds all of
    them joins them as `manifest.csv`.

    Args:
        diffusion: the folder of the diffusion stage.

    Returns:
        The manifest; None as long as batches of other shards are missing.

    Raises:
        FileNotFoundError: when the diffusion stage has not run.
        ValueError: for a shard that is none; and where `folder` was begun with other settings, weights or device.
    """
    k, n = shard
    if not 0 <= k < n:
        raise ValueError(f"no shard {k}/{n}: with {n} of them, k is from 0 to {n - 1}")
    classes = training.classes
    models, facts = load_models(diffusion, profile, classes), set_facts(diffusion, profile, seed, classes)
    if not (folder / "set.json").exists():
        write_json(folder / "set.json", facts)
    check_facts(folder, facts)
    groups = model_groups(profile, classes)
    frames = {"training": training, "validation": validation}
    images = plan(training, validation, profile, seed)
    for class_label in images["class_label"].unique():
        model_folder(diffusion, groups[class_label])  # each has its network
    batches = dict(list(images.groupby("batch")))
    parts = {number: folder / "batches" / f"{number:06d}.csv" for number in batches}
    for number in tqdm(list(batches)[k::n], desc="synthetic images", unit="batch"):
        batch = batches[number]
        if parts[number].exists() and all(png(folder, "images", name).exists() for name in batch["id"]):
            continue
        split, class_label = batch[["split", "class_label"]].iloc[0]
        rows = paint_batch(models[class_label], frames[split], profile, batch, folder)
        write_csv(parts[number], rows.assign(checkpoint=facts["checkpoints"][groups[class_label]][:16]))
    if not all(part.exists() for part in parts.values()):
        return None
    for leftover in folder.glob("*/.*"):  # of processes that were killed while they wrote
        leftover.unlink(missing_ok=True)  # another process may be as far
    tables = {part: read_csv(part, ("id", "sha256"), dtype=str) for part in parts.values()}
    for part, batch in zip(parts.values(), batches.values(), strict=True):
        if tables[part]["id"].tolist() != batch["id"].tolist():
            raise DamagedFile(part, f"its images are not those of its batch, {', '.join(batch['id'])}")
    write_csv(folder / "manifest.csv", pd.concat(tables.values()))
    return read_manifest(folder)


def regenerate(
    folder: Path, names: list[str], diffusion: Path, training: Frames, validation: Frames, profile: Profile
) -> list[str]:
    """Paint some images of a finished set again, from their rows alone; returns a line for each that differs in a bit.

    Raises:
        FileNotFoundError: when set or diffusion model is missing.
        ValueError: for an id that the set has not, and where settings, weights or device are others.
    """
    table = read_manifest(folder)
    if unknown := set(names) - set(table["id"]):
        raise ValueError(f"{folder}: no image {min(unknown)} in manifest.csv")
    check_facts(folder, set_facts(diffusion, profile, read_facts(folder)["seed"], training.classes))
    models, faults = load_models(diffusion, profile, training.classes), []
    frames = {"training": training, "validation": validation}
    for number in table["batch"][table["id"].isin(names)].unique():
        batch = table[table["batch"] == number]
        split, class_label = batch[["split", "class_label"]].iloc[0]
        with tempfile.TemporaryDirectory() as again:
            rows = paint_batch(models[class_label], frames[split], profile, batch, Path(again))
        differs = batch["id"].isin(names) & (rows["sha256"] != batch["sha256"])
        faults += [f"{name}: painted again, it is another image" for name in batch["id"][differs]]
    return faults


def load_models(folder: Path, profile: Profile, classes: Classes = CAMUS) -> dict[int, SemanticUNet | Cascade]:
    """The trained diffusion model for each class label (0 alone without conditions): one for all, or one each
    (`profile.per_view_phase`) of those that the training frames had. A cascade's second stage is the same for all.

    Raises:
        FileNotFoundError: when the diffusion stage has not run.
    """
    networks = {group: load_network(SemanticUNet, folder, group) for group in trained_groups(folder, profile, classes)}
    if profile.enlarger:
        enlarger = load_network(Enlarger, folder, ENLARGER)
        networks = {group: Cascade(unet, enlarger) for group, unet in networks.items()}
    return {k: networks[group] for k, group in enumerate(model_groups(profile, classes)) if group in networks}


def load_network(kind: type, folder: Path, group: str) -> ModelMixin:
    """A trained network (`SemanticUNet` or `Enlarger`) in float32 on this process's device, in evaluation mode."""
    path = model_folder(folder, group)
    with whole(path):
        network = kind.from_pretrained(path, torch_dtype=torch.float32, use_safetensors=True)
    return network.to(get_device(), memory_format=torch.channels_last).eval()


def model_groups(profile: Profile, classes: Classes = CAMUS) -> list[str]:
    """The name of the model that serves each condition: "all", or of a model of its own, such as "2CH_ED", which is a
    folder's name: where two come out the same, their numbers tell them apart."""
    if not (profile.per_view_phase and classes.conditions):
        return ["all"] * max(1, len(classes.conditions))
    names = [re.sub(r"[^\w-]+", "_", name) for name in classes.conditions]
    return [f"{name}-{k}" if [*names, ENLARGER].count(name) > 1 else name for k, name in enumerate(names)]


def trained_groups(diffusion: Path, profile: Profile, classes: Classes = CAMUS) -> list[str]:
    """Those of `model_groups` that have a trained network: a dataset may lack a view or a phase.

    Raises:
        FileNotFoundError: when none has.
    """
    groups = list(dict.fromkeys(model_groups(profile, classes)))
    return [g for g in groups if (diffusion / g / "model").exists()] or [model_folder(diffusion, groups[0]).name]


def model_folder(diffusion: Path, group: str) -> Path:
    """Where the network of a group of views and phases is.

    Raises:
        FileNotFoundError: when the diffusion stage has not run.
    """
    path = diffusion / group / "model"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no diffusion model; run notebook 02 or `python -m echo reproduce --only diffusion`"
        )
    return path
