from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from echo import segmenter
from echo.config import PAPER
from echo.dice import frame_dice
from reproduction.evaluation import segmentation


def test_paper_network_has_its_size():
    network = segmenter.build_segmenter(PAPER.segmenter)
    assert sum(p.numel() for p in network.parameters()) == 664_282
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 256, 256)).shape == (1, 4, 256, 256)


def test_augmentation_keeps_image_and_label_aligned(smoke):
    config = replace(smoke.segmenter, flip_probability=0.5, gamma=(1.0, 1.0001), rotation_deg=15)
    label = torch.zeros(10, 1, 64, 64)
    label[:, :, 20:40, 12:30] = 1
    image, moved = segmenter.augmented(label, label, replace(config, ultrasound=0.0), np.random.default_rng(0))
    for x, y in zip(image, moved > 0.5, strict=True):
        assert ((x > 0.5) == y).float().mean() > 0.99
        assert not torch.equal(y, label[0] > 0.5)
        assert 0.6 < y.sum() / label[0].sum() < 1.7
    assert len({tuple(y.flatten().tolist()) for y in moved}) == 10  # each is moved by itself


def test_a_segmenter_works_at_its_own_size_and_answers_at_the_images(smoke):
    torch.manual_seed(0)
    network = segmenter.build_segmenter(replace(smoke.segmenter, image_size=32)).eval()
    small = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        logits = network(small.repeat_interleave(2, 2).repeat_interleave(2, 3))  # averaging gives `small` back
        expected = torch.nn.functional.interpolate(network(small), (64, 64), mode="bilinear", align_corners=False)
    assert network(small).shape == (2, 4, 32, 32)
    torch.testing.assert_close(logits, expected)


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


def test_an_interrupted_training_ends_in_the_same_weights(frames, smoke, tmp_path, monkeypatch):
    config = replace(smoke.segmenter, steps=30, validate_every=10, ema_decay=0.9, ultrasound=0.5)
    profile, parts = replace(smoke, segmenter=config), (frames["training"], frames["validation"])
    whole = segmenter.train_segmenter(profile, *parts, tmp_path / "a", seed=0)
    draw = segmenter.draw_samples

    def stops(*arguments):
        if arguments[3] == 17:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(segmenter, "draw_samples", stops)
    with pytest.raises(KeyboardInterrupt):
        segmenter.train_segmenter(profile, *parts, tmp_path / "b", seed=0)
    steps = []
    monkeypatch.setattr(segmenter, "draw_samples", lambda *a: steps.append(a[3]) or draw(*a))
    resumed = segmenter.train_segmenter(profile, *parts, tmp_path / "b", seed=0)
    assert steps == list(range(11, 31))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "a" / "log.csv").read_bytes() == (tmp_path / "b" / "log.csv").read_bytes()
    assert not list((tmp_path / "b").glob("*.pt"))


def test_fine_tuning_starts_from_a_network_and_takes_smaller_steps(frames, smoke, tmp_path):
    parts = frames["training"], frames["validation"]
    first = segmenter.train_segmenter(smoke, *parts, tmp_path / "a", seed=0)
    gentle = replace(smoke, segmenter=replace(smoke.segmenter, finetune_rate=1e-6, learning_rate=(1e-3, 1e-9)))
    second = segmenter.train_segmenter(gentle, *parts, tmp_path / "b", seed=1, start=first)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert pd.read_csv(tmp_path / "b" / "log.csv")["step"].max() == smoke.segmenter.steps / 2


def test_ultrasound_changes_grey_levels_within_the_sector_alone():
    images = torch.zeros(40, 1, 48, 48)
    images[:, :, 8:40, 8:40] = 0.5
    rng = np.random.default_rng(0)
    changed = segmenter.ultrasound(images, 0.3, rng)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed[:, :, :4] == 0).all()
    untouched = (changed == images).flatten(1).all(1).float().mean()
    assert 0.05 < untouched < 0.6  # 0.7 ** 4
    assert torch.equal(segmenter.ultrasound(images, 0.0, rng), images)
    shadows = segmenter.ultrasound(images, 1.0, rng)[:, 0, 8:40, 8:40]
    assert shadows.std() > 0.05


def test_flipped_prediction_is_symmetric(smoke):
    torch.manual_seed(0)
    network = segmenter.build_segmenter(smoke.segmenter).eval()
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32), dtype=np.uint8)
    plain, both = (segmenter.predict(network, images, flip=flip) for flip in (False, True))
    assert not np.array_equal(plain, both)
    assert np.array_equal(both, segmenter.predict(network, images[:, :, ::-1].copy(), flip=True)[:, :, ::-1])


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
    (full, volumes), (half, _) = (
        segmentation.score(Oracle(), phantom, phantom.patients("testing"), size) for size in (256, 64)
    )
    assert len(full) == 4 * 3 * 2
    assert (full["dice"] == 1).all()
    assert (full[["hd95_mm", "assd_mm"]] == 0).all(axis=None)
    # A quarter of the resolution costs a border, and is measured on the full grid, in mm.
    assert (half["dice"] < 1).all()
    assert (half.loc[half["structure"] == "LV epi", "dice"] > 0.9).all()
    assert (half.loc[half["structure"] == "LA", "assd_mm"] < 4 * max(frame.spacing_mm)).all()
    assert half["assd_mm"].min() > 0
    assert full["quality"].iloc[0] == frame.quality
    # The same picture stands for ED and ES here, so nothing is ejected.
    assert volumes["ef"].item() == volumes["expert_ef"].item() == 0
    assert volumes["edv_ml"].item() == volumes["expert_edv_ml"].item() > 20
    assert volumes["release_ef"].item() == frame.ef


def test_volumes_of_perfect_predictions_are_the_phantoms(phantom, monkeypatch):
    read = type(phantom).frame

    def painted(*key):
        frame = read(*key)
        return replace(frame, image=(frame.label * 60).astype(np.uint8))

    monkeypatch.setattr(type(phantom), "frame", painted)
    _scores, volumes = segmentation.score(Oracle(), phantom, phantom.patients("training"), 256)
    assert volumes["ef"].to_numpy() == pytest.approx(volumes["release_ef"].to_numpy(), abs=1.5)
    for name in ("edv_ml", "esv_ml", "ef"):
        assert volumes[name].to_numpy() == pytest.approx(volumes[f"expert_{name}"].to_numpy())
