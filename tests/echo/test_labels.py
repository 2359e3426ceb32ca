import numpy as np
import pytest
from scipy import ndimage

from echo import labels
from echo.config import PHASES
from reproduction.datasets.phantom import label_map, render, virtual_patient


def test_schemes_convert_both_ways():
    camus = np.array([[0, 1], [2, 3]], np.uint8)
    inside, outside = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    assert labels.to_sdm(camus, inside).tolist() == [[2, 1], [3, 4]]
    assert labels.to_sdm(camus, outside).tolist() == [[0, 1], [3, 4]]
    assert labels.to_camus(np.arange(5, dtype=np.uint8)).tolist() == [0, 1, 0, 2, 3]
    for sector in (inside, outside):
        assert (labels.to_camus(labels.to_sdm(camus, sector)) == camus).all()


def test_one_hot():
    label = np.random.default_rng(0).integers(0, 5, (2, 6, 4))
    hot = labels.one_hot(label)
    assert hot.shape == (2, 5, 6, 4)
    assert (hot.sum(1) == 1).all()
    assert (hot.argmax(1).numpy() == label).all()


def test_sector_is_filled_and_does_not_leak_the_image():
    patient = virtual_patient(np.random.default_rng(1))
    image = render(patient, "4CH", "ED", 128, np.random.default_rng(2))
    sector = labels.sector_mask(image)
    assert labels.sector_holes(sector) == 0
    assert (image[~sector] > 2).mean() < 0.01  # hardly a bright pixel is left out
    # Black blood does not change it: the chambers lie inside the hull of what stays bright.
    blood = ndimage.binary_erosion(label_map(patient, "4CH", "ED", 128) == 1, iterations=2)
    black = np.where(blood, 0, image).astype(np.uint8)
    assert (labels.sector_mask(black) == sector).all()
    assert labels.sector_holes(black != 0) > 0  # what the released code would take


def test_sector_of_a_black_image_is_everything():
    assert labels.sector_mask(np.zeros((8, 8), np.uint8)).all()


def test_sector_is_found_again_in_its_label_map():
    patient = virtual_patient(np.random.default_rng(1))
    image = render(patient, "4CH", "ED", 64, np.random.default_rng(2))
    sector, label = labels.sector_mask(image), label_map(patient, "4CH", "ED", 64)
    sdm = labels.to_sdm(label, sector)
    assert (labels.to_sdm(label, labels.sector_of(sdm)) == sdm).all()
    label[:, :6] = 3  # a structure that reaches outside
    found = labels.sector_of(labels.to_sdm(label, sector))
    assert (found[:, 6:] == sector[:, 6:]).all()
    assert (found[:, :6] <= ndimage.binary_dilation(sector)[:, :6]).all()


@pytest.mark.camus
def test_sector_of_real_frames(camus_root):
    from reproduction.datasets.camus import open_camus

    camus = open_camus(camus_root)
    for patient in camus.patients("validation")[:5]:
        for phase in PHASES:
            frame = camus.frame(patient, "4CH", phase)
            sector = labels.sector_mask(frame.image)
            assert labels.sector_holes(sector) == 0
            assert 0.4 < sector.mean() < 0.9
            assert (frame.image[~sector] > 2).mean() < 0.02
