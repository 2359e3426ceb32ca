"""The command line: every error is one line, a traceback is asked for; paths with ~; nothing empty is a success."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY
from made_sets import made_set
from typer.testing import CliRunner

import reproduction
from echo.resume import write_json
from reproduction.cli import app
from reproduction.runs import publish, run, status
from reproduction.runs.inputs import begin


def invoke(*words: object):
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b"), "error: a b"),
        (FileNotFoundError(2, "No such file or directory", "x"), "error: [Errno 2] No such file or directory: 'x'"),
        (KeyError("stages"), "error: KeyError: 'stages' (a traceback with --debug)"),
        (RuntimeError("CUDA out of memory"), "error: RuntimeError: CUDA out of memory (a traceback with --debug)"),
        (
            ZeroDivisionError("division by zero"),
            "error: ZeroDivisionError: division by zero (a traceback with --debug)",
        ),
    ],
)
def test_every_error_is_one_line(error, line, monkeypatch, tmp_path):
    monkeypatch.delenv("ECHO_DEBUG", raising=False)

    def fails(_run: Path):
        raise error

    monkeypatch.setattr(status, "status", fails)
    done = invoke("status", tmp_path)
    assert (done.exit_code, done.stderr.splitlines()) == (1, [line])
    monkeypatch.setenv("ECHO_DEBUG", "")  # what --debug sets is undone with it
    done = invoke("--debug", "status", tmp_path)
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == line


@pytest.mark.parametrize("behind", [None, ImportError("initialization failed"), RuntimeError("generator raised")])
def test_an_interruption_is_one_line(behind, monkeypatch, tmp_path):
    def stops(_run: Path):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stopped:
            raise behind or stopped from stopped  # compiled modules that are loading raise another error

    monkeypatch.setattr(status, "status", stops)
    done = invoke("status", tmp_path)
    assert done.exit_code == 130
    assert done.stderr.splitlines() == ["interrupted; the same command goes on from here"]


def test_an_interruption_while_the_command_line_loads_has_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    command = [sys.executable, "-m", "echo", "status", "run"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("variable", ["TQDM_MININTERVAL=abc", "MPLBACKEND=nonsense", "ECHO_INCEPTION=nowhere.pth"])
def test_a_wrong_environment_variable_is_named_at_the_start(variable, tmp_path):
    name, _, value = variable.partition("=")
    command = [sys.executable, "-m", "echo", "reproduce", "--profile", "smoke", "--run", tmp_path / "run"]
    done = subprocess.run(command, env=os.environ | {name: value}, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert name in line
    assert value in line
    assert list(tmp_path.iterdir()) == []


TILDE = ["status {}", "publish {}", "fidelity {}", "verify {}", "export {} new", "generate --pretrained camus {}"]


@pytest.mark.parametrize("command", TILDE)
def test_a_tilde_is_expanded_in_every_path(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "run" / "other.json", {})
    done = invoke(*command.format("~/run").split())
    assert done.exit_code == 1
    assert str(tmp_path / "run") in done.stderr
    assert not Path("~").exists()


@pytest.mark.parametrize("name", ["manifest.json", "diffusion/all/log.csv", "segmenter/planned.json"])
def test_status_names_a_damaged_file(tmp_path, name):
    for folder in ("dataset", "diffusion", "segmenter"):
        begin(tmp_path / folder, {})
    if name != "manifest.json":
        write_json(tmp_path / "manifest.json", {"profile": run.get_profile("smoke").to_dict(), "stages": {}})
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("step,lo")
    done = invoke("status", tmp_path)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}: damaged (")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("manifest.json", "3", "the whole is '3'"),
        ("manifest.json", '{"stages": {"data": 3}}', "'data' is '3'"),
        ("manifest.json", '{"stages": {"data": {"finished": true}}}', "it has no 'seconds'"),
        ("manifest.json", '{"stages": {}, "profile": {"name": "x"}}', "it has no 'training'"),
        ("dataset/data.json", "[]", "the whole is '[]'"),
        ("dataset/data.json", '{"left_out": ["patient0001"]}', "an item of 'left_out' is 'patient0001'"),
        ("dataset/data.json", '{"classes": {"conditions": 4}}', "'conditions' is '4'"),
        ("diffusion/all/log.csv", "epoch,accuracy\n1,2\n", "it has no column 'step'"),
        ("diffusion/all/log.csv", "step,seconds,loss,validation_loss\n", "it has no row"),
        ("diffusion/all/log.csv", "step,seconds,loss,validation_loss\n1,2,low,3\n", "Unable to parse string"),
    ],
)
def test_another_programs_file_is_named(tmp_path, name, text, reason):
    begin(tmp_path / "diffusion", {"seed": 0})
    profile = {"name": "x", "training": {"steps": 12}, "per_view_phase": True}
    write_json(tmp_path / "manifest.json", {"stages": {}, "profile": profile})
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    done = invoke("status", tmp_path)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path / name}: damaged (")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_status_of_a_stage_that_has_an_empty_file_alone(tmp_path):
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "inputs.json").touch()
    done = invoke("status", tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["train --data", "reproduce --data", "check", "status", "publish", "fetch camus"])
def test_an_empty_path_is_not_the_folder_where_one_stands(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reproduction.cli.stop_kernels_too", lambda: None)  # the signals are pytest's here
    done = invoke(*command.split(), "")
    assert done.exit_code == 2
    assert "it is empty" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_command_would_not_use_is_refused(tmp_path):
    done = invoke("generate", tmp_path / "set", "--profile", "smoke", "--run", tmp_path / "run")
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert f"{tmp_path / 'set'}: a folder is for --pretrained" in done.stderr


@pytest.mark.parametrize("option", ["--profile smoke", "--data phantom", "--run run", "--shard 0/2"])
def test_painting_without_a_run_takes_no_option_of_a_run(option, tmp_path):
    done = invoke("generate", "--pretrained", "camus", tmp_path / "set", *option.split())
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    name = option.split()[0]
    assert done.stderr == f"error: {name}: --pretrained paints without a run, by its own weights\n"


@pytest.mark.parametrize("command", ["train --data phantom", "train --data {}", "check {}"])
def test_a_pattern_that_would_change_nothing_is_refused(command, phantom, tmp_path):
    words = command.format(phantom.root).split()
    run = [] if words[0] == "check" else ["--profile", "smoke", "--run", tmp_path / "run"]
    done = invoke(*words, *run, "--patient-pattern", "_[0-9]$")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --patient-pattern is for nnU-Net datasets")


@pytest.mark.parametrize("sheet", ["", ".", "sheets", "sheets/mine"])
def test_a_contact_sheet_goes_into_a_folder_that_is_there(sheet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheets").mkdir()
    root = made_set(tmp_path / "Dataset001_X")
    done = invoke("check", root, "--sheet", sheet)
    assert done.exit_code == 0, done.stderr
    usual = Path(sheet) / "Dataset001_X_contact_sheet"
    assert (Path(sheet) if sheet == "sheets/mine" else usual).with_suffix(".png").exists()


@pytest.mark.parametrize("words", ["status {}/run", "verify {}", "train --run {}", "train --data {}/echo"])
def test_a_home_that_is_not_there_is_named(words):
    done = invoke(*words.format("~nobody-of-this-name").split())
    assert done.exit_code == 2
    assert "~nobody-of-this-name" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_publish_is_an_error(tmp_path, monkeypatch):
    for name in ("RESULTS", "FIGURES"):
        monkeypatch.setattr(publish, name, tmp_path / name)
    root = tmp_path / "run"
    assert "manifest.json is missing" in invoke("publish", root).stderr
    write_json(root / "manifest.json", {"stages": {}, "seed": 0, "data": None})
    done = invoke("publish", root)
    assert done.exit_code == 1
    assert "the tables are not finished, there is nothing to publish" in done.stderr
    (root / "tables").mkdir()
    (root / "tables" / "done").touch()
    assert "nothing to publish" in invoke("publish", root).stderr
    assert not (tmp_path / "RESULTS").exists()
    (root / "tables" / "dice.csv").touch()
    with reproduction.alone(tmp_path / "RESULTS" / ".lock", "busy"):
        assert "RESULTS: another process publishes a run: wait" in invoke("publish", root).stderr


def test_an_empty_export_is_an_error(tmp_path):
    columns = "id split source patient view phase class_label seed batch spacing_row_mm spacing_col_mm rejected sha256"
    (tmp_path / "set").mkdir()
    pd.DataFrame(columns=columns.split()).to_csv(tmp_path / "set" / "manifest.csv", index=False)
    done = invoke("export", tmp_path / "set", tmp_path / "new")
    assert done.exit_code == 1
    assert "manifest.csv: damaged (ValueError: it has no row)" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command", ["reproduce", "study grid", "trace 1 LA paper", "publish run", "generate --pretrained camus new"]
)
def test_without_a_checkout_one_line_says_so(command, tmp_path, monkeypatch):
    monkeypatch.setattr("reproduction.cli.stop_kernels_too", lambda: None)  # the signals are pytest's here
    monkeypatch.setattr(reproduction, "NOTEBOOKS", tmp_path / "notebooks")
    done = invoke(*command.split())
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: notebooks is not installed with the package: run this in a clone of https://")


def test_old_names_are_no_alias():
    assert invoke("study", "tables").exit_code == 2
    assert "'grid'" in invoke("study", "tables").output
    assert json.loads((reproduction.RESULTS / "laptop-phantom" / "manifest.json").read_text())["stages"]["grid"]
