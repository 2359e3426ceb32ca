"""A statistical shape model of the left heart (Cootes et al. 1995): landmarks, Procrustes alignment, PCA.

A point is one complex number, column + i row, in fractions of the image side: turning, scaling and moving a shape are
then one product and one sum.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import truncnorm
from skimage.draw import polygon2mask
from skimage.measure import find_contours

from echo.augment import AugmentedMap, anatomy_fault, close_cut
from echo.labels import CAMUS_NAMES

POINTS = 24  # from hinge to apex, from apex to hinge, and along the mitral plane
ARC = 2 * POINTS - 1  # points of a contour: the apex belongs to both sides
FINE = 4  # a map is drawn this much finer and averaged down, which keeps its borders smooth


@dataclass(frozen=True)
class ShapeModel:
    """The mean of N aligned shapes and the ways in which they differ.

    Attributes:
        mean: (L,) landmarks, centred, of unit norm.
        components: (K, L), orthonormal as vectors of 2 L real numbers.
        sd: (K,) standard deviation along each.
        explained: (K,) share of the shapes' variance that each explains.
        centres, scales: (N,) where in each map the heart lies, how turned and how large: a shape times its scale plus
            its centre. Maps without landmarks have the mean of the others.
        left_out: how many maps had no landmarks, and so no part in the model.
    """

    mean: NDArray[np.complex128]
    components: NDArray[np.complex128]
    sd: NDArray[np.float64]
    explained: NDArray[np.float64]
    centres: NDArray[np.complex128]
    scales: NDArray[np.complex128]
    left_out: int


def _contour(mask: NDArray[np.bool_]) -> NDArray[np.complex128]:
    """The longest contour of a mask, in pixels; blurred by under a pixel, against the staircase."""
    longest = max(find_contours(ndimage.gaussian_filter(mask.astype(float), 0.7), 0.5), key=len)
    return longest[:-1, 1] + 1j * longest[:-1, 0]


def _resample(curve: NDArray[np.complex128], n: int) -> NDArray[np.complex128]:
    """`n` points at equal distances along an open curve."""
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(curve)))])
    return np.interp(np.linspace(0, length[-1], n), length, curve)


def _arc(contour: NDArray[np.complex128], left: complex, right: complex) -> NDArray[np.complex128]:
    """The part of a closed contour from `left` to `right` over the point farthest from both, its middle one (ARC,)."""
    curve = np.roll(contour, -np.abs(contour - left).argmin())
    away = np.abs(curve - (left + right) / 2)
    far = int(np.median(np.flatnonzero(away > 0.99 * away.max())))  # a blunt apex has no single farthest point
    if np.abs(curve - right).argmin() < far:  # the other way round
        curve = np.roll(curve[::-1], 1)
        far = len(curve) - far
    up = np.append(left, curve[1 : far + 1])
    down = np.append(curve[far : np.abs(curve - right).argmin()], right)
    return np.append(_resample(up, POINTS), _resample(down, POINTS)[1:])


def mitral_plane(label: NDArray[np.uint8]) -> NDArray[np.complex128]:
    """The cavity's border where it has no wall, from the left hinge to the right (n,), in pixels.

    Raises:
        ValueError: when there is no cavity, no wall, or no such border.
    """
    if not ((label == 1).any() and (label == 2).any()):
        raise ValueError("a label map without cavity or wall has no mitral plane")
    contour = _contour(label == 1)
    to_wall, to_rest = (ndimage.distance_transform_edt(x) for x in (label != 2, (label == 1) | (label == 2)))
    bare = ndimage.map_coordinates(to_wall - to_rest, [contour.imag, contour.real], order=1) > 0
    start = -bare.argmin()  # at the wall: no run goes round the end
    runs = ndimage.find_objects(ndimage.label(np.roll(bare, start))[0])
    # Where the wall has holes too, the plane is the lowest opening.
    plane = max((np.roll(contour, start)[run] for run in runs), key=lambda c: c.imag.max(), default=contour[:0])
    if len(plane) < 3:
        raise ValueError("a cavity with wall all round has no mitral plane")
    return plane if plane[0].real <= plane[-1].real else plane[::-1]


def landmarks(label: NDArray[np.uint8]) -> NDArray[np.complex128]:
    """Corresponding points of a label map (S, S), CAMUS classes: LV endo, LV epi, LA (ARC each), mitral plane (POINTS).

    Contours run from the left mitral hinge over the apex, or the roof of the atrium, to the right hinge; points lie at
    equal distances between these. An atrium that the image cuts off is closed first.

    Raises:
        ValueError: when a structure is missing, or the landmarks would not draw it (Dice under 0.8).
    """
    size = len(label)
    if not (label == 3).any():
        raise ValueError("a label map without atrium has no landmarks")
    whole = close_cut(label, size // 2)
    plane = mitral_plane(whole)
    arcs = [_arc(_contour(np.isin(whole, classes)), plane[0], plane[-1]) for classes in ((1,), (1, 2), (3,))]
    points = (np.concatenate([*arcs, _resample(plane, POINTS)]) + (0.5 - size // 2) * (1 + 1j)) / size
    drawn = draw(points, size)
    for k in (1, 2, 3):
        found, there = drawn == k, label == k
        if 2 * (found & there).sum() < 0.8 * (found.sum() + there.sum()):
            raise ValueError(f"the landmarks do not draw the {CAMUS_NAMES[k]} as it is")
    return points


def draw(points: NDArray[np.complex128], size: int) -> NDArray[np.uint8]:
    """The label map (size, size), CAMUS classes, of `landmarks`; the image cuts off what lies outside it."""
    endo, epi, la, plane = np.split(points * size * FINE - 0.5 * (1 + 1j), [ARC, 2 * ARC, 3 * ARC])
    fine = np.zeros((size * FINE, size * FINE), np.uint8)
    for k, arc in ((2, epi), (3, la), (1, endo)):
        outline = np.append(arc, plane[::-1])
        fine[polygon2mask(fine.shape, np.stack([outline.imag, outline.real], 1))] = k
    shares = [(fine == k).reshape(size, FINE, size, FINE).mean((1, 3)) for k in range(4)]
    return np.argmax(shares, axis=0).astype(np.uint8)


def fit_shapes(labels: NDArray[np.uint8], variance: float = 0.98) -> ShapeModel:
    """A shape model of label maps (N, S, S): generalised Procrustes analysis (Gower 1975), then PCA.

    Args:
        variance: share of the shapes' variance that the components kept explain together.

    Raises:
        ValueError: when fewer than three maps have landmarks.
    """
    points = np.full((len(labels), 3 * ARC + POINTS), np.nan, np.complex128)
    for k, label in enumerate(labels):
        with suppress(ValueError):
            points[k] = landmarks(label)
    used = ~np.isnan(points).any(1)
    if used.sum() < 3:
        raise ValueError(f"{used.sum()} of {len(labels)} label maps have landmarks: a shape model needs three")
    centres = points.mean(1)
    shapes = points[used] - centres[used, None]
    norms = np.linalg.norm(shapes, axis=1)
    shapes = aligned = shapes / norms[:, None]
    for _round in range(10):  # each shape is turned onto the mean, which is then that of the turned
        turns = np.exp(1j * np.angle(shapes.conj() @ aligned.mean(0)))
        aligned = turns[:, None] * shapes
    mean = aligned.mean(0)
    off = np.hstack([(aligned - mean).real, (aligned - mean).imag])
    values, vectors = np.linalg.svd(off, full_matrices=False)[1:]
    explained = values**2 / (values**2).sum()
    kept = slice(np.searchsorted(explained.cumsum(), variance) + 1)
    real, imaginary = np.hsplit(vectors[kept], 2)
    scales = np.full(len(labels), np.nan, np.complex128)
    scales[used] = norms / turns
    centres, scales = (np.where(used, x, x[used].mean()) for x in (centres, scales))
    sd = values[kept] / np.sqrt(used.sum() - 1)
    return ShapeModel(mean, real + 1j * imaginary, sd, explained[kept], centres, scales, int((~used).sum()))


def sample_shape(
    model: ShapeModel, rng: np.random.Generator, size: int, place: int | None = None, tries: int = 50
) -> AugmentedMap:
    """A label map (size, size) of a shape drawn from the model: each coefficient normal, within 2 sd.

    It lies where the heart of the fitted map number `place` does, as turned and as large; None draws that too. It is
    redrawn until `anatomy_fault` finds it plausible beside the mean shape. `parameters`: the first coefficients, in sd.

    Raises:
        ValueError: when no draw of `tries` is plausible.
    """
    place = int(rng.integers(len(model.centres))) if place is None else place
    mean = draw(model.mean * model.scales[place] + model.centres[place], size)
    fault = ""
    for rejected in range(tries):
        b = truncnorm.rvs(-2, 2, size=len(model.sd), random_state=rng)
        shape = model.mean + (b * model.sd) @ model.components
        new = draw(shape * model.scales[place] + model.centres[place], size)
        fault = anatomy_fault(new, mean)
        if fault is None:
            return AugmentedMap(new, rejected, {f"shape_{k}": float(x) for k, x in enumerate(b[:3], 1)})
    raise ValueError(f"no plausible shape in {tries} draws: {fault}")
