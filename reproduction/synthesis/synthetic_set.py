"""A synthetic set on disk, as `generate` writes it: read, verify, filter, export.

`images/ID.png` (8-bit grey), its label map in CAMUS classes in `labels/ID.png` and in SDM classes, as the network was
given it, in `conditions/ID.png`; `manifest.csv` has a row for each, `set.json` what they have in common.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.io import imread

from echo.config import SPLITS
from echo.frames import Frames
from echo.resume import DamagedFile, read_csv, read_json, whole, write_csv
from reproduction.datasets import layout

KINDS = ("labels", "conditions", "images")  # in the order they are written: where an image is, its label maps are


def png(folder: Path, kind: str, name: str) -> Path:
    """Where an image or label map of a set is."""
    return folder / kind / f"{name}.png"


def files_digest(folder: Path, name: str) -> str:
    """SHA-256 (hex) of an image's three files, one after the other in the order of `KINDS`."""
    return hashlib.sha256(b"".join(png(folder, kind, name).read_bytes() for kind in KINDS)).hexdigest()


def read_manifest(folder: Path) -> pd.DataFrame:
    """A finished set's manifest, one row an image; `id` is text.

    Raises:
        FileNotFoundError: when there is none.
    """
    path = folder / "manifest.csv"
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no synthetic images; run notebook 03 or `python -m echo generate`")
    table = read_csv(path, dtype={"id": str})
    if lost := {"id", "split", "patient", "class_label", "batch", "sha256"} - set(table):
        raise DamagedFile(path, f"it has no column {min(lost)}")
    return table


def read_images(folder: Path, kind: str, names: pd.Series) -> NDArray[np.uint8]:
    """uint8 (N, S, S) of one of `KINDS`."""
    images = []
    for path in (png(folder, kind, name) for name in names):
        with whole(path):
            images.append(imread(path))
    return np.stack(images)


def filter_worst(table: pd.DataFrame, folder: Path, percent: float) -> pd.DataFrame:
    """The rows of a manifest without the worst `percent` [0, 100) by label fidelity, of each split, view and phase.

    So none of these goes short. Fidelity is `mean` of `fidelity.csv`, which `label_fidelity` writes.

    Raises:
        FileNotFoundError: without that file.
        ValueError: for a percentage out of range, or an image without its value.
    """
    path = folder / "fidelity.csv"
    if not 0 <= percent < 100:
        raise ValueError(f"cannot drop the worst {percent} %: give a percentage from 0 to less than 100")
    if percent == 0:
        return table
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m echo fidelity {folder}`")
    dice = read_csv(path, dtype={"id": str}).set_index("id")["mean"].reindex(table["id"]).set_axis(table.index)
    if dice.isna().any():
        raise ValueError(f"{path}: no value for image {table['id'][dice.isna()].iloc[0]}")
    rank = dice.groupby([table["split"], table["class_label"]]).rank(pct=True, method="first")
    return table[rank > percent / 100].reset_index(drop=True)


def load_synthetic(folder: Path, split: str, drop_worst: float = 0.0) -> Frames:
    """A split of a set, without the worst `drop_worst` % (`filter_worst`).

    Raises:
        FileNotFoundError: when the generation stage has not run.
    """
    table = filter_worst(read_manifest(folder), folder, drop_worst).query("split == @split").reset_index(drop=True)
    return Frames(*(read_images(folder, kind, table["id"]) for kind in ("images", "labels", "conditions")), table)


def verify(folder: Path) -> list[str]:
    """What is wrong with a finished set, a line each: empty if every file is there as it was written, and no other.

    Raises:
        FileNotFoundError: when the set is not finished.
    """
    table, images = read_manifest(folder), read_json(folder / "set.json")["generation"]
    known = set(table["id"])
    planned = {f"{k:06d}" for k in range(images["images"] + images["validation_images"])}
    faults = [f"{name}: more than one row in manifest.csv" for name in table["id"][table["id"].duplicated()].unique()]
    faults += [f"{name}: no row in manifest.csv" for name in sorted(planned - known)]
    lost: set[str] = set()
    for kind in KINDS:
        there = {path.name.removesuffix(".png") for path in (folder / kind).glob("*")}
        faults += [f"{name}: {kind}/{name}.png is missing" for name in sorted(known - there)]
        faults += [f"{name}: in {kind}/, but not in manifest.csv" for name in sorted(there - known)]
        lost |= known - there
    whole = table[~table["id"].isin(lost)].drop_duplicates("id")
    changed = (r.id for r in whole.itertuples() if files_digest(folder, r.id) != r.sha256)
    return faults + [f"{name}: its image or a label map is not what was written (SHA-256)" for name in changed]


def export_camus(folder: Path, target: Path, drop_worst: float = 0.0) -> int:
    """Write a set in CAMUS's NIfTI layout, which `open_camus` reads; returns how many patients lack a view or phase
    that others of their split have: the last ones, where the set has fewer images of it.

    A patient of that layout has one frame of a view and phase, so images of different views and phases are put
    together: of one source patient as long as it has them, then of different ones. Either way each label map was
    augmented by itself, so a patient is no one heart, and no ejection fraction is given. `synthetic.csv` says which
    image went where. The testing list is empty. Pixels keep the size in mm of the source frame's.

    Raises:
        ValueError: when `target` holds a data set, or the set has no image.
    """
    if (target / "database_nifti").exists():
        raise ValueError(f"{target} holds a data set: choose a new folder")
    table = filter_worst(read_manifest(folder), folder, drop_worst)
    table["use"] = table.groupby(["split", "patient", "class_label"]).cumcount()
    table = table.sort_values(["use", "patient"], kind="stable")
    table["place"] = table.groupby(["split", "class_label"]).cumcount()
    if table.empty:
        raise ValueError(f"{folder}: no image to export")
    views_phases, lacking = table.groupby("split")["class_label"].nunique(), 0
    splits, rows = {split: [] for split in SPLITS}, []
    for number, ((split, _place), group) in enumerate(table.groupby(["split", "place"]), start=1):
        lacking += len(group) < views_phases[split]
        patient = target / "database_nifti" / f"patient{number:04d}"
        splits[split].append(patient.name)
        images, labels = (read_images(folder, kind, group["id"]) for kind in ("images", "labels"))
        for row, image, label in zip(group.itertuples(), images, labels, strict=True):
            spacing = (row.spacing_row_mm, row.spacing_col_mm)
            layout.write_frame(patient, row.view, row.phase, image, label, spacing)
            rows.append({"patient": patient.name, "view": row.view, "phase": row.phase, "id": row.id})
        layout.write_info(patient, "ED: 1\nES: 2\nNbFrame: 2\n")
    layout.write_splits(target, splits)
    write_csv(target / "synthetic.csv", pd.DataFrame(rows))
    for card in folder.glob("*_CARD.md"):
        shutil.copy(card, target)
    return lacking
