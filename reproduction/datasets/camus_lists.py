"""Which patients of CAMUS are in which split: by the lists of the 2023 release, or by the rule for that of 2019."""

import filecmp
from collections.abc import Collection
from pathlib import Path

from echo.config import SPLITS
from reproduction.datasets.errors import DataError
from reproduction.datasets.facts import read_names
from reproduction.datasets.images import one_line

VALIDATION_PATIENTS = 50  # the paper takes the first 50 training patients of the 2019 release
SMALL_RELEASE_PART = 9  # of a copy with no more patients than these, every ninth: 50 of 450 are as many


def told_apart(groups: dict[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    """The patients of each folder; one of `testing` who has a training patient's name, as the 2019 release counts both
    from patient0001, is called `testing_patient0001`, unless the two share a picture: then they are one."""
    training = groups.get("training", {})

    def name_of(patient: str, folder: Path) -> str:
        if patient not in training:
            return patient
        pairs = [(path, training[patient] / path.name) for path in folder.glob("*_E[DS].*raw")]
        one = any(other.exists() and filecmp.cmp(path, other, shallow=False) for path, other in pairs)
        return patient if one else f"testing_{patient}"

    renamed = {name_of(patient, folder): folder for patient, folder in groups.get("testing", {}).items()}
    return groups | ({"testing": renamed} if renamed else {})


def read_splits(folder: Path) -> dict[str, list[str]]:
    """The patients of each split that has a list, in its order."""
    splits = {}
    for split in SPLITS:
        path = folder / f"subgroup_{split}.txt"
        with one_line(path):
            if path.exists():
                splits[split] = read_names(path)
    return splits


def split_by_rule(groups: dict[str, dict], folders: dict[str, Path]) -> tuple[dict[str, list[str]], list[str]]:
    """The splits of a 2019 release, which has no lists, and a line on the rule where it is not the paper's."""
    training, notes = list(groups.get("training", folders)), []
    count = VALIDATION_PATIENTS
    if len(training) <= count:
        count = -(-len(training) // SMALL_RELEASE_PART) if len(training) > 1 else 0
        notes = [f"{len(training)} training patients: the first {count} are the validation split (the first ninth)"]
    splits = {"training": training[count:], "validation": training[:count]}
    if groups.get("testing"):
        splits["testing"] = list(groups["testing"])
    return splits, notes


def split_faults(root: Path, splits: dict[str, list[str]], folders: dict[str, Path]) -> list[DataError]:
    """One error for each patient that is listed twice, is in two splits or has no folder."""
    faults, seen = [], {}
    for split, patients in splits.items():
        for patient in patients:
            if patient in seen:
                twice, two = f"listed twice in subgroup_{split}.txt", f"in two splits, {seen[patient]} and {split}"
                faults.append(DataError(root, twice if seen[patient] == split else two, patient))
            elif patient not in folders:
                faults.append(DataError(root, f"in the {split} split, but has no folder", patient))
            seen[patient] = split
    return faults


def in_no_split(splits: dict[str, list[str]], folders: Collection[str]) -> list[str]:
    """One line on the patients that no list names, where there are lists: nothing reads them."""
    rest = sorted(set(folders).difference(*splits.values())) if splits else []
    return [f"{len(rest)} of {len(folders)} patients are in no split, {rest[0]} for one"] if rest else []
