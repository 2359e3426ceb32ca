from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reproduction.studies import samplers


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

    by_steps = samplers.by_steps(table, "mean Dice", 1)
    assert by_steps.columns.to_list() == ["ddim", "heun"]
    assert by_steps.index.to_list() == [1, 2, 3]
    assert by_steps.loc[3].to_list() == ["–", "–"]
    assert by_steps.loc[1, "heun"] == table["mean Dice"].round(1)[2]
    sweep = samplers.guidance_sweep(table[::-1], generation)
    assert sweep["guidance_scale"].to_list() == [1.0, 2.0]
    assert set(sweep["sampler"]) == {"ddim"}

    whole = pd.read_csv(file)
    whole.iloc[:2].to_csv(file, index=False)  # as if it had been interrupted
    again = samplers.sampler_study(models, frames["validation"], judge, profile, file, seed=0)
    different = whole.drop(columns="seconds_per_image")
    pd.testing.assert_frame_equal(different, again.drop(columns="seconds_per_image"), check_dtype=False, rtol=1e-4)


def test_real_images_judged_as_synthetic_are_at_no_distance(frames, judge):
    real = frames["validation"]
    verdict = samplers.measures(np.stack([real.images, real.images]), real, judge)
    assert verdict["ms_ssim"] == pytest.approx(1)
    assert verdict["frechet_distance"] == pytest.approx(0, abs=1e-3)
    noise = np.random.default_rng(0).integers(0, 256, (2, *real.images.shape), np.uint8)
    far = samplers.measures(noise, real, judge)
    assert far["frechet_distance"] > verdict["frechet_distance"]
    assert far["ms_ssim"] < 0.5
    references = samplers.references(frames["training"], real, judge)
    assert references["LV endo"] == pytest.approx(verdict["LV endo"])
