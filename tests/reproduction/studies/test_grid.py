import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from echo.config import CPU, GPU, PROFILES
from echo.resume import write_json
from reproduction.runs import trainings
from reproduction.runs.inputs import OtherInputs
from reproduction.studies import grid
from reproduction.synthesis.generate import generate
from reproduction.synthesis.synthetic_set import load_synthetic, read_manifest


def test_every_training_has_a_folder_of_its_own():
    for profile in PROFILES.values():
        every = grid.main_trainings(profile, 0) + grid.study_trainings(profile, 0)
        assert len({t.name for t in every}) == len({(t.row, t.seed) for t in every}) == len(every)
    assert {t.seed for t in grid.main_trainings(GPU, 5) if t.row == "real"} == {5, 6, 7}
    few = pd.DataFrame(grid.study_trainings(CPU, 5)).groupby("row", sort=False)["seed"].agg(list)
    assert few["real 5%"] == few["real 10% + synthetic"] == few["synthetic of 5%"] == [5, 6, 7]
    assert few["real 25%"] == few["synthetic 50%"] == few["synthetic, generator again"] == [5]
    assert {t.row for t in grid.main_trainings(CPU, 0)} >= {"real", "synthetic", "both", "finetuned"}


def test_records_and_folders_are_those_of_finished_runs():
    """What the first runs wrote into `inputs.json`, and their folders, by name of the training."""
    every = {t.name: t for t in grid.main_trainings(CPU, 3) + grid.study_trainings(CPU, 3)}
    plain = {"finetuned": False, "recipe": "own", "generator": "run", "drop_worst": 0.0, "seed": 3}
    found = {name: every[name].record(CPU) for name in every}
    assert found["real-3"] == plain | {"row": "real", "real": 1.0, "synthetic": 0.0}
    other = {"row": "synthetic, paper recipe", "real": 0.0, "synthetic": 1.0, "recipe": "other"}
    assert found["synthetic-paper-recipe-3"] == plain | other
    few = {"row": "real 5% + synthetic of 5%", "seed": 4, "real": 0.05, "synthetic": 1.0, "generator": "own 0.05"}
    assert found["real-5-synthetic-of-5-4"] == plain | few
    again = {"row": "synthetic, generator again", "real": 0.0, "synthetic": 1.0, "generator": "again 1"}
    assert found["synthetic-generator-again-3"] == plain | again
    assert {t.generator for t in every.values()} == {"", "own-0.05", "own-0.1", "again-1"}


def test_scores_over_what_there_was_to_train_on():
    rows = grid.training_sets(
        [t for t in grid.main_trainings(CPU, 0) + grid.study_trainings(CPU, 0) if not t.recipe], CPU
    )
    assert rows.loc["real", ["recipe", "seeds"]].to_list() == ["strong", CPU.segmenter.seeds]
    dice = {row: 0.9 + k / 1000 for k, row in enumerate(rows.index)}
    scores = pd.DataFrame([
        {"train": row, "seed": seed, "structure": "LA", "processing": processing, "dice": dice[row] + seed / 100}
        for row in rows.index
        for seed in range(2)
        for processing in ("raw", "largest component")
    ])  # fmt: skip
    scores = grid.raw_scores([scores[:10], scores[10:]], rows)
    assert len(scores) == 2 * len(rows)

    images = grid.dice_by_images(scores, rows, 2000, "synthetic only")
    means = images.groupby("x")["dice"].mean()
    expected = {250: "synthetic 12.5%", 500: "synthetic 25%", 1000: "synthetic 50%", 2000: "synthetic"}
    assert means.to_dict() == pytest.approx({x: dice[row] + 0.005 for x, row in expected.items()})
    assert set(images["train"]) == {"synthetic only"}

    table = grid.scaling_table(grid.dice_by_patients(scores, rows, 200))
    assert table.columns.to_list() == [10, 20, 50, 100, 200]
    same = "real + synthetic of the same patients"
    assert table.index.to_list() == ["real", "real + synthetic of all patients", same, "synthetic of the same patients"]
    assert table.loc[same, 10] == round(100 * dice["real 5% + synthetic of 5%"] + 0.5, 1)
    assert table.loc["real", 200] == round(100 * dice["real"] + 0.5, 1)
    assert table.loc[same, 50] == "–"
    pairs = grid.comparisons(rows)
    assert ("real 5% + synthetic", "real 5%") in pairs
    assert ("synthetic of 5%", "synthetic") in pairs
    assert len(pairs) == len(set(pairs))


def test_shares_of_patients_are_whole_and_nested(frames):
    index = pd.DataFrame({"patient": np.repeat([f"p{k:03d}" for k in range(40)], 4)})
    many = replace(frames["training"], **dict.fromkeys(("images", "labels", "sdm_labels"), np.zeros((160, 2, 2))))
    many = replace(many, index=index)
    found = {s: set(grid.some_patients(many, s, 3).index["patient"]) for s in (0.01, 0.05, 0.1, 0.5, 1.0)}
    assert [len(p) for p in found.values()] == [2, 2, 4, 20, 40]
    assert found[0.05] < found[0.1] < found[0.5] < found[1.0]
    assert (grid.some_patients(many, 0.1, 3).index["patient"].value_counts() == 4).all()
    assert found[0.1] != set(grid.some_patients(many, 0.1, 4).index["patient"])


@pytest.fixture(scope="module")
def synthetic(frames, smoke, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    generate(trained / "diffusion", frames["training"], frames["validation"], smoke, folder, seed=0)
    write_json(folder / "inputs.json", "a digest")
    return folder


def seen(monkeypatch, training, smoke, frames, synthetic, tmp_path) -> list[tuple]:
    """(sets, validation, start, channels) of each training that one asks for."""
    calls = []

    def record(profile, sets, validation, folder, seed, name, start):
        calls.append((sets, validation, start, profile.segmenter.channels))
        return name

    monkeypatch.setattr(trainings, "train_segmenter", record)
    trainings.train_one(training, smoke, tuple(frames.values()), synthetic, tmp_path, 0)
    return calls


def test_a_training_sees_what_its_row_says(monkeypatch, frames, smoke, synthetic, tmp_path):
    rows = {t.row: t for t in grid.main_trainings(smoke, 0)}
    calls = {row: seen(monkeypatch, t, smoke, frames, synthetic, tmp_path) for row, t in rows.items()}
    painted = [load_synthetic(synthetic, split).images for split in ("training", "validation")]
    real = [frames[split].images for split in ("training", "validation")]

    def check(call, sets, validation, start=None, channels=smoke.segmenter.channels):
        assert [np.array_equal(a.images, b) for a, b in zip(call[0], sets, strict=True)] == [True] * len(sets)
        assert np.array_equal(call[1].images, validation)
        assert call[2:] == (start, channels)

    check(*calls["real"], real[:1], real[1])
    check(*calls["synthetic"], painted[:1], painted[1])  # not one real image, in its validation neither
    check(*calls["both"], [real[0], painted[0]], real[1])
    other = smoke.other_segmenter.channels
    check(*calls["synthetic, paper recipe"], painted[:1], painted[1], channels=other)
    first, second = calls["finetuned"]
    check(first, painted[:1], painted[1])
    check(second, real[:1], real[1], start="synthetic, seed 0")

    few = seen(monkeypatch, grid.Training("x", 0, real=0.5, synthetic=0.5), smoke, frames, synthetic, tmp_path)
    assert len(few[0][0][1]) == len(painted[0]) / 2
    assert few[0][0][0].index["patient"].nunique() == 2


def test_a_segmenter_is_trained_again_only_when_what_it_depends_on_changes(
    monkeypatch, frames, smoke, synthetic, tmp_path
):
    painted, segmenters = tmp_path / "set", tmp_path / "run" / "segmenters"
    shutil.copytree(synthetic, painted)
    trained, painters = [], []

    def train(_profile, _sets, _validation, folder, *_):
        if not (folder / "model.safetensors").exists():
            (folder / "model.safetensors").touch()
            trained.append(folder.name)

    def paint(_diffusion, _training, _validation, _profile, folder, _seed):
        shutil.copytree(painted, folder)
        painters.append(folder.parent.name)

    monkeypatch.setattr(trainings, "train_segmenter", train)
    monkeypatch.setattr(trainings, "load_segmenter", lambda *_: None)
    monkeypatch.setattr(trainings, "train_generator", lambda *_: None)
    monkeypatch.setattr(trainings, "generate", paint)
    rows = [
        grid.Training("real", 0, real=1.0),
        grid.Training("paper", 0, real=1.0, recipe="paper"),
        grid.Training("few", 0, real=0.5, synthetic=1.0, generator_patients=0.5),
    ]

    def changed(**settings) -> tuple[list, list]:
        for made in (trained, painters):
            made.clear()
        profile = replace(smoke, **settings)
        trainings.train_each(rows, profile, tuple(frames.values()), painted, segmenters, 0)
        return list(trained), list(painters)

    every = ["real-0", "paper-0", "few-0"], ["own-0.5"]
    assert changed() == every
    assert changed() == ([], [])
    assert changed(segmenter=replace(smoke.segmenter, seeds=4)) == ([], [])  # more trainings, not other ones
    assert changed(grid=replace(smoke.grid, real_shares=(0.1, 0.2))) == ([], [])
    with pytest.raises(OtherInputs, match=r"segmenters/few-0: .* \(own_steps 0.4, now 0.9\)"):
        changed(grid=replace(smoke.grid, own_steps=0.9))
    with pytest.raises(OtherInputs, match=r"segmenters/paper-0: .* \(segmenter.steps 6, now 7\)"):
        changed(other_segmenter=replace(smoke.other_segmenter, steps=7))
    assert changed() == ([], [])  # nothing was touched

    monkeypatch.setenv("ECHO_FRESH", "1")
    assert changed(grid=replace(smoke.grid, own_steps=0.9)) == (["few-0"], ["own-0.5"])
    assert (segmenters / "few-0.old-1" / "model.safetensors").exists()
    assert (segmenters.with_name("generators") / "own-0.5.old-1").is_dir()
    assert changed() == (["few-0"], ["own-0.5"])
    assert (segmenters / "few-0.old-2" / "model.safetensors").exists()
    assert changed(other_segmenter=replace(smoke.other_segmenter, steps=7)) == (["paper-0"], [])
    changed()
    rows[0] = replace(rows[0], real=0.5)
    assert changed() == (["real-0"], [])
    write_json(painted / "inputs.json", "another digest")
    assert changed() == every


def test_a_training_can_leave_out_the_worst_images(monkeypatch, frames, smoke, synthetic, tmp_path):
    table = read_manifest(synthetic)
    worst = table.groupby(["split", "class_label"])["id"].first()
    shutil.copytree(synthetic, tmp_path / "set")
    fidelity = pd.DataFrame({"id": table["id"], "mean": np.where(table["id"].isin(worst), 0.1, 0.9)})
    fidelity.to_csv(tmp_path / "set" / "fidelity.csv", index=False)
    half = grid.Training("x", 0, synthetic=1.0, drop_worst=50.0)
    ((sets, *_),) = seen(monkeypatch, half, smoke, frames, tmp_path / "set", tmp_path)
    kept = set(table.query("split == 'training'")["id"]) - set(worst)
    assert set(sets[0].index["id"]) == kept


def test_a_generator_of_few_patients_sees_those_alone(monkeypatch, frames, smoke, tmp_path):
    sources = []
    monkeypatch.setattr(trainings, "train", lambda profile, training, *_: sources.append((profile, training)))
    monkeypatch.setattr(trainings, "generate", lambda _diffusion, training, *_: sources.append((None, training)))
    few = grid.Training("x", 0, synthetic=1.0, generator_patients=0.5)
    folder = trainings.train_other_generator(few, smoke, *frames.values(), tmp_path, 0)
    assert folder == tmp_path / "synthetic"
    own = set(grid.some_patients(frames["training"], 0.5, 0).index["patient"])
    assert len(own) < frames["training"].index["patient"].nunique()
    assert all(set(f.index["patient"]) == own for _profile, f in sources)
    assert sources[0][0].training.steps < smoke.training.steps


def test_both_share_every_batch(frames, smoke):
    from echo.segmenter import draw_samples

    dark, bright = (replace(frames["training"], images=np.full_like(frames["training"].images, v)) for v in (60, 200))
    few = dark.select(np.arange(1))
    config = replace(smoke.segmenter, batch_size=6, gamma_probability=0.0)
    images, labels = draw_samples([few, bright], config, seed=0, step=1)
    middle = images[:, 0, 16, 16]
    assert (middle < 0.5).sum() == (middle > 0.5).sum() == 3
    assert labels.shape == images.shape
    again, _ = draw_samples([few, bright], config, seed=0, step=1)
    other, _ = draw_samples([few, bright], config, seed=0, step=2)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
