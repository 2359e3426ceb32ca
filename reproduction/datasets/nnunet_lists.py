"""What an nnU-Net raw dataset says of itself: dataset.json, splits_final.json, conditions.csv, the names of files."""

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from echo.config import SPLITS
from echo.labels import Classes
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.facts import read_text
from reproduction.datasets.images import one_line

ENDINGS = (".png", ".tif", ".tiff", ".nii.gz", ".nii")
COLUMNS = {"id", "train", "seed", "patient", "view", "phase", "case", "condition", "quality", "step", "loss", "mean"}
COLUMNS |= {"structure", "dice", "processing", ""}
SHARE = 0.15  # of the patients, for each split that the dataset does not define
SPLIT_SEED = 0


def read_json(path: Path, kind: type) -> dict | list:
    """What a JSON file holds.

    Raises:
        DataError: when it cannot be read, or holds something else than `kind`.
    """
    with one_line(path):
        found = json.loads(path.read_bytes())
    if not isinstance(found, kind):
        raise DataError(path, f"holds a {type(found).__name__}, not a {kind.__name__}")
    return found


def read_classes(path: Path, facts: dict) -> Classes:
    """The classes that a dataset.json declares, without conditions.

    Raises:
        DataFaults: for all that it lacks, and all that we do not support, by name.
    """
    said, unions, faults = facts.get("labels"), facts.get("structures") or {}, []
    if "channel_names" not in facts and "modality" in facts:
        faults.append("a dataset.json of nnU-Net's first version: convert it by nnUNetv2_convert_old_nnUNet_dataset")
    elif not isinstance(facts.get("channel_names"), dict) or not facts["channel_names"]:
        faults.append('"channel_names" is missing: such as {"0": "MRI"}')
    elif len(facts["channel_names"]) not in (1, 3):
        faults.append(f'"channel_names" has {len(facts["channel_names"])} channels: one, or RGB, is supported')
    if facts.get("file_ending") not in ENDINGS:
        faults.append(f'"file_ending" is {facts.get("file_ending")!r}: supported are {", ".join(ENDINGS)}')
    if not isinstance(said, dict):
        faults.append('"labels" is missing: such as {"background": 0, "LV": 1}')
    else:
        regions = [name for name, value in said.items() if isinstance(value, list)]
        if regions:
            faults.append(
                f"label {regions[0]!r} is a region (a list of values): not supported, give each class a value"
            )
        if "ignore" in said:
            faults.append('the label "ignore" is not supported: leave out the cases that have it')
        values = [value for name, value in said.items() if name not in (*regions, "ignore")]
        if not regions and (sorted(map(str, values)) != sorted(map(str, range(len(values)))) or len(values) < 2):
            faults.append(f"labels have the values {values}: they must be 0 (background), 1, 2, ... without a gap")
        elif not regions and said.get("background") != 0:
            faults.append('label 0 must be called "background"')
    if not isinstance(unions, dict):
        faults.append('"structures" is no object: such as {"whole": ["LV", "wall"]}')
    for name in COLUMNS & {*(said or ()), *unions}:
        faults.append(f"{name!r} is a column of our tables: give the class or structure another name")
    if faults:
        raise DataFaults(path, [DataError(path, fault) for fault in faults])
    names = tuple(sorted((name for name in said if name != "ignore"), key=lambda name: int(said[name])))
    structures = {}
    for name, members in unions.items():
        if not isinstance(members, list) or not members or any(member not in names[1:] for member in members):
            raise DataError(path, f"structure {name!r} is {members}: give a list of classes out of {list(names[1:])}")
        structures[name] = tuple(names.index(member) for member in members)
    sector = any("ultrasound" in str(name).lower() for name in facts["channel_names"].values())
    return Classes(names, structures, sector)


def list_cases(root: Path, part: str, ending: str) -> tuple[dict[str, tuple[Path, Path]], list[DataError]]:
    """The files of each case of imagesTr or imagesTs; and a fault for each name that is none, second channel, and
    label map without an image. A missing label map is found when it is read."""
    cases, faults, labels = {}, [], root / f"labels{part}"
    images = sorted((root / f"images{part}").glob(f"[!.]*{ending}"))
    for path in images:
        match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", path.name)
        if match is None:
            faults.append(DataError(path, f"not named CASE_0000{ending}"))
        elif match[2] != "0000":
            faults.append(DataError(path, f"channel {match[2]}: images of one file are supported, CASE_0000", match[1]))
        else:
            cases[match[1]] = path, labels / f"{match[1]}{ending}"
    for path in sorted(labels.glob(f"[!.]*{ending}")):
        if (case := path.name.removesuffix(ending)) not in cases:
            faults.append(DataError(path, f"label map without an image images{part}/{case}_0000{ending}", case))
    return cases, faults


def listed_fold(root: Path, training: list[str]) -> tuple[dict[str, list[str]], list[DataError]]:
    """Training and validation cases of the first fold of splits_final.json; and a fault for each that is not there,
    listed twice, or in both."""
    path = root / "splits_final.json"
    if not path.exists():
        return {}, []
    folds, faults, seen = read_json(path, list), [], {}
    first = folds[0] if folds and isinstance(folds[0], dict) else {}
    if not all(isinstance(first.get(name), list) for name in ("train", "val")):
        raise DataError(path, 'its first fold is not {"train": [...], "val": [...]}')
    splits: dict[str, list[str]] = {"training": [], "validation": []}
    for split, name in zip(splits, ("train", "val"), strict=True):
        for case in first[name]:
            if case in seen:
                where = "listed twice in" if seen[case] == name else "in both train and val of"
                faults.append(DataError(path, f"{where} the first fold", case))
            elif case not in training:
                faults.append(DataError(path, f"in {name} of the first fold, but imagesTr has no such case", case))
            else:
                splits[split].append(case)
            seen[case] = name
    return splits, faults


def complete_splits(
    root: Path, listed: dict[str, list[str]], patients: dict[str, str], draw_tests: bool, pattern: str
) -> tuple[dict[str, list[str]], list[str]]:
    """The cases of each split: those `listed`, and for validation, if it is not, and testing, if asked for, a share of
    the training patients, the same ones each time; with a line that says so.

    Raises:
        DataError: with too few patients to draw from.
    """
    splits = dict(listed)
    wanted = [split for split in SPLITS[1:] if (split not in listed if split == "validation" else draw_tests)]
    if not wanted:
        return splits, []
    pool = sorted({patients[case] for case in splits["training"]})
    if len(pool) <= len(wanted):
        reason = f"{len(pool)} patient(s), by the pattern {pattern!r}, to draw {' and '.join(wanted)} from: give lists"
        raise DataError(root, f"{reason}, or another --patient-pattern ('$': each case is a patient)")
    order, count = np.random.default_rng(SPLIT_SEED).permutation(pool).tolist(), max(1, round(SHARE * len(pool)))
    for k, split in enumerate(wanted):
        chosen = set(order[k * count : (k + 1) * count])
        splits[split] = [case for case in splits["training"] if patients[case] in chosen]
        splits["training"] = [case for case in splits["training"] if patients[case] not in chosen]
    return splits, [f"{split} is not given: {count} of {len(pool)} patients were drawn for it" for split in wanted]


def by_patient(
    splits: dict[str, list[str]], patients: dict[str, str], pattern: str
) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """The patients of each split, and the patient of each case in a split. One whose slices are in several splits
    counts as one patient in each of them, and a line warns."""
    found = {split: list(dict.fromkeys(patients[case] for case in cases)) for split, cases in splits.items()}
    homes: dict[str, list[str]] = {}
    for split, members in found.items():
        for patient in members:
            homes.setdefault(patient, []).append(split)
    shared = [patient for patient, where in homes.items() if len(where) > 1]

    def named(patient: str, split: str) -> str:
        return f"{patient} ({split})" if patient in shared else patient

    notes = []
    if shared:
        example = f"{shared[0]} in {' and '.join(homes[shared[0]])}"
        notes.append(
            f"warning: {len(shared)} patient(s) by the pattern {pattern!r} are in two splits, {example}: slices of one "
            "patient in two splits make scores too good; if they are none, give another --patient-pattern"
        )
    cases = {case: named(patients[case], split) for split, members in splits.items() for case in members}
    return {split: [named(p, split) for p in members] for split, members in found.items()}, cases, notes


def read_conditions(
    path: Path, cases: Iterable[str], patients: dict[str, str]
) -> tuple[dict[str, str], list[DataError]]:
    """The condition of each case, from the columns "case" and "condition"; and a fault for each that is no case, is
    listed twice, or is in a split and has no condition. Without the file there are no conditions.

    Args:
        patients: of each case that is in a split.
    """
    if not path.exists():
        return {}, []
    with one_line(path):
        rows = list(csv.DictReader(read_text(path).splitlines()))
    if not rows or not {"case", "condition"} <= rows[0].keys():
        raise DataError(path, 'it must have the columns "case" and "condition"')
    found, faults = {}, []
    for row in rows:
        case, condition = (row["case"] or "").strip(), (row["condition"] or "").strip()
        if case in found:
            faults.append(DataError(path, f"case {case} is listed twice", patients.get(case, case)))
        elif case not in cases:
            faults.append(DataError(path, f"case {case} has no image", case))
        elif condition:
            found[case] = condition
    lacking = [case for case in patients if case not in found]
    return found, faults + [DataError(path, f"case {case} has no condition", patients[case]) for case in lacking]
