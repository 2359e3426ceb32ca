"""The cascade's first look at test patients (results/protocol.md).

python tools/first_look.py RUN DATA [real|synthetic]

RUN is a run of the cpu profile with a trained cascade and `python -m echo generate --images 400`. With a third argument
only that segmenter is trained. Without one, what is missing is trained, both are scored, and the differences go into
results/camus-weights, with the images' spectrum and the test of memorisation.
"""

import sys
from dataclasses import replace

import pandas as pd

from echo.resume import write_csv
from echo.segmenter import train_segmenter
from reproduction.evaluation.images import memorisation_test, power_spectrum
from reproduction.evaluation.segmentation import score
from reproduction.evaluation.statistics import differences
from reproduction.runs.manifest import enter_ledger
from reproduction.runs.run import Run, open_run
from reproduction.synthesis.pretrained import PRETRAINED
from reproduction.synthesis.synthetic_set import load_synthetic

STEPS = 1500


def train(run: Run, kind: str):
    """The segmenter trained on "real" or "synthetic" frames alone; a finished one is loaded."""
    config = replace(run.profile.segmenter, steps=STEPS, validate_every=250)
    frames = run.load_frames()
    if kind == "synthetic":
        frames = [load_synthetic(run.root / "synthetic-400", split) for split in ("training", "validation")]
    return train_segmenter(replace(run.profile, segmenter=config), *frames, run.root / f"{kind}-segmenter", 0, kind)


def realism(run: Run) -> None:
    """The power spectrum of images painted for validation patients' augmented label maps, as a share of these patients'
    own frames', by cycles an image side; and whether training frames come back."""
    painted = load_synthetic(run.root / "synthetic-400", "validation").images
    training, validation = (frames.images for frames in run.load_frames())
    ours, real = (power_spectrum(images).set_index("frequency")["power"] for images in (painted, validation))
    ratio = (ours / real).loc[4:100].rename_axis("cycles").reset_index(name="share of the real power")
    write_csv(PRETRAINED["camus"] / "spectrum.csv", ratio, float_format="%.3f")
    found = memorisation_test(painted, validation, training)
    found["copies"] = len(found["copies"])
    write_csv(PRETRAINED["camus"] / "memorisation.csv", pd.DataFrame([found]), float_format="%.3f")


def main(root: str, data: str, only: str = "") -> None:
    run = open_run("cpu", data, root, recompute=True)
    if only:
        train(run, only)
        return
    realism(run)
    networks, raw = {kind: train(run, kind) for kind in ("real", "synthetic")}, run.open_data()
    enter_ledger(run.root, "first look at the cascade")
    parts = []
    for kind, network in networks.items():
        table, _volumes = score(network, raw, raw.patients("testing"), run.profile.image_size)
        parts.append(table.assign(train=kind, seed=0))
    scores = pd.concat(parts, ignore_index=True)
    raw_scores = scores[scores["processing"] == "raw"].assign(dice=scores["dice"] * 100)
    dice = raw_scores.groupby(["structure", "train"])["dice"].agg(["mean", "std"]).unstack("train")
    dice.columns = [f"{train} {statistic}" for statistic, train in dice.columns]
    table = differences(scores, [("synthetic", "real")], 0).merge(dice.reset_index(), on="structure")
    write_csv(PRETRAINED["camus"] / "first_look.csv", table, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
