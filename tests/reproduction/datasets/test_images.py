"""Geometry: whatever axes a header states, the array comes out (H, W) with row 0 at the probe."""

import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import REPOSITORY

from reproduction.datasets.camus import open_camus
from reproduction.datasets.errors import DataError
from reproduction.datasets.images import read_still

ROW_MM, COLUMN_MM = 0.5, 0.25
AFFINE = np.diag([-COLUMN_MM, -ROW_MM, 1, 1])
PICTURE = np.random.default_rng(0).integers(0, 4, (40, 24), dtype=np.uint8)


def camus_like(array=PICTURE, affine=AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.ascontiguousarray(array.T)[..., None], affine)


def reoriented(codes: str):
    def change(image):
        start, end = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        return image.as_reoriented(nib.orientations.ornt_transform(start, end))

    return change


def qform_only(image):
    image = nib.as_closest_canonical(image)
    changed = nib.Nifti1Image(np.asarray(image.dataobj), None)
    changed.set_qform(image.affine, code=1)
    changed.set_sform(None, code=0)
    return changed


def in_unit(unit: str, factor: float):
    def change(image):
        affine = np.diag([factor] * 3 + [1]) @ image.affine
        changed = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        changed.header.set_xyzt_units(unit)
        return changed

    return change


def nothing_stated(image):
    changed = nib.Nifti1Image(np.asarray(image.dataobj), None)
    changed.header.set_zooms((COLUMN_MM, ROW_MM, 1))
    return changed


SAME = {
    "CAMUS's own": lambda image: image,
    "canonical": nib.as_closest_canonical,
    "stored (H, W)": reoriented("PLS"),
    "flipped across": reoriented("RPS"),
    "flipped down": reoriented("LAS"),
    "swapped and flipped": reoriented("ARI"),
    "slice axis first": reoriented("SLP"),
    "qform alone": qform_only,
    "no statement": nothing_stated,
    "NIfTI-2": lambda image: nib.Nifti2Image(np.asarray(image.dataobj), image.affine),
    "NIfTI-2, canonical": lambda image: nib.Nifti2Image.from_image(nib.as_closest_canonical(image)),
    "micron": in_unit("micron", 1000),
    "metre": in_unit("meter", 0.001),
    "mm": in_unit("mm", 1),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_axes_directions_and_units_are_read(tmp_path, name, suffix):
    path = tmp_path / f"frame{suffix}"
    nib.save(SAME[name](camus_like()), path)
    still = read_still(path, "patient0001", 3)
    np.testing.assert_array_equal(still.pixels, PICTURE)
    assert still.spacing_mm == pytest.approx((ROW_MM, COLUMN_MM), rel=1e-5)


def rotated(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def contradicting(image):
    qform = np.diag([COLUMN_MM, -ROW_MM, -1, 1])
    qform[0, 3] = 5
    image.set_qform(qform, code=1)
    return image


def other_pixel_size(image):
    image.header.set_zooms((1.0, 1.0, 1.0))
    return image


REFUSED = {
    "at an angle": (lambda image: camus_like(affine=rotated(30)), "at an angle"),
    "sform against qform": (contradicting, "sform and its qform"),
    "affine against pixel size": (other_pixel_size, "its affine says pixels of"),
    "another plane": (lambda image: camus_like(affine=AFFINE[[0, 2, 1, 3]]), "in the xz plane"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_cannot_be_followed_is_refused(tmp_path, name):
    change, reason = REFUSED[name]
    nib.save(change(camus_like()), tmp_path / "frame.nii.gz")
    with pytest.raises(DataError, match=reason):
        read_still(tmp_path / "frame.nii.gz", "patient0001", 3)


@pytest.mark.parametrize(
    "direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 1, 0, 1, 0, 0, 0, 0, 1)]
)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_metaimage_directions(tmp_path, direction, compressed, dtype):
    flipped, swapped = direction[0] == -1, direction[0] == 0
    array = PICTURE.T if swapped else PICTURE[::-1, ::-1] if flipped else PICTURE
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype)[None])
    image.SetSpacing((ROW_MM, COLUMN_MM, 1.0) if swapped else (COLUMN_MM, ROW_MM, 1.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(tmp_path / "frame.mhd"), compressed)
    still = read_still(tmp_path / "frame.mhd", "patient0001", 3)
    np.testing.assert_array_equal(still.pixels, PICTURE)
    assert still.spacing_mm == pytest.approx((ROW_MM, COLUMN_MM))


@pytest.mark.parametrize("change", [lambda a: a + 1e-5, lambda a: a * 0.999, lambda a: a - 1e-6])
def test_whole_numbers_up_to_rounding_are_whole(tmp_path, change):
    nib.save(camus_like(change(PICTURE.astype(np.float64))), tmp_path / "frame.nii.gz")
    np.testing.assert_array_equal(read_still(tmp_path / "frame.nii.gz", "patient0001", 3).pixels, PICTURE)


@pytest.mark.parametrize("stored", [np.int8, np.uint8, np.int16])
def test_labels_with_a_scale_factor_are_whole(tmp_path, stored):
    image = camus_like(PICTURE.astype(np.float64))
    image.header.set_data_dtype(stored)
    nib.save(image, tmp_path / "frame.nii.gz")
    np.testing.assert_array_equal(read_still(tmp_path / "frame.nii.gz", "patient0001", 3).pixels, PICTURE)


def test_the_readme_writes_a_correct_frame(tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "data" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet, names)
    frame = open_camus(tmp_path / "mydata").frame("patient0001", "4CH", "ED")
    np.testing.assert_array_equal(frame.image, names["image"])
    np.testing.assert_array_equal(frame.label, names["label"])
    assert frame.spacing_mm == pytest.approx((0.5, 0.4))


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([-0.8, -0.5, 1, 1]), "label has pixels of 0.5 x 0.8 mm"),
        (np.diag([0.4, 0.5, 1, 1]), "its header places it"),
        (np.diag([-0.4, 0.5, 1, 1]), "its header places it"),
        (np.diag([-0.4, -0.5, 1, 1]), None),
    ],
)
def test_a_label_whose_header_disagrees_is_refused(tmp_path, monkeypatch, affine, reason):
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "data" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    path = tmp_path / "mydata/database_nifti/patient0001/patient0001_4CH_ED_gt.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine), path)
    camus = open_camus(tmp_path / "mydata")
    if reason is None:
        camus.frame("patient0001", "4CH", "ED")
        return
    with pytest.raises(DataError, match=reason):
        camus.frame("patient0001", "4CH", "ED")


@pytest.mark.parametrize("axes", ["RAS", "RPS", "PLS"])
@pytest.mark.parametrize("silent", ["", "_gt"])
def test_one_header_that_turns_beside_one_that_is_silent_is_refused(tmp_path, monkeypatch, axes, silent):
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "data" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    folder = tmp_path / "mydata/database_nifti/patient0001"
    paths = {tail: folder / f"patient0001_4CH_ED{tail}.nii.gz" for tail in ("", "_gt")}
    images = {tail: nib.load(path) for tail, path in paths.items()}
    images = {tail: nib.Nifti1Image(np.asarray(i.dataobj)[..., None], i.affine) for tail, i in images.items()}
    spoken = "_gt" if silent == "" else ""
    mute = nib.Nifti1Image(np.asarray(images[silent].dataobj), None)
    mute.header.set_zooms(images[silent].header.get_zooms())
    nib.save(mute, paths[silent])
    open_camus(tmp_path / "mydata").frame("patient0001", "4CH", "ED")  # as CAMUS's own files are: nothing to turn
    nib.save(reoriented(axes)(images[spoken]), paths[spoken])
    with pytest.raises(DataError, match="patient0001_4CH_ED_gt.nii.gz: patient0001: .* do they lie the same way"):
        open_camus(tmp_path / "mydata").frame("patient0001", "4CH", "ED")
