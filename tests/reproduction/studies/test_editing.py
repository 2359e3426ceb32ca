import numpy as np
import pytest

from echo import sampler
from echo.labels import to_camus
from reproduction.studies import editing
from reproduction.synthesis.edits import EDITS

GREY = np.array([0, 40, 120, 200, 60], np.uint8)  # of each SDM class


def test_an_image_that_follows_its_map_is_told_from_one_that_does_not(frames, smoke, judge, monkeypatch):
    real = frames["training"].select(np.arange(6))
    painted = []

    def follows(_unet, _profile, sdm_labels, _classes, _seeds):
        painted.append(sdm_labels)
        return GREY[sdm_labels]

    def ignores(_unet, _profile, sdm_labels, classes, seeds):
        return GREY[real.sdm_labels[np.array(seeds) - 7]]

    inverse = np.zeros(256, np.uint8)
    inverse[GREY] = np.arange(5)
    monkeypatch.setattr(editing, "predict", lambda _network, images: to_camus(inverse[images]))
    models = dict.fromkeys(range(4))
    monkeypatch.setattr(sampler, "paint", follows)
    good = editing.label_editing(models, real, judge, smoke, seed=7).set_index("edit")
    assert list(good.index) == ["none", *EDITS]
    assert (good["frames"] == 6).all()
    assert good["Dice, edited map"].to_numpy() == pytest.approx(100)
    assert good["grey response"].to_numpy()[1:] == pytest.approx(100)
    assert (good["Dice, original map"] < 99.5)[1:].all()
    assert good.loc["none", "Dice, original map"] == pytest.approx(100)
    assert np.isnan(good.loc["none", "grey response"])
    assert max(len(batch) for batch in painted) <= smoke.generation.batch_size
    monkeypatch.setattr(sampler, "paint", ignores)
    bad = editing.label_editing(models, real, judge, smoke, seed=7).set_index("edit")
    assert bad["Dice, original map"].to_numpy() == pytest.approx(100)
    assert bad["grey response"].to_numpy()[1:] == pytest.approx(0)
