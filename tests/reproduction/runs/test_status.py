import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from echo import segmenter
from echo.config import LAPTOP, PAPER
from echo.resume import write_json
from reproduction.cli import app
from reproduction.runs import stages
from reproduction.runs.inputs import begin, finish
from reproduction.runs.run import open_run
from reproduction.runs.status import status
from reproduction.runs.table import PIPELINE
from reproduction.studies import grid

HOUR = 3600.0


def aged(path: Path, seconds: float, text: str = "some") -> Path:
    """A file that was written so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def manifest(folder: Path, profile=LAPTOP, age: float = 0.0, **stages: dict) -> None:
    write_json(folder / "manifest.json", {"profile": profile.to_dict(), "stages": stages})
    os.utime(folder / "manifest.json", (time.time() - age,) * 2)


def row(folder: Path, stage: str) -> pd.Series:
    return status(folder).set_index("stage").loc[stage]


def log(**columns) -> str:
    return pd.DataFrame(columns).to_csv(index=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run whose data stage took 7 s."""
    begin(tmp_path / "dataset", {})
    finish(tmp_path / "dataset")
    manifest(tmp_path, data={"finished": True, "seconds": 7.2})
    return tmp_path


def test_a_run_that_has_begun(folder):
    table = status(folder)
    assert list(table["stage"]) == PIPELINE
    assert list(table["state"]) == ["done", "waiting", "waiting", "waiting", "waiting"]
    assert table["took"][0] == "0:00:07"
    assert (table.iloc[1:, 2:] == "").all(axis=None)


def test_no_run_is_one_line(tmp_path):
    for wrong in (tmp_path, tmp_path / "nowhere"):
        result = CliRunner().invoke(app, ["status", str(wrong)])
        assert result.exit_code == 1
        assert result.output == f"error: {wrong}: no run folder, or none of its stages has begun\n"


def test_diffusion_goes_by_its_log(folder):
    aged(folder / "diffusion" / "inputs.json", HOUR)
    begun = row(folder, "diffusion")
    assert (begun["state"], begun["progress"], begun["left"]) == ("running", "0 of 1000 steps", "")
    aged(folder / "diffusion" / "all" / "log.csv", 0, "\n")  # of a training stopped before its first validation
    assert row(folder, "diffusion")["progress"] == "0 of 1000 steps"

    columns = {"step": [100, 200], "loss": [0.5, 0.25], "validation_loss": [0.4, 0.125], "seconds": [90.0, 140.0]}
    aged(folder / "diffusion" / "all" / "log.csv", 30, log(**columns))
    now = row(folder, "diffusion")
    assert (now["state"], now["progress"], now["rate"]) == ("running", "200 of 1000 steps", "2/s")
    assert now["latest"] == "all: loss 0.2500, validation 0.1250"
    assert now["left"] in ("0:06:10", "0:06:09")  # 800 steps at 2 a second, 30 s of them gone
    assert now["written"] in ("0:00:30 ago", "0:00:31 ago")


def test_one_network_a_view_and_phase(folder):
    manifest(folder, PAPER)
    aged(folder / "diffusion" / "inputs.json", HOUR)
    for group, age, steps in (("2CH_ED", 60, 50_000), ("2CH_ES", 0, 1000)):
        text = log(step=[steps], loss=[0.1], validation_loss=[0.2], seconds=[steps * 2.0])
        aged(folder / "diffusion" / group / "log.csv", age, text)
    now = row(folder, "diffusion")
    assert now["progress"] == "51000 of 200000 steps"
    assert now["latest"].startswith("2CH_ES: ")
    assert now["left"] == "3 days, 10:46:40"  # 149 000 steps at 0.5 a second


def test_images_are_counted(folder):
    aged(folder / "synthetic" / "inputs.json", 100)
    for k, age in enumerate([HOUR, HOUR, 80, 60, 40, 20]):  # two of them of an earlier call
        aged(folder / "synthetic" / "images" / f"{k:06d}.png", age)
    aged(folder / "synthetic" / "images" / ".77.000006.png", 10)  # being written
    now = row(folder, "generation")
    assert (now["progress"], now["rate"]) == ("6 of 800 images", "180/h")  # 4 in 80 s
    assert now["left"] == "4:24:20" or now["left"].startswith("4:24:")


def test_segmenters_are_counted_and_the_last_dice_shown(folder):
    home = folder / "segmenter"
    aged(home / "inputs.json", 2 * HOUR)
    write_json(home / "planned.json", ["real-0", "synthetic-0", "both-0"])
    aged(home / "real-0" / "model.safetensors", HOUR)
    aged(home / "real-0" / "log.csv", HOUR, log(step=[1000], loss=[0.2], mean=[93.0]))
    aged(home / "synthetic-0" / "log.csv", 5, log(step=[100, 400], loss=[0.4, 0.3], mean=[50.0, 81.26]))
    now = row(folder, "segmentation")
    assert (now["progress"], now["rate"]) == ("1 of 3 segmenters", "1/h")
    assert now["latest"] == "synthetic-0 at step 400: validation Dice 81.3 %"

    aged(folder / "grid" / "inputs.json", HOUR)
    write_json(folder / "grid" / "segmenters" / "planned.json", ["a", "b"])
    assert row(folder, "grid")["progress"] == "0 of 2 segmenters"


def test_interrupted_and_taken_up_again(folder):
    aged(folder / "diffusion" / "inputs.json", 50, '"digest"')
    manifest(folder, age=40, diffusion={"finished": False, "seconds": 10.0})
    assert row(folder, "diffusion")["state"] == "interrupted"
    begin(folder / "diffusion", {}, lambda: "digest")
    assert row(folder, "diffusion")["state"] == "running"


def test_a_real_run_from_another_process(tmp_path):
    """Interrupted in its segmenters, by the code that writes the files."""
    run = open_run("smoke", "phantom", str(tmp_path / "run"), seed=0, recompute=True)
    stages.data_stage(run)
    stages.diffusion_stage(run)
    stages.generation_stage(run)
    cells = grid.main_trainings(run.profile, run.seed)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        draw = segmenter.draw_samples

        def stops(*arguments):
            if (run.root / "segmenter" / cells[0].name / "model.safetensors").exists() and arguments[3] == 9:
                raise KeyboardInterrupt
            return draw(*arguments)

        patch.setattr(segmenter, "draw_samples", stops)
        stages.segmentation_stage(run)
    command = [sys.executable, "-m", "echo", "status", run.root]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    states = dict(line.split()[:2] for line in lines[1:])
    assert states == {
        "data": "done", "diffusion": "done", "generation": "done", "segmentation": "interrupted", "tables": "waiting"
    }  # fmt: skip
    assert "24 of 24 steps" in lines[2]
    assert "enlarger: loss" in lines[2]
    assert "12 of 12 images" in lines[3]
    assert f"1 of {len(cells)} segmenters" in lines[4]
    assert f"{cells[1].name} at step 6: validation Dice" in lines[4]
