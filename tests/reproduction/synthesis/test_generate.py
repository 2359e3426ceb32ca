"""Generation: a set is the same however it is divided, interrupted or threaded; a row is enough to paint again."""

import errno
import json
import os
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from skimage.io import imread

from echo import sampler
from echo.augment import augment
from echo.frames import Frames
from echo.labels import CAMUS, sector_of, to_camus, to_sdm
from echo.unet import build_unet
from reproduction.datasets.phantom import label_map, virtual_patient
from reproduction.synthesis import generate
from reproduction.synthesis.shapes import fit_shapes, sample_shape
from reproduction.synthesis.synthetic_set import load_synthetic, verify


@pytest.fixture(scope="module")
def profile(smoke):
    return replace(smoke, generation=replace(smoke.generation, images=14, validation_images=3, batch_size=3))


@pytest.fixture(scope="module")
def whole(trained, frames, profile, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert len(generate.generate(trained / "diffusion", *frames.values(), profile, folder, seed=0)) == 17
    return folder


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
    batches = table.groupby("batch")
    assert batches.size().max() == 3
    assert (batches[["split", "class_label"]].nunique() == 1).all(axis=None)
    assert table["batch"].is_monotonic_increasing


def test_seeds_drawn_twice_are_drawn_again(frames, profile, monkeypatch):
    class FewSeeds(np.random.Generator):
        def integers(self, low, size):
            return super().integers(20, size=size)

    monkeypatch.setattr(generate.np.random, "default_rng", lambda _: FewSeeds(np.random.PCG64(0)))
    assert generate.plan(frames["training"], frames["validation"], profile, seed=0)["seed"].is_unique


def test_interrupted_generation_ends_in_the_same_bytes(whole, trained, frames, profile, tmp_path, monkeypatch):
    calls, paint = [], sampler.paint

    def stops_at_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return paint(*args, **kwargs)

    monkeypatch.setattr(generate, "paint", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(trained / "diffusion", *frames.values(), profile, tmp_path, seed=0)
    assert not (tmp_path / "manifest.csv").exists()
    (tmp_path / "images" / "000001.png").unlink()
    (tmp_path / "labels" / ".123.000001.png").touch()  # what a killed process leaves
    table = generate.generate(trained / "diffusion", *frames.values(), profile, tmp_path, seed=0)
    assert everything(whole) == everything(tmp_path)
    # Two batches were painted before the interruption; one of them lost an image and was painted again.
    assert len(calls) == 3 + table["batch"].nunique() - 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_are_the_whole(whole, trained, frames, profile, tmp_path, order):
    parts = trained / "diffusion", *frames.values(), profile, tmp_path
    tables = [generate.generate(*parts, seed=0, shard=(k, 3)) for k in order]
    assert [table is None for table in tables] == [True, True, False]
    assert everything(whole) == everything(tmp_path)
    with pytest.raises(ValueError, match="no shard 3/3"):
        generate.generate(*parts, seed=0, shard=(3, 3))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_nothing(whole, trained, frames, profile, tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generate.generate(trained / "diffusion", *frames.values(), profile, tmp_path, seed=0)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert everything(whole) == everything(tmp_path)


def test_rows_tell_how_each_image_was_made(whole, frames, profile):
    table = pd.read_csv(whole / "manifest.csv", dtype={"id": str, "checkpoint": str})
    loaded = load_synthetic(whole, "training")
    assert loaded.images.shape == (14, 32, 32)
    assert loaded.images.dtype == np.uint8
    for place, row in enumerate(table.query("split == 'training'").iloc):
        source = frames["training"].index.loc[row["source"]]
        assert list(row[["patient", "view", "phase"]]) == list(source[["patient", "view", "phase"]])
        assert row["spacing_row_mm"] == pytest.approx(source["spacing_row_mm"], abs=1e-5)
        condition, label, drawn = generate.augmented_map(frames["training"], row["source"], row["seed"], profile)
        assert (imread(whole / "labels" / f"{row['id']}.png") == label).all()
        assert (loaded.sdm_labels[place] == condition).all()
        rng = np.random.default_rng(row["seed"])
        new = augment(frames["training"].labels[row["source"]], profile.augmentation, rng)
        assert drawn == {"rejected": new.rejected} | new.parameters
        assert row[list(drawn)].tolist() == pytest.approx(list(drawn.values()), abs=1e-5)
        # The sector is the source's own, whatever the heart does; what is painted ends there.
        sector = sector_of(frames["training"].sdm_labels[row["source"]])
        assert ((condition > 0) == sector).all() and (to_camus(condition)[sector] == label[sector]).all()
    assert (table[["sampler", "steps", "guidance"]] == ["dpm++", 2, 1.0]).all(axis=None)
    facts = json.loads((whole / "set.json").read_text())
    assert (table["checkpoint"] == facts["checkpoints"]["all"][:16]).all()
    assert facts["generation"]["batch_size"] == 3


def test_a_label_goes_on_beyond_the_sector_and_its_condition_does_not(profile):
    label = label_map(virtual_patient(np.random.default_rng(0)), "4CH", "ED", 64)
    sector = np.zeros((64, 64), bool)
    sector[:, np.flatnonzero((label > 0).any(0)).mean().astype(int) :] = True  # through the middle of the heart
    frames = Frames(label[None], label[None], to_sdm(label, sector)[None], pd.DataFrame({"class_label": [2]}))
    condition, new, _drawn = generate.augmented_map(frames, 0, 0, profile)
    outside = ~sector_of(frames.sdm_labels[0])
    assert (new[outside] > 0).sum() > 0.2 * (new > 0).sum()
    assert not condition[outside].any() and (to_camus(condition)[~outside] == new[~outside]).all()


def test_an_image_is_painted_again_from_its_row(whole, trained, frames, profile, tmp_path):
    parts = trained / "diffusion", *frames.values(), profile
    assert generate.regenerate(whole, ["000003", "000016"], *parts) == []
    manifest = pd.read_csv(whole / "manifest.csv", dtype=str)
    manifest.loc[4, "seed"] = "1"
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "set.json").write_bytes((whole / "set.json").read_bytes())
    names = ["000004", "000016"]
    assert generate.regenerate(tmp_path, names, *parts) == ["000004: painted again, it is another image"]
    with pytest.raises(ValueError, match="no image 000017 in manifest.csv"):
        generate.regenerate(whole, ["000017"], *parts)


def test_another_checkpoint_device_or_seed_is_refused(trained, frames, profile, random_enlarger, tmp_path, monkeypatch):
    parts = trained / "diffusion", *frames.values(), profile
    generate.generate(*parts, tmp_path / "set", seed=0, shard=(0, 3))
    before = everything(tmp_path / "set")
    with pytest.raises(ValueError, match="painted with another seed: remove it"):
        generate.generate(*parts, tmp_path / "set", seed=1, shard=(1, 3))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="painted with another device"):
        patch.setattr(generate, "device_name", lambda: "another CPU")
        generate.generate(*parts, tmp_path / "set", seed=0, shard=(1, 3))
    torch.manual_seed(1)
    build_unet(profile).save_pretrained(tmp_path / "retrained" / "all" / "model")
    random_enlarger.save_pretrained(tmp_path / "retrained" / "enlarger" / "model")
    with pytest.raises(ValueError, match="painted with another checkpoints"):
        generate.generate(tmp_path / "retrained", *parts[1:], tmp_path / "set", seed=0, shard=(1, 3))
    assert everything(tmp_path / "set") == before


def test_no_more_than_a_batch_is_held(trained, frames, smoke, tmp_path, monkeypatch):
    size, peaks = 128, []
    stub = np.zeros((size, size), np.uint8)
    monkeypatch.setattr(generate, "augmented_map", lambda *_: (stub.copy(), stub.copy(), {"rejected": 0}))
    monkeypatch.setattr(generate, "paint", lambda _model, _profile, maps, *_: np.zeros_like(maps))
    for images in (20, 200):
        profile = replace(smoke, generation=replace(smoke.generation, images=images, validation_images=1))
        tracemalloc.start()
        generate.generate(trained / "diffusion", *frames.values(), profile, tmp_path / f"{images}", seed=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.5 * 180 * size**2  # bytes; one array of each image would be twice that


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from reproduction.datasets import prepare
from echo import sampler
from reproduction.synthesis import generate
from echo.config import SMOKE
from echo.device import get_device, peak_memory_gb

run, folder, images = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
settings = replace(SMOKE.generation, images=images - 20, validation_images=20, batch_size=20, num_inference_steps=1)
frames = [prepare.load_frames(run / "dataset", split) for split in ("training", "validation")]
generate.generate(run / "diffusion", *frames, replace(SMOKE, generation=settings), folder, seed=0)
print(peak_memory_gb(get_device()))
"""


def paint_in_a_process(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_thousand_images_under_three_kills_and_in_constant_memory(trained, tmp_path):
    peaks = []
    for images in (100, 1000):
        process = paint_in_a_process(trained, tmp_path / f"{images}", images)
        peaks.append(float(process.communicate(timeout=300)[0]))
        assert process.returncode == 0
    print(f"peak memory of 100 and of 1000 images: {peaks[0]:.3f} and {peaks[1]:.3f} GB")
    assert peaks[1] < 1.05 * peaks[0]

    folder = tmp_path / "killed"
    for batches in (10, 25, 40):
        process = paint_in_a_process(trained, folder, 1000)
        while len(list(folder.glob("batches/*.csv"))) < batches:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert not (folder / "manifest.csv").exists()
    process = paint_in_a_process(trained, folder, 1000)
    process.communicate(timeout=300)
    assert everything(folder) == everything(tmp_path / "1000")
    assert len(list(folder.glob("images/*.png"))) == 1000
    assert verify(folder) == []


def test_maps_from_the_shape_model_in_the_share_asked_for(profile):
    rng = np.random.default_rng(0)
    labels = np.stack([label_map(virtual_patient(rng), "4CH", "ED", 32) for _ in range(12)])
    index = pd.DataFrame({"class_label": [2, 3] * 6})
    frames = Frames(labels, labels, to_sdm(labels, np.ones((12, 32, 32), bool)), index)

    def maps(share: float, seeds: range) -> list[np.ndarray]:
        mixed = replace(profile, augmentation=replace(profile.augmentation, shape_model=share))
        return [generate.augmented_map(frames, 4, seed, mixed)[0] for seed in seeds]

    seeds = range(40)
    half, again, warped = maps(0.5, seeds), maps(0.5, seeds), maps(0.0, seeds)
    assert all((a == b).all() for a, b in zip(half, again, strict=True))
    drawn = [np.random.default_rng(seed).random() < 0.5 for seed in seeds]
    model = fit_shapes(labels[::2])  # of the source's own class, where it is number 2
    for seed, new, from_model in zip(seeds, half, drawn, strict=True):
        if from_model:
            rng = np.random.default_rng(seed)
            rng.random()
            assert (new == to_sdm(sample_shape(model, rng, 32, place=2).label, np.ones((32, 32), bool))).all()
    assert 10 < sum(drawn) < 30
    assert sum((a != b).any() for a, b in zip(half, warped, strict=True)) >= sum(drawn)


def test_a_model_for_each_view_and_phase(smoke, random_unet, random_enlarger, tmp_path):
    paper_like = replace(smoke, per_view_phase=True, enlarger=None)
    assert generate.model_groups(paper_like) == ["2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"]
    with pytest.raises(FileNotFoundError, match="no diffusion model; run notebook 02"):
        generate.load_models(tmp_path, paper_like)
    for group in generate.model_groups(paper_like):
        build_unet(paper_like).save_pretrained(tmp_path / group / "model")
    assert len({id(m) for m in generate.load_models(tmp_path, paper_like).values()}) == 4
    assert len(set(generate.set_facts(tmp_path, paper_like, 0, CAMUS)["checkpoints"].values())) == 4
    random_unet.save_pretrained(tmp_path / "all" / "model")
    random_enlarger.save_pretrained(tmp_path / "enlarger" / "model")
    assert len({id(m) for m in generate.load_models(tmp_path, smoke).values()}) == 1


def test_a_view_and_phase_that_the_data_lack_has_no_model(smoke, frames, random_unet, tmp_path):
    paper_like = replace(smoke, per_view_phase=True, enlarger=None)
    for group in ("2CH_ED", "4CH_ED"):
        build_unet(paper_like).save_pretrained(tmp_path / group / "model")
    assert list(generate.load_models(tmp_path, paper_like)) == [0, 2]
    assert list(generate.set_facts(tmp_path, paper_like, 0, CAMUS)["checkpoints"]) == ["2CH_ED", "4CH_ED"]
    ed = [f.select((f.index["phase"] == "ED").to_numpy()) for f in frames.values()]
    table = generate.generate(tmp_path, *ed, paper_like, tmp_path / "set", seed=0)
    assert set(table["class_label"]) == {0, 2}
    with pytest.raises(FileNotFoundError, match="2CH_ES.*no diffusion model"):
        generate.generate(tmp_path, *frames.values(), paper_like, tmp_path / "other", seed=0)
    assert not (tmp_path / "other" / "images").exists()


def test_shape_models_of_what_is_there(frames):
    training = frames["training"]  # three patients, which is as few as there may be
    assert generate.shape_models(training.select(np.arange(4))) == []
    found = generate.shape_models(training.select((training.index["view"] == "4CH").to_numpy()))
    assert len(found) in (0, 2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_error_with_the_file(trained, frames, smoke, tmp_path, number, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if path.suffix == ".png":
            raise OSError(number, os.strerror(number))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"labels/000000\.png"):
        generate.generate(trained / "diffusion", *frames.values(), smoke, tmp_path, seed=0)
    monkeypatch.undo()
    assert len(generate.generate(trained / "diffusion", *frames.values(), smoke, tmp_path, seed=0)) == 12
    assert verify(tmp_path) == []


@pytest.mark.parametrize(
    ("conditions", "groups"),
    [
        (("a b", "a/b"), ["a_b-0", "a_b-1"]),
        (("..", "rest"), ["_", "rest"]),
        (("enlarger", "stress"), ["enlarger-0", "stress"]),
        (("short axis", "2CH_ED"), ["short_axis", "2CH_ED"]),
    ],
)
def test_each_condition_has_a_folder_of_its_own(smoke, conditions, groups):
    own = replace(smoke, per_view_phase=True)
    assert generate.model_groups(own, replace(CAMUS, conditions=conditions)) == groups
    assert generate.model_groups(smoke, replace(CAMUS, conditions=conditions)) == ["all", "all"]
