import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from echo.frames import Frames
from reproduction.evaluation import realism
from reproduction.evaluation.realism import (
    crop_memorisation,
    half_width,
    sector_apex,
    speckle_grain,
    tell_apart,
    two_sample_test,
)

SIZE, APEX = 64, (-4.0, 31.5)


def sector() -> np.ndarray:
    """A sector (S, S) of 80 degrees about `APEX`."""
    y, x = np.indices((SIZE, SIZE)) - np.array(APEX)[:, None, None]
    return (np.abs(np.arctan2(x, y)) < np.deg2rad(40)) & (np.hypot(y, x) > 10) & (np.hypot(y, x) < 63)


def speckled(images: np.ndarray, per_patient: int = 4, first: int = 0) -> Frames:
    """Frames of textures (N, S, S), of sd 1, in the sector; so many of a patient."""
    grey = np.where(sector(), 100 + 30 * images, 0).clip(0, 255).astype(np.uint8)
    labels = np.where(sector(), 2, 0).astype(np.uint8)[None].repeat(len(grey), 0)
    patients = [f"p{first + k // per_patient:03d}" for k in range(len(grey))]
    index = pd.DataFrame({"patient": patients, "spacing_row_mm": 0.5, "spacing_col_mm": 0.5})
    return Frames(grey, np.zeros_like(labels), labels, index)


def texture(rng: np.random.Generator, count: int, sd: float = 1.0) -> np.ndarray:
    """White noise smoothed by a Gaussian, of sd 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal((count, SIZE, SIZE)), (0, sd, sd))
    return noise / noise.std()


def test_the_apex_is_where_the_sides_meet():
    assert sector_apex(sector()) == pytest.approx(APEX, abs=1.5)
    with pytest.raises(ValueError, match="straight sides"):
        sector_apex(np.ones((SIZE, SIZE), bool))


def test_the_width_of_smoothed_noise_is_known():
    """Its autocorrelation is a Gaussian of sqrt(2) times the filter's sd, which is 2.355 sd wide at half maximum."""
    x = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((400, 400)), (2, 4))
    everywhere = np.ones_like(x, bool)
    assert half_width(x, everywhere, 0) == pytest.approx(2 * 2**0.5 * 2.355, rel=0.05)
    assert half_width(x, everywhere, 1) == pytest.approx(4 * 2**0.5 * 2.355, rel=0.05)
    assert np.isnan(half_width(np.zeros((9, 9)), np.ones((9, 9), bool), 0))


def test_speckles_grain_is_found_at_each_depth():
    """Noise smoothed along beams and across, across in angle, so that it widens with depth."""
    rng, radii, angles = np.random.default_rng(0), np.arange(0, 80, 0.25), np.linspace(-0.8, 0.8, 400)
    polar = [ndimage.gaussian_filter(rng.standard_normal((320, 400)), (4, 7)) for _ in range(8)]  # 1 pixel, 1.6 degrees
    y, x = np.indices((SIZE, SIZE)) - np.array(APEX)[:, None, None]
    places = np.interp(np.hypot(y, x), radii, range(320)), np.interp(np.arctan2(x, y), angles, range(400))
    images = np.stack([ndimage.map_coordinates(z / z.std(), places) for z in polar])
    found = speckle_grain(speckled(images)).groupby("depth", sort=False).mean()
    width_mm = 0.5 * 2**0.5 * 2.355  # of an sd of one pixel
    np.testing.assert_allclose(found["along_mm"], width_mm, rtol=0.2)
    assert found["across_mm"].is_monotonic_increasing
    np.testing.assert_allclose(found["across_mm"].iloc[1:] / width_mm, np.array([36, 50]) * 7 * 1.6 / 399, rtol=0.2)
    np.testing.assert_allclose(found["snr"], 100 / 30, rtol=0.35)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(realism, "FOLDS", 2)


def test_a_blurred_set_is_told_at_full_size_alone(few):
    rng = np.random.default_rng(0)
    real = speckled(texture(rng, 60))
    blurred = speckled(ndimage.gaussian_filter(texture(rng, 60), (0, 0.7, 0.7)))  # its coarse power stays as it is
    fine, coarse = (tell_apart(real, blurred, scale, steps=60)["told"].mean() for scale in (1, 8))
    assert fine > 0.95
    assert 0.3 < coarse < 0.7


def test_what_is_wrong_at_the_rim_is_not_told_inside(few):
    rng = np.random.default_rng(0)
    real, bright = (speckled(texture(rng, 60)) for _ in range(2))
    bright.images[:, sector() & ~ndimage.binary_erosion(sector())] = 255
    told = {rim: tell_apart(real, bright, rim=rim, steps=60)["told"].mean() for rim in (True, False)}
    assert told[True] > 0.95
    assert 0.3 < told[False] < 0.7


def test_real_against_real_is_a_coin(few, monkeypatch):
    monkeypatch.setattr(realism, "SCALES", (4,))
    monkeypatch.setattr(realism, "STEPS", 60)
    rng = np.random.default_rng(0)
    real, synthetic, others = (speckled(texture(rng, 40), first=first) for first in (0, 0, 100))
    found = two_sample_test(real, synthetic, others)
    assert list(found["images"]) == [80, 80, 80, 80]
    assert found["accuracy"].between(25, 75).all()
    assert (found["low"] <= found["accuracy"]).all() and (found["accuracy"] <= found["high"]).all()


def test_a_copied_texture_is_caught_where_it_has_moved():
    rng = np.random.default_rng(0)
    training, heldout, fresh = (speckled(texture(rng, n, 1.5)) for n in (60, 20, 20))
    honest = crop_memorisation(fresh, heldout, training, places=4, side=16)
    assert len(honest["copies"]) == 0 and honest["p_value"] > 0.01
    moved = np.roll(training.images[:20].astype(float), (2, -2), (1, 2)) + rng.normal(0, 3, (20, SIZE, SIZE))
    copies = speckled((moved - 100) / 30)
    caught = crop_memorisation(copies, heldout, training, places=4, side=16)
    assert len(caught["copies"]) > 60 and caught["p_value"] < 1e-6
