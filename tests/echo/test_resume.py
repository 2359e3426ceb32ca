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


def test_digest_tells_values_apart():
    assert resume.digest(1, {"a": 2}) == resume.digest(1, {"a": 2})
    assert len({resume.digest(x) for x in (1, 2, "1", [1], {"a": 1}, None)}) == 6
