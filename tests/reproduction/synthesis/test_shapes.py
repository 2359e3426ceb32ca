import numpy as np
import pytest

from echo import augment
from echo.dice import frame_dice
from reproduction.datasets.phantom import label_map, virtual_patient
from reproduction.synthesis import shapes

SIZE = 64


def heart(axes: complex = 18 + 26j, tilt: float = 0.0, centre: complex = 64 + 50j, size: int = 128) -> np.ndarray:
    """An elliptic ventricle of those half axes (pixels), cut by its mitral plane, on an elliptic atrium."""
    rows, columns = np.indices((size, size))
    turned = (columns + 1j * rows - centre) * np.exp(-1j * np.deg2rad(tilt))
    x, y = turned.real, turned.imag
    label = np.zeros((size, size), np.uint8)
    label[np.hypot(x / 14, (y - 32) / 18) < 1] = 3
    label[(np.hypot(x / (axes.real + 7), y / (axes.imag + 7)) < 1) & (y < 18)] = 2
    label[(np.hypot(x / axes.real, y / axes.imag) < 1) & (y < 18)] = 1
    return label


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([label_map(virtual_patient(rng), "4CH", "ED", SIZE) for _ in range(24)])


@pytest.fixture(scope="module")
def model(labels) -> shapes.ShapeModel:
    return shapes.fit_shapes(labels)


def test_landmarks_draw_their_map_again_at_any_size(labels):
    drawn = np.stack([shapes.draw(shapes.landmarks(label), SIZE) for label in labels])
    assert frame_dice(drawn, labels).to_numpy().min() > 0.95
    rng = np.random.default_rng(0)
    patients = [virtual_patient(rng) for _ in range(3)]
    large = np.stack([label_map(patient, "4CH", "ED", 2 * SIZE) for patient in patients])
    again = np.stack([shapes.draw(shapes.landmarks(label), 2 * SIZE) for label in labels[:3]])
    assert frame_dice(again, large).to_numpy().min() > 0.93


def test_landmarks_correspond():
    upright, leaning = (shapes.landmarks(heart(tilt=tilt)) for tilt in (0, 15))
    turn = np.exp(1j * np.deg2rad(15))
    centre = (64.5 + 50.5j) / 128
    assert np.abs((upright - centre) * turn + centre - leaning).max() < 0.015  # two pixels
    apex = upright[shapes.POINTS - 1]
    assert apex * 128 == pytest.approx(64.5 + 24.5j, abs=1.5)
    left, right = upright[0], upright[shapes.ARC - 1]
    assert left.real < right.real
    assert [left.imag * 128, right.imag * 128] == pytest.approx([68, 68], abs=1.5)


def test_mitral_plane_is_where_the_wall_is_not():
    label = heart()
    plane = shapes.mitral_plane(label)
    assert plane.imag == pytest.approx(67.5, abs=1)
    assert plane.real.max() - plane.real.min() == pytest.approx((label[67] == 1).sum(), abs=2)
    gap = label.copy()
    gap[45:51, :64][gap[45:51, :64] == 2] = 0
    assert shapes.mitral_plane(gap).imag == pytest.approx(67.5, abs=1)  # and not the gap
    with pytest.raises(ValueError, match="without cavity or wall"):
        shapes.mitral_plane(np.where(label == 2, 0, label))
    closed = np.where(label == 1, np.uint8(1), np.uint8(2))
    with pytest.raises(ValueError, match="wall all round"):
        shapes.mitral_plane(closed)


def test_model_finds_the_one_thing_that_varies():
    hearts = np.stack([heart(width + 26j) for width in np.linspace(13, 23, 9)])
    model = shapes.fit_shapes(hearts)
    assert model.explained[0] > 0.9
    assert model.left_out == 0
    coefficients = []
    for label in hearts:
        points = shapes.landmarks(label)
        shape = points - points.mean()
        shape = shape / np.linalg.norm(shape)
        shape *= np.exp(1j * np.angle(np.vdot(shape, model.mean)))
        coefficients.append(np.vdot(model.components[0], shape - model.mean).real)
    steps = np.diff(coefficients)
    assert (steps > 0).all() or (steps < 0).all()
    assert np.std(coefficients, ddof=1) == pytest.approx(model.sd[0], rel=0.01)


def test_a_place_is_where_the_heart_lies_as_tilted_and_as_large():
    hearts = np.stack(
        [heart(tilt=tilt, centre=64 + shift + 50j) for tilt, shift in ((-20, 0), (0, -20), (0, 0), (20, 20))]
    )
    model = shapes.fit_shapes(hearts)
    again = np.stack([shapes.draw(model.mean * model.scales[k] + model.centres[k], 128) for k in range(4)])
    assert frame_dice(again, hearts).to_numpy().min() > 0.9


def test_components_are_orthonormal_and_explain_what_was_asked(labels, model):
    vectors = np.hstack([model.components.real, model.components.imag])
    assert vectors @ vectors.T == pytest.approx(np.eye(len(vectors)), abs=1e-9)
    assert 0.98 <= model.explained.sum() <= 1
    assert model.explained[:-1].sum() < 0.98
    assert (np.diff(model.sd) <= 0).all()
    for k in (0, 7):  # a place gives the mean shape back where the heart lies
        there = shapes.draw(model.mean * model.scales[k] + model.centres[k], SIZE)
        assert frame_dice(there[None], labels[[k]])["LV epi"].item() > 0.8


def test_samples_are_new_plausible_and_reproducible(labels, model):
    areas = []
    for k in range(30):
        new = shapes.sample_shape(model, np.random.default_rng(k), SIZE, place=0)
        assert (new.label == shapes.sample_shape(model, np.random.default_rng(k), SIZE, place=0).label).all()
        assert all(abs(x) <= 2 for x in new.parameters.values())
        assert set(np.unique(new.label)) == {0, 1, 2, 3}
        assert augment.leak(new.label) <= 0.05
        assert not any((new.label == label).all() for label in labels)
        areas.append((new.label == 1).sum())
    real = (labels == 1).sum((1, 2))
    assert np.std(areas) > 0.02 * np.mean(areas)
    assert 0.7 * real.min() < np.mean(areas) < 1.3 * real.max()
    anywhere = shapes.sample_shape(model, np.random.default_rng(0), SIZE)
    assert (anywhere.label > 0).any()


def test_maps_without_landmarks_are_left_out_and_counted(labels):
    broken = labels[:6].copy()
    broken[1][broken[1] == 3] = 0
    model = shapes.fit_shapes(broken)
    assert model.left_out == 1
    assert model.centres[1] == pytest.approx(model.centres[[0, 2, 3, 4, 5]].mean())
    with pytest.raises(ValueError, match="without atrium"):
        shapes.landmarks(broken[1])
    with pytest.raises(ValueError, match="2 of 2 label maps have landmarks: a shape model needs three"):
        shapes.fit_shapes(labels[:2])


def test_a_hopeless_model_is_an_error(labels, model):
    from dataclasses import replace

    with pytest.raises(ValueError, match="no plausible shape in 3 draws"):
        shapes.sample_shape(replace(model, sd=model.sd * 40), np.random.default_rng(0), SIZE, tries=3)
