import numpy as np
import pytest
from scipy import ndimage

from echo import augment
from echo.config import PAPER, AugmentationConfig
from reproduction.datasets.phantom import label_map, virtual_patient

SIZE = 96
STILL = AugmentationConfig(rotation_deg=0, translation=0, scale=(1, 1), shear_deg=0, elastic_displacement=0)


@pytest.fixture(scope="module")
def sources() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [label_map(virtual_patient(rng), view, "ED", SIZE) for view in ("2CH", "4CH") * 6]


def test_no_change_is_the_identity(sources):
    for label in sources:
        assert (augment.augment(label, STILL, np.random.default_rng(0)).label == label).all()


def test_augmented_maps_are_new_plausible_and_reproducible(sources):
    for k, label in enumerate(sources):
        new = augment.augment(label, PAPER.augmentation, np.random.default_rng(k))
        again = augment.augment(label, PAPER.augmentation, np.random.default_rng(k))
        assert (new.label == again.label).all()
        assert (new.label != label).mean() > 0.01
        assert set(np.unique(new.label)) == set(np.unique(label))
        assert all(ndimage.label(new.label == k, np.ones((3, 3)))[1] == 1 for k in (1, 2, 3))


def test_affine_moves_as_it_says():
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[40:56, 40:56] = 1
    shift = AugmentationConfig(**{**vars(STILL), "translation": 0.1})
    rng = np.random.default_rng(3)
    drawn = augment.draw_affine(shift, np.random.default_rng(3))
    moved = augment.augment(label, shift, rng).label
    centre = [axis.mean() for axis in np.nonzero(moved)]
    assert centre == pytest.approx([47.5 + drawn.down * SIZE, 47.5], abs=0.6)
    half = AugmentationConfig(**{**vars(STILL), "scale": (0.8, 0.8)})
    label[32:64, 32:64] = 1
    assert (augment.augment(label, half, rng).label == 1).sum() == pytest.approx(0.64 * 1024, rel=0.1)


def test_an_atrium_that_the_image_cuts_off_is_closed():
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[40:, 30:50] = 3
    label[:, 90:] = 2  # cut off on three sides
    closed = augment.close_cut(label, 16)
    assert (closed[16:-16, 16:-16] == label).all()
    widths = (closed == 3).sum(1)[-16:]
    assert list(widths[:2]) == [20, 20]  # as wide as the cut at first, then a half disc: round, and closed after 10
    assert (np.diff(widths[:10].astype(int)) <= 0).all()
    assert widths[9] <= 10
    assert not widths[10:].any()
    assert (closed == 2)[:, -16:].any()
    # Shrunk, it ends above the image's border, where it went on to it as a column before.
    shrink = AugmentationConfig(**{**vars(STILL), "scale": (0.7, 0.7)})
    label[:, 90:] = 0
    label[20:40, 30:50] = 1
    atrium = augment.augment(label, shrink, np.random.default_rng(0)).label == 3
    assert not atrium[-2:].any()
    centre = (SIZE - 1) / 2
    assert np.nonzero(atrium)[0].max() == pytest.approx(centre + 0.7 * (SIZE + 10 - centre), abs=1.5)


def test_warped_borders_are_not_jagged(sources):
    """A slanted border stays within a pixel of its line."""
    label = (np.indices((SIZE, SIZE))[1] < 48).astype(np.uint8)
    rows, columns = np.indices((SIZE, SIZE)).astype(float)
    leaning = augment.warp(label, np.stack([rows, columns + 0.3 * rows]))
    edge = leaning[:96].sum(1)
    assert np.abs(edge - (48 - 0.3 * np.arange(96))).max() <= 1


def test_folds_are_seen():
    flat = np.zeros((2, 32, 32))
    assert augment.smallest_jacobian(flat) == 1
    fold = flat.copy()
    fold[0, 10:16] = np.linspace(6, -6, 6)[:, None]
    assert augment.smallest_jacobian(fold) < 0
    border = augment.draw_elastic(PAPER.augmentation, 64, np.random.default_rng(0))
    largest = PAPER.augmentation.elastic_displacement * 64
    assert 0 < np.abs(border).max() <= largest
    assert np.abs(border[:, 0]).max() < 0.3 * largest  # the border is held


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda m: np.where(m == 3, 0, m), "LA has 0.00 times its area"),
        (lambda m: np.where((m == 1) & (np.indices(m.shape)[1] % 12 == 0), 0, m), "LV endo is in pieces"),
        (lambda m: np.where((m == 2) & (np.indices(m.shape)[0] > np.nonzero(m == 2)[0].min() + 5), 0, m), "LV myo has"),
        (lambda m: m[::-1], "the atrium is not below the cavity"),
    ],
)
def test_a_damaged_map_is_refused(sources, damage, reason):
    assert augment.anatomy_fault(sources[0], sources[0]) is None
    assert augment.anatomy_fault(damage(sources[0]).astype(np.uint8), sources[0]).startswith(reason)


def test_a_gap_in_the_wall_is_a_leak(sources):
    label = sources[0]
    rows, columns = np.nonzero(label == 1)
    gap = label.copy()
    middle = slice(int(rows.mean()) - 8, int(rows.mean()) + 8)
    left = gap[middle, : int(columns.mean())]
    left[left == 2] = 0
    assert augment.leak(gap) > augment.leak(label) + 0.05
    assert augment.anatomy_fault(gap, label) is not None


def test_a_hopeless_source_is_an_error(sources, monkeypatch):
    monkeypatch.setattr(augment, "TRIES", 3)
    upside_down = np.ascontiguousarray(sources[0][::-1])
    with pytest.raises(ValueError, match="no plausible augmentation in 3 draws: the atrium is not below"):
        augment.augment(upside_down, STILL, np.random.default_rng(0))
