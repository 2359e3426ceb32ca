"""Studies beside the pipeline: what a sampler is worth, and how good synthetic images are."""

import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from monai.networks.nets import UNet

from echo.config import Profile
from echo.dataset import Frames
from echo.edits import DEFAULTS, EDITS
from echo.generate import paint
from echo.labels import NUM_SDM, STRUCTURES, sector_of, to_camus, to_sdm
from echo.metrics import (
    diversity,
    features,
    frame_dice,
    frechet_distance,
    histogram_distance,
    inception_features,
    kernel_distance,
    memorisation_test,
    ms_ssim,
    nearest_distances,
    power_spectrum,
    speckle_statistics,
)
from echo.paths import write_csv
from echo.sampler import SCHEDULERS
from echo.segmenter import predict
from echo.synthetic_set import read_images, read_manifest
from echo.unet import SemanticUNet


def settings(profile: Profile) -> list[tuple[str, int, float]]:
    """What to compare: (sampler, steps, guidance scale). Guidance is swept for the profile's own sampler and steps, if
    its network was trained with label dropout."""
    config, own = profile.study, profile.generation
    fast = [(sampler, steps, 1.0) for sampler, steps in product(SCHEDULERS, config.steps)]
    scales = config.guidance if profile.training.label_dropout else ()
    guided = [(own.scheduler, own.num_inference_steps, scale) for scale in scales]
    return list(dict.fromkeys([*fast, ("ddpm", config.ddpm_steps, 1.0), *guided]))


def paint_all(
    models: dict[int, SemanticUNet],
    profile: Profile,
    sdm_labels: np.ndarray,
    classes: np.ndarray,
    seeds: np.ndarray,
    **options,
) -> np.ndarray:
    """Echoes uint8 (N, S, S) for SDM label maps of any views and phases, as `generate.paint`, in batches."""
    painted, size = np.zeros_like(sdm_labels), profile.generation.batch_size
    for class_label in np.unique(classes):
        places = np.flatnonzero(classes == class_label)
        for first in range(0, len(places), size):
            take = places[first : first + size]
            seeds_taken = seeds[take].tolist()
            model = models[class_label]
            painted[take] = paint(model, profile, sdm_labels[take], classes[take], seeds_taken, **options)
    return painted


def edited(label: np.ndarray, sdm_label: np.ndarray, strengths: dict[str, float]) -> np.ndarray:
    """The SDM label map (S, S) after edits of `echo.edits`, by name; clinical ones first, swirl last. The sector stays.

    Args:
        label, sdm_label: the map (S, S) in CAMUS's and in the diffusion model's classes.
        strengths: of each edit; those not named are not made.
    """
    for name, edit in reversed(EDITS.items()):
        if strengths.get(name):
            label = edit(label, strengths[name])
    return to_sdm(label, sector_of(sdm_label))


def label_editing(
    models: dict[int, SemanticUNet], frames: Frames, segmenter: UNet, profile: Profile, seed: int
) -> pd.DataFrame:
    """Does the image follow its label map? Each edit is made on every frame's map, and an echo painted for it from the
    same noise as for the original map.

    Returns:
        A row an edit, and "none" first: `edit`, `strength`, `frames` (an edit that has no room on a map leaves it out).
        "Dice, ... map": in % the mean Dice of what a segmenter trained on real images finds. It knows real anatomy
        only. "grey response": in %, how far the pixels that change their class take on that class's grey level; 0 if
        they stay as in the image of the original map, 100 if they change as much as the classes' means differ.
    """
    classes, noise = frames.index["class_label"].to_numpy(), seed + np.arange(len(frames))
    plain = paint_all(models, profile, frames.sdm_labels, classes, noise)
    grey = np.array([plain[frames.sdm_labels == k].mean() for k in range(NUM_SDM)])
    rows = []
    for name, strength in ({"none": 0.0} | DEFAULTS).items():
        maps = {}
        for k, (label, sdm_label) in enumerate(zip(frames.labels, frames.sdm_labels, strict=True)):
            with suppress(ValueError):
                maps[k] = edited(label, sdm_label, {name: strength})
        take, new = np.array(list(maps)), np.stack(list(maps.values()))
        painted = paint_all(models, profile, new, classes[take], noise[take])
        found = predict(segmenter, painted)
        row = {"edit": name, "strength": strength, "frames": len(take)}
        for which, label in (("edited", to_camus(new)), ("original", frames.labels[take])):
            row[f"Dice, {which} map"] = frame_dice(found, label).mean().mean() * 100
        expected = grey[new] - grey[frames.sdm_labels[take]]
        if expected.any():
            row["grey response"] = (expected * (painted - plain[take].astype(float))).sum() / (expected**2).sum() * 100
        rows.append(row)
    return pd.DataFrame(rows)


def judge(painted: np.ndarray, frames: Frames, segmenter: UNet) -> dict[str, float]:
    """What a segmenter trained on real images finds in synthetic ones, uint8 (2, N, S, S): two for each of N frames.

    Label fidelity: Dice in % of its label maps against those the images were painted for. Realism: Frechet and kernel
    distance of its features to those of the frames' own real images. Diversity: MS-SSIM of the two images of one label
    map, lower being more diverse.
    """
    both = painted.reshape(-1, *painted.shape[2:])
    dice = frame_dice(predict(segmenter, both), np.concatenate([frames.labels] * len(painted))).mean() * 100
    found, real = features(segmenter, both), features(segmenter, frames.images)
    return dice.to_dict() | {
        "mean Dice": dice.mean(),
        "frechet_distance": frechet_distance(found, real),
        "kernel_distance": kernel_distance(found, real),
        "ms_ssim": float(ms_ssim(*painted).mean()),
    }


def sampler_study(
    models: dict[int, SemanticUNet], frames: Frames, segmenter: UNet, profile: Profile, file: Path, seed: int
) -> pd.DataFrame:
    """Paint two images for every frame's label map by each sampler, number of steps and guidance scale; judge them.

    Rows are written to `file` (CSV) as they are made, and those there are kept. `seconds_per_image` is of this
    machine, in the batches of the profile.
    """
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    done = {(r["sampler"], r["steps"], r["guidance_scale"]) for r in rows}
    classes = frames.index["class_label"].to_numpy()
    for setting in settings(profile):
        if setting in done:
            continue
        sampler, steps, scale = setting
        options = {"scheduler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
        painted = np.zeros((2, *frames.images.shape), np.uint8)
        clock = time.perf_counter()
        for k in range(2):
            seeds = seed + 2 * np.arange(len(frames)) + k
            painted[k] = paint_all(models, profile, frames.sdm_labels, classes, seeds, **options)
        seconds = (time.perf_counter() - clock) / (2 * len(frames))
        row = {"sampler": sampler, "steps": steps, "guidance_scale": scale, "seconds_per_image": seconds}
        rows.append(row | judge(painted, frames, segmenter))
        write_csv(file, pd.DataFrame(rows), float_format="%.6g")
        print(
            f"{sampler}, {steps} steps, guidance {scale}: {rows[-1]['mean Dice']:.1f} % Dice, {seconds:.3f} s an image"
        )
    return pd.DataFrame(rows)


def references(training: Frames, frames: Frames, segmenter: UNet) -> pd.Series:
    """What `judge` says of real images: Dice in % of the frames' own, distances of other patients' images (as many)."""
    dice = frame_dice(predict(segmenter, frames.images), frames.labels).mean() * 100
    others = training.images[np.linspace(0, len(training) - 1, min(len(training), 2 * len(frames))).astype(int)]
    found, real = features(segmenter, others), features(segmenter, frames.images)
    distances = {"frechet_distance": frechet_distance(found, real), "kernel_distance": kernel_distance(found, real)}
    return pd.Series(dice[list(STRUCTURES)].to_dict() | {"mean Dice": dice.mean()} | distances)


def label_fidelity(folder: Path, segmenter: UNet, batch_size: int = 256) -> pd.DataFrame:
    """How well each image of a synthetic set shows the label map it was painted for: Dice in [0, 1] of what a
    segmenter trained on real images finds.

    Returns:
        One row an image, kept in the set's `fidelity.csv` too: id, LV endo, LV epi, LA, and their mean.
        `synthetic_set.filter_worst` goes by it.
    """
    names, rows = read_manifest(folder)["id"], []
    for first in range(0, len(names), batch_size):
        some = names[first : first + batch_size]
        images, labels = (read_images(folder, kind, some) for kind in ("images", "labels"))
        rows.append(frame_dice(predict(segmenter, images), labels).set_index(some))
    table = pd.concat(rows).rename_axis("id")
    table["mean"] = table.mean(axis=1)
    table = table.round(5).reset_index()
    write_csv(folder / "fidelity.csv", table)
    return table


def image_quality(
    synthetic: Frames, real: Frames, training: Frames, segmenter: UNet, seed: int, inception: str = ""
) -> dict[str, pd.DataFrame]:
    """Synthetic images beside real ones: fidelity, realism, diversity, speckle, and whether training images come back.

    Args:
        synthetic: images painted for label maps of held-out patients.
        real: the held-out patients' own images.
        training: what the diffusion model was trained on.
        segmenter: trained on real images.
        inception: weights for `metrics.inception_features`; given them, FID is measured too.

    Returns:
        "quality": one row a measure, with the value of the synthetic images and, beside it, of real ones: Dice in %,
        distances to `real` (of as many training images, where real images stand), MS-SSIM of random pairs of a view
        and phase, speckle's signal-to-noise ratio in each region. "spectrum": power at each frequency. "nearest":
        distance of each synthetic and held-out image to the nearest training image, in grey levels and in features.
        "memorisation": the test of each.
    """
    others = training.select(np.linspace(0, len(training) - 1, min(len(training), len(synthetic))).astype(int))
    sets = {"synthetic": synthetic, "real": real}
    found = {
        name: features(segmenter, f.images) for name, f in (*sets.items(), ("others", others), ("training", training))
    }
    dice = {k: frame_dice(predict(segmenter, f.images), f.labels).mean() * 100 for k, f in sets.items()}
    rows = {f"Dice of {name}, %": {k: values[name] for k, values in dice.items()} for name in STRUCTURES}
    for name, distance in (("Fréchet distance", frechet_distance), ("kernel distance", kernel_distance)):
        rows[name] = {
            "synthetic": distance(found["synthetic"], found["real"]),
            "real": distance(found["others"], found["real"]),
        }
    if inception:
        large = {name: inception_features(f.images, inception) for name, f in (*sets.items(), ("others", others))}
        rows["FID"] = {
            "synthetic": frechet_distance(large["synthetic"], large["real"]),
            "real": frechet_distance(large["others"], large["real"]),
        }
    in_sector = {name: f.images[f.sdm_labels > 0] for name, f in (*sets.items(), ("others", others))}
    rows["grey-level distance"] = {
        "synthetic": histogram_distance(in_sector["synthetic"], in_sector["real"]),
        "real": histogram_distance(in_sector["others"], in_sector["real"]),
    }
    rows["MS-SSIM of pairs"] = {k: diversity(f.images, seed, groups=f.index["class_label"]) for k, f in sets.items()}
    speckle = {k: speckle_statistics(f.images, f.sdm_labels).groupby("region")["snr"].mean() for k, f in sets.items()}
    for region in ("LV endo", "LV myo", "tissue"):
        rows[f"speckle SNR, {region}"] = {k: values[region] for k, values in speckle.items()}
    quality = pd.DataFrame(rows).T.rename_axis("measure").reset_index()

    spectrum = pd.concat([power_spectrum(f.images).assign(images=k) for k, f in sets.items()], ignore_index=True)
    tests, nearest = [], []
    for space, (a, b, c) in {
        "grey levels": (synthetic.images, real.images, training.images),
        "features": (found["synthetic"], found["real"], found["training"]),
    }.items():
        test = memorisation_test(a, b, c)
        tests.append({"space": space} | test | {"copies": len(test["copies"])})
        for name, queries in (("synthetic", a), ("real", b)):
            nearest.append(nearest_distances(queries, c).assign(space=space, images=name))
    return {
        "quality": quality,
        "spectrum": spectrum,
        "nearest": pd.concat(nearest, ignore_index=True),
        "memorisation": pd.DataFrame(tests),
    }
