"""Whether synthetic echoes can be told from real ones: speckle by depth, a classifier, copied texture.

Speckle is a matter of scale and place: its grain is finer along the beam than across, where it widens with depth. A
classifier that learns to tell synthetic frames from real ones finds what no measure was made for.
"""

from itertools import pairwise, product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from echo.frames import Frames
from echo.labels import sector_of
from reproduction.evaluation.images import compare_nearest
from reproduction.evaluation.statistics import bootstrap_interval

MARGIN = 4  # pixels from the sector's rim, from where on a pixel counts as inside
DEPTHS = ("near", "middle", "far")  # thirds of the distance from the sector's apex
WINDOW = 7  # pixels, the side of a neighbourhood that has a signal-to-noise ratio
DARK = 16  # grey levels: a darker neighbourhood is blood or shadow, and has no speckle to speak of
COARSE = 6  # pixels, sd of the Gaussian that takes away what is coarser than speckle
SCALES = (8, 4, 2, 1)  # images are averaged over squares of so many pixels
FOLDS, STEPS, BATCH = 5, 200, 24  # of the classifier
SHIFT = 4  # pixels by which a copied crop may have moved
NEIGHBOURS = 50  # of `nearest_distances`


def inside(sdm_labels: NDArray[np.uint8], margin: int = MARGIN) -> NDArray[np.bool_]:
    """Which pixels of SDM label maps (N, S, S) are more than `margin` pixels inside the sector, and the image."""
    sectors = (np.pad(sector_of(label), 1) for label in sdm_labels)
    return np.stack([ndimage.distance_transform_edt(sector)[1:-1, 1:-1] > margin for sector in sectors])


def sector_apex(sector: NDArray[np.bool_]) -> tuple[float, float]:
    """Row and column where the straight sides of a sector's mask (S, S) meet, in pixels; it may be above the image.

    Raises:
        ValueError: where they do not meet above it.
    """
    rows, last = np.flatnonzero(sector.any(1)), sector.shape[1] - 1
    left, right = sector[rows].argmax(1), last - sector[rows, ::-1].argmax(1)
    widest = int((right - left).argmax())
    sides = slice(widest // 5, widest * 4 // 5)  # neither the arc at the top nor the corners
    lines = []
    for side in (left, right):
        free = (side[sides] > 0) & (side[sides] < last)  # the image may cut the sector off
        if free.sum() < 3:
            raise ValueError("the sector has no straight sides")
        lines.append(np.polyfit(rows[sides][free], side[sides][free], 1))
    (left_slope, left_start), (right_slope, right_start) = lines
    if right_slope - left_slope < 0.1:
        raise ValueError("the sides of the sector do not meet above it")
    row = (left_start - right_start) / (right_slope - left_slope)
    return float(row), float(left_start + left_slope * row)


def half_width(x: NDArray[np.float64], mask: NDArray[np.bool_], axis: int) -> float:
    """Full width at half maximum, in samples, of the autocorrelation along an axis of x (R, A), over pairs of samples
    that are both in the mask; NaN where it does not fall to a half."""
    x, mask = np.moveaxis(np.where(mask, x, 0), axis, 0), np.moveaxis(mask, axis, 0)
    before = 1.0
    for lag in range(1, len(x) // 2):
        pairs = mask[lag:] & mask[:-lag]
        energy = np.sqrt((x[lag:] ** 2 * pairs).sum() * (x[:-lag] ** 2 * pairs).sum())
        now = (x[lag:] * x[:-lag]).sum() / energy if energy > 0 else np.nan
        if not now > 0.5:
            return 2 * (lag - 1 + (before - 0.5) / (before - now))
        before = now
    return np.nan


def grain(image: NDArray[np.uint8], mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> list[dict]:
    """A row of `speckle_grain` for each of `DEPTHS`, of one image (S, S) and what is `inside` its sector.

    Raises:
        ValueError: for a sector whose apex is not to be found.
    """
    (row_mm, col_mm), (row, col) = spacing_mm, sector_apex(mask)
    grey, i, j = image.astype(float), *np.indices(mask.shape)
    y, x = (i - row) * row_mm, (j - col) * col_mm
    distance, angle = np.hypot(y, x), np.arctan2(x, y)[mask]
    mean, square = (ndimage.uniform_filter(z, WINDOW) for z in (grey, grey**2))
    snr = mean / np.sqrt((square - mean**2).clip(1e-6))
    share = ndimage.gaussian_filter(mask.astype(float), COARSE).clip(1e-6)
    fine = np.where(mask, grey - ndimage.gaussian_filter(grey * mask, COARSE) / share, 0)
    # Along its beams: (R, A), at radii a pixel's height apart.
    edges = np.linspace(distance[mask].min(), distance[mask].max(), len(DEPTHS) + 1)
    radii, beams = np.arange(edges[0], edges[-1], row_mm), np.linspace(angle.min(), angle.max(), len(mask))
    places = row + np.outer(radii, np.cos(beams)) / row_mm, col + np.outer(radii, np.sin(beams)) / col_mm
    values = ndimage.map_coordinates(fine, places, order=3)
    valid = ndimage.map_coordinates(mask.astype(float), places, order=1) > 0.99
    rows = []
    for name, nearest, farthest in zip(DEPTHS, edges[:-1], edges[1:], strict=True):
        bright = mask & (mean >= DARK) & (distance >= nearest) & (distance <= farthest)
        part = (radii >= nearest) & (radii <= farthest)
        arc_mm = (beams[1] - beams[0]) * np.average(radii[part], weights=valid[part].sum(1) + 1e-9)
        rows.append({
            "depth": name,
            "snr": np.median(snr[bright]) if bright.any() else np.nan,
            "along_mm": half_width(values[part], valid[part], 0) * row_mm,
            "across_mm": half_width(values[part], valid[part], 1) * arc_mm,
        })  # fmt: skip
    return rows


def speckle_grain(frames: Frames) -> pd.DataFrame:
    """Speckle's contrast and grain by depth, in log-compressed grey levels as the scanner shows them, `MARGIN` pixels
    inside the sector.

    Returns:
        A row for each frame and depth (of `DEPTHS`): image (row of the frames); snr, the median of mean / sd of
        neighbourhoods of `WINDOW` pixels that are brighter than `DARK`; along_mm and across_mm, the full width at half
        maximum of the autocorrelation along the beam and across, of the detail finer than `COARSE` pixels. Lengths are
        in pixels where the size of one is unknown. A sector whose apex is not found has no row.
    """
    rows, spacing_mm = [], frames.index[["spacing_row_mm", "spacing_col_mm"]].fillna(1.0).to_numpy()
    for k, (image, mask) in enumerate(zip(frames.images, inside(frames.sdm_labels), strict=True)):
        try:
            rows += [{"image": k} | row for row in grain(image, mask, tuple(spacing_mm[k]))]
        except ValueError:
            continue
    return pd.DataFrame(rows, columns=["image", "depth", "snr", "along_mm", "across_mm"])


def build_critic(side: int) -> nn.Sequential:
    """A small network that gives an image (B, 1, side, side) a logit (B, 1): is it of the second set? It averages over
    all places at last, so that it learns from crops."""
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(pairwise((1, 16, 32, 48, 64))):
        kernel, stride = (5, 2 if side > 48 else 1) if k == 0 else (3, 1)
        layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        side //= stride
        if k < 3 and side > 8:
            layers, side = [*layers, nn.AvgPool2d(2)], side // 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))


def tell_apart(a: Frames, b: Frames, scale: int = 1, rim: bool = False, seed: int = 0, steps: int = 0) -> pd.DataFrame:
    """What a classifier, trained on other patients, says of each frame of two sets (a classifier two-sample test;
    Lopez-Paz and Oquab 2017).

    Patients are divided into `FOLDS`; each fold is told by a network that a fixed number of batches of the other folds
    have taught, half of each batch from `a` and half from `b`. Nothing is chosen by what it says.

    Args:
        a, b: frames with a `patient` in their index; of the same patients, if it is to be fair.
        scale: images are averaged over squares of so many pixels first.
        rim: show the whole image; else what is `inside` the sector, all else being 0.
        steps: batches; `STEPS` by default.

    Returns:
        A row an image: patient, told (1 where the classifier is right, else 0).
    """
    sets, patients = [], [frames.index["patient"].to_numpy() for frames in (a, b)]
    for frames in (a, b):
        shown = frames.images if rim else np.where(inside(frames.sdm_labels), frames.images, 0)
        sets.append(F.avg_pool2d(torch.from_numpy(shown).float()[:, None] / 64 - 1, scale))
    rng, names = np.random.default_rng(seed), np.unique(np.concatenate(patients))
    fold_of = dict(zip(rng.permutation(names), np.arange(len(names)) % FOLDS, strict=True))
    folds = [torch.tensor([fold_of[name] for name in some]) for some in patients]
    rows = []
    for fold in range(FOLDS):
        with torch.random.fork_rng():
            torch.manual_seed(seed * FOLDS + fold)
            critic = build_critic(crop_side(sets[0]))
        teach(critic, [x[f != fold] for x, f in zip(sets, folds, strict=True)], rng, steps or STEPS)
        for kind, (x, f, some) in enumerate(zip(sets, folds, patients, strict=True)):
            with torch.no_grad():
                logits = torch.cat([critic(part)[:, 0] for part in x[f == fold].split(BATCH)])
            told = ((logits > 0) == bool(kind)).int().numpy()
            rows.append(pd.DataFrame({"patient": some[(f == fold).numpy()], "told": told}))
    return pd.concat(rows, ignore_index=True)


def crop_side(images: torch.Tensor) -> int:
    """The side of the crops that a critic learns from."""
    side = images.shape[-1]
    return min(max(side * 3 // 4, 24), side, 96)


def teach(critic: nn.Module, sets: list[torch.Tensor], rng: np.random.Generator, steps: int) -> None:
    """Train a critic to give images (N, 1, s, s) of the second set a positive logit and those of the first a negative
    one, on crops and mirrored; it is left in evaluation mode."""
    crop = crop_side(sets[0])
    optimizer = torch.optim.AdamW(critic.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    target = torch.tensor([0.0, 1.0]).repeat_interleave(BATCH // 2)
    critic.train()
    for _ in range(steps):
        i, j = rng.integers(sets[0].shape[-1] - crop, size=2, endpoint=True)
        drawn = [x[torch.from_numpy(rng.integers(len(x), size=BATCH // 2))] for x in sets]
        x = torch.cat(drawn)[..., i : i + crop, j : j + crop]
        logits = critic(x.flip(-1) if rng.random() < 0.5 else x)[:, 0]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, target).backward()
        optimizer.step()
        schedule.step()
    critic.eval()


def joined(a: Frames, b: Frames) -> Frames:
    """The frames of one set, then those of the other."""
    arrays = (np.concatenate([getattr(f, name) for f in (a, b)]) for name in ("images", "labels", "sdm_labels"))
    return Frames(*arrays, pd.concat([a.index, b.index], ignore_index=True), a.classes)


def two_sample_test(real: Frames, synthetic: Frames, others: Frames, seed: int = 0) -> pd.DataFrame:
    """How often `tell_apart` is right of frames of patients it has not seen: 50 % where nothing tells them.

    The control has two sets of real frames, half of each patient's in either, of `real` and of `others` together: what
    it is told above 50 % by chance, or by a flaw of the test, any set is.

    Args:
        real, synthetic: frames of the same patients; as many of each.
        others: real frames of as many other patients.

    Returns:
        A row for each scale (of `SCALES`), region ("inside" or "with rim") and pair ("synthetic" or "real", the
        control): images; accuracy, low and high (95 % bootstrap interval over patients), in %.
    """
    rng, both = np.random.default_rng(seed), joined(real, others)
    drawn = pd.Series(rng.random(len(both))).groupby(both.index["patient"].to_numpy())
    first = (drawn.rank() * 2 <= drawn.transform("size")).to_numpy()  # half of each patient's, drawn
    pairs = {"synthetic": (real, synthetic), "real": (both.select(first), both.select(~first))}
    rows = []
    for scale in SCALES:
        for rim in (False, True):
            for name, (a, b) in pairs.items():
                found = tell_apart(a, b, scale, rim, seed)
                low, high = bootstrap_interval(found["told"], found["patient"], seed)
                row = {"scale": scale, "region": "with rim" if rim else "inside", "pair": name, "images": len(found)}
                rows.append(row | {"accuracy": found["told"].mean() * 100, "low": low * 100, "high": high * 100})
    return pd.DataFrame(rows)


def crops_at(images: NDArray[np.uint8], corner: NDArray, side: int) -> torch.Tensor:
    """Crops (N, side^2) of images (N, S, S) at a corner; each less its mean and of length 1, so that textures are
    compared, and not how bright they are."""
    crops = images[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side].reshape(len(images), -1)
    crops = torch.from_numpy(crops).float()
    return F.normalize(crops - crops.mean(1, keepdim=True), eps=side)  # a sd of one grey level, where it is less


def crop_memorisation(
    synthetic: Frames, heldout: Frames, training: Frames, seed: int = 0, places: int = 16, side: int = 32
) -> dict:
    """`memorisation_test` of texture: a network that learns speckle from crops may copy one into any image.

    Crops of synthetic and of held-out images are compared with those of all training images at the same place, and up
    to `SHIFT` pixels from it: of each training image the closest counts.

    Args:
        places: how many, drawn from where nine in ten training images have a whole crop in their sector.
        side: of a crop, in pixels.
    """
    rng, size = np.random.default_rng(seed), training.images.shape[-1]
    covered = (training.sdm_labels > 0).mean(0) > 0.9
    corners = rng.permutation(np.argwhere(covered))
    corners = corners[((corners >= SHIFT) & (corners + side + SHIFT <= size)).all(1)]
    corners = [(i, j) for i, j in corners if covered[i : i + side, j : j + side].all()][:places]
    tables: dict[str, list[pd.DataFrame]] = {"synthetic": [], "heldout": []}
    shifts = [np.array(shift) for shift in product(range(-SHIFT, SHIFT + 1, 2), repeat=2)]
    for corner in corners:
        references = [crops_at(training.images, corner + shift, side) for shift in shifts]
        for name, frames in (("synthetic", synthetic), ("heldout", heldout)):
            crops = crops_at(frames.images, corner, side)
            alike = torch.stack([crops @ reference.T for reference in references]).amax(0)  # (N, training images)
            distances = (2 - 2 * alike).clamp(min=0).sqrt().sort(1).values
            near = distances[:, :NEIGHBOURS].mean(1)
            tables[name].append(pd.DataFrame({"distance": distances[:, 0], "relative": distances[:, 0] / near}))
    return compare_nearest(*(pd.concat(table, ignore_index=True) for table in tables.values()))
