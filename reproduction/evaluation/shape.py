"""What a label map measures: areas, eccentricity, wall thickness."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import regionprops

from echo.frames import Frames
from echo.labels import CAMUS_NAMES


def shape_statistics(label: NDArray[np.uint8], spacing: tuple[float, float] | None = None) -> dict[str, float]:
    """Measures of a label map (H, W), CAMUS classes: a row of a table; nan for what is not there.

    Args:
        spacing: mm per pixel (row, column). None: areas are fractions of the image, lengths of its side.

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


def class_shares(frames: Frames) -> pd.DataFrame:
    """How much of the image each class of the diffusion model takes, in %: a column for each kind of frame."""
    names, titles = frames.classes.sdm_names, np.array(frames.titles)
    shares = {
        title: [100 * (frames.sdm_labels[titles == title] == k).mean() for k in range(len(names))]
        for title in sorted(set(frames.titles))
    }
    return pd.DataFrame(shares, index=pd.Index(names, name="share of the image, %"))


def median_areas(frames: Frames) -> pd.DataFrame:
    """The median area of each structure, a row for each view and phase, or condition: in cm², or in thousandths of the
    image where the size of a pixel is not known."""
    pixel, unit = frames.index["spacing_row_mm"] * frames.index["spacing_col_mm"] / 100, "cm²"
    if pixel.isna().any():
        pixel, unit = 1000 / frames.images[0].size, "thousandths of the image"
    structures = frames.classes.structures
    areas = {name: np.isin(frames.labels, k).sum(axis=(1, 2)) * pixel for name, k in structures.items()}
    groups = [name for name in ("view", "phase", "condition") if name in frames.index] or "class_label"
    table = frames.index.assign(**areas).groupby(groups)[list(structures)].median()
    return table.rename_axis(columns=f"median area, {unit}")
