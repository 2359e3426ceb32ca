import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from echo import figures
from echo.labels import STRUCTURES


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_figure_draws_and_saves(frames, tmp_path):
    training = frames["training"]
    rows, rng = [0, 1, 2], np.random.default_rng(0)
    shown = training.select(np.array(rows))
    log = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5], "validation_loss": [0.9, 0.6]})
    dice = pd.DataFrame({"step": [1, 2], **dict.fromkeys(STRUCTURES, [50.0, 60.0]), "mean": [50.0, 60.0]})
    scores = pd.DataFrame(rng.uniform(0.8, 1, (8, 3)), columns=list(STRUCTURES)).assign(train=["real", "synthetic"] * 4)
    names = {"real": "real-only", "synthetic": "synthetic-only"}
    drawn = {
        "example_views": figures.example_views(training, rows),
        "noising": figures.noising(rng.normal(size=(2, 8, 8)), [0, 9], np.linspace(1, 0, 10)),
        "training_curve": figures.training_curve(log),
        "augmented_maps": figures.augmented_maps(shown.sdm_labels, shown.sdm_labels),
        "real_beside_synthetic": figures.real_beside_synthetic(shown.images, shown.images, shown),
        "synthetic_grid": figures.synthetic_grid(training, columns=2),
        "segmentations": figures.segmentations(shown.images, shown.labels, shown.labels),
        "segmenter_curves": figures.segmenter_curves(dict.fromkeys(names.values(), dice)),
        "dice_boxes": figures.dice_boxes(scores, names),
    }
    for name, figure in drawn.items():
        figures.save(figure, tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 2000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    figures.save(figures.training_curve(log), tmp_path, "again")
    for suffix in (".png", ".pdf"):  # the same figure gives the same bytes
        assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"training_curve{suffix}").read_bytes()


def test_contours_follow_the_label(frames):
    figure, ax = plt.subplots()
    label = np.zeros((20, 20), np.uint8)
    label[5:15, 5:15] = 2
    label[8:12, 8:12] = 1
    figures.draw_contours(ax, label)
    boxes = sorted(tuple(c.get_paths()[0].get_extents().bounds) for c in ax.collections)
    assert boxes == [(4.5, 4.5, 10, 10), (7.5, 7.5, 4, 4)]  # epi around endo; no atrium, no contour
