"""Reader of the CAMUS data set: apical echocardiograms with expert label maps.

    camus = open_camus("path/to/camus")
    frame = camus.frame(camus.patients("train")[0], "4CH", "ED").resized(112)

Both releases give the same `Frame`:

- *NIfTI 2023*: `database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}[_gt].nii.gz`, arrays (W, H), split by lists;
- *MetaImage 2019*: `{training,testing}/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}[_gt].mhd` and `.raw`, arrays
  (1, H, W) with anisotropic pixels, split by the paper's rule.

Any number of patients, views and phases will do. An image without its label, a label without its image and a patient
without any frame are faults; `Camus.notes` says how many patients lack a view or a phase that others have.

Data: S. Leclerc et al., "Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D
Echocardiography", IEEE TMI 38(9):2198-2210, 2019, doi 10.1109/TMI.2019.2900516.
"""

import hashlib
import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from echo.config import PHASES, SPLITS, VIEW_PHASES, VIEWS
from echo.labels import CAMUS, Classes
from echo.progress import tqdm
from reproduction.datasets.camus_lists import in_no_split, read_splits, split_by_rule, split_faults, told_apart
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.facts import read_info
from reproduction.datasets.images import Resizable, one_line, read_still

CamusError = DataError  # the name that importers know

NIFTI, METAIMAGE = "NIfTI 2023", "MetaImage 2019"
FOLDERS = {NIFTI: ("database_nifti",), METAIMAGE: ("training", "testing")}
SUFFIXES = {NIFTI: (".nii.gz", ".nii"), METAIMAGE: (".mhd",)}  # the first one that is there is read
FILE = re.compile(r"(patient\d+)_([24]CH)_(E[DS])(_gt)?(\.nii\.gz|\.nii|\.mhd)")
MOST_TILTED = 50  # degrees from straight down to the atrium; at most 38 among 800 frames of CAMUS


@dataclass(frozen=True, eq=False)
class Frame(Resizable):
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

    def facts(self) -> dict:
        """What a table says of this frame."""
        condition = VIEW_PHASES.index((self.view, self.phase))
        names = {"patient": self.patient, "view": self.view, "phase": self.phase, "class_label": condition}
        return names | {"quality": self.quality, "ef": self.ef}


@dataclass(frozen=True, eq=False)
class Camus:
    """An opened data set, made by `open_camus`.

    root: the folder in use. release: "NIfTI 2023" or "MetaImage 2019". views: those with a frame anywhere, in
    the order of VIEWS. skipped: (patient, reason) of each one left out. faults: the errors behind `skipped`.
    notes: sentences about what is unusual and no fault, such as the split rule of a small copy.
    """

    source: ClassVar[str] = "camus"
    classes: ClassVar[Classes] = CAMUS
    tests_labelled: ClassVar[bool] = True
    key_columns: ClassVar[list[str]] = ["patient", "view", "phase"]  # of a table: what `frame` and `label_path` take
    root: Path
    release: str
    views: tuple[str, ...]
    faults: list[DataError]
    notes: list[str]
    _folders: dict[str, Path]  # patient -> folder
    _files: dict[str, dict[tuple[str, str, str], Path]]  # patient -> (view, phase, "" or "_gt") -> file
    _splits: dict[str, list[str]]  # a split that this copy does not define has no key

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return [(fault.patient, str(fault)) for fault in self.faults]

    def keys(self, patients: list[str]) -> list[tuple[str, str, str]]:
        """(patient, view, phase) of every frame of these patients: what `frame` takes.

        A label without its image counts as a frame, so that reading it names the image that is missing.
        """
        there = {patient: {key[:2] for key in self._files.get(patient, ())} for patient in patients}
        return [(p, view, phase) for p in patients for view in VIEWS for phase in PHASES if (view, phase) in there[p]]

    def patients(self, split: str | None = None) -> list[str]:
        """All patients (None), sorted; or those of a split, in the order of its list.

        split: one of SPLITS or the beginning of just one ("train", "val", "test"). The 2023 release lists its
        splits in `database_split`. Of the 2019 release, the first 50 patients in `training` (of a copy with at
        most 50, the first ninth) are the validation split, the others the training split, and those in
        `testing` the testing split. Raises DataError for an unknown split, or one that this copy does not define.
        """
        if split is None:
            return sorted(self._folders)
        found = [name for name in SPLITS if name.startswith(split)]
        if len(found) != 1:
            raise DataError(self.root, f"no single split {split!r}, choose from {', '.join(SPLITS)}")
        if found[0] not in self._splits:
            source = f"database_split/subgroup_{found[0]}.txt" if self.release == NIFTI else "such folder"
            raise DataError(self.root, f"the {found[0]} split is not defined, there is no {source}")
        return list(self._splits[found[0]])

    def without(self, patients: Collection[str]) -> "Camus":
        """The data set without these patients."""
        folders = {patient: folder for patient, folder in self._folders.items() if patient not in patients}
        splits = {split: [p for p in listed if p not in patients] for split, listed in self._splits.items()}
        return replace(self, _folders=folders, _splits=splits)

    def label_path(self, patient: str, view: str, phase: str) -> Path:
        """The file of a frame's label map."""
        return self._path(patient, view, phase, "_gt")

    def _path(self, patient: str, view: str, phase: str, tail: str) -> Path:
        folder = self._folders[patient]
        usual = folder / f"{folder.name}_{view}_{phase}{tail}{SUFFIXES[self.release][0]}"
        return self._files[patient].get((view, phase, tail), usual)

    def frame(self, patient: str, view: str, phase: str) -> Frame:
        """Read one frame and its label, at the size they are stored in, turned as their headers say.

        Raises DataError when the frame or its label is missing or damaged, when the two do not belong together,
        and when the atrium does not lie below the ventricle, as it does in each apical view.
        """
        if patient not in self._folders:
            raise DataError(self.root, "no such patient in this data set", patient)
        if view not in VIEWS or phase not in PHASES:
            raise DataError(self.root, f"no frame {view} {phase} in {VIEWS} x {PHASES}", patient)
        path, label_path = self._path(patient, view, phase, ""), self.label_path(patient, view, phase)
        still, label = read_still(path, patient, 255), read_still(label_path, patient, 3)
        image = still.pixels
        if image.shape != label.pixels.shape:
            raise DataError(label_path, f"label is {label.pixels.shape}, its frame {image.shape}", patient)
        if not np.allclose(still.spacing_mm, label.spacing_mm, rtol=0.01):
            pixels = "label has pixels of {:.4g} x {:.4g} mm, its frame {:.4g} x {:.4g} mm"
            raise DataError(label_path, pixels.format(*label.spacing_mm, *still.spacing_mm), patient)
        if still.corner_mm and label.corner_mm:
            apart = np.abs(np.subtract(still.corner_mm, label.corner_mm))
            if (apart > np.array(still.spacing_mm[::-1]) / 2).any():
                raise DataError(label_path, f"its header places it {apart.max():.4g} mm beside its frame", patient)
        stated = [header.corner_mm is not None for header in (still, label)]
        if stated[0] != stated[1] and (still.turned or label.turned):
            one, other = ("frame", "label") if stated[0] else ("label", "frame")
            reason = f"the header of its {one} turns it, that of its {other} states no axes: do they lie the same way?"
            raise DataError(label_path, reason, patient)
        if image.min() == image.max():
            raise DataError(path, f"constant image, {image.min()} everywhere", patient)
        if label.pixels.min() > 0:
            raise DataError(label_path, "no pixel is background (0)", patient)
        if not label.pixels.any():
            raise DataError(label_path, "nothing is labelled", patient)
        if (tilt := atrium_tilt(label.pixels, still.spacing_mm)) > MOST_TILTED:
            lies = "above" if tilt > 180 - MOST_TILTED else "beside"
            reason = f"the left atrium lies {lies} the ventricle, not below: upside down, or swapped axes?"
            raise DataError(label_path, reason, patient)
        # The facts of the other view serve where one cfg is absent.
        cfgs = (cfg for v in (view, *VIEWS) if (cfg := self._folders[patient] / f"Info_{v}.cfg").is_file())
        facts = {}
        if cfg := next(cfgs, None):
            with one_line(cfg, patient):
                facts = read_info(cfg)
        return Frame(patient, view, phase, image, label.pixels, still.spacing_mm, **facts)

    def record(self) -> dict:
        """What identifies the data, for data.json."""
        return {"release": self.release, "digest": self.digest(), "views": self.views}

    def digest(self) -> str:
        """SHA-256 (hex) over names and bytes of the patients' frames, labels and cfg and of the split lists.

        Raises DataError when a file cannot be read.
        """
        other = re.compile(r"patient\d+_[24]CH_E[DS](_gt)?\.z?raw|Info_[24]CH\.cfg")
        total = hashlib.sha256()
        with one_line(self.root):
            files = [*_inner(self.root / "database_split").glob("subgroup_*.txt")]
            for patient, folder in self._folders.items():
                files += self._files[patient].values()
                files += (f for f in folder.iterdir() if other.fullmatch(f.name) and f.is_file())
            for name, path in sorted((f.relative_to(self.root).as_posix(), f) for f in files):
                # Each file is hashed by itself first: bytes cannot move from one to the next unnoticed.
                total.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()


def atrium_tilt(label: np.ndarray, spacing_mm: tuple[float, float]) -> float:
    """Degrees between straight down and the way from the cavity's centre to the atrium's; 0 if one is absent."""
    if not ((label == 1).any() and (label == 3).any()):
        return 0.0
    down, across = np.subtract(*(np.argwhere(label == k).mean(0) for k in (3, 1))) * spacing_mm
    return float(np.degrees(np.arctan2(abs(across), down)))


def open_camus(root: str | Path, on_error: str = "raise") -> Camus:
    """Open CAMUS in `root`, either release.

    root: the data set's folder, or the one above it, or the one in it that holds the patients.
    on_error: "raise" raises for faults of the split lists, and reads a frame when it is asked for; "report" keeps
    the faults of the lists in `Camus.faults`, for the data stage, which reports them with all others; "skip" reads
    every frame now. Both leave out each patient with a fault.

    Raises DataError when there is no data set, or more than one; DataFaults for faults of the split lists with "raise".
    """
    if on_error not in ("raise", "report", "skip"):
        raise ValueError(f"on_error is 'raise', 'report' or 'skip', not {on_error!r}")
    root = Path(root).expanduser().absolute()
    with one_line(root):
        root, layout = _locate(root)
        groups = told_apart({name: _patient_folders(_inner(root / name)) for name in FOLDERS.get(layout, ("",))})
        folders = {patient: folder for group in groups.values() for patient, folder in group.items()}
        names = {patient: [] for patient in folders}
        locked = [
            DataError(folder, "cannot be read: permission denied", patient)
            for patient, folder in folders.items()
            if not os.access(folder, os.R_OK | os.X_OK)
        ]
        for patient in folders.keys() - {fault.patient for fault in locked}:
            names[patient] = sorted(path.name for path in folders[patient].iterdir())
    stored = {match[5] for patient in names for name in names[patient] if (match := FILE.fullmatch(name))}
    release = next((r for r in SUFFIXES if stored & {*SUFFIXES[r]}), None)
    if release is None:
        raise DataError(
            root, f"no {' or '.join(suffixes[0] for suffixes in SUFFIXES.values())} file in any patient's folder"
        )
    files = {patient: _frame_files(folders[patient], names[patient], release) for patient in folders}
    views = tuple(view for view in VIEWS if any(view == key[0] for found in files.values() for key in found))
    notes = []
    if release == NIFTI:
        splits = read_splits(_inner(root / "database_split"))
    else:
        splits, notes = split_by_rule(groups, folders)
    faults = locked + split_faults(root, splits, folders)
    if faults and on_error == "raise":
        raise DataFaults(root, faults)
    splits = {split: [p for p in dict.fromkeys(listed) if p in folders] for split, listed in splits.items()}
    camus = Camus(root, release, views, faults, notes, folders, files, splits)
    notes += _lacking(camus) + in_no_split(splits, folders)
    if on_error != "skip":
        return camus
    for patient in tqdm(camus.patients(), desc="checking CAMUS", unit="patient", leave=False):
        try:
            keys = camus.keys([patient])
            if not keys:
                raise DataError(folders[patient], "holds no frame", patient)
            for key in keys:
                camus.frame(*key)
        except DataError as error:
            faults.append(error)
    return camus.without({fault.patient for fault in faults if fault.patient in folders})


def _frame_files(folder: Path, names: list[str], release: str) -> dict[tuple[str, str, str], Path]:
    """The file of each image ("") and label ("_gt") by view and phase; of .nii.gz and .nii, the first."""
    found = {}
    for suffix in SUFFIXES[release]:
        for match in filter(None, map(FILE.fullmatch, names)):
            if match[1] == folder.name and match[5] == suffix:
                found.setdefault((match[2], match[3], match[4] or ""), folder / match[0])
    return found


def _lacking(camus: Camus) -> list[str]:
    """One line on the frames that some patients lack and others have."""
    frames = {patient: {key[1:] for key in camus.keys([patient])} for patient in camus.patients()}
    everything = set().union(*frames.values())
    short = {patient: sorted(everything - own) for patient, own in frames.items() if own and own < everything}
    if not short:
        return []
    first, missing = next(iter(short.items()))
    example = ", ".join(f"{view} {phase}" for view, phase in missing)
    return [f"{len(short)} of {len(frames)} patients lack frames that others have, {first} for one: {example}"]


def _patient_folders(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob("patient*"))
    return {path.name: _inner(path) for path in paths if re.fullmatch(r"patient\d+", path.name) and path.is_dir()}


def _inner(folder: Path) -> Path:
    """`folder`, or the one of the same name in it, as unzip programs make them."""
    with suppress(PermissionError):  # `open_camus` reports it
        if (folder / folder.name).is_dir():
            return _inner(folder / folder.name)
    return folder


def _layouts(folder: Path) -> list[str]:
    found = [layout for layout in FOLDERS if any(_patient_folders(_inner(folder / n)) for n in FOLDERS[layout])]
    return found or (["patients"] if _patient_folders(folder) else [])


def _locate(root: Path) -> tuple[Path, str]:
    """The data set's folder, and whether it is laid out like a release or just holds "patients"."""
    if not root.is_dir():
        raise DataError(root, "no such folder")
    low = root
    while low.parent.name == low.name != "":
        low = low.parent
    for layout in _layouts(low.parent):
        if low.name in (*FOLDERS.get(layout, ()), "database_split"):
            return low.parent, layout
    for pattern in ("", "*", "*/*"):
        folders = [root] if not pattern else sorted(f for f in root.glob(pattern) if "__MACOSX" not in f.parts)
        found = [(folder, layout) for folder in folders for layout in _layouts(folder)]
        if len(found) > 1:
            names = ", ".join(f"{path.name} ({layout})" for path, layout in found)
            raise DataError(root, f"more than one data set here, open one of them: {names}")
        if found:
            return found[0]
    raise DataError(root, "no CAMUS here, no folder is named patientXXXX, and no dataset.json of nnU-Net")
