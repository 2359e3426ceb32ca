"""One image or label map from a file, NIfTI or MetaImage, turned the way that its header says.

An echo here is an array (H, W) with row 0 at the probe. CAMUS stores it as (W, H): the first axis goes across the
image and the second one down, and the affine is diag(-column_mm, -row_mm, 1, 1) (x to the left, y to the back, in
NIfTI's terms). A file whose header states other axes or directions is turned until it has these. A header that
states none (no sform and no qform, or the identity, which programs write when they know nothing) is taken to be
stored as CAMUS's own files are.
"""

import gzip
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from skimage.transform import resize

from reproduction.datasets.errors import DataError
from reproduction.datasets.facts import read_text

LIKE_CAMUS = nib.orientations.axcodes2ornt("LPS")
MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's unit codes: unknown, metre, millimetre, micron
ROUNDING = 0.01  # how far a whole number may be off, after scale factors and 8-bit quantisation
ELEMENT_TYPES = {"UCHAR": "u1", "CHAR": "i1", "USHORT": "u2", "SHORT": "i2", "UINT": "u4", "INT": "i4"}
ELEMENT_TYPES |= {"FLOAT": "f4", "DOUBLE": "f8"}


@dataclass(frozen=True, eq=False)
class Still:
    """pixels: uint8 (H, W), row 0 at the probe. spacing_mm: (row, column). corner_mm: where the header places the
    middle of the first pixel, (x, y); None where it states no axes. turned: whether it states others than CAMUS's."""

    pixels: np.ndarray
    spacing_mm: tuple[float, float]
    corner_mm: tuple[float, float] | None
    turned: bool


class Resizable:
    """What a labelled frame of any source can do: it has image and label, uint8 (H, W), and spacing_mm, (row, column)
    or None."""

    def resized(self, size: int) -> Self:
        """The frame on a grid of (size, size) pixels that covers the same rectangle in mm.

        The image is smoothed before it is sampled, so that speckle does not alias. The label takes the value
        of the pixel under each new pixel's centre, so that no class appears between two others.
        """
        height, width = self.image.shape
        if (height, width) == (size, size):
            return self
        image = resize(self.image, (size, size), order=1, anti_aliasing=True, preserve_range=True)
        mm = self.spacing_mm
        spacing = mm and (mm[0] * height / size, mm[1] * width / size)
        image, label = np.rint(image).astype(np.uint8), self.label_at(size)
        return replace(self, image=image, label=label, spacing_mm=spacing)

    def label_at(self, size: int) -> np.ndarray:
        """The label map alone of `resized`."""
        (height, width), centres = self.label.shape, 2 * np.arange(size) + 1  # in units of half a new pixel
        return self.label[np.ix_(centres * height // (2 * size), centres * width // (2 * size))]


@contextmanager
def one_line(path: Path, patient: str | None = None) -> Iterator[None]:
    """Whatever goes wrong with this file becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # gzip, zlib, nibabel and the file system share no narrower class
        raise DataError(path, f"cannot be read, {type(error).__name__}: {error}", patient) from None


def read_still(path: Path, patient: str, top: int) -> Still:
    """A file's image, of whole numbers (up to rounding) from 0 to `top`.

    Raises:
        DataError: for a file that is missing or damaged, or that holds anything else; for a header that
            contradicts itself, or places the image at an angle.
    """
    with one_line(path, patient), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of numpy and nibabel, on values that are refused below
        if not path.is_file():
            raise DataError(path, "file is missing", patient)
        read = _read_metaimage if path.suffix == ".mhd" else read_nifti
        array, spacing, affine = read(path, patient)
        if array.dtype.kind not in "uif" or not array.size or sum(n > 1 for n in array.shape) > 2:
            raise DataError(path, f"not one grey image but {array.dtype} of shape {array.shape}", patient)
        array, spacing, corner, turned = _turned(path, patient, array, spacing, affine)
        row, column = map(float, spacing)
        if not (0 < row < math.inf and 0 < column < math.inf):
            raise DataError(path, f"pixel spacing is {row} x {column} mm", patient)
        low, high = array.min(), array.max()
        if not (low >= -ROUNDING and high <= top + ROUNDING):  # this way round, NaN is a fault too
            raise DataError(path, f"values from {low} to {high}, allowed are 0 to {top}", patient)
        if array.dtype.kind == "f":
            whole = np.rint(array)
            if np.abs(array - whole).max() > ROUNDING:
                raise DataError(path, "values are not whole numbers", patient)
            array = whole
        return Still(array.astype(np.uint8, order="C"), (row, column), corner, turned)


def _turned(path: Path, patient: str, array: np.ndarray, spacing: np.ndarray, affine: np.ndarray | None):
    """(array (H, W), spacing (row, column), corner (x, y) or None, turned) from an array in a file's own axes.

    affine: (4, 4) in mm from its indices to NIfTI's axes, or None where the file states none.
    """
    shape, spacing = array.shape, np.ones(3) * [*spacing[:3], *[1.0] * (3 - len(spacing))]
    if affine is None:
        # Without a statement, the first two axes of more than one pixel are (W, H).
        axes = [axis for axis, n in enumerate(shape) if n > 1] or [0, 1]
        axes = (axes + [axis for axis in range(len(shape)) if axis not in axes])[:2]
        axes = sorted(axes)
        return array.reshape([shape[axis] for axis in axes]).T, spacing[axes][::-1], None, False
    array = array.reshape(shape[:3] + (1,) * (3 - len(shape)))
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    plane = [axis for axis in range(3) if array.shape[axis] > 1] or [0, 1]
    if not np.allclose(lengths[plane], spacing[plane], rtol=0.01):
        told, own = (" x ".join(f"{mm:.4g}" for mm in each[plane]) for each in (lengths, spacing))
        raise DataError(path, f"its affine says pixels of {told} mm, its pixel size {own} mm", patient)
    turn = nib.orientations.io_orientation(affine)
    oblique = np.abs(affine[:3, :3]).max(0) < 0.98 * lengths  # more than about 11 degrees
    if np.isnan(turn).any() or oblique[plane].any():
        raise DataError(path, "its affine turns the image at an angle, allowed are flips and swapped axes", patient)
    transform = nib.orientations.ornt_transform(turn, LIKE_CAMUS)
    order = np.argsort(transform[:, 0])  # the file's axis that becomes each new one
    placed = affine @ nib.orientations.inv_ornt_aff(transform, array.shape)
    array, spacing = nib.orientations.apply_orientation(array, transform), spacing[order.astype(int)]
    if array.shape[2] != 1:
        across = "".join("xyz"[axis] for axis in range(3) if array.shape[axis] > 1)
        raise DataError(path, f"its affine says that the image lies in the {across} plane, not in xy", patient)
    turned = transform[plane].tolist() != [[0, 1], [1, 1]][: len(plane)]
    return array[:, :, 0].T, spacing[1::-1], (float(placed[0, 3]), float(placed[1, 3])), turned


def read_nifti(path: Path, patient: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A NIfTI file's array, in its own axes; size of a pixel in mm along these; affine in mm, where one is stated."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        # Unpacked in one go, gzip's checksum covers every byte, and nibabel does not have to seek in a stream.
        content = gzip.decompress(content)
    with LoggingOutputSuppressor():
        second = content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # its header has 540 bytes
        image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)
        array = np.asarray(image.dataobj)
        # The image's own header is repaired: it would give 1 mm for a pixel size of 0.
        header = type(image.header)(content[: int(image.header["sizeof_hdr"])], check=False)
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM:
        raise DataError(path, f"unit of length {unit} is none of NIfTI's", patient)
    spacing = np.array(header.get_zooms()[:3], np.float64) * MM[unit]
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is not None and np.array_equal(sform, np.eye(4)):
        sform = None
    if qform is not None and np.array_equal(np.sign(qform), np.eye(4)):  # no rotation, no place: the identity
        qform = None
    if sform is not None and qform is not None:
        io_orientation = nib.orientations.io_orientation
        if not np.array_equal(io_orientation(sform), io_orientation(qform)):
            raise DataError(path, "its sform and its qform state different axes", patient)
    affine = qform if sform is None else sform
    return array, spacing, None if affine is None else np.diag([MM[unit]] * 3 + [1.0]) @ affine


def _read_metaimage(path: Path, patient: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    # Not by SimpleITK: a wrong header makes it print to the terminal, and may overrun its memory and end the process.
    header = dict(re.findall(r"^(\w+) *= *(.*?)\s*$", read_text(path), re.MULTILINE))
    if not header.keys() >= {"NDims", "DimSize", "ElementSpacing", "ElementType", "ElementDataFile"}:
        raise DataError(path, "not a MetaImage header", patient)
    shape = [int(n) for n in header["DimSize"].split()]
    n = len(shape)
    if n not in (2, 3) or header["NDims"] != str(n) or min(shape) < 1:
        raise DataError(path, f"not one image: NDims {header['NDims']}, DimSize {header['DimSize']}", patient)
    kind = ELEMENT_TYPES.get(header["ElementType"].removeprefix("MET_"))
    if kind is None or header.get("ElementNumberOfChannels", "1") != "1":
        raise DataError(path, f"not one grey image: ElementType {header['ElementType']}", patient)
    pixels = path.with_name(header["ElementDataFile"])
    if not pixels.is_file():
        raise DataError(pixels, "file is missing", patient)
    dtype = np.dtype(kind).newbyteorder(">" if header.get("BinaryDataByteOrderMSB") == "True" else "<")
    needed, content = math.prod(shape), pixels.read_bytes()
    if header.get("CompressedData") == "True":
        with one_line(pixels, patient):
            content = zlib.decompressobj().decompress(content, needed * dtype.itemsize)
    if len(content) < needed * dtype.itemsize:
        raise DataError(pixels, f"truncated, {len(content)} bytes for {needed} pixels of {dtype.itemsize}", patient)
    array = np.frombuffer(content, dtype, needed).reshape(shape[::-1]).T  # the first axis runs fastest
    spacing = np.array(header["ElementSpacing"].split(), np.float64)
    directions = np.array(header.get("TransformMatrix", " ".join(map(str, np.eye(n).ravel()))).split(), np.float64)
    origin = np.array(header.get("Offset", header.get("Position", "0 " * n)).split(), np.float64)
    affine = np.eye(4)
    affine[:n, :n] = directions.reshape(n, n).T * spacing[:n]
    affine[:n, 3] = origin
    # MetaImage counts x to the left and y to the back, NIfTI the other way round.
    return array, spacing, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
