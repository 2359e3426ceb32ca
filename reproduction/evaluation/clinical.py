"""Clinical measures: left ventricular volumes by the method of discs, and the ejection fraction they give."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from echo.config import PHASES
from echo.labels import STRUCTURES

DISCS = 20  # Lang et al. 2015, JASE 28(1):1-39


def disc_diameters(cavity: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> tuple[NDArray[np.float64], float]:
    """Diameters (20,) in mm of the discs that a cavity (H, W) is cut into, apex first, and its length in mm.

    The long axis is the cavity's principal axis: a label map marks no mitral annulus. A disc's diameter is its area
    over its height. NaN for a cavity of fewer than 2 pixels.
    """
    points = np.argwhere(cavity) * spacing_mm  # (N, 2): depth, lateral
    if len(points) < 2:
        return np.full(DISCS, np.nan), np.nan
    axis = np.linalg.eigh(np.cov(points.T))[1][:, -1]
    axis = axis * np.copysign(1, axis[0])  # downwards: the apex is next to the probe
    along, half_pixel = points @ axis, np.abs(axis * spacing_mm).sum() / 2
    ends = along.min() - half_pixel, along.max() + half_pixel
    length = ends[1] - ends[0]
    area = np.histogram(along, DISCS, ends)[0] * np.prod(spacing_mm)
    return area / (length / DISCS), length


def volume_ml(cavities: list[tuple[NDArray[np.bool_], tuple[float, float]]]) -> float:
    """Volume in mL of a left ventricle from its cavity's masks (H, W) in 2CH and 4CH, each with its pixel spacing.

    Biplane method of discs, pi/4 sum(a_i b_i) L/20 with the longer L of the two views (Lang et al. 2015). Given one
    view alone, discs are circles. NaN where a cavity is missing, and without a view.
    """
    if not cavities:
        return np.nan
    diameters, lengths = zip(*(disc_diameters(*cavity) for cavity in cavities), strict=True)
    return float(np.pi / 4 * (diameters[0] * diameters[-1]).sum() * max(lengths) / DISCS / 1000)


def patient_volumes(
    labels: Mapping[tuple[str, str], tuple[NDArray[np.uint8], tuple[float, float]]],
) -> dict[str, float]:
    """A patient's edv_ml, esv_ml (mL, at ED and ES) and ef (%, 100 (EDV - ESV) / EDV; NaN where the two volumes are of
    different views, which do not compare).

    Args:
        labels: for each view and phase, the CAMUS label map (H, W) and its pixel spacing (row, column) in mm.
    """
    edv, esv = (
        volume_ml(
            [(np.isin(label, STRUCTURES["LV endo"]), mm) for (_view, at), (label, mm) in labels.items() if at == phase]
        )
        for phase in PHASES
    )
    views = [{view for view, at in labels if at == phase} for phase in PHASES]
    return {"edv_ml": edv, "esv_ml": esv, "ef": 100 * (edv - esv) / edv if views[0] == views[1] else np.nan}
