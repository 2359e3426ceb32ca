"""Facts that nothing needs: as people and programs write them, and none of them ends a run."""

import pytest

from reproduction.datasets.facts import read_info, read_text


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("EF: 54", "ef", 54.0),
        ("EF: 52,4", "ef", 52.4),
        ("EF: 52.4 %", "ef", 52.4),
        ("LVef: 63.2", "ef", 63.2),
        ("EF: 0.54", "ef", 54.0),
        ("EF: 0,54", "ef", 54.0),
        ("EF: NA", "ef", None),
        ("EF:", "ef", None),
        ("EF: nan", "ef", None),
        ("EF: -1", "ef", None),
        ("EF: see report", "ef", None),
        ("Age: N/A", "age", None),
        ("Age: 56.0", "age", 56),
        ("Age: 056Y", "age", 56),
        ("Age: 999", "age", None),
        ("Sex: F", "sex", "F"),
        ("Sex: unknown", "sex", None),
        ("ImageQuality: good", "quality", "Good"),
        ("ImageQuality: MEDIUM", "quality", "Medium"),
        ("imagequality = poor", "quality", "Poor"),
        ("ImageQuality: excellent", "quality", "excellent"),
        ("Image Quality: good", "quality", "Good"),
        ("image_quality = 'Good';", "quality", "Good"),
        ("ImageQuality: Poor  # by a second reader", "quality", "Poor"),
        ('EF: "52.4"  # Simpson', "ef", 52.4),
        ("nothing here", "quality", None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_fact(tmp_path, line, key, value, encoding, end):
    path = tmp_path / "Info_2CH.cfg"
    path.write_bytes(f"{line}{end}Institute: Université{end}".encode(encoding))
    assert read_info(path)[key] == value


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_text_of_any_editor(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("patient0001\r\né".encode(encoding))
    assert read_text(tmp_path / "list.txt").split() == ["patient0001", "é"]
