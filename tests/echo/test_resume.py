import pytest

from echo import resume


def test_atomic_leaves_whole_files_only(tmp_path):
    target = tmp_path / "new" / "table.csv"
    with resume.atomic(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.suffix == ".csv"
    assert target.read_text() == "whole"
    with pytest.raises(RuntimeError), resume.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["table.csv"]


def test_stage_resumes_and_starts_over(tmp_path):
    stage = tmp_path / "stage"
    assert resume.begin(stage, "a")
    (stage / "work").touch()
    assert resume.begin(stage, "a")  # interrupted: goes on
    assert (stage / "work").exists()
    resume.finish(stage)
    assert not resume.begin(stage, "a")  # finished: nothing to do
    assert resume.begin(stage, "b")  # other inputs: starts over
    assert not (stage / "work").exists()
    assert not resume.is_done(stage)

    (stage / "part").mkdir()
    resume.finish(stage)
    assert resume.begin(stage, "c", parts=True)  # other inputs, but its parts see to theirs
    assert (stage / "part").exists()
    assert not resume.is_done(stage)
    resume.finish(stage)
    assert not resume.begin(stage, "c", parts=True)


def test_a_kill_while_a_stage_is_removed_leaves_nothing_that_counts(tmp_path, monkeypatch):
    stage = tmp_path / "stage"
    resume.begin(stage, "a")
    (stage / "checkpoint.pt").touch()
    resume.finish(stage)

    def killed(path, ignore_errors=False):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume.shutil, "rmtree", killed)
        resume.begin(stage, "b")
    assert resume.begin(stage, "b")
    assert not (stage / "checkpoint.pt").exists()
    assert resume.begin(stage, "c")  # what the kill left is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_digest_tells_values_apart():
    assert resume.digest(1, {"a": 2}) == resume.digest(1, {"a": 2})
    assert len({resume.digest(x) for x in (1, 2, "1", [1], {"a": 1}, None)}) == 6
