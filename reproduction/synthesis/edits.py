"""Label editing: anatomy on request.

Each edit takes a label map (S, S) of CAMUS classes and a strength, in `RANGES`, and returns a label map; strength 0
changes nothing. All raise ValueError for a map without cavity, and for a strength out of range.

Swirl, shear, septal gap and missing atrium are the paper's (its last figure); the others are clinical.
"""

from collections.abc import Callable
from inspect import signature

import numpy as np
from monai.transforms.utils import get_largest_connected_component_mask
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import brentq

from echo.augment import close_cut, warp
from echo.labels import CAMUS_NAMES, sector_of, to_sdm
from reproduction.evaluation.shape import shape_statistics
from reproduction.synthesis.shapes import mitral_plane

RANGES = {  # strengths
    "swirl": (-180.0, 180.0),  # degrees
    "shear": (-45.0, 45.0),  # degrees
    "septal_gap": (0.0, 0.5),  # of the cavity's length
    "remove_atrium": (0.0, 1.0),  # of its area
    "dilate_lv": (0.0, 1.0),  # of the cavity's area
    "thicken_wall": (0.0, 0.6),  # of the wall's thickness
    "enlarge_atrium": (0.0, 1.0),  # of its area
}
Label = NDArray[np.uint8]


def _check(label: Label, name: str, strength: float) -> None:
    low, high = RANGES[name]
    if not low <= strength <= high:
        raise ValueError(f"{name}: strength {strength:g} is not in {low:g} to {high:g}")
    if not (label == 1).any():
        raise ValueError(f"{name}: the label map has no LV cavity")


def _points(label: Label) -> tuple[NDArray[np.complex128], complex]:
    """Each pixel as a complex number, column + i row, from the cavity's centre; and that centre."""
    rows, columns = np.indices(label.shape)
    points = columns + 1j * rows
    centre = points[label == 1].mean()
    return points - centre, centre


def _heart_axes(label: Label) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each pixel: height over the mitral plane (1: the apex; negative in the atrium), and the distance from the long
    axis in the same unit (negative: on the image's left)."""
    margin = len(label) // 2
    plane = mitral_plane(close_cut(label, margin)) - margin * (1 + 1j)
    points, centre = _points(label)
    points += centre - (plane[0] + plane[-1]) / 2
    height = -(points * (plane[-1] - plane[0]).conj()).imag
    apex = np.where(label == 1, height, -np.inf).argmax()
    return height / height.flat[apex], (points / points.flat[apex]).imag


def _push(label: Label, k: int, distance: float, weight: NDArray) -> Label:
    """The map after the border of class k, and all beyond it, moved outwards by distance (pixels) times weight."""
    inside = label == k
    signed = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    normal = np.stack(np.gradient(ndimage.gaussian_filter(signed, 0.03 * len(label))))
    normal /= np.maximum(np.hypot(*normal), 1e-6)
    return warp(label, np.indices(label.shape) - distance * weight * normal)


def _grown(label: Label, k: int, weight: NDArray, growth: float) -> Label:
    """`_push` by as much as lets class k grow by that share of its area."""
    area, enough = (label == k).sum(), 0.5

    def missing(distance: float) -> float:
        return ((_push(label, k, distance, weight) == k) | (label == k)).sum() - (1 + growth) * area

    while missing(enough) < 0:
        enough *= 2
        if enough > len(label):
            raise ValueError(f"the {CAMUS_NAMES[k]} has no room to grow by {growth:g} of its area")
    distance = brentq(missing, 0, enough, xtol=0.02) if growth else 0
    return np.where(label == k, label, _push(label, k, distance, weight))


def swirl(label: Label, strength: float = 90.0) -> Label:
    """Turn the heart about the cavity's centre, by `strength` degrees there and less and less outwards."""
    _check(label, "swirl", strength)
    points, centre = _points(label)
    angle = np.deg2rad(strength) * np.exp(-((np.abs(points) / (0.2 * len(label))) ** 2))
    source = points * np.exp(-1j * angle) + centre
    return warp(label, np.stack([source.imag, source.real]))


def shear(label: Label, strength: float = 15.0) -> Label:
    """Lean the heart by `strength` degrees, the apex to the right; the cavity's centre stays."""
    _check(label, "shear", strength)
    points, centre = _points(label)
    source = points + np.tan(np.deg2rad(strength)) * points.imag + centre
    return warp(label, np.stack([source.imag, source.real]))


def septal_gap(label: Label, strength: float = 0.2) -> Label:
    """A gap at half height in the wall on the left (4CH: the septum), `strength` of the cavity's length wide."""
    _check(label, "septal_gap", strength)
    height, across = _heart_axes(label)
    gap = (label == 2) & (across < 0) & (np.abs(height - 0.5) < strength / 2)
    return np.where(gap, np.uint8(0), label)


def remove_atrium(label: Label, strength: float = 1.0) -> Label:
    """Take away `strength` of the atrium's area, from its roof on."""
    _check(label, "remove_atrium", strength)
    height = np.where(label == 3, _heart_axes(label)[0], np.inf)
    gone = np.argsort(height, axis=None)[: round(strength * (label == 3).sum())]
    edited = label.copy()
    edited.flat[gone] = 0
    return edited


def dilate_lv(label: Label, strength: float = 0.4) -> Label:
    """A cavity wider by `strength` of its area, and rounder: the wall moves outwards as thick as it is, the mitral ring
    stays."""
    _check(label, "dilate_lv", strength)
    return _grown(label, 1, np.clip(_heart_axes(label)[0] / 0.3, 0, 1), strength)


def thicken_wall(label: Label, strength: float = 0.4) -> Label:
    """Concentric hypertrophy: a wall thicker by `strength` of its mean thickness, at the cavity's expense; less so
    towards the mitral ring. Where that closes a narrow cavity, its largest piece stays open."""
    _check(label, "thicken_wall", strength)
    distance = -strength * shape_statistics(label)["wall thickness"] * len(label)
    pushed = _push(label, 1, distance, np.clip(_heart_axes(label)[0] / 0.3, 0, 1))
    kept = get_largest_connected_component_mask((label == 1) & (pushed != 2))
    return np.where((label == 1) & ~kept, np.uint8(2), label)


def enlarge_atrium(label: Label, strength: float = 0.5) -> Label:
    """An atrium larger by `strength` of its area; its mouth and the ventricle stay."""
    _check(label, "enlarge_atrium", strength)
    grown = _grown(label, 3, np.clip(-_heart_axes(label)[0] / 0.15, 0, 1), strength)
    return np.where((label == 0) & (grown == 3), np.uint8(3), label)


EDITS: dict[str, Callable[..., Label]] = {
    f.__name__: f for f in (swirl, shear, septal_gap, remove_atrium, dilate_lv, thicken_wall, enlarge_atrium)
}
# What each edit does when it is not told how much.
DEFAULTS = {name: signature(f).parameters["strength"].default for name, f in EDITS.items()}


def edited(label: np.ndarray, sdm_label: np.ndarray, strengths: dict[str, float]) -> np.ndarray:
    """The SDM label map (S, S) after edits by name; clinical ones first, swirl last. The sector stays.

    Args:
        label, sdm_label: the map (S, S) in CAMUS's and in the diffusion model's classes.
        strengths: of each edit; those not named are not made.
    """
    for name, edit in reversed(EDITS.items()):
        if strengths.get(name):
            label = edit(label, strengths[name])
    return to_sdm(label, sector_of(sdm_label))
