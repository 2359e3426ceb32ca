import pytest

from echo import paths


def test_atomic_leaves_whole_files_only(tmp_path):
    target = tmp_path / "new" / "table.csv"
    with paths.atomic(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.suffix == ".csv"
    assert target.read_text() == "whole"
    with pytest.raises(RuntimeError), paths.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["table.csv"]


def test_stage_resumes_and_starts_over(tmp_path):
    stage = tmp_path / "stage"
    assert paths.begin(stage, "a")
    (stage / "work").touch()
    assert paths.begin(stage, "a")  # interrupted: goes on
    assert (stage / "work").exists()
    paths.finish(stage)
    assert not paths.begin(stage, "a")  # finished: nothing to do
    assert paths.begin(stage, "b")  # other inputs: starts over
    assert not (stage / "work").exists()
    assert not paths.is_done(stage)

    (stage / "part").mkdir()
    paths.finish(stage)
    assert paths.begin(stage, "c", parts=True)  # other inputs, but its parts see to theirs
    assert (stage / "part").exists()
    assert not paths.is_done(stage)
    paths.finish(stage)
    assert not paths.begin(stage, "c", parts=True)


def test_a_kill_while_a_stage_is_removed_leaves_nothing_that_counts(tmp_path, monkeypatch):
    stage = tmp_path / "stage"
    paths.begin(stage, "a")
    (stage / "checkpoint.pt").touch()
    paths.finish(stage)

    def killed(path, ignore_errors=False):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(paths.shutil, "rmtree", killed)
        paths.begin(stage, "b")
    assert paths.begin(stage, "b")
    assert not (stage / "checkpoint.pt").exists()
    assert paths.begin(stage, "c")  # what the kill left is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_digest_tells_values_apart():
    assert paths.digest(1, {"a": 2}) == paths.digest(1, {"a": 2})
    assert len({paths.digest(x) for x in (1, 2, "1", [1], {"a": 1}, None)}) == 6
