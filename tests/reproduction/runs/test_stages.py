"""The whole pipeline through papermill at the smoke profile: what `make reproduce` does, in a minute or two."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from echo.config import GPU, SMOKE
from echo.labels import STRUCTURES
from echo.resume import read_json, write_json
from reproduction.cli import app
from reproduction.runs import notebooks, publish, stages, trace
from reproduction.runs.inputs import OtherInputs
from reproduction.runs.run import is_current, open_run
from reproduction.runs.table import PIPELINE, STAGES
from reproduction.studies import grid
from reproduction.synthesis.edits import DEFAULTS
from reproduction.synthesis.synthetic_set import load_synthetic

REPRODUCED = [*PIPELINE, "quality"]  # what one command runs
COLUMNS = ["train", "structure", "seed", "n_frames", "dice_mean", "dice_sd"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return notebooks.reproduce("smoke", "phantom", str(tmp_path_factory.mktemp("runs") / "smoke-phantom"), seed=3)


def check_run(folder: Path, test_frames: int) -> None:
    dice = pd.read_csv(folder / "tables" / "dice.csv")
    assert list(dice.columns) == COLUMNS
    assert set(zip(dice["train"], dice["structure"], strict=True)) == {
        (t.row, structure) for t in grid.main_trainings(SMOKE, seed=0) for structure in STRUCTURES
    }
    assert (dice["n_frames"] == test_frames).all()
    assert dice["dice_mean"].between(0, 100).all()
    scores, volumes = (pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("scores", "volumes"))
    assert (scores.groupby(["train", "seed", "structure", "processing"]).size() == test_frames).all()
    assert (volumes.groupby(["train", "seed"]).size() == test_frames / 4).all()
    assert "table_1.csv says the same" in trace.trace(folder, 1, "LA", "synthetic-only")
    manifest = read_json(folder / "manifest.json")
    assert list(manifest["stages"]) == sorted(REPRODUCED)
    assert all(stage["finished"] and stage["peak_memory_gb"] > 0 for stage in manifest["stages"].values())
    assert {name for name, facts in manifest["stages"].items() if "threads" in facts} == {"diffusion", "segmentation"}
    assert all(n >= 1 for name in ("diffusion", "segmentation") for n in manifest["stages"][name]["threads"])
    assert manifest["profile"]["name"] == "smoke"
    for name in REPRODUCED:
        notebook = nbformat.read(folder / "notebooks" / f"{STAGES[name].notebook}.ipynb", as_version=4)
        assert notebook.metadata.papermill.exception is None
    assert len(list((folder / "figures").glob("*.png"))) >= 10


def test_one_command_ends_in_the_table(finished):
    check_run(finished, test_frames=8)
    manifest = read_json(finished / "manifest.json")
    assert manifest["seed"] == 3
    assert manifest["data"]["source"] == "phantom"
    assert manifest["data"]["patients"] == {"training": 4, "validation": 2, "testing": 2}
    summary = publish.summary(finished)
    for word in ("paper", "real-only", "synthetic-only", "difference", *STRUCTURES, "dice_boxes.png", "05_dice_tables"):
        assert word in summary


def test_called_again_it_skips_and_after_a_loss_it_goes_on(finished, capsys, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.*")}
    notebooks.reproduce("smoke", "phantom", str(finished), seed=3)
    assert capsys.readouterr().out.count("finished, skipped") == len(REPRODUCED)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.*")} == before

    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    (copy / "tables" / "done").unlink()
    (copy / "tables" / "dice.csv").unlink()
    notebooks.reproduce("smoke", "phantom", str(copy), seed=3)
    assert capsys.readouterr().out.count("finished, skipped") == len(REPRODUCED) - 1
    assert (copy / "tables" / "dice.csv").read_bytes() == (finished / "tables" / "dice.csv").read_bytes()


def test_other_inputs_are_noticed(finished):
    run = open_run("smoke", "phantom", str(finished), seed=3, recompute=True)
    assert all(is_current(run, name) for name in REPRODUCED)
    other = open_run("smoke", "phantom", str(finished), seed=4, recompute=True)
    assert not is_current(other, "data")


def test_a_failed_notebook_is_one_line_and_leaves_its_output(finished, tmp_path):
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "diffusion" / "all" / "model")
    (copy / "synthetic" / "done").unlink()
    with pytest.raises(notebooks.NotebookError) as error:
        notebooks.reproduce("smoke", "phantom", str(copy), seed=3, only="generation")
    message = str(error.value)
    assert message.startswith("notebook 03_generation failed in its cell 5: FileNotFoundError")
    assert "\n" not in message
    assert "no diffusion model" in message
    partial = nbformat.read(copy / "notebooks" / "03_generation.ipynb", as_version=4)
    assert partial.metadata.papermill.exception is True


def test_missing_stage_and_unknown_names_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage generation is not finished; run notebook 03_generation"):
        notebooks.reproduce("smoke", "phantom", str(tmp_path / "run"), only="segmentation")
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        open_run("huge", "phantom")
    with pytest.raises(ValueError, match="nowhere"):
        notebooks.reproduce("smoke", str(tmp_path / "nowhere"), str(tmp_path / "run2"))
    with pytest.raises(FileNotFoundError, match="set recompute=True"):
        open_run("paper", "phantom")


def echo_command(*words: object) -> list[str]:
    return [sys.executable, "-m", "echo", *map(str, words)]


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
    """Runs a study on a copy of the finished run by its command, and then again, which skips it; returns the copy."""
    monkeypatch.setattr("reproduction.cli.stop_kernels_too", lambda: None)  # the signals are pytest's here
    copy = shutil.copytree(finished, tmp_path / finished.name)

    def run(name: str, home: str) -> Path:
        command = ["study", name, "--profile", "smoke", "--run", str(copy), "--seed", "3"]
        for skipped in (False, True):
            before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.*")}
            done = CliRunner().invoke(app, command, catch_exceptions=False)
            assert done.exit_code == 0, done.stderr
            assert done.stdout.splitlines()[-1] == str(copy / home)
            assert ("finished, skipped" in done.stdout) == skipped
            assert ({p: p.stat().st_mtime_ns for p in copy.rglob("*.*")} == before) == skipped
        return copy

    return run


def test_sampler_and_quality_start_from_a_finished_run(study, monkeypatch):
    copy = study("samplers", "sampler_study")
    table = pd.read_csv(copy / "sampler_study" / "settings.csv")
    assert set(table["sampler"]) == {"ddim", "dpm++", "unipc", "heun", "ddpm"}
    assert set(table.loc[table["guidance_scale"] > 1, "sampler"]) == {"dpm++"}
    names = ("samplers", "quality_against_time", "guidance", "guidance_sweep")
    assert all((copy / "figures" / f"{name}.png").exists() for name in names)
    assert read_json(copy / "manifest.json")["stages"]["samplers"]["finished"]

    run = open_run("smoke", "phantom", str(copy), 3, recompute=True)
    assert is_current(run, "quality")
    monkeypatch.setenv("ECHO_INCEPTION", "weights.pth")  # FID is asked for, which the finished study has not
    assert not is_current(run, "quality")
    with pytest.raises(OtherInputs, match=r"image_quality: made from .* \(inception none, now weights.pth\)"):
        stages.check_stage(run, "quality")
    monkeypatch.delenv("ECHO_INCEPTION")
    shutil.rmtree(copy / "image_quality")
    study("quality", "image_quality")
    found = {p.stem for p in (copy / "image_quality").glob("*.csv")}
    assert found == {"quality", "spectrum", "nearest", "memorisation"}
    assert (copy / "figures" / "image_quality.png").exists()

    (copy / "segmenter" / "done").unlink()
    (copy / "sampler_study" / "done").unlink()
    done = subprocess.run(
        echo_command("study", "samplers", "--profile", "smoke", "--run", copy, "--seed", 3),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "stage segmentation is not finished; run notebook 04_segmentation" in done.stderr


def test_the_grid_is_trained_and_scored_from_a_finished_run(finished, study):
    copy = study("grid", "grid")
    cells = grid.study_trainings(SMOKE, seed=3)
    assert any(cell.drop_worst for cell in cells)
    trained = {p.parent.name for p in (copy / "grid" / "segmenters").glob("*/model.safetensors")}
    assert trained == {cell.name for cell in cells}
    assert {p.name for p in (copy / "grid" / "generators").iterdir()} == {"own-0.5", "again-1"}
    scores = pd.read_csv(copy / "grid" / "scores.csv")
    counts = scores[scores["processing"] == "raw"].groupby(["train", "seed", "structure"]).size()
    assert dict(counts) == dict.fromkeys(((c.row, c.seed, s) for c in cells for s in STRUCTURES), 8)  # the test frames
    assert scores["dice"].between(0, 1).all()
    assert "where train = synthetic 50%" in trace.trace(copy, 1, "LA", "synthetic 50%")
    assert all((copy / "figures" / f"scaling_{of}.png").exists() for of in ("images", "patients"))
    assert read_json(copy / "manifest.json")["stages"]["grid"]["finished"]
    fidelity = [(folder / "synthetic" / "fidelity.csv").stat().st_mtime_ns for folder in (finished, copy)]
    assert fidelity[0] == fidelity[1]  # the images' quality had measured it

    # Another grid: finished cells stay, and everything is scored again.
    run = open_run("smoke", "phantom", str(copy), 3, recompute=True)
    other = replace(run, profile=replace(SMOKE, grid=replace(SMOKE.grid, synthetic_shares=(0.25, 0.5), own_shares=())))
    before = {p: p.stat().st_mtime_ns for p in (copy / "grid").rglob("*.safetensors")}
    stages.grid_stage(other)
    after = {p: p.stat().st_mtime_ns for p in (copy / "grid").rglob("*.safetensors")}
    assert {p.parent.name for p in set(after) - set(before)} == {"synthetic-25-3"}
    assert {p: after[p] for p in before} == before
    rows = {t.row for t in grid.study_trainings(other.profile, seed=3)}
    assert set(pd.read_csv(copy / "grid" / "scores.csv")["train"]) == rows


def test_every_edit_is_judged_from_a_finished_run(study):
    copy = study("editing", "label_editing")
    table = pd.read_csv(copy / "label_editing" / "edits.csv").set_index("edit")
    assert list(table.index) == ["none", *DEFAULTS]
    assert (table["strength"][1:] == list(DEFAULTS.values())).all()
    assert table["frames"].between(1, 8).all()  # the validation patients'
    assert table[["Dice, edited map", "Dice, original map"]].stack().between(0, 100).all()
    names = ("label_edits", "clinical_edits", "shape_statistics")
    assert all((copy / "figures" / f"{name}.png").exists() for name in names)
    assert read_json(copy / "manifest.json")["stages"]["editing"]["finished"]


def test_train_command_does_what_notebook_02_does(finished, tmp_path):
    command = echo_command("train", "--profile", "smoke", "--run", tmp_path / "run", "--seed", 3)
    subprocess.run(command, check=True, capture_output=True)
    name = "diffusion/all/model/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_a_notebook_trains_in_several_processes(finished, tmp_path, monkeypatch):
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "diffusion")
    monkeypatch.setenv("ECHO_PROCESSES", "2")
    notebooks.reproduce("smoke", "phantom", str(copy), seed=3, only="diffusion")
    logs = [pd.read_csv(folder / "diffusion" / "all" / "log.csv") for folder in (finished, copy)]
    np.testing.assert_allclose(logs[1]["loss"], logs[0]["loss"], rtol=1e-2)  # two halves round otherwise in bfloat16
    assert (copy / "diffusion" / "done").exists()


def test_help_explains_every_option():
    out = subprocess.run(
        echo_command("reproduce", "--help"),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "120"},
    ).stdout
    for word in ("--profile", "--data", "--run", "--seed", "--only", "laptop", "segmentation", "resumes"):
        assert word in out


def test_wrong_data_is_one_line(tmp_path):
    done = subprocess.run(
        echo_command("reproduce", "--data", tmp_path / "nowhere", "--run", tmp_path / "run"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_kernel_too(tmp_path, how):
    process = subprocess.Popen(
        echo_command("reproduce", "--profile", "smoke", "--run", tmp_path / "run"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    kernels: list[psutil.Process] = []
    for _ in range(600):
        kernels = [
            p for p in psutil.Process(process.pid).children(recursive=True) if "ipykernel" in " ".join(p.cmdline())
        ]
        if kernels and (tmp_path / "run" / "phantom-0").exists():
            break
        time.sleep(0.1)
    assert kernels
    process.send_signal(how)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("interrupted")
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    _gone, alive = psutil.wait_procs(kernels, timeout=20)
    assert not alive


def test_a_killed_run_resumes_to_the_same_bytes(finished, tmp_path):
    folder = tmp_path / finished.name
    process = subprocess.Popen(
        echo_command("reproduce", "--profile", "smoke", "--seed", 3, "--run", folder), stdout=subprocess.DEVNULL
    )
    for _ in range(1200):
        if (folder / "diffusion" / "all" / "checkpoint.pt").exists():
            break
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _gone, alive = psutil.wait_procs(kernels, timeout=20)  # a kernel does not outlive what started it
    assert not alive
    assert not (folder / "tables").exists()
    notebooks.reproduce("smoke", "phantom", str(folder), seed=3)
    for part in ("synthetic", "segmenter", "tables"):
        files = sorted(p for p in (finished / part).rglob("*.*") if p.is_file())
        assert files
        for file in files:
            assert (folder / file.relative_to(finished)).read_bytes() == file.read_bytes(), file


def test_published_extract_holds_no_real_frame_or_weight(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publish, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(publish, "PAGES", [tmp_path / "README.md"])
    blocks = [f"<!-- results {name} -->\nold\n<!-- end -->\n" for name in ("other", finished.name)]
    (tmp_path / "README.md").write_text("before\n" + "between\n".join(blocks))
    names = {str(p.relative_to(tmp_path)) for p in publish.publish(finished)}
    for name in ("dice.csv", "scores.csv", "volumes.csv", "table_3.md", "table_1.tex", "differences.csv"):
        assert f"results/smoke-phantom/{name}" in names
    weights = [n for n in names if n.endswith("model.safetensors") and "/segmenter/" in n]
    assert sorted(weights) == [
        f"results/smoke-phantom/segmenter/{n}-3/model.safetensors" for n in ("real", "synthetic")
    ]
    assert "figures/example_views.png" in names
    assert {f"results/smoke-phantom/synthetic/{n}" for n in ("manifest.csv", "set.json", "DATA_CARD.md")} <= names
    assert (tmp_path / "results/smoke-phantom/dice.csv").read_bytes() == (finished / "tables/dice.csv").read_bytes()

    scored = pd.read_csv(tmp_path / "results" / "test_ledger.csv")
    assert list(scored["run"].unique()) == ["smoke-phantom"]
    assert "tables" in set(scored["what_for"])
    publish.publish(finished)  # again: no line twice
    assert len(pd.read_csv(tmp_path / "results" / "test_ledger.csv")) == len(scored)

    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n" + blocks[0] + "between\n")
    assert "| synthetic-only | " in readme.partition(blocks[0])[2]
    assert readme.endswith("[manifest](../results/smoke-phantom/manifest.json)).\n<!-- end -->\n")

    camus = tmp_path / "smoke-camus"
    shutil.copytree(finished, camus)
    manifest = read_json(camus / "manifest.json")
    manifest["data"]["source"] = "camus"
    write_json(camus / "manifest.json", manifest)
    names = {str(p.relative_to(tmp_path)) for p in publish.publish(camus)}
    assert not [n for n in names if n.endswith((".safetensors", ".ipynb", ".npz"))]
    pictures = [n for n in names if n.endswith((".png", ".pdf"))]
    safe = ("synthetic_grid", "map_echo_contours", "dice_boxes", "bland_altman")  # no real frame
    assert {Path(n).stem for n in pictures} == {f"smoke-camus_{name}" for name in safe}


@pytest.mark.camus
def test_the_same_notebooks_run_on_camus(camus_root, tmp_path):
    root = tmp_path / "camus"
    chosen = {"training": 4, "validation": 2, "testing": 2}
    (root / "database_split").mkdir(parents=True)
    (root / "database_nifti").mkdir()
    for split, count in chosen.items():
        names = (camus_root / "database_split" / f"subgroup_{split}.txt").read_text().split()[:count]
        (root / "database_split" / f"subgroup_{split}.txt").write_text("\n".join(names))
        for name in names:
            (root / "database_nifti" / name).symlink_to((camus_root / "database_nifti" / name).resolve())
    folder = notebooks.reproduce("smoke", str(root), str(tmp_path / "run"))
    check_run(folder, test_frames=8)
    assert read_json(folder / "manifest.json")["data"]["source"] == "camus"


def test_the_gpu_profile_runs_in_small(tmp_path):
    """Its own networks and image size, for two steps and a few images."""
    few = {"steps": 2, "batch_size": 2, "validate_every": 1}
    profile = replace(
        GPU,
        phantom_patients={"training": 2, "validation": 2, "testing": 2},
        training=replace(GPU.training, **few, warmup_steps=1),
        enlarger=replace(
            GPU.enlarger, training=replace(GPU.enlarger.training, **few, warmup_steps=1), num_inference_steps=2
        ),
        generation=replace(GPU.generation, images=4, validation_images=4, num_inference_steps=2, batch_size=2),
        segmenter=replace(GPU.segmenter, **few, seeds=1),
        other_segmenter=replace(GPU.other_segmenter, **few),
    )
    run = replace(open_run("gpu", "phantom", str(tmp_path / "run"), 0, recompute=True), profile=profile)
    stages.data_stage(run)
    stages.diffusion_stage(run)
    stages.generation_stage(run)
    stages.segmentation_stage(run)
    stages.tables_stage(run)
    dice = pd.read_csv(run.root / "tables" / "dice.csv")
    assert set(dice["train"]) == {t.row for t in grid.main_trainings(GPU, 0)}
    assert dice["dice_mean"].between(0, 100).all()
    assert load_synthetic(run.root / "synthetic", "training").images.shape == (4, 256, 256)


def test_test_labels_are_read_by_the_last_stage_alone(tmp_path):
    """Poisoned test labels change nothing that is trained."""
    runs = [open_run("smoke", "phantom", str(tmp_path / name), seed=1, recompute=True) for name in "ab"]
    raw = [run.open_data() for run in runs]
    poisoned = list((runs[1].root / "phantom-1").rglob("*_gt.nii.gz"))
    poisoned = [path for path in poisoned if path.name.split("_")[0] in raw[1].patients("testing")]
    assert len(poisoned) == 8
    for path in poisoned:
        image = nibabel.load(path)
        moved = np.roll(np.asarray(image.dataobj), 20, axis=0)  # a plausible heart, beside the one in the image
        nibabel.save(nibabel.Nifti1Image(moved, image.affine, image.header), path)
    for run in runs:
        stages.data_stage(run)
        stages.diffusion_stage(run)
        stages.generation_stage(run)
        stages.segmentation_stage(run)
        stages.tables_stage(run)
    for pattern in ("diffusion/*/model/*.safetensors", "synthetic/images/*.png", "segmenter/*/[lm]*"):
        files = sorted(path.relative_to(runs[0].root) for path in runs[0].root.glob(pattern))
        assert files
        assert all((runs[0].root / f).read_bytes() == (runs[1].root / f).read_bytes() for f in files)
    dice = [pd.read_csv(run.root / "tables" / "dice.csv")["dice_mean"] for run in runs]
    assert (dice[0] != dice[1]).any()
