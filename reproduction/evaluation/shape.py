"""What a label map measures: areas, eccentricity, wall thickness."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import regionprops

from echo.labels import CAMUS_NAMES


def shape_statistics(label: NDArray[np.uint8], spacing: tuple[float, float] | None = None) -> dict[str, float]:
    """Measures of a label map (H, W), CAMUS classes: a row of a table; nan for what is not there.

    Args:
        spacing: mm a pixel (row, column). None: areas are fractions of the image, lengths of its side.

    Returns:
        "LV endo area", "LV myo area", "LA area" (mm2, or a fraction), "LA / LV area"; "eccentricity" of the ellipse
        with the cavity's second moments (0 a circle, 1 a line); "wall thickness": from the cavity to the background,
        in the mean over the wall that lines the cavity (mm, or a fraction).
    """
    step = np.array(spacing or 1 / np.array(label.shape))
    areas = {name: (label == k).sum() * step.prod() or np.nan for k, name in enumerate(CAMUS_NAMES) if k}
    cavity = label == 1
    lining = (label == 2) & ndimage.binary_dilation(cavity)
    outwards = ndimage.distance_transform_edt(label > 0, sampling=step)
    return {f"{name} area": area for name, area in areas.items()} | {
        "LA / LV area": areas["LA"] / areas["LV endo"],
        "eccentricity": regionprops(cavity.astype(np.uint8), spacing=step)[0].eccentricity if cavity.any() else np.nan,
        "wall thickness": outwards[lining].mean() if lining.any() else np.nan,
    }
