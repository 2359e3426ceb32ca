"""Nothing that took long to make is deleted: what a stage was made from is recorded, compared, and named."""

import json

import pytest

from echo.resume import DamagedFile, digest, write_json
from reproduction.runs.inputs import OtherInputs, begin, finish, is_done, recorded

INPUTS = {"seed": 0, "settings": {"training": {"steps": 12, "betas": [0.9, 0.99]}}, "data": "0123"}
OTHERS = {
    "seed": (INPUTS | {"seed": 1}, "seed 0, now 1"),
    "setting": (INPUTS | {"settings": {"training": {"steps": 20, "betas": [0.9, 0.99]}}}, "training.steps 12, now 20"),
    "data": (INPUTS | {"data": "4567"}, "data 0123, now 4567"),
    "more": (INPUTS | {"test data": "89"}, "test data none, now 89"),
}


@pytest.fixture
def stage(tmp_path):
    """A stage with hours of work in it."""
    folder = tmp_path / "diffusion"
    assert begin(folder, INPUTS)
    (folder / "weights").write_text("hours")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stage_goes_on_and_ends(stage):
    assert begin(stage, json.loads(json.dumps(INPUTS)))  # interrupted: goes on
    assert recorded(stage) == (digest(INPUTS), INPUTS)
    finish(stage)
    assert not begin(stage, INPUTS)
    assert (stage / "weights").read_text() == "hours"


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_other_inputs_are_refused_by_name(stage, other, finished, monkeypatch, capsys):
    if finished:
        finish(stage)
    before, (inputs, named) = contents(stage), OTHERS[other]
    with pytest.raises(OtherInputs) as error:
        begin(stage, inputs)
    assert str(error.value) == (
        f"{stage}: made from inputs that differ ({named}). Choose another --run, or add --fresh to move it aside and "
        "begin anew"
    )
    assert contents(stage) == before

    monkeypatch.setenv("ECHO_FRESH", "1")
    for number in (1, 2):
        assert begin(stage, inputs if number == 1 else INPUTS)
        assert capsys.readouterr().out == f"{stage}: moved aside to {stage}.old-{number}\n"
    assert contents(stage.with_name("diffusion.old-1")) == before
    assert begin(stage, INPUTS)  # the same command, interrupted, goes on
    assert capsys.readouterr().out == ""


def test_a_stage_of_trainings_keeps_them_when_its_own_settings_change(stage):
    finish(stage)
    assert begin(stage, OTHERS["setting"][0], has_parts=True)
    assert (stage / "weights").exists()
    assert not is_done(stage)
    for other in ("seed", "data"):
        with pytest.raises(OtherInputs):
            begin(stage, OTHERS[other][0], has_parts=True)


def test_a_cache_is_made_again(stage):
    assert begin(stage, OTHERS["seed"][0], disposable=True)
    assert not (stage / "weights").exists()
    assert not list(stage.parent.glob("*.old-*"))


@pytest.mark.parametrize("finished", [False, True])
def test_what_an_earlier_version_recorded_stays_valid(stage, finished):
    write_json(stage / "inputs.json", "the old digest")
    if finished:
        finish(stage)
    before = contents(stage)
    assert begin(stage, INPUTS, lambda: "the old digest") != finished
    assert contents(stage) == before  # the digest on which later stages depend stays too
    with pytest.raises(OtherInputs, match="which an earlier version did not record"):
        begin(stage, INPUTS, lambda: "another")
    assert contents(stage) == before


@pytest.mark.parametrize("text", ["", "{", '{"digest": "0123"', "[1, 2]", '{"name": "another project"}', "\x00\xff"])
def test_damaged_inputs_are_named_and_nothing_is_touched(stage, text, monkeypatch):
    (stage / "inputs.json").write_text(text)
    before = contents(stage)
    with pytest.raises(DamagedFile, match=r"diffusion/inputs\.json: damaged \(") as error:
        begin(stage, INPUTS, has_parts=True)
    assert "\n" not in str(error.value)
    assert contents(stage) == before
    monkeypatch.setenv("ECHO_FRESH", "1")
    assert begin(stage, INPUTS, has_parts=True)
    assert contents(stage.with_name("diffusion.old-1")) == before
