"""One slice or label map of any modality from a PNG, TIFF or NIfTI file; images become 8-bit grey."""

import math
import warnings
from pathlib import Path

import numpy as np
from skimage.io import imread

from reproduction.datasets.errors import DataError
from reproduction.datasets.images import ROUNDING, one_line, read_nifti

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
WINDOW = (0.5, 99.5)  # percentiles of an image, which become black and white where it is not of 8 bits
Spacing = tuple[float, float] | None
Place = np.ndarray | None


def read_array(path: Path, patient: str) -> tuple[np.ndarray, Spacing, Place]:
    """A file's array, (H, W) or (H, W, channels), its pixels' size in mm (row, column), and where they lie: (3, 3),
    from column, row and 1 to x, y and z in mm. None where it tells none.

    Of a NIfTI file, rows are its second axis and columns its first, as SimpleITK, and so nnU-Net, reads them.

    Raises:
        DataError: for a file that is missing or damaged, or holds more than one slice.
    """
    with one_line(path, patient), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of readers, on what is refused below
        if not path.is_file():
            raise DataError(path, "file is missing", patient)
        if not path.name.endswith((".nii", ".nii.gz")):
            return imread(path), None, None
        array, spacing, affine = read_nifti(path, patient)
        plane = [axis for axis, n in enumerate(array.shape) if n > 1]
        if len(plane) > 2:
            raise DataError(path, f"a volume of shape {array.shape}: write each slice as a case of its own", patient)
        plane = plane if len(plane) == 2 else [0, 1]
        row, column = float(spacing[plane[1]]), float(spacing[plane[0]])
        if not (0 < row < math.inf and 0 < column < math.inf):
            raise DataError(path, f"pixel spacing is {row} x {column} mm", patient)
        place = None if affine is None else affine[:3, [*plane, 3]]
        return array.reshape([array.shape[axis] for axis in plane]).T, (row, column), place


def read_image(path: Path, patient: str) -> tuple[np.ndarray, Spacing, Place]:
    """An image as uint8 (H, W); size of its pixels and place as `read_array` gives them.

    RGB becomes grey (LUMINANCE); transparency is left out. 8 bits stay as they are; of any other type, WINDOW's
    percentiles of this image become 0 and 255 (its least and largest value, where the percentiles coincide).

    Raises:
        DataError: as `read_array`; for an image that is constant, or has values that are no numbers.
    """
    array, spacing, place = read_array(path, patient)
    with one_line(path, patient):
        if array.dtype.kind not in "uif" or not array.size or array.ndim not in (2, 3):
            raise DataError(path, f"not one image but {array.dtype} of shape {array.shape}", patient)
        eight_bits, channels = array.dtype == np.uint8, array.shape[2] if array.ndim == 3 else 1
        if channels > 4:
            raise DataError(path, f"not one image of 1 or 3 channels, its shape is {array.shape}", patient)
        if array.ndim == 3:
            array = array[..., :3].astype(np.float64) @ LUMINANCE if channels > 2 else array[..., 0]
        if not np.isfinite(array).all():
            raise DataError(path, "holds values that are no finite numbers", patient)
        if array.min() == array.max():
            raise DataError(path, f"constant image, {array.min():g} everywhere", patient)
        if not eight_bits:
            low, high = np.percentile(array, WINDOW)
            low, high = (low, high) if low < high else (array.min(), array.max())
            array = 255 * np.clip((array.astype(np.float64) - low) / (float(high) - float(low)), 0, 1)
        return np.rint(array).astype(np.uint8, order="C"), spacing, place


def read_label(path: Path, patient: str, names: tuple[str, ...]) -> tuple[np.ndarray, Spacing, Place]:
    """A label map as uint8 (H, W) of these classes; size of its pixels and place as `read_array` gives them.

    Raises:
        DataError: as `read_array`; for colours, values that are no whole numbers, or that are no class.
    """
    array, spacing, place = read_array(path, patient)
    with one_line(path, patient):
        if array.ndim != 2 or array.dtype.kind not in "uifb" or not array.size:
            reason = f"not a label map of one value a pixel but {array.dtype} of shape {array.shape}"
            raise DataError(path, reason, patient)
        low, high = array.min(), array.max()
        if not (low >= -ROUNDING and high <= len(names) - 1 + ROUNDING):  # this way round, NaN is a fault too
            allowed = ", ".join(f"{k} {name}" for k, name in enumerate(names))
            raise DataError(path, f"values from {low} to {high}, allowed are {allowed}", patient)
        whole = np.rint(array.astype(np.float64))
        if np.abs(array - whole).max() > ROUNDING:
            raise DataError(path, "values are not whole numbers", patient)
        return whole.astype(np.uint8, order="C"), spacing, place
