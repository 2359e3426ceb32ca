"""Can the images that the published weights paint be told from real ones?

python -m tools.realism RUN

RUN is a run of the cpu profile on CAMUS whose frames are prepared (`python -m echo reproduce --only data`). An image is
painted for an augmented label map of each validation frame, and kept in RUN/realism; test patients are not opened. Into
results/camus-weights go two_sample.csv, speckle.csv, spectrum.csv, and memorisation.csv, of whole images and of crops.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from echo.config import CPU
from echo.frames import Frames
from echo.progress import tqdm
from echo.resume import atomic, write_csv
from echo.sampler import paint
from reproduction.datasets.prepare import load_frames
from reproduction.evaluation.images import memorisation_test, power_spectrum
from reproduction.evaluation.realism import crop_memorisation, inside, speckle_grain, two_sample_test
from reproduction.synthesis.generate import augmented_map
from reproduction.synthesis.pretrained import PRETRAINED, load_cascade

BATCH = 8


def painted(frames: Frames, folder: Path) -> Frames:
    """An image for an augmented label map of each frame, whose row of the index it takes over."""
    model, index = load_cascade(PRETRAINED["camus"]), frames.index
    seeds, parts = np.random.default_rng(0).integers(2**31, size=len(frames)), []
    for first in tqdm(range(0, len(frames), BATCH), desc="images", unit=f"{BATCH} images"):
        rows, path = np.arange(first, min(first + BATCH, len(frames))), folder / f"{first:04d}.npz"
        if not path.exists():
            maps = np.stack([augmented_map(frames, row, seeds[row], CPU)[0] for row in rows])
            images = paint(model, CPU, maps, index["class_label"].to_numpy()[rows], seeds[rows].tolist())
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, images=images, sdm_labels=maps)
        with np.load(path) as arrays:
            parts.append((arrays["images"], arrays["sdm_labels"]))
    images, sdm_labels = map(np.concatenate, zip(*parts, strict=True))
    return replace(frames, images=images, sdm_labels=sdm_labels)


def rim(frames: Frames) -> dict[str, float]:
    """Mean grey of the sector's outermost pixel, and the share of the sector's pixels that are exactly 0, in %."""
    within = inside(frames.sdm_labels, 0)
    outermost = within & ~inside(frames.sdm_labels, 1)
    return {"outermost pixel": frames.images[outermost].mean(), "zeros, %": (frames.images[within] == 0).mean() * 100}


def main(root: str) -> None:
    training, real = (load_frames(Path(root) / "dataset", split) for split in ("training", "validation"))
    ours, target = painted(real, Path(root) / "realism"), PRETRAINED["camus"]
    few = training.index["patient"].unique()[: real.index["patient"].nunique()]

    sets = {"synthetic": ours, "real": real}
    power = {name: power_spectrum(f.images).set_index("frequency")["power"] for name, f in sets.items()}
    share = (
        (power["synthetic"] / power["real"])
        .loc[4:100]
        .rename_axis("cycles")
        .reset_index(name="share of the real power")
    )
    write_csv(target / "spectrum.csv", share, float_format="%.3f")
    speckle = [speckle_grain(f).groupby("depth", sort=False).mean().drop(columns="image") for f in sets.values()]
    table = pd.concat(dict(zip(sets, speckle, strict=True)), names=["images"]).stack().rename("value").reset_index()
    table = table.rename(columns={"level_2": "measure"})
    edges = [
        {"images": name, "depth": "all", "measure": m, "value": v}
        for name, f in sets.items()
        for m, v in rim(f).items()
    ]
    table = pd.concat([table, pd.DataFrame(edges)]).pivot(index=["measure", "depth"], columns="images", values="value")
    write_csv(target / "speckle.csv", table.reset_index(), float_format="%.3f")
    tests = {
        "whole images": memorisation_test(ours.images, real.images, training.images),
        "crops": crop_memorisation(ours, real, training),
    }
    rows = [{"compared": name} | test | {"copies": len(test["copies"])} for name, test in tests.items()]
    write_csv(target / "memorisation.csv", pd.DataFrame(rows), float_format="%.3f")
    told = two_sample_test(real, ours, training.select(training.index["patient"].isin(few).to_numpy()))
    write_csv(target / "two_sample.csv", told, float_format="%.1f")
    for found in (table.reset_index(), pd.DataFrame(rows), told):
        print(found.to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
