"""Writer of CAMUS's own layout (NIfTI release), for the phantom and for synthetic sets; `camus` reads it."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from imageio.v3 import imwrite
from numpy.typing import NDArray

from echo.config import SPLITS, VIEWS
from echo.resume import atomic


def write_bytes(path: Path, data: bytes) -> None:
    """`data` as a file, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_png(path: Path, array: NDArray[np.uint8]) -> None:
    """An array (H, W) as PNG; encoded first, since imageio tells of a full disk only while it forgets the file."""
    write_bytes(path, imwrite("<bytes>", array, extension=".png"))


def nifti(array: NDArray[np.uint8], spacing_mm: tuple[float, float]) -> bytes:
    """A (row, column) uint8 array as .nii.gz bytes, stored (W, H) as CAMUS does; same array, same bytes."""
    image = nib.Nifti1Image(np.ascontiguousarray(array.T), np.diag([-spacing_mm[1], -spacing_mm[0], 1.0, 1.0]))
    return gzip.compress(image.to_bytes(), mtime=0)


def write_frame(
    folder: Path,
    view: str,
    phase: str,
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
    spacing_mm: tuple[float, float],
) -> None:
    """One frame of the patient that `folder` is named after.

    Args:
        image, label: (H, W), row 0 at the probe; the label in CAMUS classes 0 to 3.
        spacing_mm: size (row, column) of a pixel.
    """
    for kind, array in (("", image), ("_gt", label)):
        write_bytes(folder / f"{folder.name}_{view}_{phase}{kind}.nii.gz", nifti(array, spacing_mm))


def write_info(folder: Path, info: str) -> None:
    """A patient's `Info_2CH.cfg` and `Info_4CH.cfg`, alike: lines of `key: value`."""
    for view in VIEWS:
        write_bytes(folder / f"Info_{view}.cfg", info.encode())


def write_splits(root: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """The list of patients of each split; one without patients gets an empty list."""
    for split in SPLITS:
        members = "".join(f"{patient}\n" for patient in splits.get(split, ()))
        write_bytes(root / "database_split" / f"subgroup_{split}.txt", members.encode())
