"""A run side by side is the run that `reproduce` makes, one training after the other."""

from dataclasses import replace

import pandas as pd
import pytest

from echo.config import PAPER, SMOKE
from echo.resume import read_json
from reproduction.runs import stages
from reproduction.runs.run import Run, is_current
from reproduction.runs.table import PIPELINE
from tools.side_by_side import Job, plan, side_by_side, work_through

FEW = replace(
    SMOKE,
    generators=2,
    segmenter=replace(SMOKE.segmenter, seeds=1),
    phantom_patients={"training": 3, "validation": 1, "testing": 1},
)


def test_it_does_what_reproduce_does(tmp_path):
    run, other = (Run(FEW, "phantom", tmp_path / name, 3, recompute=True) for name in ("side", "one"))
    side_by_side(run, 1)
    assert all(is_current(run, name) for name in PIPELINE)
    for name in PIPELINE:
        stages.complete(other, name)
    for name in ("scores", "volumes", "generators"):
        pd.testing.assert_frame_equal(run.table("tables", name), other.table("tables", name))
    assert len(pd.read_csv(run.root / "test_ledger.csv")) == 1
    made = read_json(run.root / "manifest.json")["stages"]
    assert all(made[name]["finished"] and made[name]["peak_memory_gb"] > 0 for name in PIPELINE)
    assert {facts["processes_at_once"] for name, facts in made.items() if name != "data"} == {1}


def test_a_job_waits_for_those_that_it_needs():
    first = Job("data", print, ("first", 1))
    then = Job("data", print, ("then", 2), [first])
    earlier, later = work_through([then, first], 2)[::-1]
    assert earlier.ended <= later.began


def test_one_stage_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only cascades with one model for all views"):
        plan(Run(PAPER, "phantom", tmp_path, 0, recompute=True))
