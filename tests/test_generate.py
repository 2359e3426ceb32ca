from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread

from echo import generate
from echo.diffusion import build_unet
from echo.labels import to_camus


@pytest.fixture(scope="module")
def models(random_unet):
    return dict.fromkeys(range(4), random_unet)


@pytest.fixture(scope="module")
def profile(smoke):
    return replace(smoke, generation=replace(smoke.generation, images=14, validation_images=3, batch_size=3))


def everything(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


def test_plan_uses_each_source_equally_and_in_its_own_split(frames, profile):
    table = generate.plan(frames["training"], frames["validation"], profile, seed=0)
    assert table["id"].is_unique
    assert table["seed"].is_unique
    counts = table.query("split == 'training'")["source"].value_counts()
    assert counts.sum() == 14
    assert counts.max() - counts.min() <= 1
    for split, patients in table.groupby("split")["patient"]:
        assert set(patients) <= set(frames[split].index["patient"])
    pd.testing.assert_frame_equal(table, generate.plan(frames["training"], frames["validation"], profile, seed=0))


def test_interrupted_generation_ends_in_the_same_bytes(frames, profile, models, tmp_path, monkeypatch):
    parts = frames["training"], frames["validation"], profile
    table = generate.generate(models, *parts, tmp_path / "whole", seed=0)
    assert len(table) == 17

    calls, paint = [], generate.paint

    def stops_at_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return paint(*args, **kwargs)

    monkeypatch.setattr(generate, "paint", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(models, *parts, tmp_path / "parts", seed=0)
    assert not (tmp_path / "parts" / "manifest.csv").exists()
    (tmp_path / "parts" / "images" / "000001.png").unlink()
    generate.generate(models, *parts, tmp_path / "parts", seed=0)
    assert everything(tmp_path / "whole") == everything(tmp_path / "parts")
    # Two batches were painted before the interruption; one of them lost an image and was painted again.
    batches = sum(-(-n // 3) for n in table.groupby(["split", "class_label"]).size())
    assert len(calls) == 3 + batches - 1


def test_images_carry_their_label_maps(frames, profile, models, tmp_path):
    table = generate.generate(models, frames["training"], frames["validation"], profile, tmp_path, seed=1)
    loaded = generate.load_synthetic(tmp_path, "training")
    assert loaded.images.shape == (14, 32, 32)
    assert loaded.images.dtype == np.uint8
    row = table.query("split == 'training'").iloc[0]
    expected, rejected = generate.augmented_map(frames["training"], row["source"], row["seed"], profile)
    assert (imread(tmp_path / "labels" / f"{row['id']}.png") == to_camus(expected)).all()
    assert (loaded.labels[0] == to_camus(expected)).all()
    assert rejected == row["rejected"]
    # The sector is the source's own, whatever the heart does.
    assert ((expected > 0) >= (frames["training"].sdm_labels[row["source"]] > 0)).all()


def test_a_model_for_each_view_and_phase(smoke, models, tmp_path):
    paper_like = replace(smoke, per_view_phase=True)
    assert generate.model_groups(paper_like) == ["2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"]
    with pytest.raises(FileNotFoundError, match="no diffusion model; run notebook 02"):
        generate.load_models(tmp_path, paper_like)
    for group in generate.model_groups(paper_like):
        build_unet(paper_like).save_pretrained(tmp_path / group / "model")
    assert len({id(m) for m in generate.load_models(tmp_path, paper_like).values()}) == 4
    models[0].save_pretrained(tmp_path / "all" / "model")
    assert len({id(m) for m in generate.load_models(tmp_path, smoke).values()}) == 1


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no synthetic images; run notebook 03"):
        generate.load_synthetic(tmp_path, "training")
