"""Damaged files of a run: a command reads on or says in one line what is wrong, and nothing is lost."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from reproduction.cli import app
from reproduction.runs import stages
from reproduction.runs.run import open_run

sys.path.insert(0, str(REPOSITORY / "tests" / "reproduction" / "datasets"))
from damage import damage

STAGES = ("diffusion", "generation", "segmentation", "tables")
# Where the damaged file is -> commands that read it, each after marks of finished stages that are removed for that.
READERS = {
    "dataset": [(["diffusion/done"], "train")],
    "diffusion": [(["diffusion/done"], "train"), (["synthetic/done", "synthetic/manifest.csv"], "generate")],
    "synthetic": [
        (["synthetic/done", "synthetic/manifest.csv"], "generate"),
        ([], "verify RUN/synthetic"),
        ([], "export RUN/synthetic RUN/camus"),
        ([], "fidelity RUN/synthetic"),
    ],
    "segmenter": [([], "fidelity RUN/synthetic")],
    "tables": [([], "trace 1 LA synthetic-only --run RUN")],
    "manifest.json": [([], "status RUN"), (["diffusion/done"], "train"), ([], "trace 1 LA synthetic-only --run RUN")],
    "run.json": [([], "train")],
}
KINDS = (".json", ".csv", ".npz", ".pt", ".safetensors", ".png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished smoke run, without notebooks."""
    run = open_run("smoke", "phantom", str(tmp_path_factory.mktemp("finished") / "run"), recompute=True)
    for name in STAGES:
        stages.complete(run, name)
    return run.root


def try_one(finished: Path, work: Path, seed: int) -> str | None:
    """Damages or empties a file in a copy of the run, and reads it by a command; the error's line, if any."""
    run = shutil.copytree(finished, work / "run")
    rng = np.random.default_rng(seed)
    found = [p for p in sorted(run.rglob("*")) if p.suffix == KINDS[seed % len(KINDS)]]
    path = found[rng.integers(len(found))]
    while path.relative_to(run).parts[0] not in READERS:  # the phantom: tests/reproduction/datasets/test_fuzz.py
        path = found[rng.integers(len(found))]
    path.write_bytes(b"" if rng.random() < 0.1 else damage(path.read_bytes(), seed))
    readers = READERS[path.relative_to(run).parts[0]]
    marks, command = readers[rng.integers(len(readers))]
    for mark in marks:
        (run / mark).unlink(missing_ok=True)
    words = [word.replace("RUN", str(run)) for word in command.split()]
    if command in ("train", "generate"):
        words += ["--profile", "smoke", "--run", str(run)]
    before = {p for p in run.rglob("*") if not p.name.startswith(".")}
    result = CliRunner().invoke(app, words)
    last = (result.stderr.strip().splitlines() or [""])[-1]
    what = f"seed {seed}, {path.relative_to(run)}, {command}: {result.exit_code}, {last}"
    assert result.exception is None or isinstance(result.exception, SystemExit), what
    assert "Traceback" not in result.output and "--debug" not in last, what
    assert before <= set(run.rglob("*")), what
    if result.exit_code == 0 or (words[0] == "verify" and result.stdout):
        return None
    assert (result.exit_code, last[:7]) == (1, "error: "), what
    assert len(last) < 600, what
    return last


def fuzz(finished: Path, folder: Path, count: int) -> None:
    lines = []
    for seed in range(count):
        lines.append(try_one(finished, folder / str(seed), seed))
        shutil.rmtree(folder / str(seed))
    assert count / 5 < sum(line is not None for line in lines) < count  # the damage is felt, and not all is refused


def test_60_damaged_files_of_a_run(finished, tmp_path):
    fuzz(finished, tmp_path, 60)


@pytest.mark.slow
def test_1000_damaged_files_of_a_run(finished, tmp_path):
    fuzz(finished, tmp_path, 1000)
