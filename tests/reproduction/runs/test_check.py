"""`python -m echo check`: what a dataset holds, or what is wrong with it."""

import numpy as np
import pytest
from made_sets import made_set
from skimage.io import imread, imsave
from typer.testing import CliRunner

from reproduction.cli import app
from reproduction.datasets.errors import DataFaults
from reproduction.datasets.layout import nifti
from reproduction.datasets.phantom import write_phantom
from reproduction.datasets.prepare import open_dataset
from reproduction.runs.check import check


def test_it_prints_what_there_is_and_draws_it(tmp_path):
    root = made_set(tmp_path / "made", ("a", "b"), ".nii.gz", np.uint16, every_other=2)
    areas = [(frame.label == 1).sum() * 1.5 * 0.75 / 100 for frame in frames_of(open_dataset(root))]
    done = CliRunner().invoke(app, ["check", str(root), "--sheet", str(tmp_path / "sheet")])
    assert done.exit_code == 0
    said = [line.strip() for line in done.stdout.splitlines() if "%|" not in line]
    assert said[:4] == [
        f"{root}: 8 patients, 16 frames",
        "training: 5 patients, 10 frames",
        "validation: 1 patients, 2 frames",
        "testing: 2 patients, 4 frames",
    ]
    assert said[4].startswith("class 1 a: in 16 of 16 frames, median area ")
    assert said[4].endswith(f" % of the image, {np.median(areas):.3g} cm²")
    assert said[5].startswith("class 2 b: in 8 of 16 frames, median area ")
    assert said[6] == "images: 48 x 40 pixels; size of a pixel (row x column): 1.5 x 0.75 mm"
    assert said[8] == "sector: none (the image is all there is)"
    assert said[-1] == f"contact sheet: {tmp_path / 'sheet'}.png"
    assert imread(tmp_path / "sheet.png").std() > 10


def frames_of(raw) -> list:
    return [raw.frame(*key) for key in raw.keys(raw.patients())]


def test_every_fault_is_told_at_once(tmp_path):
    root = made_set(tmp_path / "made")
    imsave(root / "labelsTr" / "p01_0.png", np.full((48, 40), 9, np.uint8), check_contrast=False)
    imsave(root / "imagesTs" / "p07_1_0000.png", np.zeros((48, 40), np.uint8), check_contrast=False)
    (root / "labelsTr" / "p06_0.png").unlink()
    with pytest.raises(DataFaults) as raised:
        check(open_dataset(root), tmp_path / "sheet", "smoke")
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("3 faults in 3 patient(s)")
    assert [line.split(": ")[1] for line in lines[1:]] == ["p01", "p06", "p07"]
    assert not (tmp_path / "sheet.png").exists()
    done = CliRunner().invoke(app, ["check", str(root)])
    assert done.exit_code == 1
    assert "p06_0.png: p06: file is missing" in done.output


def test_a_label_map_that_no_augmentation_keeps_and_an_empty_patient_are_told(tmp_path):
    root = write_phantom(tmp_path / "echo", {"training": 2, "validation": 1, "testing": 1}, 0, size=96, progress=False)
    speck = np.zeros((96, 96), np.uint8)
    speck[50, 50], speck[70:75, 50] = 1, 3
    for name in ("patient0001", "patient0004"):  # of training, and of testing, which nothing is painted for
        path = root / "database_nifti" / name / f"{name}_2CH_ED_gt.nii.gz"
        path.write_bytes(nifti(speck, tuple(open_dataset(root).frame(name, "2CH", "ED").spacing_mm)))
    for path in (root / "database_nifti" / "patient0002").iterdir():
        path.unlink()
    with pytest.raises(DataFaults) as raised:
        check(open_dataset(root), tmp_path / "sheet", "smoke")
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("2 faults in 2 patient(s)")
    assert "patient0002: holds no frame" in lines[1]
    assert "patient0001_2CH_ED_gt.nii.gz: patient0001: " in lines[2]


def test_a_sheet_that_cannot_be_written_is_said_first(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _mode: path != tmp_path)  # for root, permissions are no limit
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written: give --sheet"):
        check(phantom, tmp_path / "new" / "sheet")


def test_the_phantom_has_a_sector_conditions_and_unions(phantom, tmp_path):
    said = "\n".join(check(phantom, tmp_path / "sheet", "smoke"))
    assert "5 patients, 20 frames" in said
    assert "condition 4CH ES: 5 frames" in said
    assert "structure LV epi: classes 1, 2" in said
    assert "sector: yes" in said


def test_neither_layout_is_told(tmp_path):
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 1
    assert "no CAMUS here, no folder is named patientXXXX, and no dataset.json of nnU-Net" in done.output


def test_label_maps_that_no_augmentation_keeps_are_found(tmp_path):
    """Specks of one pixel at the profile's size."""
    root = made_set(tmp_path / "made")
    specks = np.zeros((32, 32), np.uint8)
    specks[4:28:4, 4:28:4] = 1
    specks = np.kron(specks, np.ones((2, 2), np.uint8))
    for part, name in (("Tr", "p01_0"), ("Ts", "p07_1")):
        imsave(root / f"labels{part}" / f"{name}.png", specks, check_contrast=False)
        imsave(root / f"images{part}" / f"{name}_0000.png", 60 + 90 * specks)
    done = CliRunner().invoke(app, ["check", str(root), "--profile", "smoke"])
    assert done.exit_code == 1
    assert "1 fault in 1 patient(s)" in done.output  # no image is painted for a test patient's map
    assert "labelsTr/p01_0.png: p01: at 32 pixels, no plausible augmentation in 50 draws: " in done.output
