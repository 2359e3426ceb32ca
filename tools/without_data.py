"""Segmenters that never saw a real echo, on real test patients (results/protocol.md, "Without data").

python -m tools.without_data DATA [PAINTED]

DATA is a CAMUS release. Alone, the committed segmenter (results/camus-weights, trained on 400 synthetic images of a
run) is scored, if it has not been, and its best, median and worst test frames are drawn. With PAINTED, which `python -m
echo generate --pretrained camus --images 1000 PAINTED` wrote, a segmenter is trained on that and scored.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from monai.networks.nets import UNet

from echo.config import get_profile
from echo.resume import read_csv, write_csv
from echo.segmenter import load_segmenter, predict, train_segmenter
from reproduction import FIGURES, RESULTS
from reproduction.datasets.camus import open_camus
from reproduction.datasets.prepare import Source, read_frames
from reproduction.evaluation.segmentation import score
from reproduction.evaluation.tables import typical_frames
from reproduction.plots import echoes
from reproduction.runs.manifest import enter_ledger
from reproduction.synthesis.pretrained import PRETRAINED

STEPS, WEIGHTS = 1500, PRETRAINED["camus"]
PROFILE = get_profile("cpu")
CONFIG = replace(PROFILE.segmenter, steps=STEPS, validate_every=250)


def test_scores(network: UNet, raw: Source, what_for: str, name: str) -> None:
    """Score every test frame into results/camus-weights/NAME.csv, as predicted; prints mean and sd of Dice."""
    enter_ledger(WEIGHTS, what_for, RESULTS)
    scores, _volumes = score(network, raw, raw.patients("testing"), PROFILE.image_size, CONFIG.flip_test)
    scores = scores[scores["processing"] == "raw"].drop(columns="processing")
    write_csv(WEIGHTS / f"{name}.csv", scores.round({"dice": 5, "nsd": 5, "hd95_mm": 3, "assd_mm": 3}))
    print((100 * scores.groupby("structure", sort=False)["dice"].agg(["mean", "std"])).round(1))


def draw(network: UNet, raw: Source, scores: pd.DataFrame) -> None:
    """The best, the median and the worst test frame, with the expert's contours and the network's."""
    chosen = typical_frames(scores.assign(processing="raw"))
    frames = [raw.frame(*key) for key in chosen.values()]
    found = [predict(network, f.resized(PROFILE.image_size).image[None], f.label.shape)[0] for f in frames]
    images, labels = [f.image for f in frames], [f.label for f in frames]
    figure = echoes.segmentations(images, labels, found, list(chosen), raw.classes)
    echoes.stamp(figure, "CAMUS", PROFILE.image_size)
    echoes.save(figure, FIGURES, "camus_test_frames")


def main(data: str, painted: str = "") -> None:
    raw = open_camus(data)
    if painted:
        frames = [read_frames(open_camus(painted), split, PROFILE.image_size) for split in ("training", "validation")]
        folder = Path(painted).with_name(f"{Path(painted).name}-segmenter")
        network = train_segmenter(replace(PROFILE, segmenter=CONFIG), *frames, folder, 0, "synthetic-only, no data")
        test_scores(network, raw, "synthetic-only, no data", "test_scores_no_data")
        return
    network, scored = load_segmenter(CONFIG, WEIGHTS / "segmenter", raw.classes), WEIGHTS / "test_scores.csv"
    if not scored.exists():
        test_scores(network, raw, "best, median and worst frame of the first look", scored.stem)
    draw(network, raw, read_csv(scored))


if __name__ == "__main__":
    main(*sys.argv[1:])
