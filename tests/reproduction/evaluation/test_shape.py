from dataclasses import replace

import numpy as np
import pytest

from reproduction.evaluation.shape import class_shares, median_areas, shape_statistics


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


def test_areas_and_shares_of_the_phantom(frames):
    training = frames["training"]
    of_2ch_ed = (training.index[["view", "phase"]] == ["2CH", "ED"]).all(axis=1).to_numpy()
    cavity = (training.labels[of_2ch_ed] == 1).sum((1, 2))
    areas = median_areas(training)
    pixel = training.index["spacing_row_mm"] * training.index["spacing_col_mm"] / 100
    assert areas.columns.name == "median area, cm²"
    assert areas.loc[("2CH", "ED"), "LV endo"] == pytest.approx(np.median(cavity * pixel[of_2ch_ed]))
    unknown = replace(training, index=training.index.assign(spacing_row_mm=np.nan))
    assert median_areas(unknown).columns.name == "median area, thousandths of the image"

    shares = class_shares(training)
    assert list(shares.columns) == ["2CH ED", "2CH ES", "4CH ED", "4CH ES"]
    assert shares.sum().tolist() == pytest.approx([100] * 4)
    assert shares.loc["LV endo", "2CH ED"] == pytest.approx(100 * cavity.mean() / training.labels[0].size)
