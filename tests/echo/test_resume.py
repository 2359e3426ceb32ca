import errno
import os

import pandas as pd
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_more_is_told_with_the_file(tmp_path, number):
    with pytest.raises(OSError, match=r"/model\.pt'$"), resume.atomic(tmp_path / "model.pt") as temporary:
        raise OSError(number, os.strerror(number), str(temporary))
    with pytest.raises(OSError, match=r"checkpoint\.pt") as caught, resume.atomic(tmp_path / "checkpoint.pt"):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_digest_tells_values_apart():
    assert resume.digest(1, {"a": 2}) == resume.digest(1, {"a": 2})
    assert len({resume.digest(x) for x in (1, 2, "1", [1], {"a": 1}, None)}) == 6


@pytest.mark.parametrize("take", [lambda f: f["seed"], lambda f: f["data"]["source"], lambda f: f["stages"][0]["name"]])
def test_a_key_that_a_json_file_lacks_is_named_with_it(tmp_path, take):
    path = tmp_path / "manifest.json"
    resume.write_json(path, {"data": {}, "stages": [{}]})
    with pytest.raises(resume.DamagedFile, match=r"manifest.json: damaged \(it has no '(seed|source|name)'\)"):
        take(resume.read_json(path))


@pytest.mark.parametrize("name", ["NA", "None", "nan", "null", "007", "1"])
def test_names_that_look_like_something_else_stay_names(tmp_path, name):
    texts = dict.fromkeys(["patient", "case", "condition", "structure", "quality"], [name, None])
    table = pd.DataFrame({**texts, "dice": [None, 0.5]})
    resume.write_csv(tmp_path / "scores.csv", table)
    read = resume.read_csv(tmp_path / "scores.csv", ["patient", "dice"])
    assert read["dice"].isna().tolist() == [True, False]
    for column in texts:
        assert read[column].tolist()[0] == name
        assert read[column].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("step,loss\n", "it has no row"),
        ("step\n1\n", "it has no column 'loss'"),
        ("step,loss\n1,low\n", "Unable to parse string"),
        ("step,loss\n1,2", "its last line is cut off"),
    ],
)
def test_a_table_without_what_it_needs_is_named(tmp_path, text, reason):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(resume.DamagedFile, match=f"log.csv: damaged .*{reason}"):
        resume.read_csv(path, ["step", "loss"])
