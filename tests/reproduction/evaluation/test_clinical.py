import numpy as np
import pytest

from echo.config import VIEW_PHASES, VIEWS
from reproduction.datasets.anatomy import label_map, virtual_patient
from reproduction.datasets.camus import open_camus
from reproduction.evaluation.clinical import disc_diameters, patient_volumes, volume_ml

SPACING = (0.5, 0.8)  # mm, (row, column)


def half_ellipse(length: float, radius: float, tilt: float = 0.0, shape=(280, 200)) -> np.ndarray:
    """Half an ellipse of that length, apex up, and half width `radius` at its flat base; mm, tilt in degrees."""
    z, x = ((np.arange(n) + 0.5) * mm for n, mm in zip(shape, SPACING, strict=True))
    z, x = z[:, None] - 20, x[None, :] - 80
    sin, cos = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
    u, v = z * cos + x * sin, x * cos - z * sin  # along and across the long axis
    return ((u - length) / length) ** 2 + (v / radius) ** 2 < np.where(u < length, 1, 0)


@pytest.mark.parametrize("tilt", [0, 8, -25])
def test_half_ellipsoid_has_its_volume(tilt):
    cavities = [(half_ellipse(90, radius, tilt), SPACING) for radius in (20, 26)]
    expected = 2 / 3 * np.pi * 90 * 20 * 26 / 1000
    assert volume_ml(cavities) == pytest.approx(expected, rel=0.02)
    assert volume_ml(cavities[:1]) == pytest.approx(2 / 3 * np.pi * 90 * 20**2 / 1000, rel=0.02)  # one view: circles


def test_discs_of_a_rectangle_are_its_width():
    cavity = np.zeros((300, 100), bool)
    cavity[20:220, 30:70] = True  # 100 mm deep, 32 mm wide
    diameters, length = disc_diameters(cavity, SPACING)
    assert length == pytest.approx(100)
    assert diameters == pytest.approx(np.full(20, 32))


def test_the_longer_view_gives_the_length():
    short, long = half_ellipse(80, 22), half_ellipse(90, 22)
    # Discs of each view lie along its own axis, so a_i b_i is the same for both; only L differs.
    expected = 2 / 3 * np.pi * 90 * 22**2 / 1000
    assert volume_ml([(short, SPACING), (long, SPACING)]) == pytest.approx(expected, rel=0.02)


def test_a_missing_cavity_has_no_volume():
    full, empty = (half_ellipse(90, 20), SPACING), (np.zeros((9, 9), bool), SPACING)
    assert np.isnan(volume_ml([full, empty]))
    assert np.isnan(volume_ml([empty]))


def test_ejection_fraction_of_known_volumes():
    # The same length and half the cross-section in each view: a quarter of the volume is left.
    labels = {}
    for view, phase in VIEW_PHASES:
        mask = half_ellipse(90, 28 if phase == "ED" else 14)
        labels[view, phase] = np.where(mask, 1, 3).astype(np.uint8), SPACING
    found = patient_volumes(labels)
    assert found["ef"] == pytest.approx(75, abs=0.5)
    assert found["edv_ml"] == pytest.approx(2 / 3 * np.pi * 90 * 28**2 / 1000, rel=0.02)
    assert found["esv_ml"] == pytest.approx(found["edv_ml"] / 4, rel=0.02)


def test_the_phantoms_labels_hold_its_volumes():
    for seed in range(8):
        patient = virtual_patient(np.random.default_rng(seed))
        spacing = patient.spacing_mm(256)
        labels = {(view, phase): (label_map(patient, view, phase, 256), spacing) for view, phase in VIEW_PHASES}
        assert {view for view, _phase in labels} == set(VIEWS)
        found = patient_volumes(labels)
        assert found["edv_ml"] == pytest.approx(patient.edv_ml, rel=0.02)
        assert found["esv_ml"] == pytest.approx(patient.esv_ml, rel=0.02)
        assert found["ef"] == pytest.approx(patient.ef, abs=1)


def test_volumes_of_different_views_give_no_ejection_fraction():
    patient = virtual_patient(np.random.default_rng(0))
    spacing = patient.spacing_mm(96)
    labels = {(view, phase): (label_map(patient, view, phase, 96), spacing) for view, phase in VIEW_PHASES}
    one_view = patient_volumes({key: labels[key] for key in (("4CH", "ED"), ("4CH", "ES"))})
    assert 20 < one_view["ef"] < 80
    mixed = patient_volumes({key: labels[key] for key in (("2CH", "ED"), ("4CH", "ES"))})
    assert mixed["edv_ml"] > mixed["esv_ml"] > 0
    assert np.isnan(mixed["ef"])
    assert np.isnan(patient_volumes({("4CH", "ED"): labels["4CH", "ED"]})["ef"])


@pytest.mark.camus
def test_volumes_are_those_of_the_2019_release(native_root):
    """Its Info files hold the volumes and the EF that the dataset's authors computed from the same labels."""
    camus = open_camus(native_root / "release-2019")
    patients = camus.patients()
    assert patients
    for patient in patients:
        frames = {key: camus.frame(patient, *key) for key in VIEW_PHASES}
        ours = patient_volumes({key: (f.label, f.spacing_mm) for key, f in frames.items()})
        info = native_root / "release-2019" / "training" / patient / "Info_4CH.cfg"
        theirs = dict(line.split(": ") for line in info.read_text().splitlines())
        assert ours["edv_ml"] == pytest.approx(float(theirs["LVedv"]), rel=0.03)
        assert ours["esv_ml"] == pytest.approx(float(theirs["LVesv"]), rel=0.03)
        assert ours["ef"] == pytest.approx(float(theirs["LVef"]), abs=1)
