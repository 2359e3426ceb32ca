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


def test_digest_tells_values_apart():
    assert paths.digest(1, {"a": 2}) == paths.digest(1, {"a": 2})
    assert len({paths.digest(x) for x in (1, 2, "1", [1], {"a": 1}, None)}) == 6
