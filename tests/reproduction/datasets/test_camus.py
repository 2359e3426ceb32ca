import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from reproduction.datasets.camus import PHASES, SPLITS, VIEWS, CamusError, Frame, open_camus
from reproduction.runs.inputs import digest_of_splits

HEIGHT, WIDTH = 40, 24  # different, so that a forgotten transpose shows
SPACING = {"nifti": (0.5, 0.25), "metaimage": (0.154, 0.308)}  # (row, col) in mm
CFG = "ED: 1\nES: 18\nSex: F\nAge: 56\nImageQuality: Good\n{ef}\n"


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H, W) noise, and a label map with every class."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[4:24, 4:16], label[8:20, 7:13], label[24:32, 7:13] = 2, 1, 3
    return np.random.default_rng(seed).integers(0, 256, label.shape, dtype=np.uint8), label


def write_nifti(path: Path, array: np.ndarray) -> None:
    image = nib.Nifti1Image(array.T, np.eye(4))
    image.header.set_zooms((SPACING["nifti"][::-1] + (1.0,))[: array.ndim])
    nib.save(image, path)


def write_metaimage(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array[None] if array.ndim == 2 else array)
    image.SetSpacing((*SPACING["metaimage"][::-1], 1.54))
    sitk.WriteImage(image, str(path))


WRITE = {"nifti": (".nii.gz", write_nifti, "EF: 54"), "metaimage": (".mhd", write_metaimage, "LVef: 54")}


def make_patients(folder: Path, numbers: range, release: str, views=VIEWS, dtype=np.uint8) -> None:
    suffix, write, ef = WRITE[release]
    for number in numbers:
        patient = folder / f"patient{number:04d}"
        patient.mkdir(parents=True)
        for view in views:
            (patient / f"Info_{view}.cfg").write_text(CFG.format(ef=ef))
            for phase in PHASES:
                image, label = picture(number)
                write(patient / f"{patient.name}_{view}_{phase}{suffix}", image.astype(dtype))
                write(patient / f"{patient.name}_{view}_{phase}_gt{suffix}", label.astype(dtype))


def make_camus(root: Path, release: str, **options) -> Path:
    """Four patients of a release; the 2023 lists train on 4 and 1, in this order."""
    if release == "metaimage":
        make_patients(root / "training", range(1, 4), release, **options)
        make_patients(root / "testing", range(4, 5), release, **options)
        return root
    make_patients(root / "database_nifti", range(1, 5), release, **options)
    (root / "database_split").mkdir()
    for split, numbers in zip(SPLITS, [(4, 1), (2,), (3,)], strict=True):
        names = "".join(f"patient{n:04d}\n" for n in numbers)
        (root / "database_split" / f"subgroup_{split}.txt").write_text(names)
    return root


@pytest.fixture(params=["nifti", "metaimage"])
def release(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_both_releases_give_the_same_frame(tmp_path, release, dtype):
    camus = open_camus(make_camus(tmp_path, release, dtype=dtype))
    frame = camus.frame("patient0002", "4CH", "ES")
    image, label = picture(2)
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.label, label)
    assert frame.image.dtype == frame.label.dtype == np.uint8
    assert frame.spacing_mm == pytest.approx(SPACING[release])
    assert (frame.patient, frame.view, frame.phase) == ("patient0002", "4CH", "ES")
    assert (frame.quality, frame.ef, frame.sex, frame.age) == ("Good", 54.0, "F", 56)
    assert camus.release == {"nifti": "NIfTI 2023", "metaimage": "MetaImage 2019"}[release]
    assert camus.views == VIEWS
    assert camus.patients() == [f"patient{n:04d}" for n in range(1, 5)]
    assert camus.skipped == []


def test_slices_with_a_singleton_axis_are_read(tmp_path):
    root = make_camus(tmp_path, "nifti")
    write_nifti(root / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz", picture(1)[0][None])
    frame = open_camus(root).frame("patient0001", "2CH", "ED")
    np.testing.assert_array_equal(frame.image, picture(1)[0])
    assert frame.spacing_mm == SPACING["nifti"]


def test_a_copy_with_one_view_says_so(tmp_path, release):
    camus = open_camus(make_camus(tmp_path, release, views=("4CH",)))
    assert camus.views == ("4CH",)
    with pytest.raises(CamusError, match="patient0001_2CH_ED.*: patient0001: file is missing"):
        camus.frame("patient0001", "2CH", "ED")


def test_cfg_of_the_other_view_serves_where_one_is_absent(tmp_path, release):
    camus = open_camus(make_camus(tmp_path, release))
    (folder,) = tmp_path.glob("*/patient0001")
    (folder / "Info_2CH.cfg").write_text("ImageQuality: Poor\nEF: 41.5\n")
    assert camus.frame("patient0001", "2CH", "ED").quality == "Poor"
    assert camus.frame("patient0001", "4CH", "ED").quality == "Good"
    (folder / "Info_4CH.cfg").unlink()
    frame = camus.frame("patient0001", "4CH", "ED")
    assert (frame.quality, frame.ef, frame.sex, frame.age) == ("Poor", 41.5, None, None)
    (folder / "Info_2CH.cfg").unlink()
    frame = camus.frame("patient0001", "4CH", "ED")
    assert (frame.quality, frame.ef, frame.sex, frame.age) == (None, None, None, None)


# Where the data set is


@pytest.mark.parametrize("low", ["database_nifti", "database_split", "training", "testing"])
def test_path_one_too_high_or_too_low_opens_the_same_data(tmp_path, low):
    root = make_camus(tmp_path / "data" / "camus", "nifti" if low.startswith("database") else "metaimage")
    camus = open_camus(root)
    for path in (root / low, root.parent):
        assert open_camus(path).root == camus.root == root
        assert open_camus(path).digest() == camus.digest()
        assert open_camus(path).patients("testing") == camus.patients("testing")


def test_several_data_sets_below_the_path_are_named(tmp_path):
    make_camus(tmp_path / "first", "nifti")
    make_camus(tmp_path / "second", "metaimage")
    with pytest.raises(CamusError, match="first .*second"):
        open_camus(tmp_path)


def test_bare_patient_folders_open_without_splits(tmp_path):
    make_patients(tmp_path / "mine", range(1, 3), "nifti")
    camus = open_camus(tmp_path / "mine")
    assert camus.root == tmp_path / "mine"
    assert len(camus.patients()) == 2
    assert camus.frame("patient0001", "2CH", "ED").ef == 54
    with pytest.raises(CamusError, match="no database_split/subgroup_testing.txt"):
        camus.patients("testing")


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("other", "no such folder"),
        ("camus", "no folder is named patientXXXX"),
        ("camus/database_nifti", "no .nii.gz or .mhd file in any patient's folder"),
    ],
)
def test_no_data_set_at_the_path(tmp_path, folder, reason):
    (tmp_path / "camus" / "notes").mkdir(parents=True)
    if folder.endswith("nifti"):
        (tmp_path / folder / "patient0001").mkdir(parents=True)
    with pytest.raises(CamusError, match=reason) as caught:
        open_camus(tmp_path / folder)
    assert str(tmp_path / folder.removesuffix("/database_nifti")) in str(caught.value)
    assert "\n" not in str(caught.value)


# Splits


def test_nifti_splits_keep_the_order_of_their_lists(tmp_path):
    camus = open_camus(make_camus(tmp_path, "nifti"))
    assert camus.patients("train") == camus.patients("training") == ["patient0004", "patient0001"]
    assert camus.patients("val") == ["patient0002"]
    assert camus.patients("test") == ["patient0003"]


def test_metaimage_validation_is_the_first_fifty_training_patients(tmp_path):
    make_patients(tmp_path / "training", range(1, 2), "metaimage", views=("2CH",))
    for number in range(2, 53):
        (tmp_path / "training" / f"patient{number:04d}").mkdir()
    camus = open_camus(tmp_path)
    assert camus.patients("validation") == [f"patient{n:04d}" for n in range(1, 51)]
    assert camus.patients("training") == ["patient0051", "patient0052"]
    with pytest.raises(CamusError, match="testing split is not defined"):
        camus.patients("testing")
    (tmp_path / "testing" / "patient0900").mkdir(parents=True)
    assert open_camus(tmp_path).patients("testing") == ["patient0900"]


@pytest.mark.parametrize("split", ["t", "", "dev", "trainings"])
def test_unknown_or_ambiguous_split(tmp_path, split):
    with pytest.raises(CamusError, match="choose from training, validation, testing"):
        open_camus(make_camus(tmp_path, "nifti")).patients(split)


def test_without_lists_only_a_split_is_refused(tmp_path):
    root = make_camus(tmp_path, "nifti")
    (root / "database_split" / "subgroup_validation.txt").unlink()
    camus = open_camus(root)
    assert len(camus.patients()) == 4
    assert camus.patients("testing") == ["patient0003"]
    with pytest.raises(CamusError, match="subgroup_validation.txt"):
        camus.patients("validation")


def test_split_lists_that_contradict_the_data(tmp_path):
    root = make_camus(tmp_path, "nifti")
    testing = root / "database_split" / "subgroup_testing.txt"
    testing.write_text("patient0003\npatient0777\n")
    with pytest.raises(CamusError, match="patient0777: in the testing split, but has no folder"):
        open_camus(root)
    camus = open_camus(root, on_error="skip")
    assert camus.patients("testing") == ["patient0003"]
    assert [patient for patient, _ in camus.skipped] == ["patient0777"]
    testing.write_text("patient0003\npatient0001\npatient0004\n")
    for patient in ("patient0001", "patient0004"):
        with pytest.raises(CamusError, match=f"{patient}: in two splits, training and testing"):
            open_camus(root)
    assert open_camus(root, on_error="skip").patients() == ["patient0002", "patient0003"]
    testing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CamusError, match="in the testing split, but has no folder"):
        open_camus(root)


def test_metaimage_patient_in_both_folders(tmp_path):
    root = make_camus(tmp_path, "metaimage")
    make_patients(root / "testing", range(1, 2), "metaimage")
    with pytest.raises(CamusError, match="patient0001: in two splits"):
        open_camus(root)


def test_metaimage_testing_patients_of_a_training_patients_name(tmp_path):
    """The 2019 release counts both folders from patient0001."""
    root = make_camus(tmp_path, "metaimage")
    (root / "testing" / "patient0004").rename(root / "testing" / "patient0002")
    for path in (root / "testing" / "patient0002").iterdir():
        path.rename(path.with_name(path.name.replace("patient0004", "patient0002")))
    for header in (root / "testing" / "patient0002").glob("*.mhd"):
        header.write_text(header.read_text().replace("patient0004", "patient0002"))
    camus = open_camus(root)
    assert camus.patients("testing") == ["testing_patient0002"]
    assert camus.patients("training") + camus.patients("validation") == ["patient0002", "patient0003", "patient0001"]
    ours, theirs = (camus.frame(name, "2CH", "ED") for name in ("patient0002", "testing_patient0002"))
    assert (ours.image == picture(2)[0]).all() and (theirs.image == picture(4)[0]).all()
    (root / "testing" / "patient0002" / "patient0002_4CH_ES.mhd").unlink()
    with pytest.raises(
        CamusError, match="testing/patient0002/patient0002_4CH_ES.mhd: testing_patient0002: file is missing"
    ):
        open_camus(root).frame("testing_patient0002", "4CH", "ES")


@pytest.mark.parametrize("listed", [("patient0004",), ("patient0004", "patient0001")])
def test_patients_in_no_list_are_told(tmp_path, listed):
    root = make_camus(tmp_path, "nifti")
    (root / "database_split" / "subgroup_training.txt").write_text("\n".join(listed))
    told = ["1 of 4 patients are in no split, patient0001 for one"] if len(listed) == 1 else []
    assert open_camus(root).notes == told


@pytest.mark.parametrize("count", [1, 3, 9, 30, 50])
def test_a_small_2019_release_says_its_split_rule(tmp_path, count):
    make_patients(tmp_path / "training", range(1, 2), "metaimage", views=("2CH",))
    for number in range(2, count + 1):
        (tmp_path / "training" / f"patient{number:04d}").mkdir()
    camus = open_camus(tmp_path)
    validation = {1: 0, 3: 1, 9: 1, 30: 4, 50: 6}[count]
    assert len(camus.patients("validation")) == validation
    assert len(camus.patients("training")) == count - validation
    assert f"{count} training patients: the first {validation} are the validation split" in camus.notes[0]


@pytest.mark.parametrize(
    "content", ["patient0004\npatient0001\npatient0004\n", "patient0004 patient0004\r\npatient0001"]
)
def test_a_patient_twice_in_one_list(tmp_path, content):
    root = make_camus(tmp_path, "nifti")
    (root / "database_split" / "subgroup_training.txt").write_text(content)
    with pytest.raises(CamusError, match="patient0004: listed twice in subgroup_training.txt"):
        open_camus(root)
    assert open_camus(root, "report").patients("training") == ["patient0004", "patient0001"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize(
    "text", ["patient0004\r\npatient0001\r\n", "# two\npatient0004,\t\n\n'patient0001'", "patient0004; patient0001\r"]
)
def test_lists_of_any_editor(tmp_path, encoding, text):
    root = make_camus(tmp_path, "nifti")
    (root / "database_split" / "subgroup_training.txt").write_bytes(text.encode(encoding))
    assert open_camus(root).patients("training") == ["patient0004", "patient0001"]


@pytest.mark.parametrize("name", ["Info_2CH.cfg", "patient0001_2CH_ED.nii.gz", "patient0001_4CH_ES_gt.nii.gz"])
@pytest.mark.parametrize("what", ["folder", "dangling", "loop"])
def test_something_else_under_the_name_of_a_file(tmp_path, name, what):
    root = make_camus(tmp_path, "nifti")
    path = root / "database_nifti" / "patient0001" / name
    path.unlink()
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if what == "loop" else "nowhere")
    camus = open_camus(root, "skip")
    assert digest_of_splits(camus, *SPLITS)  # the data stage's report comes after it
    assert [patient for patient, _ in camus.skipped] == ["patient0001"] * (not name.endswith(".cfg"))
    if name.endswith(".cfg"):
        assert camus.frame("patient0001", "2CH", "ED").ef == 54
        assert camus.digest()


DOUBLED = ("database_nifti", "database_split", "training", "testing", "database_nifti/patient0002", "", "twice", "mac")


@pytest.mark.parametrize("doubled", DOUBLED)
def test_folders_as_unzip_programs_make_them(tmp_path, doubled):
    release = "metaimage" if doubled in ("training", "testing") else "nifti"
    root = make_camus(tmp_path / "data" / "camus", release)
    digest = open_camus(root).digest()
    if doubled == "mac":
        (root.parent / "__MACOSX" / "database_nifti" / "patient0001").mkdir(parents=True)
    elif doubled == "twice":
        root.rename(tmp_path / "whole")
        (root / "camus").mkdir(parents=True)
        (tmp_path / "whole").rename(root / "camus" / "camus")
    else:
        folder = root / doubled
        folder.rename(tmp_path / "whole")
        folder.mkdir()
        (tmp_path / "whole").rename(folder / folder.name)
    for path in (root, root.parent) if doubled != "twice" else (root,):
        camus = open_camus(path)
        assert camus.patients("testing") == ["patient0003" if release == "nifti" else "patient0004"]
        assert camus.frame("patient0002", "4CH", "ES").ef == 54
        if doubled in ("", "twice", "mac"):
            assert camus.digest() == digest


@pytest.mark.parametrize("kept", ["packed", "plain", "both"])
def test_plain_nifti_beside_or_instead_of_packed(tmp_path, kept):
    root = make_camus(tmp_path, "nifti")
    digest = open_camus(root).digest()
    for path in list(root.rglob("*.nii.gz")):
        if kept != "packed":
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        if kept == "plain":
            path.unlink()
    camus = open_camus(root, on_error="skip")
    assert (camus.release, camus.views, camus.skipped) == ("NIfTI 2023", VIEWS, [])
    np.testing.assert_array_equal(camus.frame("patient0003", "2CH", "ED").image, picture(3)[0])
    assert (camus.digest() == digest) == (kept != "plain")  # what is not read does not count


@pytest.mark.parametrize(
    ("gone", "frames"), [("*2CH*", 8), ("*_ES*", 8), ("patient0001_2CH_*", 14), ("patient0002_4CH_ES*", 15)]
)
def test_only_frames_that_are_there_are_keys(tmp_path, release, gone, frames):
    root = make_camus(tmp_path, release)
    for path in root.glob(f"*/*/{gone}"):
        path.unlink()
    camus = open_camus(root, on_error="skip")
    assert camus.skipped == []
    assert len(camus.keys(camus.patients())) == frames
    notes = [note for note in camus.notes if "lack frames" in note]
    assert len(notes) == gone.startswith("patient")
    if notes:
        missing = "2CH ED, 2CH ES" if "2CH" in gone else "4CH ES"
        assert notes == [f"1 of 4 patients lack frames that others have, {gone[:11]} for one: {missing}"]


# Faults of one frame. Each plants itself in the 2CH ED frame of patient 2; `gt` says which of the two files.


def damaged_array(change, gt=False):
    def plant(folder: Path, release: str) -> str:
        suffix, write, _ = WRITE[release]
        path = folder / f"patient0002_2CH_ED{'_gt' * gt}{suffix}"
        write(path, change(picture(2)[gt].astype(np.float32)))
        return path.name

    return plant


def damaged_bytes(change, gt=False):
    def plant(folder: Path, release: str) -> str:
        path = folder / f"patient0002_2CH_ED{'_gt' * gt}{'.nii.gz' if release == 'nifti' else '.raw'}"
        path.write_bytes(change(path.read_bytes()))
        return path.name

    return plant


def replaced(name: str, content: bytes | None):
    def plant(folder: Path, release: str) -> str:
        path = folder / name.format(suffix=WRITE[release][0])
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        return path.name

    return plant


def with_pixel(value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array[10, 10] = value
        return array

    return change


def folder_instead(folder: Path, release: str) -> str:
    path = folder / f"patient0002_2CH_ED{WRITE[release][0]}"
    path.unlink()
    path.mkdir()
    return path.name


FAULTS = {
    "missing frame": (replaced("patient0002_2CH_ED{suffix}", None), "missing"),
    "missing label": (replaced("patient0002_2CH_ED_gt{suffix}", None), "missing"),
    "truncated frame": (damaged_bytes(lambda b: b[: len(b) // 2]), "cannot be read|truncated"),
    "truncated label": (damaged_bytes(lambda b: b[: len(b) // 2], gt=True), "cannot be read|truncated"),
    "empty file": (damaged_bytes(lambda b: b""), "cannot be read|truncated"),
    "not an image": (replaced("patient0002_2CH_ED{suffix}", b"hello\nworld\n"), "cannot be read|header"),
    "binary garbage": (replaced("patient0002_2CH_ED{suffix}", bytes(range(256)) * 9), "cannot be read|header"),
    "folder": (folder_instead, "missing"),
    "sizes differ": (damaged_array(lambda a: a[:-1], gt=True), r"label is \(39, 24\), its frame \(40, 24\)"),
    "label too high": (damaged_array(with_pixel(4), gt=True), "values from 0.0 to 4.0"),
    "label negative": (damaged_array(with_pixel(-1), gt=True), "values from -1.0"),
    "label fraction": (damaged_array(with_pixel(1.5), gt=True), "whole numbers"),
    "label NaN": (damaged_array(with_pixel(np.nan), gt=True), "values from nan"),
    "label empty": (damaged_array(lambda a: a * 0, gt=True), "nothing is labelled"),
    "image NaN": (damaged_array(with_pixel(np.nan)), "values from nan"),
    "image infinite": (damaged_array(with_pixel(np.inf)), "values from"),
    "image constant": (damaged_array(lambda a: a * 0 + 7), "constant image, 7"),
    "image above 255": (damaged_array(with_pixel(256)), "values from 0.0 to 256.0"),
    "image below 0": (damaged_array(with_pixel(-1)), "values from -1.0"),
    "image fraction": (damaged_array(lambda a: a / 255), "whole numbers"),
    "a volume": (damaged_array(lambda a: np.stack([a, a])), "not one grey image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_file_patient_and_reason(tmp_path, release, fault, capfd):
    root = make_camus(tmp_path, release)
    (folder,) = root.glob("*/patient0002")
    plant, reason = FAULTS[fault]
    name = plant(folder, release)

    with pytest.raises(CamusError, match=reason) as caught:
        open_camus(root).frame("patient0002", "2CH", "ED")
    message = str(caught.value)
    assert str(folder / name) in message
    assert "patient0002: " in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert capfd.readouterr() == ("", "")

    camus = open_camus(root, on_error="skip")
    assert camus.skipped == [("patient0002", message)]
    assert camus.patients() == ["patient0001", "patient0003", "patient0004"]
    assert "patient0002" not in [p for split in SPLITS for p in camus.patients(split)]
    with pytest.raises(CamusError, match="patient0002: no such patient"):
        camus.frame("patient0002", "2CH", "ED")


def test_a_flipped_byte_inside_gzip_is_found(tmp_path):
    """The checksum covers what still unpacks to the right length."""
    root = make_camus(tmp_path, "nifti")
    path = root / "database_nifti/patient0002/patient0002_2CH_ED.nii.gz"
    stored = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    stored[-100] ^= 1
    path.write_bytes(stored)
    with pytest.raises(CamusError, match="patient0002_2CH_ED.nii.gz: patient0002: cannot be read, BadGzipFile"):
        open_camus(root).frame("patient0002", "2CH", "ED")


@pytest.mark.parametrize(
    ("line", "damaged", "reason"),
    [
        ("NDims = 3", "NDims = 93", "NDims 93"),  # SimpleITK overruns its memory with this one
        ("DimSize = 24 40 1", "DimSize = 24 x 1", "cannot be read"),
        (
            "DimSize = 24 40 1",
            "DimSize = 24 400 1",
            "_2CH_ED.raw: patient0002: truncated, 960 bytes for 9600",
        ),
        ("ElementSpacing", "ElementSpaning", "not a MetaImage header"),
        ("2CH_ED.raw", "2CH_EX.raw", "2CH_EX.raw: patient0002: file is missing"),
    ],
)
def test_damaged_metaimage_header(tmp_path, line, damaged, reason, capfd):
    root = make_camus(tmp_path, "metaimage")
    path = root / "training/patient0002/patient0002_2CH_ED.mhd"
    header = path.read_text()
    assert line in header
    path.write_text(header.replace(line, damaged))
    with pytest.raises(CamusError, match=reason):
        open_camus(root).frame("patient0002", "2CH", "ED")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mm", [0.0, -0.3, np.nan, np.inf])
def test_pixels_without_a_size(tmp_path, mm):
    root = make_camus(tmp_path, "nifti")
    path = root / "database_nifti/patient0002/patient0002_2CH_ED.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80:84] = np.float32(mm).tobytes()  # pixdim[1] of the NIfTI header
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(CamusError, match="patient0002_2CH_ED.nii.gz: patient0002: pixel spacing"):
        open_camus(root).frame("patient0002", "2CH", "ED")


@pytest.mark.parametrize(
    "asked", [("patient0009", "2CH", "ED"), ("patient0001", "3CH", "ED"), ("patient0001", "2CH", "MID")]
)
def test_asking_for_what_cannot_be(tmp_path, asked):
    with pytest.raises(CamusError, match=asked[0]):
        open_camus(make_camus(tmp_path, "nifti")).frame(*asked)


def test_skip_of_a_sound_data_set_skips_nothing(tmp_path, release):
    root = make_camus(tmp_path, release)
    camus = open_camus(root, on_error="skip")
    assert camus.skipped == []
    assert camus.patients() == open_camus(root).patients()
    assert camus.digest() == open_camus(root).digest()
    with pytest.raises(ValueError, match="on_error"):
        open_camus(root, on_error="ignore")


# Resizing


def frame_of(image: np.ndarray, label: np.ndarray) -> Frame:
    return Frame("patient0001", "4CH", "ED", image, label, (0.2, 0.5))


def test_resizing_keeps_the_physical_extent():
    frame = frame_of(*picture(0)).resized(30)
    assert frame.image.shape == frame.label.shape == (30, 30)
    assert frame.image.dtype == frame.label.dtype == np.uint8
    assert np.multiply(frame.spacing_mm, 30) == pytest.approx([HEIGHT * 0.2, WIDTH * 0.5])
    assert frame.resized(30) is frame


def test_resizing_does_not_alias():
    # At these odd ratios a new pixel's centre falls on one old pixel: sampled alone, it would be 0 or 255.
    checkerboard = (np.indices((120, 72)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = frame_of(checkerboard, checkerboard // 255).resized(24).image
    assert np.abs(image[2:-2, 2:-2].astype(int) - 127.5).max() < 8


def test_resized_label_is_the_one_under_the_pixel_centre():
    label = np.array([[0, 1, 3], [3, 0, 1], [1, 3, 0]], np.uint8)
    frame = frame_of(label * 80, label)
    np.testing.assert_array_equal(frame.resized(9).label, label.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(frame.resized(9).resized(3).label, label)
    np.testing.assert_array_equal(frame.resized(1).label, [[0]])
    assert set(np.unique(frame.resized(100).label)) == {0, 1, 3}


def test_resizing_does_not_shift_image_against_label():
    label = np.zeros((120, 90), np.uint8)
    label[40:80, 30:70] = 1
    frame = frame_of(label * 200, label).resized(48)
    for where in np.indices((48, 48)):  # half a pixel of shift would be seen
        centre = np.average(where, weights=frame.label)
        assert np.average(where, weights=frame.image) == pytest.approx(centre, abs=0.3)


# Digest


def test_digest_follows_every_file_that_is_read(tmp_path, release):
    root = make_camus(tmp_path, release)
    camus, digests = open_camus(root), {open_camus(root).digest()}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        digests.add(camus.digest())
        path.write_bytes(before)
    assert len(digests) == len(files) + 1
    (root / "notes.txt").write_text("not part of the data")
    assert camus.digest() in digests
    assert len(camus.digest()) == 64


def test_digest_does_not_depend_on_where_the_data_lies(tmp_path, release):
    first, second = (make_camus(tmp_path / name, release) for name in ("first", "second"))
    assert open_camus(first).digest() == open_camus(second).digest()


# The real data set


def lv_area_cm2(frame: Frame) -> float:
    return float(np.sum(frame.label == 1) * np.prod(frame.spacing_mm) / 100)


@pytest.mark.camus
def test_real_camus_is_sound(camus_root):
    camus = open_camus(camus_root, on_error="skip")
    assert camus.skipped == []
    assert camus.views == VIEWS
    splits = [patient for split in SPLITS for patient in camus.patients(split)]
    assert sorted(splits) == camus.patients()
    frame = camus.frame(camus.patients("train")[0], "4CH", "ED")
    assert frame.quality in ("Good", "Medium", "Poor")
    assert 5 < lv_area_cm2(frame) < 100


@pytest.mark.camus
def test_real_releases_agree(native_root):
    old, new = (open_camus(native_root / name) for name in ("release-2019", "release-2023"))
    assert (old.release, new.release) == ("MetaImage 2019", "NIfTI 2023")
    assert (old.views, new.views) == (VIEWS, ("4CH",))
    for patient in sorted({*old.patients()} & {*new.patients()}):
        for phase in PHASES:
            frames = [camus.frame(patient, "4CH", phase) for camus in (old, new)]
            assert lv_area_cm2(frames[0]) == pytest.approx(lv_area_cm2(frames[1]), rel=0.01)
            small = [frame.resized(224) for frame in frames]
            # Measured over six frames: 0.5 to 1.2 grey levels (deviation 49 to 86), labels 99.2 % equal.
            assert np.abs(np.subtract(*(f.image.astype(float) for f in small))).mean() < 2
            assert np.mean(small[0].label == small[1].label) > 0.985
