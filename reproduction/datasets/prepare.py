"""The data stage: raw frames of either source -> arrays at the profile's size, training and validation only.

The test patients are not in these arrays. `evaluation.segmentation.score` opens their frames once, at the very end.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from skimage.transform import resize

from echo.config import SPLITS, VIEW_PHASES, Profile
from echo.frames import Frames
from echo.labels import sector_mask, to_sdm
from echo.progress import tqdm
from echo.resume import atomic, write_csv, write_json
from reproduction.datasets.camus import Camus, CamusError, open_camus
from reproduction.datasets.phantom import write_phantom


def open_data(data: str, profile: Profile, folder: Path, seed: int, progress: bool = True) -> Camus:
    """The raw data set: "phantom" (written below `folder` when absent) or the path of a CAMUS release."""
    if data == "phantom":
        target = folder / f"phantom-{seed}"
        return open_camus(write_phantom(target, profile.phantom_patients, seed, progress=progress))
    return open_camus(Path(data).expanduser())


def read_frames(camus: Camus, split: str, size: int, progress: bool = True) -> Frames:
    """Every frame of a split, resized to (size, size); the sector is found at the frame's own resolution.

    Raises:
        CamusError: for a damaged frame, or a split without patients.
    """
    keys = camus.keys(camus.patients(split))
    if not keys:
        raise CamusError(camus.root, f"split {split} has no patient")
    images, labels, sdm_labels, rows = [], [], [], []
    for patient, view, phase in tqdm(keys, desc=f"{split} frames", unit="frame", disable=not progress):
        raw = camus.frame(patient, view, phase)
        frame = raw.resized(size)
        # Found at full resolution and averaged down, so that its border stays smooth.
        sector = resize(sector_mask(raw.image).astype(float), (size, size), anti_aliasing=True) > 0.5
        images.append(frame.image)
        labels.append(frame.label)
        sdm_labels.append(to_sdm(frame.label, sector))
        rows.append(
            {
                "patient": patient,
                "view": view,
                "phase": phase,
                "class_label": VIEW_PHASES.index((view, phase)),
                "quality": frame.quality,
                "ef": frame.ef,
                "spacing_row_mm": frame.spacing_mm[0],
                "spacing_col_mm": frame.spacing_mm[1],
            }
        )
    return Frames(np.stack(images), np.stack(labels), np.stack(sdm_labels), pd.DataFrame(rows))


def prepare(camus: Camus, source: str, profile: Profile, folder: Path, progress: bool = True) -> None:
    """Write `{training,validation}.{npz,csv}` and `data.json` (what the data are) into `folder`.

    Args:
        source: "phantom" or "camus", for the record.
    """
    for split in ("training", "validation"):
        frames = read_frames(camus, split, profile.image_size, progress)
        with atomic(folder / f"{split}.npz") as temporary:
            np.savez_compressed(temporary, images=frames.images, labels=frames.labels, sdm_labels=frames.sdm_labels)
        write_csv(folder / f"{split}.csv", frames.index)
    patients = {split: len(camus.patients(split)) for split in SPLITS}
    facts = {"source": source, "release": camus.release, "digest": camus.digest(), "views": camus.views}
    write_json(folder / "data.json", facts | {"patients": patients})


def load_frames(folder: Path, split: str) -> Frames:
    """The frames that `prepare` wrote.

    Raises:
        FileNotFoundError: when the data stage has not run.
    """
    if not (folder / "data.json").exists():
        raise FileNotFoundError(
            f"{folder}: no prepared data; run notebook 01 or `python -m echo reproduce --only data`"
        )
    with np.load(folder / f"{split}.npz") as arrays:
        return Frames(arrays["images"], arrays["labels"], arrays["sdm_labels"], pd.read_csv(folder / f"{split}.csv"))
