"""The data stage: raw frames of any source -> arrays at the profile's size, training and validation only.

The test patients are not in these arrays. `evaluation.segmentation.score` opens their frames once, at the very end.
"""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.transform import resize

from echo.augment import augment, leak
from echo.config import SPLITS, Profile
from echo.frames import Frames
from echo.labels import CAMUS, HEART, Classes, sector_mask, to_sdm
from echo.progress import tqdm
from echo.resume import atomic, read_csv, read_json, whole, write_csv, write_json
from reproduction.datasets.camus import Camus, Frame, open_camus
from reproduction.datasets.errors import DataError, DataFaults, records
from reproduction.datasets.nnunet import PATTERN, Case, NnUNet, is_nnunet, open_nnunet
from reproduction.datasets.phantom import write_phantom

Source = Camus | NnUNet
NEEDED = ("patient", "class_label", "spacing_row_mm", "spacing_col_mm")  # columns on prepared frames
DEPTH_MM = (40, 400)  # of an image, beyond which a warning is given
LEAKING = 0.3  # of a cavity's border without a wall; at most 0.01 among 160 frames of CAMUS


def open_data(
    data: str,
    profile: Profile,
    folder: Path,
    seed: int,
    progress: bool = True,
    left_out: Collection[str] = (),
    pattern: str = PATTERN,
) -> Source:
    """The raw data set: "phantom" (written below `folder` when absent), or what `open_dataset` takes.

    left_out: patients that `prepare` left out (the `left_out` of its data.json), for the stages after it.
    """
    if data == "phantom":
        need_pattern(pattern, False)
        target = folder / f"phantom-{seed}"
        return open_camus(write_phantom(target, profile.phantom_patients, seed, progress=progress))
    return open_dataset(data, pattern).without(left_out)


def open_dataset(path: str | Path, pattern: str = PATTERN) -> Source:
    """The data set in a folder: a CAMUS release, or an nnU-Net raw dataset.

    Faults of lists are kept in its `faults`, to be reported with all others. pattern: of patients (`open_nnunet`).
    """
    nnunet = is_nnunet(Path(path).expanduser())
    need_pattern(pattern, nnunet)
    return open_nnunet(path, pattern) if nnunet else open_camus(path, on_error="report")


def need_pattern(pattern: str, nnunet: bool) -> None:
    """Raise ValueError where a pattern of patients was given that would change nothing."""
    if pattern != PATTERN and not nnunet:
        raise ValueError(
            "--patient-pattern is for nnU-Net datasets: CAMUS and the phantom have a folder for each patient"
        )


def read_frames(
    raw: Source, split: str, size: int, progress: bool = True, faults: list[DataError] | None = None
) -> Frames | None:
    """Every frame of a split, resized to (size, size); the sector is found at the frame's own resolution.

    faults: a list that faults are added to, one for each frame with one; patients with a fault are left out then, and
    None is returned when nobody is left.

    Raises:
        DataError: without `faults`, for a damaged frame, a patient without a frame, or a split without patients.
    """
    found = [] if faults is None else faults
    images, labels, sdm_labels, rows = [], [], [], []
    for _patient, full in _raw_frames(raw, split, found, progress):
        if found and faults is None:
            raise found[0]
        frame, sector = full.resized(size), None
        if raw.classes.sector:
            # Found at full resolution and averaged down, so that its border stays smooth.
            sector = resize(sector_mask(full.image).astype(float), (size, size), anti_aliasing=True) > 0.5
        images.append(frame.image)
        labels.append(frame.label)
        sdm_labels.append(to_sdm(frame.label, sector, raw.classes))
        row_mm, col_mm = frame.spacing_mm or (np.nan, np.nan)
        rows.append(frame.facts() | {"spacing_row_mm": row_mm, "spacing_col_mm": col_mm})
    if found and faults is None:
        raise found[0]
    bad = {fault.patient for fault in found}
    if not any(row["patient"] not in bad for row in rows):
        return None
    frames = Frames(np.stack(images), np.stack(labels), np.stack(sdm_labels), pd.DataFrame(rows), raw.classes)
    return frames.select(~frames.index["patient"].isin(bad).to_numpy()) if bad else frames


def _raw_frames(raw: Source, split: str, faults: list[DataError], progress: bool) -> Iterator[tuple[str, Frame | Case]]:
    """(patient, frame) of a split's sound frames; what is at fault is added to `faults`."""
    try:
        patients = raw.patients(split)
    except DataError as error:
        faults.append(error)
        return
    if not patients:
        faults.append(DataError(raw.root, f"split {split} has no patient"))
    for patient in tqdm(patients, desc=f"{split} patients", unit="patient", disable=not progress):
        keys = raw.keys([patient])
        if not keys:
            faults.append(DataError(raw.root, "holds no frame", patient))
        for key in keys:
            try:
                frame = raw.frame(*key)
            except DataError as error:
                faults.append(error)
            else:
                yield patient, frame


def augmentation_faults(raw: Source, frames: Frames, profile: Profile) -> list[DataError]:
    """A fault for each label map that no augmentation keeps: the generation stage would end at it."""
    faults = []
    for label, (_, row) in zip(frames.labels, frames.index.iterrows(), strict=True):
        if reason := augmentation_fault(label, profile, raw.classes):
            faults.append(DataError(raw.label_path(*row[raw.key_columns]), reason, row["patient"]))
    return faults


def augmentation_fault(label: np.ndarray, profile: Profile, classes: Classes) -> str:
    """Why no augmentation keeps a label map (S, S) of the profile's size; empty where one does.

    Only maps with a structure in pieces, of fewer than 100 pixels, or with a gap in the wall are tried. A heart must be
    labelled; of other organs a slice may hold none.
    """
    heart = classes.anatomy == HEART
    structures = [label == k for k in range(1, len(classes.names)) if (label == k).any()]
    pieces = any(ndimage.label(structure, np.ones((3, 3)))[1] > 1 for structure in structures)
    small = any(structure.sum() < 100 for structure in structures)
    if not pieces and not small and not (heart and (not structures or leak(label) > 0.05)):
        return ""
    if not structures:
        return "nothing is labelled"
    try:
        augment(label, profile.augmentation, np.random.default_rng(0), classes)
    except ValueError as error:
        return str(error)
    return ""


def doubts(frames: Frames) -> list[str]:
    """Lines on what can be, and yet is unlikely: a class that no label map has; of apical hearts an image's depth, and
    a cavity without its wall."""
    absent = [f"{k} {name}" for k, name in enumerate(frames.classes.names) if not (frames.labels == k).any()]
    found = [f"no label map of the training split has {name}" for name in absent]
    if frames.classes.anatomy != HEART:
        return found
    depth = (frames.index["spacing_row_mm"] * frames.images.shape[1]).median()
    if not DEPTH_MM[0] <= depth <= DEPTH_MM[1]:
        found.append(f"images are {depth:.3g} mm deep, and an apical view 100 to 250: is the size of a pixel right?")
    leaks = [leak(label) for label in frames.labels if {1, 2} <= set(label.flat)]
    if leaks and np.median(leaks) > LEAKING:
        found.append("in most label maps 2 does not surround 1: 1 is the cavity, 2 the wall, 3 the atrium")
    return found


def unpainted(raw: Source, training: Frames, validation: Frames) -> list[DataError]:
    """A fault for each validation frame of a view and phase that no training frame has: where each of these has a
    diffusion model of its own, there is none for it."""
    extra = validation.index[~validation.index["class_label"].isin(training.index["class_label"])]
    reason = "no training frame has this view and phase, of which the profile trains a diffusion model by itself"
    rows = extra[raw.key_columns].itertuples(index=False)
    return [DataError(raw.label_path(*key), reason, key[0]) for key in rows]


def prepare(
    raw: Source, source: str, profile: Profile, folder: Path, progress: bool = True, on_error: str = "raise"
) -> None:
    """Write `{training,validation}.{npz,csv}` and `data.json` (what the data and their classes are) into `folder`.

    Every frame of all three splits is opened, and checked for all that a later stage would stop at; test frames are
    only checked. `faults.csv` lists what is wrong, if anything is.

    Args:
        source: "phantom", "camus" or "nnunet", for the record.
        on_error: "raise", or "skip" to leave patients with a fault out, whom `left_out` in data.json then names.

    Raises:
        DataFaults: all faults at once; with "skip" only when a split has no patient left.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    for note in raw.notes:
        print(f"note: {note}", file=sys.stderr)
    faults, frames = list(raw.faults), {}
    for split in ("training", "validation"):
        frames[split] = read_frames(raw, split, profile.image_size, progress, faults)
        if frames[split] is not None:  # images are painted for the label maps of both
            faults += augmentation_faults(raw, frames[split], profile)
    if frames["training"] is not None:
        if not frames["training"].labels.any():
            faults.append(DataError(raw.root, "no label map of the training split has anything labelled"))
        for doubt in doubts(frames["training"]):
            print(f"warning: {doubt}", file=sys.stderr)
    if profile.per_view_phase and None not in frames.values():
        faults += unpainted(raw, frames["training"], frames["validation"])
    for _ in _raw_frames(raw, "testing", faults, progress) if raw.tests_labelled else ():
        pass
    bad = {fault.patient for fault in faults if fault.patient}
    splits = [split for split in SPLITS if split != "testing" or raw.tests_labelled]
    if faults:
        report = DataFaults(raw.root, faults)
        write_csv(folder / "faults.csv", report.table())
        if on_error == "raise" or any(fault.patient is None for fault in faults):
            raise report
        print(f"{len(bad)} patients are left out: {', '.join(sorted(bad))}", file=sys.stderr)
        raw = raw.without(bad)
        if empty := [split for split in splits if not raw.patients(split)]:
            emptied = [DataError(raw.root, f"no patient of split {split} is left") for split in empty]
            raise DataFaults(raw.root, emptied + faults)
    else:
        (folder / "faults.csv").unlink(missing_ok=True)
    for split, kept in frames.items():
        if bad:
            kept = kept.select(~kept.index["patient"].isin(bad).to_numpy())
        with atomic(folder / f"{split}.npz") as temporary:
            np.savez_compressed(temporary, images=kept.images, labels=kept.labels, sdm_labels=kept.sdm_labels)
        write_csv(folder / f"{split}.csv", kept.index)
    patients = {split: len(raw.patients(split)) for split in splits}
    facts = {"source": source} | raw.record() | {"patients": patients, "left_out": records(faults)}
    write_json(folder / "data.json", facts | {"classes": raw.classes.to_json()})


def read_facts(folder: Path) -> dict:
    """The `data.json` that `prepare` wrote; empty where it has not."""
    path = folder / "data.json"
    shape = {"left_out?": [{"patient": str}], "patient_pattern?": str, "classes?": {"conditions?": [str]}}
    return read_json(path, shape) if path.exists() else {}


def load_classes(folder: Path) -> Classes:
    """What the labels mean that `prepare` wrote; CAMUS's, where an earlier version did not say."""
    facts = read_facts(folder)
    with whole(folder / "data.json"):
        return Classes(**facts["classes"]) if "classes" in facts else CAMUS


def load_frames(folder: Path, split: str) -> Frames:
    """The frames that `prepare` wrote.

    Raises:
        FileNotFoundError: when the data stage has not run.
    """
    if not (folder / "data.json").exists():
        raise FileNotFoundError(
            f"{folder}: no prepared data; run notebook 01 or `python -m echo reproduce --only data`"
        )
    path, index, classes = folder / f"{split}.npz", read_csv(folder / f"{split}.csv", NEEDED), load_classes(folder)
    with whole(path), path.open("rb") as file, np.load(file) as arrays:
        frames = Frames(arrays["images"], arrays["labels"], arrays["sdm_labels"], index, classes)
        if {len(frames.images), len(frames.labels), len(frames.sdm_labels)} != {len(index)}:
            raise ValueError(f"{len(frames.images)} frames, and {split}.csv has {len(index)} rows")
        return frames
