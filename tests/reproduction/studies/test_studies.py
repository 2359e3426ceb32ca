from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from echo import sampler
from echo.frames import Frames
from echo.labels import sector_of, to_camus
from echo.segmenter import build_segmenter
from reproduction.studies import editing, quality, samplers
from reproduction.synthesis import edits
from reproduction.synthesis.edits import EDITS


@pytest.fixture(scope="module")
def judge(smoke):
    torch.manual_seed(0)
    return build_segmenter(smoke.segmenter).eval()


def test_study_resumes_and_covers_every_setting(frames, smoke, random_unet, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(samplers, "SCHEDULERS", ("ddim", "heun"))
    generation = replace(smoke.generation, scheduler="ddim", num_inference_steps=2, batch_size=3)
    profile = replace(smoke, generation=generation)
    models, file = dict.fromkeys(range(4), random_unet), tmp_path / "settings.csv"
    table = samplers.sampler_study(models, frames["validation"], judge, profile, file, seed=0)
    keys = ["sampler", "steps", "guidance_scale"]
    expected = [("ddim", 1, 1.0), ("ddim", 2, 1.0), ("heun", 1, 1.0), ("heun", 2, 1.0), ("ddpm", 3, 1.0)]
    expected += [("ddim", 2, 2.0)]
    assert list(table[keys].itertuples(index=False, name=None)) == expected
    assert np.isfinite(table.drop(columns="sampler").to_numpy(float)).all()
    assert (table["seconds_per_image"] > 0).all()

    whole = pd.read_csv(file)
    whole.iloc[:2].to_csv(file, index=False)  # as if it had been interrupted
    again = samplers.sampler_study(models, frames["validation"], judge, profile, file, seed=0)
    different = whole.drop(columns="seconds_per_image")
    pd.testing.assert_frame_equal(different, again.drop(columns="seconds_per_image"), check_dtype=False, rtol=1e-4)


def test_real_images_judged_as_synthetic_are_at_no_distance(frames, judge):
    real = frames["validation"]
    verdict = samplers.judge(np.stack([real.images, real.images]), real, judge)
    assert verdict["ms_ssim"] == pytest.approx(1)
    assert verdict["frechet_distance"] == pytest.approx(0, abs=1e-3)
    noise = np.random.default_rng(0).integers(0, 256, (2, *real.images.shape), np.uint8)
    far = samplers.judge(noise, real, judge)
    assert far["frechet_distance"] > verdict["frechet_distance"]
    assert far["ms_ssim"] < 0.5
    references = samplers.references(frames["training"], real, judge)
    assert references["LV endo"] == pytest.approx(verdict["LV endo"])


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


def test_edits_are_combined_and_the_sector_stays(frames):
    real = frames["training"]
    label, sdm_label = real.labels[0], real.sdm_labels[0]
    assert (edits.edited(label, sdm_label, {}) == sdm_label).all()
    assert (edits.edited(label, sdm_label, {"shear": 0.0}) == sdm_label).all()
    wide = edits.edited(label, sdm_label, {"shear": 10.0, "dilate_lv": 0.3})
    assert (to_camus(wide) == EDITS["shear"](EDITS["dilate_lv"](label, 0.3), 10.0)).all()
    both = edits.edited(label, sdm_label, {"remove_atrium": 1.0, "shear": 10.0})
    assert (to_camus(both) == EDITS["shear"](EDITS["remove_atrium"](label), 10.0)).all()
    background = (label == 0) & (to_camus(both) == 0)
    assert (both[background] == sdm_label[background]).all()
    assert (both[(label == 3) & (to_camus(both) == 0) & sector_of(sdm_label)] == 2).all()  # tissue where it was
