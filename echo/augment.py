"""Label augmentation: new anatomies from the label maps of real patients (the paper's affine and elastic ranges).

The heart moves and the sector stays: the sector belongs to the probe, not to the patient. Every map is checked and,
where it fails, redrawn; the released code's elastic warp may fold and tear structures.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from echo.config import AugmentationConfig
from echo.labels import CAMUS, HEART, Classes

TRIES = 50
FEW = 4  # pixels that a structure of any organ may gain or lose beyond its share: some have no more
BLUR = 0.5  # pixels: as much as leaves a map that is not moved as it is


@dataclass(frozen=True)
class AugmentedMap:
    """`label` (S, S) in a source's classes; `rejected`: draws thrown away before it; `parameters`: what was drawn."""

    label: NDArray[np.uint8]
    rejected: int
    parameters: dict[str, float]


@dataclass(frozen=True)
class Affine:
    """Rotation and shear in degrees, scale as a factor, shift down in fractions of the image side."""

    rotation_deg: float
    shear_deg: float
    scale: float
    down: float

    def inverse_matrix(self) -> NDArray[np.float64]:
        """(2, 2): from output to input coordinates (row, column), about the centre."""
        a, s = np.deg2rad(self.rotation_deg), np.tan(np.deg2rad(self.shear_deg))
        rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        return np.linalg.inv(self.scale * rotation @ np.array([[1.0, 0.0], [s, 1.0]]))


def draw_affine(config: AugmentationConfig, rng: np.random.Generator) -> Affine:
    """Uniform in the configured ranges; the shift is along depth, as in the paper."""
    return Affine(
        rotation_deg=rng.uniform(-config.rotation_deg, config.rotation_deg),
        shear_deg=rng.uniform(-config.shear_deg, config.shear_deg),
        scale=rng.uniform(*config.scale),
        down=rng.uniform(-config.translation, config.translation),
    )


def draw_elastic(config: AugmentationConfig, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth displacement field (2, size, size) in pixels: cubic B-splines on a grid with a locked border.

    The largest displacement of a field is itself drawn up to the configured one, so that most maps bend a little and
    few bend much.
    """
    n = config.elastic_points
    amplitude = rng.uniform(0, config.elastic_displacement) * size
    points = rng.uniform(-amplitude, amplitude, (2, n, n))
    points[:, [0, -1], :] = points[:, :, [0, -1]] = 0
    grid = np.stack(np.meshgrid(*[np.linspace(0, n - 1, size)] * 2, indexing="ij"))
    # The points are B-spline coefficients (prefilter=False), not values to pass through: smoother, and no overshoot.
    return np.stack([ndimage.map_coordinates(p, grid, order=3, mode="nearest", prefilter=False) for p in points])


def smallest_jacobian(field: NDArray[np.float64]) -> float:
    """The least determinant of a displacement field (2, H, W)'s Jacobian; not positive where it folds."""
    (dyy, dyx), (dxy, dxx) = np.gradient(field[0]), np.gradient(field[1])
    return float(((1 + dyy) * (1 + dxx) - dyx * dxy).min())


def close_cut(label: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """A label map (S, S) with `margin` pixels more on each side; what the image cuts off is closed there.

    Atria often reach below the image. How they end is not known: here in a half disc as wide as the cut.
    """
    padded = np.pad(label, margin)
    depth = np.arange(1, margin + 1)[:, None]
    for _side in range(4):
        edge, beyond = padded[-margin - 1], padded[-margin:]
        for k in np.unique(edge[edge > 0]):
            for (cut,) in ndimage.find_objects(ndimage.label(edge == k)[0]):
                radius = (cut.stop - cut.start) / 2
                across = np.arange(cut.start, cut.stop) + 0.5 - cut.start - radius
                beyond[:, cut][np.hypot(depth, across) <= radius] = k
        padded = np.rot90(padded)
    return padded


def warp(label: NDArray[np.uint8], coordinates: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The label map (S, S) at input coordinates (2, S, S): each class is interpolated linearly, and the largest wins.

    Classes are blurred a little first, so that borders come out smooth where a nearest-neighbour lookup leaves them
    jagged. A structure that the image cuts off and that moves into it ends as in `close_cut`; gone on as at the
    border, an atrium would become a column.
    """
    margin = len(label) // 2
    whole = close_cut(label, margin)
    classes = [ndimage.gaussian_filter((whole == k).astype(np.float32), BLUR) for k in range(int(label.max()) + 1)]
    shares = [ndimage.map_coordinates(share, coordinates + margin, order=1, mode="nearest") for share in classes]
    return np.argmax(shares, axis=0).astype(np.uint8)


def anatomy_fault(label: NDArray[np.uint8], source: NDArray[np.uint8], classes: Classes = CAMUS) -> str | None:
    """Why `label` is no plausible version of `source` (both in a source's classes), or None.

    Each class of the source must be there in no more pieces, with 0.4 to 1.6 times its area. In an apical heart, the
    wall must surround the cavity: at most 5 % of the cavity's border may touch the background, beyond what the source
    has; and the atrium must lie below the cavity. Of any other organ, nothing is known, and `FEW` pixels do not count.
    """
    heart = classes.anatomy == HEART
    for k, name in enumerate(classes.names):
        before, after = (source == k).sum(), (label == k).sum()
        if k == 0 or before == 0:
            continue
        few = 0 if heart or after == 0 else FEW
        if not ((after + few) / before >= 0.4 and (after - few) / before <= 1.6):
            return f"{name} has {after / before:.2f} times its area"
        if ndimage.label(label == k, np.ones((3, 3)))[1] > ndimage.label(source == k, np.ones((3, 3)))[1]:
            return f"{name} is in pieces"
    if not heart:
        return None
    if leak(label) > leak(source) + 0.05:
        return "the wall does not surround the cavity"
    if (label == 3).any() and np.nonzero(label == 3)[0].mean() <= np.nonzero(label == 1)[0].mean():
        return "the atrium is not below the cavity"
    return None


def leak(label: NDArray[np.uint8]) -> float:
    """The fraction of the cavity's outer border that touches the background."""
    cavity = label == 1
    rim = ndimage.binary_dilation(cavity) & ~cavity
    return float((label[rim] == 0).mean()) if rim.any() else 0.0


def augment(
    label: NDArray[np.uint8], config: AugmentationConfig, rng: np.random.Generator, classes: Classes = CAMUS
) -> AugmentedMap:
    """A new label map from one of a source's classes (S, S): affine and elastic warps, redrawn until it is plausible.

    Raises:
        ValueError: when no draw of `TRIES` is; the source is then at fault.
    """
    size = len(label)
    centre = (size - 1) / 2
    identity = np.stack(np.meshgrid(*[np.arange(size) - centre] * 2, indexing="ij"))
    fault = ""
    for rejected in range(TRIES):
        affine, field = draw_affine(config, rng), draw_elastic(config, size, rng)
        if smallest_jacobian(field) <= 0:
            fault = "the elastic warp folds"
            continue
        shift = size * np.array([affine.down, 0.0])[:, None, None]
        coordinates = np.einsum("ij,jhw->ihw", affine.inverse_matrix(), identity + field - shift) + centre
        new = warp(label, coordinates)
        fault = anatomy_fault(new, label, classes)
        if fault is None:
            bend = float(np.hypot(*field).max()) / size
            return AugmentedMap(new, rejected, asdict(affine) | {"bend": bend})
    raise ValueError(f"no plausible augmentation in {TRIES} draws: {fault}")
