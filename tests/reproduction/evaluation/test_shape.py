import numpy as np
import pytest

from reproduction.evaluation.shape import shape_statistics


def test_shape_statistics_of_known_shapes():
    label = np.zeros((100, 100), np.uint8)
    rows, columns = np.indices(label.shape)
    r = np.hypot(rows - 40, columns - 50)
    label[r < 30], label[r < 20] = 2, 1
    label[75:85, 40:60] = 3
    found = shape_statistics(label)
    assert found["LV endo area"] == pytest.approx(np.pi * 0.04, rel=0.01)
    assert found["LV myo area"] == pytest.approx(np.pi * 0.05, rel=0.01)
    assert found["LA / LV area"] == pytest.approx(200 / (np.pi * 400), rel=0.01)
    assert found["eccentricity"] < 0.05
    assert found["wall thickness"] == pytest.approx(0.10, abs=0.005)
    # In mm, with rows twice as far apart: a circle becomes an ellipse with half axes 2 : 1.
    mm = shape_statistics(label, (2.0, 1.0))
    assert mm["LA area"] == 400
    assert mm["eccentricity"] == pytest.approx(np.sqrt(3) / 2, abs=0.01)
    assert 10 < mm["wall thickness"] < 20
    label[label == 3] = 0
    assert np.isnan(shape_statistics(label)["LA / LV area"])
    assert np.isnan(shape_statistics(np.zeros_like(label))["eccentricity"])
