"""The reader of nnU-Net raw datasets, on made ones."""

import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import REPOSITORY
from made_sets import change_json, made_set, write
from skimage.io import imread, imsave

from echo.labels import Classes
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.nnunet import is_nnunet, open_nnunet

SHAPE = (48, 40)


@pytest.fixture
def root(tmp_path):
    return made_set(tmp_path / "Dataset001_Made")


def frames_of(raw, split: str) -> list:
    return [raw.frame(*key) for key in raw.keys(raw.patients(split))]


def test_a_set_as_it_is_written(root):
    raw = open_nnunet(root)
    assert is_nnunet(root)
    assert raw.classes == Classes(("background", "LV"), {"LV": (1,)})
    assert (raw.faults, raw.notes, raw.tests_labelled) == ([], [], True)
    assert raw.patients("training") == ["p01", "p02", "p03", "p04", "p05"]
    assert (raw.patients("validation"), raw.patients("testing")) == (["p06"], ["p07", "p08"])
    assert raw.keys(["p06"]) == [("p06", "p06_0"), ("p06", "p06_1")]
    frame = raw.frame("p06", "p06_1")
    assert (frame.image == imread(root / "imagesTr" / "p06_1_0000.png")).all()
    assert (frame.label == imread(root / "labelsTr" / "p06_1.png")).all()
    assert frame.facts() == {"patient": "p06", "case": "p06_1", "class_label": 0}
    assert frame.spacing_mm is None and frame.resized(24).spacing_mm is None
    assert raw.record()["licence"] == "CC0 1.0"
    assert raw.without(["p06"]).patients("validation") == []


def test_three_classes_in_rgb(tmp_path):
    raw = open_nnunet(made_set(tmp_path, ("cup", "disc", "vein"), rgb=True))
    assert raw.classes.structures == {"cup": (1,), "disc": (2,), "vein": (3,)}
    frame, colours = raw.frame("p01", "p01_0"), imread(tmp_path / "imagesTr" / "p01_0_0000.png").astype(float)
    assert np.abs(frame.image - colours @ (0.299, 0.587, 0.114)).max() <= 0.5
    assert set(np.unique(frame.label)) == {0, 1, 2, 3}


def test_sixteen_bit_nifti_with_anisotropic_spacing(tmp_path):
    root = made_set(tmp_path, ending=".nii.gz", dtype=np.uint16)
    frame = open_nnunet(root).frame("p01", "p01_0")
    stored = np.asarray(nib.load(root / "imagesTr" / "p01_0_0000.nii.gz").dataobj)[..., 0].T
    low, high = np.percentile(stored, (0.5, 99.5))
    assert (frame.image.shape, frame.spacing_mm) == (SHAPE, (1.5, 0.75))
    assert np.abs(frame.image - 255 * np.clip((stored - low) / (high - low), 0, 1)).max() <= 0.5
    assert frame.resized(24).spacing_mm == (3.0, 1.25)
    assert frame.label[24, 20] == 1  # the disc is in the middle, also of an array that is not square


@pytest.mark.parametrize(("ending", "dtype"), [(".tif", np.uint16), (".tiff", np.float32), (".nii", np.float32)])
def test_other_formats_show_the_same(tmp_path, ending, dtype):
    eight_bits = open_nnunet(made_set(tmp_path / "a")).frame("p01", "p01_0")
    other = open_nnunet(made_set(tmp_path / "b", ending=ending, dtype=dtype)).frame("p01", "p01_0")
    assert (other.label == eight_bits.label).all()
    assert np.corrcoef(other.image.ravel(), eight_bits.image.ravel())[0, 1] > 0.999
    assert (other.image.min(), other.image.max()) == (0, 255)


def test_an_image_whose_percentiles_coincide_is_stretched_from_least_to_largest(root):
    sparse = np.zeros(SHAPE, np.uint16)
    sparse[3, 4], sparse[5, 6] = 1000, 500
    imsave(root / "imagesTr" / "p01_0_0000.png", sparse, check_contrast=False)
    image = open_nnunet(root).frame("p01", "p01_0").image
    assert (image[3, 4], image[5, 6], image[0, 0]) == (255, 128, 0)


def test_an_ultrasound_channel_has_a_sector_and_structures_may_be_unions(root):
    change_json(root / "dataset.json", channel_names={"0": "B-mode Ultrasound"}, structures={"all of it": ["LV"]})
    classes = open_nnunet(root).classes
    assert classes.sector
    assert (classes.sdm_names, classes.structures) == (("outside", "LV", "tissue"), {"all of it": (1,)})


def test_conditions(root):
    cases = [f"p{p:02d}_{k}" for p in range(1, 9) for k in (0, 1)]
    rows = "".join(f"{case},{'apex' if case[-1] == '0' else 'base'}\n" for case in cases)
    (root / "conditions.csv").write_text("case,condition\n" + rows)
    raw = open_nnunet(root)
    assert raw.classes.conditions == ("apex", "base")
    assert raw.frame("p07", "p07_1").facts() == {
        "patient": "p07", "case": "p07_1", "condition": "base", "class_label": 1
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conditions_of_any_editor(root, encoding, end):
    rows = [f"p{p:02d}_{k},{('None', 'base é')[k]}" for p in range(1, 9) for k in (0, 1)]
    (root / "conditions.csv").write_bytes(end.join(["case,condition", *rows, ""]).encode(encoding))
    raw = open_nnunet(root)
    assert (raw.classes.conditions, raw.faults) == (("None", "base é"), [])


def test_splits_that_are_not_given_are_drawn_by_patient(tmp_path):
    raw = open_nnunet(made_set(tmp_path, patients=10, tests=0, splits=False))
    members = [raw.patients(split) for split in ("training", "validation", "testing")]
    assert [len(m) for m in members] == [6, 2, 2]
    assert sorted(sum(members, [])) == [f"p{k:02d}" for k in range(1, 11)]
    assert all(len(raw.keys([patient])) == 2 for patient in raw.patients())
    assert [note.split(" is not given: ")[1] for note in raw.notes] == ["2 of 10 patients were drawn for it"] * 2
    assert members == [open_nnunet(tmp_path).patients(split) for split in ("training", "validation", "testing")]


def test_cases_that_the_first_fold_leaves_out_are_told(root):
    (root / "splits_final.json").write_text(json.dumps([{"train": ["p01_0", "p02_0"], "val": ["p03_0"]}]))
    raw = open_nnunet(root)
    assert raw.notes == ["9 cases of imagesTr are in no split, p01_1 for one"]
    assert raw.keys(raw.patients("training")) == [("p01", "p01_0"), ("p02", "p02_0")]


def test_the_pattern_says_who_a_patient_is(tmp_path):
    root = made_set(tmp_path, tests=0, splits=False)
    every_case = open_nnunet(root, "$")
    assert len(every_case.patients()) == 12
    assert every_case.patients()[0] == "p01_0" or every_case.keys(["p01_0"]) == [("p01_0", "p01_0")]
    with pytest.raises(DataError, match=r"1 patient\(s\), by the pattern '\\\\d', to draw validation and testing from"):
        open_nnunet(root, r"\d")
    with pytest.raises(ValueError, match=r"--patient-pattern '\(' is no regular expression"):
        open_nnunet(root, "(")


def test_a_patient_in_two_splits_is_warned_of_and_counts_in_each(root):
    shutil.copy(root / "imagesTr" / "p01_0_0000.png", root / "imagesTs" / "p01_9_0000.png")
    shutil.copy(root / "labelsTr" / "p01_0.png", root / "labelsTs" / "p01_9.png")
    raw = open_nnunet(root)
    assert re.match(r"warning: 1 patient.* are in two splits, p01 in training and testing: ", raw.notes[0])
    assert raw.keys(["p01 (training)"]) == [("p01 (training)", "p01_0"), ("p01 (training)", "p01_1")]
    assert raw.keys(["p01 (testing)"]) == [("p01 (testing)", "p01_9")]


def test_without_test_labels_there_is_nothing_to_score(tmp_path):
    raw = open_nnunet(made_set(tmp_path, test_labels=False))
    assert not raw.tests_labelled
    assert raw.notes == ["imagesTs has 4 cases, and there is no labelsTs: nothing is scored on test cases"]
    with pytest.raises(DataError, match="the test cases have no labels"):
        raw.patients("testing")


def test_a_class_that_half_of_the_cases_lack(tmp_path):
    raw = open_nnunet(made_set(tmp_path, ("a", "b"), every_other=2))
    assert [sorted(np.unique(f.label)) for f in frames_of(raw, "validation")] == [[0, 1, 2], [0, 1]]


def test_the_digest_is_of_what_is_read(root):
    before = {split: open_nnunet(root).digest(split) for split in ("training", "testing")}
    write(root / "imagesTs" / "p07_0_0000.png", np.arange(48 * 40, dtype=np.uint16).reshape(SHAPE), (1, 1))
    after = {split: open_nnunet(root).digest(split) for split in before}
    assert after["training"] == before["training"]
    assert after["testing"] != before["testing"]
    (root / "labelsTr" / "p01_0.png").unlink()
    assert open_nnunet(root).digest("training") != before["training"]


BAD_DATASETS = {
    "another version": ({"channel_names": None, "modality": {"0": "MR"}}, "nnU-Net's first version: convert it"),
    "two channels": ({"channel_names": {"0": "T1", "1": "T2"}}, '"channel_names" has 2 channels'),
    "no channel": ({"channel_names": None}, '"channel_names" is missing'),
    "ending": ({"file_ending": ".mha"}, "\"file_ending\" is '.mha': supported are .png, "),
    "no labels": ({"labels": None}, '"labels" is missing'),
    "region": ({"labels": {"background": 0, "whole": [1, 2]}}, "label 'whole' is a region (a list of values)"),
    "ignore": ({"labels": {"background": 0, "LV": 1, "ignore": 2}}, 'the label "ignore" is not supported'),
    "gap": ({"labels": {"background": 0, "LV": 2}}, "labels have the values [0, 2]: they must be 0 (background), 1"),
    "background": ({"labels": {"nothing": 0, "LV": 1}}, 'label 0 must be called "background"'),
    "reserved": ({"labels": {"background": 0, "mean": 1}}, "'mean' is a column of our tables: give the class or str"),
    "nameless": ({"labels": {"background": 0, "": 1}}, "'' is a column of our tables"),
    "a table's value": ({"labels": {"background": 0, "dice": 1}}, "'dice' is a column of our tables"),
    "list of structures": ({"structures": ["LV"]}, '"structures" is no object: such as'),
    "nested structure": ({"structures": {"heart": [["LV"]]}}, "structure 'heart' is [['LV']]: give a list of classes"),
    "structure": ({"structures": {"heart": ["RV"]}}, "structure 'heart' is ['RV']: give a list of classes out of"),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_what_a_dataset_json_must_not_say(root, name):
    changes, line = BAD_DATASETS[name]
    change_json(root / "dataset.json", **changes)
    with pytest.raises(DataError) as raised:
        open_nnunet(root)
    assert line in str(raised.value)
    assert "dataset.json" in str(raised.value)


def test_all_faults_of_a_dataset_json_are_told_at_once(root):
    change_json(root / "dataset.json", channel_names=None, file_ending=None, labels={"ignore": 1, "a": [1]})
    with pytest.raises(DataFaults) as raised:
        open_nnunet(root)
    assert len(raised.value.faults) == 4


ODD = [None, 1, "x", [], [1], [[1]], {}, {"a": None}, {"a": [[1]]}, {"background": 0, "a": 1.5}]


@pytest.mark.parametrize("key", ["labels", "channel_names", "file_ending", "structures", "numTraining"])
def test_whatever_a_dataset_json_holds_is_read_or_told_in_one_line(root, key):
    facts = json.loads((root / "dataset.json").read_text())
    for value in ODD:
        (root / "dataset.json").write_text(json.dumps(facts | {key: value}))
        try:
            open_nnunet(root)
        except DataError as error:
            assert "dataset.json" in str(error)
            assert len(str(error).splitlines()) <= 3


@pytest.mark.parametrize("value", [*ODD, [{"train": [[1]], "val": []}], [{"train": [1], "val": [None]}]])
def test_whatever_splits_final_holds_is_read_or_told_in_one_line(root, value):
    (root / "splits_final.json").write_text(json.dumps(value))
    try:
        raw = open_nnunet(root)
    except DataError as error:
        assert "splits_final.json" in str(error)
    else:
        assert raw.faults


@pytest.mark.parametrize(
    ("ending", "dtype"), [(".png", np.uint8), (".tif", np.uint16), (".nii.gz", np.float32), (".nii", np.uint16)]
)
def test_a_damaged_file_is_read_or_told_in_one_line(tmp_path, ending, dtype):
    raw, rng = open_nnunet(made_set(tmp_path, ending=ending, dtype=dtype)), np.random.default_rng(0)
    told = 0
    for path in (tmp_path / "imagesTr" / f"p01_0_0000{ending}", tmp_path / "labelsTr" / f"p01_0{ending}"):
        whole = path.read_bytes()
        for k in range(60):
            content = bytearray(whole[: rng.integers(len(whole))] if k % 3 == 0 else whole)
            for place in rng.integers(len(content) or 1, size=3 if content else 0):
                content[place] = rng.integers(256)
            path.write_bytes(content)
            try:
                raw.frame("p01", "p01_0")
            except DataError as error:
                told += 1
                assert "\n" not in str(error)
        path.write_bytes(whole)
    assert told > 20
    assert raw.frame("p01", "p01_0").label.any()


def test_no_dataset_json_that_can_be_read(root):
    (root / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="dataset.json: cannot be read, JSONDecodeError"):
        open_nnunet(root)


def spoil_lists(root):
    """Seven faults of names and lists."""
    fold = json.loads((root / "splits_final.json").read_text())[0]
    fold["train"] += ["p99_0", "p01_0"]
    fold["val"] += ["p01_1"]
    (root / "splits_final.json").write_text(json.dumps([fold]))
    change_json(root / "dataset.json", numTraining=7)
    for name in ("p01_0_0001.png", "nothing.png"):
        shutil.copy(root / "imagesTr" / "p01_0_0000.png", root / "imagesTr" / name)
    shutil.copy(root / "labelsTr" / "p01_0.png", root / "labelsTr" / "p77_0.png")


def test_faults_of_names_and_lists_are_kept_for_the_report(root):
    spoil_lists(root)
    assert [str(fault).removeprefix(f"{root}/") for fault in open_nnunet(root).faults] == [
        "imagesTr/nothing.png: not named CASE_0000.png",
        "imagesTr/p01_0_0001.png: p01_0: channel 0001: images of one file are supported, CASE_0000",
        "labelsTr/p77_0.png: p77_0: label map without an image imagesTr/p77_0_0000.png",
        "dataset.json: numTraining is 7, imagesTr has 12 cases",
        "splits_final.json: p99_0: in train of the first fold, but imagesTr has no such case",
        "splits_final.json: p01_0: listed twice in the first fold",
        "splits_final.json: p01_1: in both train and val of the first fold",
    ]


def test_faults_of_conditions(root):
    (root / "conditions.csv").write_text("case,condition\np01_0,a\np01_0,b\np55_0,a\np01_1,\n")
    found = [f"{fault.patient}: {fault.reason}" for fault in open_nnunet(root).faults]
    assert found[:3] == [
        "p01: case p01_0 is listed twice",
        "p55_0: case p55_0 has no image",
        "p01: case p01_1 has no condition",
    ]
    assert len(found) == 2 + 15
    (root / "conditions.csv").write_text("case,view\np01_0,a\n")
    with pytest.raises(DataError, match='must have the columns "case" and "condition"'):
        open_nnunet(root)


def image(array):
    return lambda root: imsave(root / "imagesTr" / "p01_0_0000.png", array, check_contrast=False)


def label(array):
    return lambda root: imsave(root / "labelsTr" / "p01_0.png", array, check_contrast=False)


BAD_FILES = {
    "no label": (lambda root: (root / "labelsTr" / "p01_0.png").unlink(), "labelsTr/p01_0.png: p01: file is missing"),
    "damaged": (lambda root: (root / "imagesTr" / "p01_0_0000.png").write_bytes(b"PNG"), "p01: cannot be read, "),
    "constant": (image(np.full(SHAPE, 9, np.uint8)), "p01: constant image, 9 everywhere"),
    "other shape": (label(np.zeros((40, 48), np.uint8)), "p01: label is (40, 48), its image (48, 40)"),
    "0 and 255": (label(np.eye(48, 40, dtype=np.uint8) * 255), "values from 0 to 255, allowed are 0 background, 1 LV"),
    "colours": (label(np.zeros((*SHAPE, 3), np.uint8)), "not a label map of one value a pixel but uint8 of shape (48,"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_has_its_line(root, name):
    spoil, line = BAD_FILES[name]
    spoil(root)
    raw = open_nnunet(root)
    with pytest.raises(DataError) as raised:
        raw.frame("p01", "p01_0")
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def nifti(kind: str, array, spacing=(1.5, 0.75)):
    places = {"image": "imagesTr/p01_0_0000.nii.gz", "label": "labelsTr/p01_0.nii.gz"}
    return lambda root: write(root / places[kind], array, spacing)


def turned(change):
    """Another affine in the label map's header, and the same array."""

    def spoil(root):
        path = root / "labelsTr/p01_0.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), change @ image.affine), path)

    return spoil


BAD_NIFTIS = {
    "volume": (nifti("image", np.arange(120.0).reshape(4, 5, 6)), "a volume of shape (6, 5, 4)"),
    "nan": (nifti("image", np.full(SHAPE, np.nan, np.float32)), "holds values that are no finite numbers"),
    "spacing": (nifti("label", np.zeros(SHAPE, np.uint8), (1, 1)), "label has pixels of 1 x 1 mm, its image"),
    "other side": (turned(np.diag([-1, 1, 1, 1])), "its header places it 60 mm beside its image"),
    "upside down": (turned(np.diag([1, -1, 1, 1])), "its header places it 144 mm beside its image"),
    "elsewhere": (turned(np.array([[1, 0, 0, 5], *np.eye(4)[1:]])), "its header places it 5 mm beside its image"),
    "fractions": (nifti("label", np.full(SHAPE, 0.5, np.float32)), "values are not whole numbers"),
}


@pytest.mark.parametrize("name", BAD_NIFTIS)
def test_a_bad_nifti_file_has_its_line(tmp_path, name):
    root = made_set(tmp_path, ending=".nii.gz", dtype=np.float32)
    spoil, line = BAD_NIFTIS[name]
    spoil(root)
    raw = open_nnunet(root)
    with pytest.raises(DataError) as raised:
        raw.frame("p01", "p01_0")
    assert line in str(raised.value)


def test_sunnybrook():
    root = REPOSITORY.parent / "shared" / "sunnybrook" / "Dataset701_SunnybrookLV"
    if not root.is_dir():
        pytest.skip(f"no Sunnybrook in {root}")
    raw = open_nnunet(root)
    assert (raw.faults, raw.notes, raw.classes) == ([], [], Classes(("background", "LV")))
    assert [len(raw.patients(split)) for split in ("training", "validation", "testing")] == [20, 4, 6]
    assert all(frame.label.any() for frame in frames_of(raw, "testing"))


def test_the_digest_leaves_out_what_cannot_be_read(tmp_path, monkeypatch):
    """The data stage names it, with all other faults."""
    root, access = made_set(tmp_path / "made"), os.access
    closed, before = root / "labelsTr" / "p01_0.png", open_nnunet(root).digest()
    monkeypatch.setattr("os.access", lambda path, mode: path != closed and access(path, mode))  # tests may run as root
    assert open_nnunet(root).digest() != before
