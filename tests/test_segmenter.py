from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from echo import segmenter
from echo.config import PAPER
from echo.metrics import frame_dice


def test_paper_network_has_its_size():
    network = segmenter.build_segmenter(PAPER.segmenter)
    assert sum(p.numel() for p in network.parameters()) == 664_282
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 256, 256)).shape == (1, 4, 256, 256)


def test_augmentation_keeps_image_and_label_aligned(smoke):
    config = replace(smoke.segmenter, flip_probability=0.5, gamma=(1.0, 1.0001), rotation_deg=15)
    transform = segmenter.augmentation(config, 64).set_random_state(0)
    label = torch.zeros(1, 64, 64)
    label[:, 20:40, 12:30] = 1
    for _ in range(10):
        out = transform({"image": label.clone(), "label": label.clone()})
        moved = out["label"] > 0.5
        assert ((out["image"] > 0.5) == moved).float().mean() > 0.99
        assert not torch.equal(moved, label > 0.5)


def test_training_is_seeded_kept_and_better_than_chance(frames, smoke, tmp_path):
    profile = replace(smoke, segmenter=replace(smoke.segmenter, steps=60, validate_every=20))
    parts = frames["training"], frames["validation"]
    network = segmenter.train_segmenter(profile, *parts, tmp_path / "a", seed=0)
    again = segmenter.train_segmenter(profile, *parts, tmp_path / "b", seed=0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))

    log = pd.read_csv(tmp_path / "a" / "log.csv")
    dice = 100 * frame_dice(segmenter.predict(network, parts[1].images), parts[1].labels).mean()
    # The weights kept are the best epoch's, measured again.
    assert dice.mean() == pytest.approx(log["mean"].max(), abs=0.01)
    assert log["mean"].max() > log["mean"].iloc[0]
    assert dice["LV epi"] > 30

    (tmp_path / "a" / "log.csv").unlink()
    loaded = segmenter.train_segmenter(profile, *parts, tmp_path / "a", seed=0)  # loads, does not train
    assert not (tmp_path / "a" / "log.csv").exists()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))


def test_missing_segmenter_is_named(smoke, tmp_path):
    with pytest.raises(FileNotFoundError, match="no segmenter; run notebook 04"):
        segmenter.load_segmenter(smoke.segmenter, tmp_path)


class Oracle(torch.nn.Module):
    """Returns logits read off the image itself: grey levels 0, 60, 120, 180 stand for the four classes."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        levels = torch.arange(4)[:, None, None] * 60 / 255
        return -100 * (image - levels).abs()


def test_scoring_is_on_the_labels_own_grid(phantom, monkeypatch):
    frame = phantom.frame(phantom.patients("testing")[0], "4CH", "ED")
    painted = replace(frame, image=(frame.label * 60).astype(np.uint8))
    monkeypatch.setattr(type(phantom), "frame", lambda *_args: painted)
    full, half = (segmenter.score(Oracle(), phantom, phantom.patients("testing"), size) for size in (256, 64))
    assert len(full) == 4
    structures = ["LV endo", "LV epi", "LA"]
    assert (full[structures] == 1).all(axis=None)
    # A quarter of the resolution costs a border, and is measured on the full grid.
    assert (half[structures] < 1).all(axis=None)
    assert (half["LV epi"] > 0.9).all()
    assert full["quality"].iloc[0] == frame.quality
