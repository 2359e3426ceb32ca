import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from made_sets import made_set
from skimage.io import imread, imsave

from echo import labels
from echo.resume import DamagedFile, read_json
from reproduction.datasets import prepare
from reproduction.datasets.camus import CamusError, open_camus
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.phantom import write_phantom
from reproduction.runs.inputs import digest_of_splits


def test_prepare_round_trip_holds_no_test_patient(phantom, smoke, frames, tmp_path):
    prepare.prepare(phantom, "phantom", smoke, tmp_path)
    testing = set(phantom.patients("testing"))
    for split in ("training", "validation"):
        loaded = prepare.load_frames(tmp_path, split)
        assert (loaded.images == frames[split].images).all()
        assert (loaded.sdm_labels == frames[split].sdm_labels).all()
        assert loaded.index["patient"].tolist() == frames[split].index["patient"].tolist()
        assert testing.isdisjoint(loaded.index["patient"])
        assert (labels.to_camus(loaded.sdm_labels) == loaded.labels).all()
    assert not list(tmp_path.glob("testing*"))


def test_frames_of_every_view_and_phase(frames, smoke):
    training = frames["training"]
    assert training.images.shape == training.labels.shape == (12, smoke.image_size, smoke.image_size)
    assert sorted(training.index["class_label"]) == sorted([0, 1, 2, 3] * 3)
    extent = training.index["spacing_row_mm"] * smoke.image_size
    assert extent.between(130, 180).all()  # mm of depth: the pixel size grew as the image shrank
    chosen = training.select((training.index["view"] == "2CH").to_numpy())
    assert len(chosen) == 6
    assert (chosen.images == training.images[(training.index["view"] == "2CH").to_numpy()]).all()
    assert chosen.index.index.tolist() == list(range(6))
    assert (training.select(np.array([3, 1])).images == training.images[[3, 1]]).all()


def test_an_empty_split_is_named(phantom, smoke, monkeypatch):
    monkeypatch.setattr(type(phantom), "patients", lambda *_args: [])
    with pytest.raises(CamusError, match="split training has no patient"):
        prepare.read_frames(phantom, "training", smoke.image_size)


def test_missing_preparation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared data; run notebook 01"):
        prepare.load_frames(tmp_path, "training")


def test_arrays_and_rows_of_different_numbers_are_named(phantom, smoke, tmp_path):
    prepare.prepare(phantom, "phantom", smoke, tmp_path, progress=False)
    with np.load(tmp_path / "training.npz") as arrays:
        fewer = {name: array[:3] for name, array in arrays.items()}
    np.savez_compressed(tmp_path / "training.npz", **fewer)
    with pytest.raises(DamagedFile, match="training.npz: damaged .*3 frames, and training.csv has 12 rows"):
        prepare.load_frames(tmp_path, "training")


# Faults, all at once and before anything trains


@pytest.fixture
def copy(phantom, tmp_path):
    """A copy of the phantom that may be damaged: (root, folder for prepared data, path of a frame's file)."""
    root = tmp_path / "copy"
    for name in ("database_nifti", "database_split"):
        shutil.copytree(phantom.root / name, root / name)

    def file(patient, name):
        return root / "database_nifti" / patient / f"{patient}_{name}.nii.gz"

    return root, tmp_path / "dataset", file


def turned(path, change):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(change(np.asarray(image.dataobj))), image.affine), path)


def missing_test_label(root, file):
    file("patient0005", "4CH_ES_gt").unlink()
    return "patient0005: file is missing"


def missing_image(root, file):
    file("patient0002", "2CH_ED").unlink()
    return "patient0002: file is missing"


def upside_down(root, file):
    for tail in ("", "_gt"):
        turned(file("patient0003", f"4CH_ED{tail}"), lambda a: a[:, ::-1])
    return "patient0003: the left atrium lies above"


def lying_on_its_side(root, file):
    for tail in ("", "_gt"):
        turned(file("patient0004", f"2CH_ES{tail}"), np.transpose)
    return "patient0004: the left atrium lies beside"


def unkeepable(root, file, patient="patient0001"):
    def specks(label):  # (W, H): an atrium of single pixels at the size that is trained on, which no warp keeps
        label, pixel = np.where(label == 3, 0, label), len(label) // 32
        for column in range(6, 26, 3):
            for row in (25, 28, 31):
                label[column * pixel : (column + 1) * pixel, row * pixel : (row + 1) * pixel] = 3
        return label

    turned(file(patient, "4CH_ED_gt"), specks)
    return f"{patient}: no plausible augmentation in 50 draws"


def unkeepable_in_validation(root, file):
    return unkeepable(root, file, "patient0004")  # validation images are painted too


def unlabelled(root, file, patient="patient0002"):
    turned(file(patient, "4CH_ED_gt"), np.zeros_like)
    return f"{patient}: nothing is labelled"


def unlabelled_in_validation(root, file):
    return unlabelled(root, file, "patient0004")


def unlabelled_in_testing(root, file):
    return unlabelled(root, file, "patient0005")


def empty_patient(root, file):
    for path in file("patient0002", "x").parent.glob("*.nii.gz"):
        path.unlink()
    return "patient0002: holds no frame"


def listed_twice(root, file):
    with (root / "database_split/subgroup_training.txt").open("a") as file:
        file.write("patient0001\n")
    return "patient0001: listed twice in subgroup_training.txt"


def no_folder(root, file):
    with (root / "database_split/subgroup_training.txt").open("a") as file:
        file.write("patient0777\n")
    return "patient0777: in the training split, but has no folder"


FAULTS = [
    missing_test_label,
    missing_image,
    upside_down,
    lying_on_its_side,
    unkeepable,
    unkeepable_in_validation,
    unlabelled,
    unlabelled_in_validation,
    unlabelled_in_testing,
    empty_patient,
    listed_twice,
    no_folder,
]


def test_a_view_and_phase_without_training_frame_is_a_fault_where_each_has_its_model(copy, smoke):
    root, folder, file = copy
    for patient in ("patient0001", "patient0002", "patient0003"):
        for tail in ("", "_gt"):
            file(patient, f"4CH_ES{tail}").unlink()
    prepare.prepare(prepare.open_data(root, smoke, folder, 0), "camus", smoke, folder, progress=False)
    with pytest.raises(DataFaults, match="patient0004_4CH_ES_gt.*no training frame has this view and phase"):
        paper_like = replace(smoke, per_view_phase=True)
        prepare.prepare(prepare.open_data(root, smoke, folder, 0), "camus", paper_like, folder, progress=False)


@pytest.mark.parametrize("plant", FAULTS)
def test_a_fault_stops_the_data_stage(copy, smoke, plant):
    root, folder, file = copy
    reason = plant(root, file)
    with pytest.raises(DataFaults, match="1 fault in 1 patient") as caught:
        prepare.prepare(prepare.open_data(root, smoke, folder, 0), "camus", smoke, folder, progress=False)
    assert reason in str(caught.value)
    assert not (folder / "data.json").exists()


def test_all_faults_come_in_one_report(copy, smoke):
    root, folder, file = copy
    reasons = [missing_test_label(root, file), missing_image(root, file), upside_down(root, file)]
    reasons.append(no_folder(root, file))
    with pytest.raises(DataFaults, match="4 faults in 4 patient") as caught:
        prepare.prepare(prepare.open_data(root, smoke, folder, 0), "camus", smoke, folder, progress=False)
    assert all(reason in str(caught.value) for reason in reasons)
    table = pd.read_csv(folder / "faults.csv")
    assert table.columns.tolist() == ["patient", "file", "reason"]
    assert sorted(table["patient"]) == ["patient0002", "patient0003", "patient0005", "patient0777"]


def test_a_long_report_is_cut_in_the_message_and_whole_in_the_table():
    report = DataFaults("root", [DataError("file", "damaged", f"patient{k:04d}") for k in range(45)])
    lines = str(report).splitlines()
    assert len(lines) == 22
    assert "45 faults in 45 patient" in lines[0]
    assert lines[-1] == "  and 25 more"
    assert len(report.table()) == 45


@pytest.mark.parametrize("plants", [(missing_image,), (upside_down, no_folder), (unkeepable, missing_image)])
def test_patients_with_a_fault_can_be_left_out(copy, smoke, plants):
    root, folder, file = copy
    named = sorted(plant(root, file).split(":")[0] for plant in plants)
    camus = prepare.open_data(root, smoke, folder, 0)
    prepare.prepare(camus, "camus", smoke, folder, progress=False, on_error="skip")
    facts = read_json(folder / "data.json")
    assert sorted(fault["patient"] for fault in facts["left_out"]) == named
    kept = set(prepare.load_frames(folder, "training").index["patient"])
    assert kept == {"patient0001", "patient0002", "patient0003"} - set(named)
    again = prepare.open_data(root, smoke, folder, 0, left_out=named)
    assert set(again.patients("training")) == kept
    assert facts["digest"] == again.digest()


@pytest.mark.parametrize(
    ("mm", "swapped", "warned"),
    [
        (0.002, False, ["images are 0.064 mm deep"]),
        (20.0, False, ["images are 640 mm deep"]),
        (4.0, True, ["2 does not surround 1"]),
        (1.0, True, ["images are 32 mm deep", "2 does not surround 1"]),
        (4.0, False, []),
    ],
)
def test_what_is_unlikely_is_said_in_one_line(frames, mm, swapped, warned):
    training = frames["training"]
    labels = np.array([0, 2, 1, 3], np.uint8)[training.labels] if swapped else training.labels
    said = prepare.doubts(replace(training, labels=labels, index=training.index.assign(spacing_row_mm=mm)))
    assert len(said) == len(warned)
    assert all(expected in line for line, expected in zip(said, warned, strict=True))


@pytest.mark.parametrize("gone", [(3,), (2, 3), (1, 3)])
def test_a_class_that_no_label_map_has_is_told(frames, gone):
    training = frames["training"]
    labels = np.where(np.isin(training.labels, gone), 0, training.labels)
    said = prepare.doubts(replace(training, labels=labels))
    wanted = [f"no label map of the training split has {k} {training.classes.names[k]}" for k in gone]
    assert [line for line in said if "no label map" in line] == wanted


def test_a_dataset_without_any_label_is_a_fault(tmp_path, smoke):
    root = made_set(tmp_path / "Dataset001_X")
    for path in (root / "labelsTr").glob("*.png"):
        imsave(path, np.zeros_like(imread(path)), check_contrast=False)
    with pytest.raises(DataFaults, match="no label map of the training split has anything labelled"):
        prepare.prepare(prepare.open_dataset(root), "nnunet", smoke, tmp_path / "out", progress=False)


@pytest.mark.parametrize("split", ["training", "validation", "testing"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_split_without_patients_stops_the_data_stage(copy, smoke, split, on_error):
    root, folder, _ = copy
    (root / f"database_split/subgroup_{split}.txt").write_text("")
    with pytest.raises(DataFaults, match=f"split {split} has no patient"):
        prepare.prepare(open_camus(root), "camus", smoke, folder, progress=False, on_error=on_error)


@pytest.mark.parametrize(("split", "plant"), [("testing", missing_test_label), ("validation", lying_on_its_side)])
def test_leaving_the_last_patient_of_a_split_out_stops_the_data_stage(copy, smoke, split, plant):
    root, folder, file = copy
    plant(root, file)
    with pytest.raises(DataFaults, match=f"no patient of split {split} is left"):
        prepare.prepare(open_camus(root), "camus", smoke, folder, progress=False, on_error="skip")


@pytest.mark.parametrize(
    ("gone", "frames"), [("*_2CH_*", 6), ("*_ES*", 6), ("patient0001_2CH_*", 10), ("patient0002_4CH_ES*", 11)]
)
def test_any_views_and_phases_will_do(copy, smoke, gone, frames, capsys):
    root, folder, _ = copy
    for path in root.glob(f"database_nifti/*/{gone}"):
        path.unlink()
    prepare.prepare(open_camus(root), "camus", smoke, folder, progress=False)
    assert len(prepare.load_frames(folder, "training")) == frames
    assert ("1 of 5 patients lack frames" in capsys.readouterr().err) == gone.startswith("patient")


def test_a_folder_without_permission_is_one_patients_fault(tmp_path, smoke, monkeypatch):
    root = write_phantom(tmp_path / "echo", {"training": 2, "validation": 1, "testing": 1}, 0, size=96, progress=False)
    closed, access = root / "database_nifti" / "patient0001", os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != closed and access(path, mode))  # tests may run as root
    raw = prepare.open_dataset(root)
    assert raw.faults[0].reason == "cannot be read: permission denied"
    assert digest_of_splits(raw, "training") != digest_of_splits(raw, "validation")
    with pytest.raises(DataFaults, match="patient0001: cannot be read: permission denied"):
        prepare.prepare(raw, "camus", smoke, tmp_path / "out", progress=False)
    prepare.prepare(raw, "camus", smoke, tmp_path / "out", progress=False, on_error="skip")
    assert set(prepare.load_frames(tmp_path / "out", "training").index["patient"]) == {"patient0002"}


def test_names_of_a_damaged_list_are_shown_short_and_plain(tmp_path):
    error = DataError(tmp_path, "has no folder\x1b[2J", "\0" * 4000)
    assert str(error).isprintable()
    assert len(str(error)) < len(str(tmp_path)) + 200
