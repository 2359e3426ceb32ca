"""Reader of nnU-Net's raw datasets (version 2): slices of any modality, with label maps of any classes.

    raw = open_nnunet("path/to/Dataset701_SunnybrookLV")
    case = raw.frame(*raw.keys(raw.patients("training"))[0]).resized(112)

`dataset.json` names the classes; an image is `imagesTr/CASE_0000.EXT`, its label map `labelsTr/CASE.EXT`, those of the
test cases are in `imagesTs` and `labelsTs` (docs/own-data.md has the layout, and what each rule here is good for).

Patients: a case belongs to the patient whom its name tells, up to where a pattern matches (PATTERN by default).
Splits: the first fold of `splits_final.json` for training and validation, `imagesTs` for testing. Where either is
missing, patients are drawn for it, the same ones each time.
"""

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from echo.config import SPLITS
from echo.labels import Classes
from reproduction.datasets.errors import DataError
from reproduction.datasets.images import Resizable, one_line
from reproduction.datasets.nnunet_lists import (
    by_patient,
    complete_splits,
    list_cases,
    listed_fold,
    read_classes,
    read_conditions,
    read_json,
)
from reproduction.datasets.pixels import read_image, read_label

PATTERN = r"_\d+$"  # HFI01_0048 is a slice of HFI01
FACTS = ("name", "description", "licence", "license", "reference")  # of dataset.json, kept with the run


@dataclass(frozen=True, eq=False)
class Case(Resizable):
    """One labelled slice. image: uint8 (H, W), 0-255. label: uint8 (H, W), the classes of dataset.json. spacing_mm:
    size (row, column) of a pixel, None where the file does not tell. condition: of conditions.csv, or None."""

    patient: str
    case: str
    condition: str | None
    class_label: int
    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple[float, float] | None

    def facts(self) -> dict:
        """What a table says of this slice."""
        names = {"patient": self.patient, "case": self.case, "condition": self.condition}
        return {k: v for k, v in names.items() if v is not None} | {"class_label": self.class_label}


@dataclass(frozen=True, eq=False)
class NnUNet:
    """An opened dataset, made by `open_nnunet`.

    faults: what is wrong with its lists and names, for the data stage, which reports it with all others. notes:
    sentences about what is unusual and no fault. tests_labelled: whether there is a split "testing". described: the
    facts of dataset.json that a run keeps, with the modality (the channel's name) and the pattern of patients.
    """

    source: ClassVar[str] = "nnunet"
    key_columns: ClassVar[list[str]] = ["patient", "case"]
    root: Path
    classes: Classes
    described: dict[str, str]
    faults: list[DataError]
    notes: list[str]
    tests_labelled: bool
    _cases: dict[str, dict[str, tuple[Path, Path]]]  # patient -> case -> image and label map
    _splits: dict[str, list[str]]
    _conditions: dict[str, str]

    def patients(self, split: str | None = None) -> list[str]:
        """All patients (None), or those of one of SPLITS.

        Raises:
            DataError: for the test patients of a dataset without test labels.
        """
        if split is None:
            return list(self._cases)
        if split == "testing" and not self.tests_labelled:
            raise DataError(self.root / "labelsTs", "the test cases have no labels, so nothing can be scored on them")
        return list(self._splits[split])

    def keys(self, patients: list[str]) -> list[tuple[str, str]]:
        """(patient, case) of every slice of these patients: what `frame` takes."""
        return [(patient, case) for patient in patients for case in self._cases[patient]]

    def label_path(self, patient: str, case: str) -> Path:
        """The file of a slice's label map."""
        return self._cases[patient][case][1]

    def without(self, patients: Collection[str]) -> "NnUNet":
        """The dataset without these patients."""
        cases = {patient: found for patient, found in self._cases.items() if patient not in patients}
        splits = {split: [p for p in listed if p not in patients] for split, listed in self._splits.items()}
        return replace(self, _cases=cases, _splits=splits)

    def frame(self, patient: str, case: str) -> Case:
        """Read one slice and its label map, at the size they are stored in.

        Raises:
            DataError: when either is missing or damaged, or the two do not belong together.
        """
        path, label_path = self._cases[patient][case]
        image, spacing, place = read_image(path, patient)
        label, label_spacing, label_place = read_label(label_path, patient, self.classes.names)
        if image.shape != label.shape:
            raise DataError(label_path, f"label is {label.shape}, its image {image.shape}", patient)
        if spacing and label_spacing and not np.allclose(spacing, label_spacing, rtol=0.01):
            pixels = "label has pixels of {:.4g} x {:.4g} mm, its image {:.4g} x {:.4g} mm"
            raise DataError(label_path, pixels.format(*label_spacing, *spacing), patient)
        if place is not None and label_place is not None:
            apart = np.abs((place - label_place) @ np.transpose([[0, 0, 1], [*image.shape[::-1], 1]])).max()
            if apart > min(spacing):
                raise DataError(label_path, f"its header places it {apart:.4g} mm beside its image", patient)
        condition = self._conditions.get(case)
        place = self.classes.conditions.index(condition) if condition else 0
        return Case(patient, case, condition, place, image, label, spacing)

    def digest(self, *splits: str) -> str:
        """SHA-256 (hex) of all that is read of some splits, by default of all: classes, cases, their conditions, files.
        What cannot be read is left out: the data stage reports it.

        Raises:
            DataError: when reading a file fails.
        """
        total = hashlib.sha256(repr((self.classes, self.described["patient_pattern"])).encode())
        for split in splits or [name for name in SPLITS if name != "testing" or self.tests_labelled]:
            total.update(split.encode())
            for patient, case in self.keys(self.patients(split)):
                total.update(f"{patient} {case} {self._conditions.get(case)}".encode())
                for path in self._cases[patient][case]:
                    with one_line(path, patient):
                        there = os.access(path, os.R_OK) and path.is_file()
                        total.update(hashlib.sha256(path.read_bytes()).digest() if there else b"missing")
        return total.hexdigest()

    def record(self) -> dict:
        """What identifies the data, for data.json."""
        return self.described | {"digest": self.digest()}


def is_nnunet(root: Path) -> bool:
    """Whether a folder is laid out so."""
    return (root / "dataset.json").is_file()


def open_nnunet(root: str | Path, pattern: str = PATTERN) -> NnUNet:
    """Open a dataset; its images are read when they are asked for.

    Args:
        pattern: regular expression; a case's patient is its name up to where that first matches ("$": all of it).

    Raises:
        DataError: for a dataset.json, a list or a pattern that says nothing to go by.
        DataFaults: for all faults of dataset.json.
    """
    root = Path(root).expanduser().absolute()
    facts = read_json(root / "dataset.json", dict)
    with one_line(root / "dataset.json"):
        classes = read_classes(root / "dataset.json", facts)
    (training, faults), (tests, more) = (list_cases(root, part, facts["file_ending"]) for part in ("Tr", "Ts"))
    faults += more
    if not training:
        raise DataError(root / "imagesTr", f"no image is named CASE_0000{facts['file_ending']}")
    if facts.get("numTraining", len(training)) != len(training):
        said = f"numTraining is {facts['numTraining']}, imagesTr has {len(training)} cases"
        faults.append(DataError(root / "dataset.json", said))
    for case in training.keys() & tests.keys():
        faults.append(DataError(tests[case][0], "in imagesTr too", case))
    cases, labelled = tests | training, (root / "labelsTs").is_dir() or not tests
    patients = {case: patient_of(case, pattern) for case in cases}
    with one_line(root / "splits_final.json"):
        splits, more = listed_fold(root, list(training))
    faults += more
    splits, notes = complete_splits(root, splits or {"training": list(training)}, patients, not tests, pattern)
    if tests:
        splits["testing"] = [case for case in tests if labelled and case not in training]
    if not labelled:
        notes.append(f"imagesTs has {len(tests)} cases, and there is no labelsTs: nothing is scored on test cases")
    if unused := training.keys() - {case for members in splits.values() for case in members}:
        notes.append(f"{len(unused)} cases of imagesTr are in no split, {min(unused)} for one")
    splits, patients, more = by_patient(splits, patients, pattern)
    notes += more
    conditions, more = read_conditions(root / "conditions.csv", cases, patients)
    members = {patient: {} for patient in dict.fromkeys(patients.values())}
    for case, patient in patients.items():
        members[patient][case] = cases[case]
    described = {"name": root.name} | {name: str(facts[name]) for name in FACTS if facts.get(name)}
    described |= {"modality": ", ".join(map(str, facts["channel_names"].values())), "patient_pattern": pattern}
    classes = replace(classes, conditions=tuple(sorted(set(conditions.values()))))
    return NnUNet(root, classes, described, faults + more, notes, labelled, members, splits, conditions)


def patient_of(case: str, pattern: str) -> str:
    """The beginning of a case's name, up to where a pattern matches; all of it, if nothing is left.

    Raises:
        ValueError: when that is no regular expression.
    """
    try:
        return re.split(pattern, case, maxsplit=1)[0] or case
    except re.error as error:
        raise ValueError(f"--patient-pattern {pattern!r} is no regular expression: {error}") from None
