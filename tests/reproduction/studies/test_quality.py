from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from echo.frames import Frames
from reproduction.studies import quality, samplers


def test_image_quality_finds_copies_and_little_else_between_real_patients(frames, judge, monkeypatch):
    # Two patients in each: pairs of one view and phase are compared.
    training, first, other = frames["training"].select(np.arange(4, 12)), frames["training"], frames["validation"]
    real = Frames(
        *(np.concatenate([getattr(f, k)[:4] for f in (first, other)]) for k in ("images", "labels", "sdm_labels")),
        pd.concat([first.index[:4], other.index[:4]], ignore_index=True),
    )
    honest = quality.image_quality(real, real, training, judge, seed=0)
    rows = honest["quality"].set_index("measure")
    np.testing.assert_allclose(
        rows.drop(["Fréchet distance", "kernel distance", "grey-level distance"])["synthetic"],
        rows.drop(["Fréchet distance", "kernel distance", "grey-level distance"])["real"],
    )
    assert rows.loc["grey-level distance", "synthetic"] == 0 < rows.loc["grey-level distance", "real"]
    assert (honest["memorisation"]["copies"] == 0).all()
    assert set(honest["nearest"]["images"]) == {"synthetic", "real"}
    assert honest["spectrum"].groupby("images")["power"].sum().nunique() == 1

    monkeypatch.setattr(
        quality, "inception_features", lambda images, _weights: images.reshape(len(images), -1)[:, ::64]
    )
    with_fid = quality.image_quality(real, real, training, judge, seed=0, inception="weights.pth")["quality"]
    assert set(with_fid["measure"]) - set(honest["quality"]["measure"]) == {"FID"}
    assert with_fid.set_index("measure").loc["FID", "synthetic"] == pytest.approx(0, abs=1e-3)

    noise = np.random.default_rng(0).normal(0, 2, training.images.shape)
    copies = replace(training, images=(training.images + noise).clip(0, 255).astype(np.uint8))
    caught = quality.image_quality(copies, real, training, judge, seed=0)["memorisation"].set_index("space")
    assert caught.loc["grey levels", "copies"] == len(training)
    assert caught.loc["grey levels", "p_value"] < 0.01


def test_what_few_images_cannot_say_is_nan(frames, judge):
    """One frame, of one view and phase, without an atrium."""
    training, one = frames["training"], frames["validation"].select(np.array([1]))
    without = replace(one, labels=one.labels % 3, sdm_labels=one.sdm_labels * (one.sdm_labels != 4))
    found = quality.image_quality(without, without, training, judge, seed=0)["quality"].set_index("measure")
    unknown = found.index[found["synthetic"].isna()]
    assert {"Fréchet distance", "kernel distance", "MS-SSIM of pairs"} <= set(unknown)
    assert found.loc["speckle SNR, LV endo", "real"] > 0
    verdict = samplers.measures(np.stack([one.images, one.images]), one, judge)
    assert np.isnan(verdict["frechet_distance"])
    assert verdict["ms_ssim"] == pytest.approx(1)


def test_spectrum_ratio_is_a_mean_over_bands():
    synthetic, real = np.arange(1, 21), np.full(20, 2.0)
    spectrum = pd.concat(
        pd.DataFrame({"frequency": np.arange(1, 21), "power": power, "images": name})
        for name, power in (("synthetic", synthetic), ("real", real))
    )
    assert quality.spectrum_ratio(spectrum).to_dict() == {"up to 5": 1.5, "6 to 14": 5.0, "above 14": 8.75}
