import matplotlib.pyplot as plt
import numpy as np
import pytest

from reproduction.plots import echoes

pytestmark = pytest.mark.usefixtures("closed_figures")


def test_every_figure_draws_and_saves(frames, tmp_path):
    training = frames["training"]
    rows = [0, 1, 2]
    shown = training.select(np.array(rows))
    drawn = {
        "example_views": echoes.example_views(training, rows),
        "frame_views": echoes.frame_views(training, 2),
        "augmented_maps": echoes.augmented_maps(shown.sdm_labels, shown.sdm_labels),
        "real_beside_synthetic": echoes.real_beside_synthetic(shown.images, shown.images, shown),
        "synthetic_grid": echoes.synthetic_grid(training, columns=2),
        "segmentations": echoes.segmentations(shown.images, shown.labels, shown.labels),
        "cases": echoes.segmentations(shown.images, shown.labels, shown.labels, ["best", "median", "worst"]),
        "label_edits": echoes.label_edits(
            ["one", "two"], *[x[:2] for x in (shown.sdm_labels, shown.images, shown.labels)]
        ),
    }
    for name, figure in drawn.items():
        echoes.save(figure, tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 2000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_one_frame_and_one_view_and_phase_are_enough(frames):
    """No figure assumes four views and phases, or more than one frame."""
    training = frames["training"]
    one = training.select(np.array([2]))
    assert len(echoes.example_views(one, [0]).axes) == 3
    assert len(echoes.augmented_maps(one.sdm_labels, one.sdm_labels).axes) == 2
    assert len(echoes.real_beside_synthetic(one.images, one.images, one).axes) == 3
    grid = echoes.synthetic_grid(training.select(training.index["class_label"].isin([1, 2]).to_numpy()), columns=4)
    assert [ax.get_title(loc="left") for ax in grid.axes if ax.get_title(loc="left")] == ["2CH ES", "4CH ED"]
    assert [len(ax.images) for ax in grid.axes] == 4 * [1, 1, 1, 0]


def test_rows_are_named_beside_the_first_column(frames):
    shown = frames["training"].select(np.arange(2))
    axes = echoes.label_edits(["a", "b"], shown.sdm_labels, shown.images, shown.labels).axes
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [["a"], [], [], ["b"], [], []]
    assert [ax.get_title() for ax in axes[:3]] == ["label map", "image", "contours"]


def test_the_change_is_the_difference_to_the_first_echo(frames):
    shown = frames["training"].select(np.arange(2))
    figure = echoes.label_edits(["a", "b"], shown.sdm_labels, shown.images, shown.labels, change=True)
    assert not figure.axes[3].images
    drawn = figure.axes[7].images[0]
    assert (drawn.get_array() == shown.images[1].astype(int) - shown.images[0]).all()
    assert drawn.get_clim() == (-echoes.CHANGE, echoes.CHANGE)


def test_the_legend_says_what_dotted_and_solid_are(frames):
    shown = frames["training"].select(np.arange(1))
    legend = echoes.segmentations(shown.images, shown.labels, shown.labels).legends[0]
    pairs = zip(legend.get_texts(), legend.get_lines(), strict=True)
    styles = {text.get_text(): line.get_linestyle() for text, line in pairs}
    assert (styles["label"], styles["prediction"]) == (":", "-")


def test_the_stamp_names_data_and_size_before_the_figures_own_title():
    figure = plt.figure()
    assert echoes.stamp(figure, "/data/camus", 224).get_suptitle() == "CAMUS, 224 x 224 pixels"
    figure = plt.figure()
    figure.suptitle("real-only")
    assert echoes.stamp(figure, "phantom", 48).get_suptitle() == "phantom, 48 x 48 pixels: real-only"


def test_no_figure_is_wider_than_a_page_nor_has_letters_under_8_points(frames):
    shown = frames["training"].select(np.arange(4))
    maps, images, labels = shown.sdm_labels, shown.images, shown.labels
    drawn = [
        echoes.example_views(shown, [0, 1, 2, 3]),
        echoes.augmented_maps(maps, maps),
        echoes.real_beside_synthetic(images, images, shown),
        echoes.segmentations(images, labels, labels),
        echoes.label_edits(list("abcd"), maps, images, labels, change=True),
        echoes.closest_pairs(images, images),
        echoes.blind_pairs(images, images, np.array([True, False, True, False])),
        echoes.denoising(images / 255, images / 255, maps[0]),
    ]
    for figure in drawn:
        assert figure.get_figwidth() <= echoes.WIDTH + 0.01
        letters = [t for t in figure.findobj(plt.Text) if t.get_text()]
        assert min(t.get_fontsize() for t in letters) >= 8


def test_segmentations_stand_four_a_row_at_most(frames):
    shown = frames["training"].select(np.arange(7))
    axes = echoes.segmentations(shown.images, shown.labels, shown.labels, list("abcdefg")).axes
    assert [ax.get_title() for ax in axes] == [*"abcdefg", ""]
    assert len({round(ax.get_position().y0, 3) for ax in axes[:7]}) == 2


def test_closest_pairs_begin_with_a_copy(frames):
    training = frames["training"].images
    noisy = training[7] + np.random.default_rng(0).normal(0, 3, training[7].shape)
    images = np.stack([*frames["validation"].images, noisy.clip(0, 255).astype(np.uint8)])
    axes = echoes.closest_pairs(images, training, pairs=3).axes
    assert len(axes) == 6
    assert (axes[0].images[0].get_array() == images[4]).all()
    assert (axes[3].images[0].get_array() == training[7]).all()
    titles = [float(ax.get_title()) for ax in axes[:3]]
    assert titles[0] < 0.5 < titles[1] <= titles[2]


def test_contours_follow_the_label(frames):
    figure, ax = plt.subplots()
    label = np.zeros((20, 20), np.uint8)
    label[5:15, 5:15] = 2
    label[8:12, 8:12] = 1
    echoes.draw_contours(ax, label)
    boxes = sorted(tuple(c.get_paths()[0].get_extents().bounds) for c in ax.collections)
    assert boxes == [(4.5, 4.5, 10, 10), (7.5, 7.5, 4, 4)]  # epi around endo; no atrium, no contour
