"""From raw frames to the tables on data of one view and phase, and of views that differ by patient (`-m slow`)."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPOSITORY

from reproduction.datasets.camus import open_camus
from reproduction.datasets.phantom import write_phantom

KEPT = {
    "one view and phase": lambda patient, view, phase: (view, phase) == ("4CH", "ED"),
    "a view for each patient": lambda patient, view, phase: view == ("2CH", "4CH")[int(patient[-4:]) % 2],
}


@pytest.mark.slow
@pytest.mark.parametrize("kept", KEPT)
def test_reproduce_and_export(kept, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    write_phantom(data, {"training": 3, "validation": 2, "testing": 2}, 0, size=96, progress=False)
    for path in data.glob("database_nifti/*/*.nii.gz"):
        patient, view, phase = path.name.split(".")[0].split("_")[:3]
        if not KEPT[kept](patient, view, phase):
            path.unlink()

    def command(*words) -> None:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "echo", *map(str, words)],
            env=os.environ | {"PYTHONPATH": path},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-500:]

    where = ("--profile", "smoke", "--data", data, "--run", run)
    command("reproduce", *where)
    command("study", "editing", *where)
    rows = set(pd.read_csv(run / "tables" / "table_2.csv", index_col=0).index)
    assert ("LA, 4CH ED" in rows, "LA, 2CH ES" in rows) == (True, kept != "one view and phase")
    command("export", run / "synthetic", tmp_path / "camus")
    exported = open_camus(tmp_path / "camus")
    frames = exported.keys(exported.patients())
    assert len(frames) == len(pd.read_csv(run / "synthetic" / "manifest.csv"))
