import numpy as np
import pytest

from echo import labels
from reproduction.datasets import prepare
from reproduction.datasets.camus import CamusError


def test_prepare_round_trip_holds_no_test_patient(phantom, smoke, frames, tmp_path):
    prepare.prepare(phantom, "phantom", smoke, tmp_path)
    testing = set(phantom.patients("testing"))
    for split in ("training", "validation"):
        loaded = prepare.load_frames(tmp_path, split)
        assert (loaded.images == frames[split].images).all()
        assert (loaded.sdm_labels == frames[split].sdm_labels).all()
        assert loaded.index["patient"].tolist() == frames[split].index["patient"].tolist()
        assert testing.isdisjoint(loaded.index["patient"])
        assert (labels.to_camus(loaded.sdm_labels) == loaded.labels).all()
    assert not list(tmp_path.glob("testing*"))


def test_frames_of_every_view_and_phase(frames, smoke):
    training = frames["training"]
    assert training.images.shape == training.labels.shape == (12, smoke.image_size, smoke.image_size)
    assert sorted(training.index["class_label"]) == sorted([0, 1, 2, 3] * 3)
    extent = training.index["spacing_row_mm"] * smoke.image_size
    assert extent.between(130, 180).all()  # mm of depth: the pixel size grew as the image shrank
    chosen = training.select((training.index["view"] == "2CH").to_numpy())
    assert len(chosen) == 6
    assert (chosen.images == training.images[(training.index["view"] == "2CH").to_numpy()]).all()
    assert chosen.index.index.tolist() == list(range(6))
    assert (training.select(np.array([3, 1])).images == training.images[[3, 1]]).all()


def test_an_empty_split_is_named(phantom, smoke, monkeypatch):
    monkeypatch.setattr(type(phantom), "patients", lambda *_args: [])
    with pytest.raises(CamusError, match="split training has no patient"):
        prepare.read_frames(phantom, "training", smoke.image_size)


def test_missing_preparation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared data; run notebook 01"):
        prepare.load_frames(tmp_path, "training")
