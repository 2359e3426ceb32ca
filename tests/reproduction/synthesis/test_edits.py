import numpy as np
import pytest
from scipy import ndimage

from echo.augment import leak
from echo.labels import sector_of, to_camus
from reproduction.datasets.phantom import label_map, virtual_patient
from reproduction.evaluation.shape import shape_statistics
from reproduction.synthesis.edits import EDITS, RANGES, edited

SIZE = 96


@pytest.fixture(scope="module")
def sources() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [label_map(virtual_patient(rng), view, "ED", SIZE) for view in ("2CH", "4CH") * 3]


def change(label: np.ndarray, edited: np.ndarray) -> dict[str, float]:
    """Each measure of the edited map, relative to the original's."""
    before, after = shape_statistics(label), shape_statistics(edited)
    return {name: after[name] / before[name] for name in before}


def pieces(label: np.ndarray, k: int) -> int:
    return ndimage.label(label == k, np.ones((3, 3)))[1]


@pytest.mark.parametrize("name", EDITS)
def test_strength_0_changes_nothing_and_more_changes_more(sources, name):
    for label in sources:
        original = label.copy()
        assert (EDITS[name](label, 0) == label).all()
        high = RANGES[name][1]
        little, much = ((EDITS[name](label, share * high) != label).sum() for share in (0.3, 0.9))
        assert 0 < little < much
        default = EDITS[name](label)
        assert (default != label).any()
        assert default.dtype == np.uint8
        assert (label == original).all()  # the argument is left alone


@pytest.mark.parametrize("name", EDITS)
def test_bad_input_is_named(sources, name):
    low, high = RANGES[name]
    with pytest.raises(ValueError, match=f"{name}: strength {2 * high:g} is not in {low:g} to {high:g}"):
        EDITS[name](sources[0], 2 * high)
    with pytest.raises(ValueError, match=f"{name}: the label map has no LV cavity"):
        EDITS[name](np.zeros((SIZE, SIZE), np.uint8))


def axis(label: np.ndarray) -> complex:
    """From the cavity's centre to its apex."""
    rows, columns = np.nonzero(label == 1)
    apex = rows.argmin()
    return (columns[apex] - columns.mean()) + 1j * (rows[apex] - rows.mean())


def test_swirl_turns_the_middle_and_leaves_the_rim():
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[28:68, 44:52] = 1  # a bar through the middle
    label[:4] = 3
    turned = EDITS["swirl"](label, 90)
    assert (turned[:4] == label[:4]).all()
    core = turned[42:54, 42:54] == 1  # the bar lies flat there
    rows, columns = np.nonzero(core)
    assert columns.std() > 1.3 * rows.std()
    assert (turned == 1).sum() == pytest.approx((label == 1).sum(), rel=0.1)
    back = EDITS["swirl"](turned, -90)
    assert ((back == 1) & (label == 1)).sum() > 0.9 * (label == 1).sum()


def test_shear_leans_the_axis_to_the_right_and_keeps_areas(sources):
    for label in sources:
        leaning = EDITS["shear"](label, 20)
        before, after = axis(label), axis(leaning)
        slope = after.real / -after.imag - before.real / -before.imag
        assert slope == pytest.approx(np.tan(np.deg2rad(20)), abs=0.08)
        assert [change(label, leaning)[f"{k} area"] for k in ("LV endo", "LV myo")] == pytest.approx([1, 1], abs=0.03)


def test_gap_opens_the_cavity_to_the_left_and_nothing_else_changes(sources):
    for label in sources:
        gap = EDITS["septal_gap"](label, 0.2)
        changed = gap != label
        assert set(label[changed]) == {2}
        assert set(gap[changed]) == {0}
        assert leak(gap) > leak(label) + 0.05
        length = np.ptp(np.nonzero(label == 1)[0]) + 1
        rows, columns = np.nonzero(changed)
        assert np.ptp(rows) + 1 == pytest.approx(0.2 * length, rel=0.6)
        assert columns.max() < np.nonzero(label == 1)[1].mean()
        assert pieces(gap, 2) == 2


def test_atrium_goes_from_its_roof(sources):
    for label in sources:
        assert not (EDITS["remove_atrium"](label) == 3).any()
        half = EDITS["remove_atrium"](label, 0.5)
        assert change(label, half)["LA area"] == pytest.approx(0.5, abs=0.01)
        assert np.nonzero(half == 3)[0].max() < np.nonzero(label == 3)[0].max()
        assert (half == 3)[np.nonzero(label == 3)[0].min()].any()
        assert ((half == label) | (label == 3)).all()


def test_dilated_lv_is_larger_and_rounder_in_a_wall_as_thick(sources):
    for label in sources:
        edited = EDITS["dilate_lv"](label, 0.4)
        relative = change(label, edited)
        assert relative["LV endo area"] == pytest.approx(1.4, abs=0.02)
        assert relative["wall thickness"] == pytest.approx(1, abs=0.06)
        assert relative["eccentricity"] < 1
        assert ((edited == 3) == (label == 3)).mean() > 0.995
        assert leak(edited) <= leak(label) + 0.02
        assert [pieces(edited, k) for k in (1, 2, 3)] == [1, 1, 1]


def test_hypertrophy_takes_from_the_cavity_alone(sources):
    for label in sources:
        edited = EDITS["thicken_wall"](label, 0.4)
        relative = change(label, edited)
        assert 1.2 < relative["wall thickness"] < 1.45
        assert relative["LV endo area"] < 0.9
        changed = edited != label
        assert set(label[changed]) == {1}
        assert set(edited[changed]) == {2}
        assert pieces(edited, 1) == 1
        assert leak(edited) <= leak(label) + 0.02


def test_a_narrow_cavity_stays_one():
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[10:70, 30:66] = 2
    label[20:70, 42:54] = 1
    label[40:46, 42:54] = 2
    label[40:46, 46:50] = 1  # a waist
    label[70:90, 44:52] = 3
    edited = EDITS["thicken_wall"](label, 0.6)
    assert pieces(edited, 1) == 1
    assert (edited == 1).sum() > 50


def test_enlarged_atrium_leaves_the_ventricle(sources):
    for label in sources:
        edited = EDITS["enlarge_atrium"](label, 0.5)
        assert change(label, edited)["LA area"] == pytest.approx(1.5, abs=0.06)
        assert (edited[label > 0] == label[label > 0]).all()
        assert pieces(edited, 3) == 1


def test_enlarged_atrium_stops_at_a_long_wall():
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[10:70, 24:72] = 2
    label[20:55, 34:62] = 1
    label[55:70, 38:58] = 0  # the wall goes on on both sides of the atrium
    label[55:80, 40:56] = 3
    edited = EDITS["enlarge_atrium"](label, 1)
    assert ((edited == 2) == (label == 2)).all()
    assert (edited == 3).sum() > (label == 3).sum()


def test_growth_without_room_is_an_error():
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[10:92, 20:76], label[20:92, 30:66] = 2, 1
    label[92:] = 3
    with pytest.raises(ValueError, match="the LA has no room to grow by 1 of its area"):
        EDITS["enlarge_atrium"](label, 1)


def test_edits_are_combined_and_the_sector_stays(frames):
    real = frames["training"]
    label, sdm_label = real.labels[0], real.sdm_labels[0]
    assert (edited(label, sdm_label, {}) == sdm_label).all()
    assert (edited(label, sdm_label, {"shear": 0.0}) == sdm_label).all()
    wide = edited(label, sdm_label, {"shear": 10.0, "dilate_lv": 0.3})
    assert (to_camus(wide) == EDITS["shear"](EDITS["dilate_lv"](label, 0.3), 10.0)).all()
    both = edited(label, sdm_label, {"remove_atrium": 1.0, "shear": 10.0})
    assert (to_camus(both) == EDITS["shear"](EDITS["remove_atrium"](label), 10.0)).all()
    background = (label == 0) & (to_camus(both) == 0)
    assert (both[background] == sdm_label[background]).all()
    assert (both[(label == 3) & (to_camus(both) == 0) & sector_of(sdm_label)] == 2).all()  # tissue where it was
