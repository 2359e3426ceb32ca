"""What a dataset holds, read as the data stage reads it: `python -m echo check`."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from echo.config import SPLITS, get_profile
from echo.progress import tqdm
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.prepare import Source, augmentation_fault
from reproduction.plots import echoes

SHOWN = 8  # frames of each split on the contact sheet


def check(raw: Source, sheet: Path, profile: str = "cpu") -> list[str]:
    """Read every frame: lines on what there is to see, and a contact sheet (`sheet`.png and .pdf; in a folder
    `sheet`, NAME_contact_sheet).

    Raises:
        DataFaults: with all faults, if there is any; a label map that no augmentation keeps at the profile's size, and
            that is painted for, is one.
        PermissionError: before anything is read, where the contact sheet cannot be written.
    """
    settings, sheet = get_profile(profile), sheet / f"{raw.root.name}_contact_sheet" if sheet.is_dir() else sheet
    folder = next(folder for folder in sheet.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written: give --sheet, a place for the contact sheet")
    faults, rows, shown, titles = list(raw.faults), [], [], []
    for split in SPLITS if raw.tests_labelled else SPLITS[:2]:
        try:
            patients = raw.patients(split)
        except DataError as error:
            faults.append(error)
            continue
        if not patients:
            faults.append(DataError(raw.root, f"split {split} has no patient"))
        keys = raw.keys(patients)
        for patient in dict.fromkeys(patients).keys() - {key[0] for key in keys}:
            faults.append(DataError(raw.root, "holds no frame", patient))
        chosen = set(np.linspace(0, len(keys) - 1, min(SHOWN, len(keys))).astype(int))
        for k, key in enumerate(tqdm(keys, desc=split, unit="frame", leave=False)):
            try:
                frame = raw.frame(*key)
            except DataError as error:
                faults.append(error)
                continue
            small = frame.label_at(settings.image_size)
            if split != "testing" and (reason := augmentation_fault(small, settings, raw.classes)):
                faults.append(
                    DataError(raw.label_path(*key), f"at {settings.image_size} pixels, {reason}", frame.patient)
                )
            rows.append({"split": split} | facts_of(frame, len(raw.classes.names)))
            if k in chosen:
                shown.append(frame)
                titles.append(f"{split}\n{' '.join(key if len(key) > 2 else key[1:])}")
    if faults:
        raise DataFaults(raw.root, faults)
    echoes.save(echoes.contact_sheet(shown, titles, raw.classes), sheet.parent, sheet.name)
    return describe(raw, pd.DataFrame(rows)) + [f"contact sheet: {sheet}.png"]


def facts_of(frame: object, classes: int) -> dict:
    """A row on a frame: patient, condition, height, width, size of a pixel in mm, grey levels, pixels of each class."""
    (height, width), (row_mm, col_mm) = frame.image.shape, frame.spacing_mm or (np.nan, np.nan)
    low, high = np.percentile(frame.image, (5, 95))
    named = {"patient": frame.patient, "class_label": frame.facts()["class_label"]}
    sizes = {"height": height, "width": width, "row_mm": row_mm, "col_mm": col_mm, "dark": low, "bright": high}
    return named | sizes | dict(enumerate(np.bincount(frame.label.ravel(), minlength=classes)))


def span(values: pd.Series) -> str:
    """The least and the largest of some numbers, one where they are the same."""
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def describe(raw: Source, table: pd.DataFrame) -> list[str]:
    """Lines on `facts_of` all frames."""
    lines = [f"{raw.root}: {table['patient'].nunique()} patients, {len(table)} frames"]
    for split, rows in table.groupby("split", sort=False):
        lines.append(f"  {split}: {rows['patient'].nunique()} patients, {len(rows)} frames")
    for k, name in enumerate(raw.classes.conditions):
        lines.append(f"  condition {name}: {(table['class_label'] == k).sum()} frames")
    pixels, millimetres = table["height"] * table["width"], table["row_mm"] * table["col_mm"]
    for k, name in list(enumerate(raw.classes.names))[1:]:
        there = table[k] > 0
        share, area = (100 * table[k] / pixels)[there].median(), (table[k] * millimetres)[there].median() / 100
        size = f", median area {share:.2g} % of the image" + (f", {area:.3g} cm²" if area == area else "")
        lines.append(f"  class {k} {name}: in {there.sum()} of {len(table)} frames" + size * bool(there.any()))
    unions = {name: members for name, members in raw.classes.structures.items() if len(members) > 1}
    lines += [f"  structure {name}: classes {', '.join(map(str, members))}" for name, members in unions.items()]
    spacing = f"{span(table['row_mm'])} x {span(table['col_mm'])} mm" if millimetres.notna().all() else "not told"
    lines.append(
        f"  images: {span(table['height'])} x {span(table['width'])} pixels; size of a pixel (row x column): {spacing}"
    )
    lines.append(f"  grey levels, 5th and 95th percentile: {span(table['dark'])} and {span(table['bright'])} of 255")
    lines.append("  sector: " + ("yes, of ultrasound" if raw.classes.sector else "none (the image is all there is)"))
    return lines + [f"  note: {note}" for note in raw.notes]
