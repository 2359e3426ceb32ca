"""A synthetic dataset in the layout of a real one: CAMUS's, or nnU-Net's raw format."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from echo.config import SPLITS
from echo.frames import Frames
from echo.resume import read_json, whole, write_csv, write_json
from reproduction.datasets import layout
from reproduction.evaluation.statistics import frame_names
from reproduction.synthesis.cards import described_source
from reproduction.synthesis.synthetic_set import filter_worst, load_synthetic, read_images, read_manifest, set_classes


def need_empty(target: Path) -> None:
    """Raise ValueError where there is anything that an export could write over."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} holds other files: choose a new folder")


def export_camus(folder: Path, target: Path, drop_worst: float = 0.0) -> int:
    """Write a set in CAMUS's NIfTI layout, which `open_camus` reads; returns how many patients lack a view or phase
    that others of their split have: the last ones, where the set has fewer images of it.

    A patient of that layout has one frame of a view and phase, so images of different views and phases are put
    together: of one source patient as long as it has them, then of different ones. Either way each label map was
    augmented by itself, so a patient is no one heart, and no ejection fraction is given. `synthetic.csv` says which
    image went where. The testing list is empty. Pixels keep the size in mm of the source frame's.

    Raises:
        ValueError: when `target` holds anything, or the set has no image with a view and phase.
    """
    need_empty(target)
    table = filter_worst(read_manifest(folder), folder, drop_worst)
    if "case" in table:
        raise ValueError(f"{folder}: its images have no view and phase, as CAMUS's have: choose --format nnunet")
    table["use"] = table.groupby(["split", "patient", "class_label"]).cumcount()
    table = table.sort_values(["use", "patient"], kind="stable")
    table["place"] = table.groupby(["split", "class_label"]).cumcount()
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


def export_nnunet(
    folder: Path, target: Path, drop_worst: float = 0.0, real: tuple[Frames, Frames] | None = None
) -> int:
    """Write a set as an nnU-Net raw dataset (version 2), which `open_nnunet` reads; returns how many cases it has.

    A case is an image; `splits_final.json` has one fold, of the set's training and validation images. There are no test
    cases. Images are NIfTI where the size of a pixel in mm is known, else PNG. `synthetic.csv` is the manifest, with
    the seed of each synthetic case.

    Args:
        target: a new folder, named as nnU-Net wants it, DatasetNNN_Name.
        real: training and validation frames to add to these splits, of the same size.

    Raises:
        ValueError: when `target` holds anything, or is named otherwise.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", target.name):
        raise ValueError(f"{target.name}: nnU-Net wants a folder named DatasetNNN_Name, such as Dataset801_Synthetic")
    need_empty(target)
    classes, manifest = set_classes(folder), folder.parent / "manifest.json"
    with whole(manifest):
        data = read_json(manifest)["data"]
        what, _tag, licence, _limit = described_source(data)
    fold, parts = {}, {}
    for k, (name, split) in enumerate((("train", "training"), ("val", "validation"))):
        synthetic = load_synthetic(folder, split, drop_worst)
        parts[name] = [(f"synthetic_{number}", synthetic, row) for row, number in enumerate(synthetic.index["id"])]
        if real:
            parts[name] += [(case, real[k], row) for row, case in enumerate(case_names(real[k].index))]
        fold[name] = [case for case, _frames, _row in parts[name]]
    cases = [*parts["train"], *parts["val"]]
    ending = ".png" if any(frames.index["spacing_row_mm"].isna().any() for _case, frames, _row in cases) else ".nii.gz"
    for case, frames, row in cases:
        spacing = tuple(frames.index.loc[row, ["spacing_row_mm", "spacing_col_mm"]].astype(float))
        write_pixels(target / "imagesTr" / f"{case}_0000{ending}", frames.images[row], spacing)
        write_pixels(target / "labelsTr" / f"{case}{ending}", frames.labels[row], spacing)
    table = filter_worst(read_manifest(folder), folder, drop_worst)
    write_csv(target / "synthetic.csv", table.assign(case="synthetic_" + table["id"]))
    for card in folder.glob("*_CARD.md"):
        shutil.copy(card, target)
    write_json(target / "splits_final.json", [fold])
    facts = {"channel_names": {"0": data.get("modality", "ultrasound")}}
    facts |= {"labels": {name: k for k, name in enumerate(classes.names)}, "numTraining": len(cases)}
    facts |= {"file_ending": ending, "name": target.name, "licence": licence}
    facts["description"] = f"synthetic images{' and real ones' if real else ''}; source: {what}"
    members = {name: [classes.names[k] for k in values] for name, values in classes.structures.items()}
    text = json.dumps(facts | {"structures": members}, indent=1)  # in this order
    layout.write_bytes(target / "dataset.json", text.encode())
    return len(cases)


def case_names(index: pd.DataFrame) -> list[str]:
    """A name for each real frame: its case, or patient, view and phase."""
    names = ["case"] if "case" in index else frame_names(index)
    return ["_".join(row) for row in index[names].astype(str).itertuples(index=False)]


def write_pixels(path: Path, array: NDArray[np.uint8], spacing: tuple[float, float]) -> None:
    """An image or label map (H, W) as PNG, or as NIfTI with a size (row, column) of its pixels in mm."""
    if path.suffix == ".gz":
        layout.write_bytes(path, layout.nifti(array, spacing))
    else:
        layout.write_png(path, array)
