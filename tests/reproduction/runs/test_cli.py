"""The command line: every error is one line, a traceback is asked for; paths with ~; nothing empty is a success."""

import json
from pathlib import Path

import pandas as pd
import pytest
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


def test_an_interruption_is_one_line(monkeypatch, tmp_path):
    def stops(_run: Path):
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "status", stops)
    done = invoke("status", tmp_path)
    assert done.exit_code == 130
    assert done.stderr.splitlines() == ["interrupted; the same command goes on from here"]


@pytest.mark.parametrize("command", ["status {}", "publish {}", "fidelity {}", "verify {}", "export {} new"])
def test_a_tilde_is_expanded_in_every_path(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
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


def test_an_empty_export_is_an_error(tmp_path):
    columns = "id split source patient view phase class_label seed batch spacing_row_mm spacing_col_mm rejected sha256"
    (tmp_path / "set").mkdir()
    pd.DataFrame(columns=columns.split()).to_csv(tmp_path / "set" / "manifest.csv", index=False)
    done = invoke("export", tmp_path / "set", tmp_path / "new")
    assert done.exit_code == 1
    assert "no image to export" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["reproduce", "study grid", "trace 1 LA paper", "publish run"])
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
