"""The phantom: the anatomy is one beating heart, the image an ultrasound image of it, the files CAMUS's."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.ndimage import label as components

from echo.config import PHASES, VIEWS
from reproduction.datasets import layout
from reproduction.datasets.phantom import label_map, render, virtual_patient, write_phantom

FRAMES = [(view, phase) for view in VIEWS for phase in PHASES]
COUNTS = {"training": 2, "validation": 1, "testing": 1}


@pytest.fixture(scope="module")
def patients():
    return [virtual_patient(np.random.default_rng(seed)) for seed in range(40)]


@pytest.fixture(scope="module")
def rendered(patients):
    """(patient, view, phase, label, image) of all four frames of the patients, at 128 x 128."""
    return [
        (
            p,
            view,
            phase,
            label_map(p, view, phase, 128),
            render(p, view, phase, 128, np.random.default_rng([k, i])),
        )
        for k, p in enumerate(patients)
        for i, (view, phase) in enumerate(FRAMES)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom"), COUNTS, seed=3, size=64, progress=False)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def read_cfg(path: Path) -> dict[str, str]:
    return dict(line.split(": ") for line in path.read_text().splitlines())


def discs(label: np.ndarray, spacing: tuple[float, float], n: int = 20) -> tuple[float, np.ndarray]:
    """Long axis (mm) from the valve plane's middle to the farthest cavity pixel, and n discs' widths (mm)."""
    points = np.argwhere(label == 1) * spacing
    touching = (label == 1) & binary_dilation(label == 3)
    middle = (np.argwhere(touching) * spacing).mean(0)
    apex = points[np.argmax(np.linalg.norm(points - middle, axis=1))]
    length = np.linalg.norm(middle - apex)
    along = np.clip((points - apex) @ (middle - apex) / length**2, 0, 1 - 1e-9)
    area = np.bincount((along * n).astype(int), minlength=n) * spacing[0] * spacing[1]
    return length, area / (length / n)


def biplane_ml(patient, phase: str, size: int = 128) -> float:
    spacing = patient.spacing_mm(size)
    lengths, widths = zip(*(discs(label_map(patient, view, phase, size), spacing) for view in VIEWS), strict=True)
    return np.pi / 4 * max(lengths) / 20 * (widths[0] * widths[1]).sum() / 1000


def test_ejection_fraction_and_volumes_span_the_clinical_range(patients):
    ef = np.array([p.ef for p in patients])
    assert (ef >= 20).all() and (ef <= 75).all() and np.ptp(ef) > 35
    assert all(60 <= p.edv_ml <= 220 and p.esv_ml < p.edv_ml for p in patients)


def test_true_volumes_agree_with_discs_on_the_label_maps(patients):
    for p in patients[:20]:
        edv, esv = biplane_ml(p, "ED"), biplane_ml(p, "ES")
        assert edv == pytest.approx(p.edv_ml, rel=0.10)
        assert 100 * (1 - esv / edv) == pytest.approx(p.ef, abs=4)


def test_each_structure_is_one_component_and_the_wall_surrounds_the_cavity(rendered):
    for _, _, _, label, _ in rendered:
        assert set(np.unique(label)) == {0, 1, 2, 3}
        assert all(components(label == k)[1] == 1 for k in (1, 2, 3))
        rows = np.nonzero(label == 1)[0]
        open_to = binary_dilation(label == 1) & (label == 0)  # background may touch the cavity at the valve plane only
        assert not open_to[: int(np.percentile(rows, 85))].any()
        assert np.nonzero(label == 3)[0].mean() > rows.max() - 2


def test_the_heart_beats(rendered):
    area = {(id(p), v, f): np.bincount(label.ravel(), minlength=4) for p, v, f, label, _ in rendered}
    for patient, view in {key[:2] for key in area}:
        ed, es = area[patient, view, "ED"], area[patient, view, "ES"]
        assert es[1] < ed[1] and es[3] > ed[3]
        assert es[2] == pytest.approx(ed[2], rel=0.25)


def test_image_is_dark_outside_the_sector_and_blood_is_darker_than_muscle(rendered):
    for p, _, _, label, image in rendered:
        rows, columns = np.indices(image.shape) + 0.5
        half = np.radians(p.sector_deg / 2)
        z, x = rows / 128, (columns / 64 - 1) * np.sin(half)
        inside = (np.hypot(x, z) < 1) & (np.abs(np.arctan2(x, z)) < half)
        assert (image[~inside] == 0).all() and (image[inside] > 0).all()
        assert image[(label == 1) & inside].mean() < image[(label == 2) & inside].mean()


def test_both_walls_stand_out_from_the_blood_in_both_views(rendered):
    contrast = {(view, side): [] for view in VIEWS for side in ("septal", "lateral")}
    for _, view, _, label, image in rendered:
        right = np.indices(label.shape)[1] > np.nonzero(label == 1)[1].mean()
        for side, half in (("septal", ~right), ("lateral", right)):
            wall = image[(label == 2) & half & (image > 0)].mean()
            contrast[view, side].append(wall - image[(label == 1) & (image > 0)].mean())
    assert all(np.mean(values) > 20 for values in contrast.values())


def test_speckle_widens_with_depth(patients):
    def correlation(band):  # of horizontal neighbours, once the slow brightness is taken away
        band = band - gaussian_filter(band, 8)
        return (band[:, 3:] * band[:, :-3]).mean() / band.var()

    near, far = [], []
    for k, p in enumerate(patients[:10]):
        image = render(p, "2CH", "ED", 256, np.random.default_rng(k)).astype(float)
        near.append(correlation(image[70:110, 108:148]))
        far.append(correlation(image[200:240, 108:148]))
    assert np.mean(far) > np.mean(near) + 0.1


def test_poor_windows_have_less_contrast(rendered):
    def contrast(quality):
        return np.mean([i[g == 2].mean() - i[g == 1].mean() for p, _, _, g, i in rendered if p.quality == quality])

    assert contrast("Poor") < contrast("Good") - 5


def test_layout_is_camus(dataset):
    names = [f"patient{k:04d}" for k in (1, 2, 3, 4)]
    kinds = [f"{v}_{f}{kind}.nii.gz" for v, f in FRAMES for kind in ("", "_gt")]
    expected = {f"database_nifti/{n}/{n}_{kind}" for n in names for kind in kinds}
    expected |= {f"database_nifti/{n}/Info_{v}.cfg" for n in names for v in VIEWS}
    expected |= {f"database_split/subgroup_{split}.txt" for split in COUNTS} | {"phantom.json"}
    assert set(contents(dataset)) == expected
    assert (dataset / "database_split/subgroup_training.txt").read_text().split() == names[:2]
    assert (dataset / "database_split/subgroup_testing.txt").read_text().split() == names[3:]
    assert json.loads((dataset / "phantom.json").read_text())["patients"] == COUNTS


def test_files_hold_the_patient(dataset):
    seeds = np.random.SeedSequence([3, 2]).spawn(5)
    patient = virtual_patient(np.random.default_rng(seeds[0]))
    folder = dataset / "database_nifti/patient0002"
    label = nib.load(folder / "patient0002_4CH_ES_gt.nii.gz")
    image = nib.load(folder / "patient0002_4CH_ES.nii.gz")
    assert image.get_data_dtype() == label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(label.dataobj).T, label_map(patient, "4CH", "ES", 64))
    expected = render(patient, "4CH", "ES", 64, np.random.default_rng(seeds[4]))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, expected)
    row_mm, column_mm = patient.spacing_mm(64)
    np.testing.assert_allclose(image.affine, np.diag([-column_mm, -row_mm, 1, 1]), rtol=1e-6)
    info = read_cfg(folder / "Info_4CH.cfg")
    keys = ["ED", "ES", "NbFrame", "Sex", "Age", "ImageQuality", "EF", "FrameRate", "LVedv", "LVesv"]
    assert list(info) == keys
    assert info["ED"] == "1" and info["ES"] == info["NbFrame"] and info["ImageQuality"] == patient.quality
    assert float(info["EF"]) == pytest.approx(100 * (1 - float(info["LVesv"]) / float(info["LVedv"])), abs=1)
    assert info == read_cfg(folder / "Info_2CH.cfg")


def test_same_seed_same_bytes_and_a_killed_run_resumes(dataset, tmp_path, monkeypatch):
    written = 0
    original = layout.write_bytes

    def killed(path, data):
        nonlocal written
        written += 1
        if written > 15:
            raise KeyboardInterrupt
        original(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layout, "write_bytes", killed)
        write_phantom(tmp_path, COUNTS, seed=3, size=64, progress=False)
    assert not (tmp_path / "phantom.json").exists()
    with pytest.raises(ValueError, match="another phantom"):
        write_phantom(tmp_path, COUNTS, seed=4, size=64, progress=False)
    write_phantom(tmp_path, COUNTS, seed=3, size=64, progress=False)
    assert contents(tmp_path) == contents(dataset)
    file = tmp_path / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    assert file.read_bytes() == gzip.compress(gzip.decompress(file.read_bytes()), mtime=0)


def test_a_patient_does_not_depend_on_how_many_there_are(dataset, tmp_path):
    write_phantom(tmp_path, {"testing": 1}, seed=3, size=64, progress=False)
    folder = "database_nifti/patient0001"
    assert contents(tmp_path / folder) == contents(dataset / folder)


def test_a_finished_phantom_is_left_alone_and_a_different_one_refused(dataset, monkeypatch):
    monkeypatch.setattr(layout, "write_bytes", lambda *_: pytest.fail("wrote to a finished phantom"))
    assert write_phantom(dataset, COUNTS, seed=3, size=64, progress=False) == dataset
    with pytest.raises(ValueError, match="another phantom"):
        write_phantom(dataset, COUNTS, seed=3, size=128, progress=False)


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown split"):
        write_phantom(tmp_path, {"train": 1}, seed=0)
    with pytest.raises(ValueError, match="negative"):
        write_phantom(tmp_path, {"training": -1}, seed=0)
