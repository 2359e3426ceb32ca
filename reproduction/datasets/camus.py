"""Reader of the CAMUS data set: apical echocardiograms with expert label maps.

    camus = open_camus("path/to/camus")
    frame = camus.frame(camus.patients("train")[0], "4CH", "ED").resized(112)

Both releases give the same `Frame`:

- *NIfTI 2023*: `database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}[_gt].nii.gz`, arrays (W, H), split
  by `database_split/subgroup_{training,validation,testing}.txt`;
- *MetaImage 2019*: `{training,testing}/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}[_gt].mhd` and `.raw`, arrays
  (1, H, W) with anisotropic pixels, split by the paper's rule.

Data: S. Leclerc et al., "Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D
Echocardiography", IEEE TMI 38(9):2198-2210, 2019, doi 10.1109/TMI.2019.2900516.
"""

import gzip
import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from skimage.transform import resize

from echo.config import PHASES, SPLITS, VIEWS
from echo.progress import tqdm

NIFTI, METAIMAGE = "NIfTI 2023", "MetaImage 2019"
FOLDERS = {NIFTI: ("database_nifti",), METAIMAGE: ("training", "testing")}
SUFFIX = {NIFTI: ".nii.gz", METAIMAGE: ".mhd"}
VALIDATION_PATIENTS = 50  # the paper takes the first 50 training patients of the 2019 release


class CamusError(ValueError):
    """A fault of the data set; the message is one line with the file, the patient and the reason."""

    def __init__(self, path: Path, reason: str, patient: str | None = None):
        super().__init__(" ".join(": ".join(filter(None, (str(path), patient, reason))).split()))


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled still of one patient, row 0 at the probe.

    image: uint8 (H, W), 0-255. label: uint8 (H, W), 0 background, 1 left ventricular endocardium, 2 left
    ventricular myocardium, 3 left atrium. spacing_mm: size (row, col) of a pixel. quality: Good, Medium or
    Poor. ef: the clinicians' ejection fraction in percent. What the data set does not tell is None.
    """

    patient: str
    view: str
    phase: str
    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple[float, float]
    quality: str | None = None
    ef: float | None = None
    sex: str | None = None
    age: int | None = None

    def resized(self, size: int) -> "Frame":
        """The frame on a grid of (size, size) pixels that covers the same rectangle in mm.

        The image is smoothed before it is sampled, so that speckle does not alias. The label takes the value
        of the pixel under each new pixel's centre, so that no class appears between two others.
        """
        height, width = self.image.shape
        if (height, width) == (size, size):
            return self
        image = resize(self.image, (size, size), order=1, anti_aliasing=True, preserve_range=True)
        centres = 2 * np.arange(size) + 1  # of the new pixels, in units of half a new pixel
        label = self.label[np.ix_(centres * height // (2 * size), centres * width // (2 * size))]
        spacing = (self.spacing_mm[0] * height / size, self.spacing_mm[1] * width / size)
        return replace(self, image=np.rint(image).astype(np.uint8), label=label, spacing_mm=spacing)


@dataclass(frozen=True, eq=False)
class Camus:
    """An opened data set, made by `open_camus`.

    root: the folder in use. release: "NIfTI 2023" or "MetaImage 2019". views: those with a frame anywhere, in
    the order of VIEWS. skipped: (patient, reason) of each one left out, empty with on_error="raise".
    """

    root: Path
    release: str
    views: tuple[str, ...]
    skipped: list[tuple[str, str]]
    _folders: dict[str, Path]  # patient -> folder
    _splits: dict[str, list[str]]  # a split that this copy does not define has no key

    def keys(self, patients: list[str]) -> list[tuple[str, str, str]]:
        """(patient, view, phase) of every frame of these patients: what `frame` takes."""
        return [(patient, view, phase) for patient in patients for view in self.views for phase in PHASES]

    def patients(self, split: str | None = None) -> list[str]:
        """All patients (None), sorted; or those of a split, in the order of its list.

        split: one of SPLITS or the beginning of just one ("train", "val", "test"). The 2023 release lists its
        splits in `database_split`. Of the 2019 release, the first 50 patients in `training` are the
        validation split, the others the training split, and those in `testing` the testing split.
        Raises CamusError for an unknown split, or one that this copy does not define.
        """
        if split is None:
            return sorted(self._folders)
        found = [name for name in SPLITS if name.startswith(split)]
        if len(found) != 1:
            raise CamusError(self.root, f"no single split {split!r}, choose from {', '.join(SPLITS)}")
        if found[0] not in self._splits:
            source = f"database_split/subgroup_{found[0]}.txt" if self.release == NIFTI else "such folder"
            raise CamusError(self.root, f"the {found[0]} split is not defined, there is no {source}")
        return list(self._splits[found[0]])

    def frame(self, patient: str, view: str, phase: str) -> Frame:
        """Read one frame and its label, at the size they are stored in.

        Raises CamusError when the frame or its label is missing, and when one of them or the cfg is damaged.
        """
        if patient not in self._folders:
            raise CamusError(self.root, "no such patient in this data set", patient)
        if view not in VIEWS or phase not in PHASES:
            raise CamusError(self.root, f"no frame {view} {phase} in {VIEWS} x {PHASES}", patient)
        folder, suffix = self._folders[patient], SUFFIX[self.release]
        path, label_path = (folder / f"{patient}_{view}_{phase}{tail}{suffix}" for tail in ("", "_gt"))
        image, spacing = _read_image(path, patient, 255)
        label, _ = _read_image(label_path, patient, 3)
        if image.shape != label.shape:
            raise CamusError(label_path, f"label is {label.shape}, its frame {image.shape}", patient)
        if image.min() == image.max():
            raise CamusError(path, f"constant image, {image.min()} everywhere", patient)
        return Frame(patient, view, phase, image, label, spacing, **_read_info(folder, patient, view))

    def digest(self) -> str:
        """SHA-256 (hex) over names and bytes of the patients' frames, labels and cfg and of the split lists.

        Raises CamusError when a file cannot be read.
        """
        wanted = re.compile(r"patient\d+_[24]CH_E[DS](_gt)?\.(nii\.gz|mhd|z?raw)|Info_[24]CH\.cfg")
        total = hashlib.sha256()
        with _one_line(self.root):
            files = [*self.root.glob("database_split/subgroup_*.txt")]
            files += (f for d in self._folders.values() for f in d.iterdir() if wanted.fullmatch(f.name))
            for name, path in sorted((f.relative_to(self.root).as_posix(), f) for f in files):
                # Each file is hashed by itself first: bytes cannot move from one to the next unnoticed.
                total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()


def open_camus(root: str | Path, on_error: str = "raise") -> Camus:
    """Open CAMUS in `root`, either release.

    root: the data set's folder, or the one above it, or the one in it that holds the patients.
    on_error: "raise" reads a frame when it is asked for, and raises at the first fault; "skip" reads every
    frame now and leaves out each patient with a fault (`Camus.skipped`). A patient in two splits raises.

    Raises CamusError when there is no data set, or more than one, or when a split list is at fault.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    root = Path(root).expanduser().absolute()
    with _one_line(root):
        root, layout = _locate(root)
        groups = {name: _patient_folders(root / name) for name in FOLDERS.get(layout, ("",))}
        folders = {patient: folder for group in groups.values() for patient, folder in group.items()}
        stored = {path.name for folder in folders.values() for path in folder.iterdir()}
    release = next((r for r in SUFFIX if any(name.endswith(SUFFIX[r]) for name in stored)), None)
    if release is None:
        raise CamusError(root, f"no {' or '.join(SUFFIX.values())} file in any patient's folder")
    tails = {view: tuple(f"_{view}_{phase}{SUFFIX[release]}" for phase in PHASES) for view in VIEWS}
    views = tuple(view for view in VIEWS if any(name.endswith(tails[view]) for name in stored))
    if release == NIFTI:
        splits = _read_splits(root / "database_split")
    else:
        training = list(groups.get("training", folders))
        splits = {"training": training[VALIDATION_PATIENTS:], "validation": training[:VALIDATION_PATIENTS]}
        if groups.get("testing"):
            splits["testing"] = list(groups["testing"])
    faults = _split_faults(root, splits, folders)
    if faults and on_error == "raise":
        raise next(iter(faults.values()))

    skipped = [(patient, str(error)) for patient, error in faults.items()]
    camus = Camus(root, release, views, skipped, folders, splits)
    if on_error == "skip":
        for patient in tqdm(camus.patients(), desc="checking CAMUS", unit="patient", leave=False):
            try:
                for key in camus.keys([patient]):
                    camus.frame(*key)
            except CamusError as error:
                skipped.append((patient, str(error)))
                del folders[patient]
        for split in splits:
            splits[split] = [patient for patient in splits[split] if patient in folders]
    return camus


def _patient_folders(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob("patient*"))
    return {path.name: path for path in paths if re.fullmatch(r"patient\d+", path.name) and path.is_dir()}


def _layouts(folder: Path) -> list[str]:
    found = [layout for layout in FOLDERS if any(_patient_folders(folder / n) for n in FOLDERS[layout])]
    return found or (["patients"] if _patient_folders(folder) else [])


def _locate(root: Path) -> tuple[Path, str]:
    """The data set's folder, and whether it is laid out like a release or just holds "patients"."""
    if not root.is_dir():
        raise CamusError(root, "no such folder")
    for layout in _layouts(root.parent):
        if root.name in (*FOLDERS.get(layout, ()), "database_split"):
            return root.parent, layout
    found = [(root, layout) for layout in _layouts(root)]
    found = found or [(child, layout) for child in sorted(root.glob("*")) for layout in _layouts(child)]
    if not found:
        raise CamusError(root, "no CAMUS here, no folder is named patientXXXX")
    if len(found) > 1:
        names = ", ".join(f"{path.name} ({layout})" for path, layout in found)
        raise CamusError(root, f"more than one data set here, open one of them: {names}")
    return found[0]


def _read_splits(folder: Path) -> dict[str, list[str]]:
    splits = {}
    for split in SPLITS:
        path = folder / f"subgroup_{split}.txt"
        with _one_line(path):
            if path.exists():
                splits[split] = path.read_text(encoding="utf-8").split()
    return splits


def _split_faults(root: Path, splits: dict[str, list[str]], folders: dict[str, Path]) -> dict[str, CamusError]:
    """An error for each patient that a split names and no folder holds; raises for one in two splits."""
    faults, seen = {}, {}
    for split, patients in splits.items():
        for patient in patients:
            if patient in seen:
                raise CamusError(root, f"in two splits, {seen[patient]} and {split}", patient)
            seen[patient] = split
            if patient not in folders:
                faults[patient] = CamusError(root, f"in the {split} split, but has no folder", patient)
    return faults


@contextmanager
def _one_line(path: Path, patient: str | None = None) -> Iterator[None]:
    try:
        yield
    except CamusError:
        raise
    except Exception as error:  # gzip, zlib, nibabel, SimpleITK and the file system share no narrower class
        raise CamusError(path, f"cannot be read, {type(error).__name__}: {error}", patient) from None


def _read_image(path: Path, patient: str, top: int) -> tuple[np.ndarray, tuple[float, float]]:
    """uint8 (H, W) of whole numbers from 0 to `top`, and the (row, col) spacing in mm."""
    with _one_line(path, patient):
        if not path.is_file():
            raise CamusError(path, "file is missing", patient)
        array, spacing = _read_nifti(path) if path.suffix == ".gz" else _read_metaimage(path, patient)
        if array.ndim == 3 and 1 in array.shape:
            axis = array.shape.index(1)
            array, spacing = array.squeeze(axis), np.delete(spacing, axis)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "uif":
            raise CamusError(path, f"not one grey image but {array.dtype} of shape {array.shape}", patient)
        row, col = map(float, spacing)
        if not (0 < row < math.inf and 0 < col < math.inf):
            raise CamusError(path, f"pixel spacing is {row} x {col} mm", patient)
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= top):  # this way round, NaN is a fault too
            raise CamusError(path, f"values from {low} to {high}, allowed are 0 to {top}", patient)
        if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
            raise CamusError(path, "values are not whole numbers", patient)
        return array.astype(np.uint8, order="C"), (row, col)


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    # Unpacked in one go, gzip's checksum covers every byte, and nibabel does not have to seek in a stream.
    content = gzip.decompress(path.read_bytes())
    array = np.asarray(nib.Nifti1Image.from_bytes(content).dataobj)
    # The image's own header is repaired: it would give 1 mm for a pixel size of 0.
    zooms = nib.Nifti1Header(content[:348], check=False).get_zooms()
    return array.T, np.array(zooms)[::-1]  # (W, H) -> (H, W)


def _read_metaimage(path: Path, patient: str) -> tuple[np.ndarray, np.ndarray]:
    # SimpleITK prints to the terminal what it finds wrong, and a wrong NDims overruns its memory and ends the
    # process: so the usual faults are looked for first.
    header = dict(re.findall(r"^(\w+) *= *(.*?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE))
    if not header.keys() >= {"NDims", "DimSize", "ElementSpacing", "ElementType", "ElementDataFile"}:
        raise CamusError(path, "not a MetaImage header", patient)
    shape = [int(n) for n in header["DimSize"].split()]
    if len(shape) not in (2, 3) or header["NDims"] != str(len(shape)):
        raise CamusError(path, f"not one image: NDims {header['NDims']}, DimSize {header['DimSize']}", patient)
    pixels = path.with_name(header["ElementDataFile"])
    if not pixels.is_file():
        raise CamusError(pixels, "file is missing", patient)
    if (size := pixels.stat().st_size) < math.prod(shape) and header.get("CompressedData") != "True":
        raise CamusError(pixels, f"truncated, {size} bytes for {math.prod(shape)} pixels", patient)
    try:
        image = sitk.ReadImage(str(path), imageIO="MetaImageIO")
    except RuntimeError:
        raise CamusError(path, "SimpleITK cannot read it as MetaImage", patient) from None
    return sitk.GetArrayFromImage(image), np.array(image.GetSpacing())[::-1]


def _read_info(folder: Path, patient: str, view: str) -> dict[str, str | float | None]:
    """Clinical facts from Info_<view>.cfg, or from the other view's where that is absent."""
    paths = [path for v in (view, *VIEWS) if (path := folder / f"Info_{v}.cfg").exists()]
    if not paths:
        return {}
    path = paths[0]
    with _one_line(path, patient):
        facts = dict(re.findall(r"^(\w+) *: *(.*?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE))
        if not facts:
            raise CamusError(path, "holds no 'key: value' line", patient)
        ef, age = facts.get("EF", facts.get("LVef")), facts.get("Age")
        if ef is not None and not 0 <= float(ef) <= 100:
            raise CamusError(path, f"EF is {ef} %", patient)
        return {
            "quality": facts.get("ImageQuality"),
            "sex": facts.get("Sex"),
            "ef": None if ef is None else float(ef),
            "age": None if age is None else int(age),
        }
