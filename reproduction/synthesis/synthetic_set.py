"""A synthetic dataset on disk, as `generate` writes it: read, verify, filter.

`images/ID.png` (8-bit grey), its label map in the source's classes in `labels/ID.png`, and in `conditions/ID.png` that
which the network was given: in SDM classes, and of an echo no structure beyond the sector. `manifest.csv` has a row for
each, `set.json` what they have in common.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.io import imread

from echo.config import SPLITS
from echo.frames import Frames
from echo.labels import CAMUS, Classes
from echo.resume import read_csv, read_json, whole

KINDS = ("labels", "conditions", "images")  # in the order they are written: where an image is, its label maps are


def png(folder: Path, kind: str, name: str) -> Path:
    """Where an image or label map of a set is."""
    return folder / kind / f"{name}.png"


def files_digest(folder: Path, name: str) -> str:
    """SHA-256 (hex) of an image's three files, one after the other in the order of `KINDS`."""
    return hashlib.sha256(b"".join(png(folder, kind, name).read_bytes() for kind in KINDS)).hexdigest()


def read_manifest(folder: Path) -> pd.DataFrame:
    """A finished set's manifest, one row for each image; `id` is text.

    Raises:
        FileNotFoundError: when there is none.
    """
    path = folder / "manifest.csv"
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no synthetic images; run notebook 03 or `python -m echo generate`")
    table = read_csv(path, ("id", "split", "patient", "class_label", "batch", "sha256"))
    with whole(path):
        if (splits := set(table["split"])) != set(SPLITS[:2]):
            raise ValueError(f"its splits are {', '.join(map(str, splits))}, not {' and '.join(SPLITS[:2])}")
    return table


def read_images(folder: Path, kind: str, names: pd.Series) -> NDArray[np.uint8]:
    """uint8 (N, S, S) of one of `KINDS`."""
    images, size = [], read_facts(folder)["image_size"]
    for path in (png(folder, kind, name) for name in names):
        with whole(path):
            images.append(imread(path))
            if images[-1].shape != (size, size):
                raise ValueError(f"it is {images[-1].shape}, the set's images are {(size, size)}")
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
    arrays = (read_images(folder, kind, table["id"]) for kind in ("images", "labels", "conditions"))
    return Frames(*arrays, table, set_classes(folder))


def read_facts(folder: Path) -> dict:
    """The `set.json` of a set: what its images were made from."""
    numbers = {"images": int, "validation_images": int}
    shape = {"profile": str, "seed": int, "image_size": int, "generation": numbers, "checkpoints": {"*": str}}
    return read_json(folder / "set.json", shape)


def set_classes(folder: Path) -> Classes:
    """What the labels of a set mean."""
    facts = read_facts(folder)
    with whole(folder / "set.json"):
        return Classes(**facts["classes"]) if "classes" in facts else CAMUS


def verify(folder: Path) -> list[str]:
    """What is wrong with a finished set, a line each: empty if every file is there as it was written, and no other.

    Raises:
        FileNotFoundError: when the set is not finished.
    """
    table, images = read_manifest(folder), read_facts(folder)["generation"]
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
    sound = table[~table["id"].isin(lost)].drop_duplicates("id")
    changed = (r.id for r in sound.itertuples() if files_digest(folder, r.id) != r.sha256)
    return faults + [f"{name}: its image or a label map is not what was written (SHA-256)" for name in changed]
