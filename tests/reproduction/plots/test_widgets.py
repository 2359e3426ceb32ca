import importlib
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from echo.frames import Frames
from reproduction.plots import echoes, widgets

PNG = b"\x89PNG"
real = np.arange(6, dtype=np.uint8)[:, None, None] * np.full((16, 16), 20, np.uint8)
synthetic = 255 - real


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")  # of another test file
    yield
    assert not plt.get_fignums()  # a figure left open would be shown once more, below the widget


@pytest.fixture
def displayed(monkeypatch) -> list[dict]:
    """What `show` displays."""
    bundles = []
    monkeypatch.setattr(widgets, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def figure() -> plt.Figure:
    return plt.subplots(dpi=100)[0]


def parts(widget, kind: str) -> list:
    """The widgets of a kind within a widget, in order."""
    inner = [found for child in getattr(widget, "children", ()) for found in parts(child, kind)]
    return [widget] * (type(widget).__name__ == kind) + inner


def test_a_widget_is_shown_with_a_figure_for_front_ends_without_widgets(displayed, frames):
    widget = widgets.browse(frames["training"])
    widgets.show(widget, figure())
    (bundle,) = displayed
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert bundle["image/png"].startswith(PNG)
    # Strict nbval compares this one: it may hold no random id.
    assert bundle["text/plain"] == "<Figure size 640x480 with 1 Axes>"


def test_without_ipywidgets_the_figure_alone_is_shown(displayed, frames, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ipywidgets", None)
        importlib.reload(widgets)
        without.setattr(widgets, "display", lambda bundle, raw: displayed.append(bundle))
        made = [
            widgets.browse(frames["training"]),
            widgets.denoising(real, real, frames["training"].sdm_labels[0]),
            widgets.which_is_real(real, synthetic, widgets.shuffled_sides(6, 0)),
            widgets.editor(figure, {}, {}, range(2)),
        ]
        for widget in made:
            widgets.show(widget, figure())
    importlib.reload(widgets)
    assert made == [None] * 4
    assert [sorted(bundle) for bundle in displayed] == [["image/png", "text/plain"]] * 4


def test_scrubbing_changes_the_picture_and_ends_at_the_last_step(frames):
    rng = np.random.default_rng(0)
    x_t, x_0 = rng.uniform(-1, 1, (2, 3, 32, 32))
    label = frames["training"].sdm_labels[0]
    widget = widgets.denoising(x_t, x_0, label)
    (slider,), (picture,), (play,) = (parts(widget, kind) for kind in ("IntSlider", "Image", "Play"))
    seen = []
    for k in (1, 2, 3, 2):
        slider.value = k
        seen.append(bytes(picture.value))
    assert len({*seen}) == 3
    assert seen[1] == seen[3]
    assert seen[2] == widgets._png(echoes.denoising_step(x_t[2], x_0[2], label, "step 3 of 3"))
    assert (slider.min, slider.max) == (play.min, play.max) == (1, 3)


def test_browsing_draws_the_frame_that_was_chosen(frames):
    shown = frames["training"]
    widget = widgets.browse(shown)
    (patient,), (view, phase), (picture,) = (parts(widget, kind) for kind in ("Dropdown", "ToggleButtons", "Image"))
    assert patient.options == tuple(shown.index["patient"].unique())
    patient.value, view.value, phase.value = patient.options[1], "4CH", "ES"
    facts = shown.index[["patient", "view", "phase"]]
    row = int(np.flatnonzero((facts == [patient.options[1], "4CH", "ES"]).all(axis=1))[0])
    assert bytes(picture.value) == widgets._png(echoes.frame_views(shown, row))


def test_browsing_says_which_frame_there_is_not_and_keeps_the_picture(frames):
    first = frames["training"].select(np.arange(1))
    widget = widgets.browse(Frames(first.images, first.labels, first.sdm_labels, first.index))
    (phase, (message,), (picture,)) = parts(widget, "ToggleButtons")[1], parts(widget, "HTML"), parts(widget, "Image")
    before = bytes(picture.value)
    phase.value = "ES"
    assert message.value == f"{first.index['patient'][0]} 2CH ES: no such frame"
    assert bytes(picture.value) == before
    phase.value = "ED"
    assert message.value == ""


def test_the_areas_stand_above_a_frame(frames):
    shown = frames["training"]
    title = echoes.frame_views(shown, 0)._suptitle.get_text()
    plt.close("all")
    pixel = shown.index.loc[0, ["spacing_row_mm", "spacing_col_mm"]].prod()
    assert f"cavity {(shown.labels[0] == 1).sum() * pixel / 100:.1f} cm²" in title
    assert f"atrium {(shown.labels[0] == 3).sum() * pixel / 100:.1f} cm²" in title


def test_sides_are_balanced_and_depend_on_the_seed_alone():
    sides = [widgets.shuffled_sides(8, seed) for seed in range(20)]
    assert {side.sum() for side in sides} == {4}
    assert len({tuple(side) for side in sides}) > 10
    assert (widgets.shuffled_sides(8, 3) == sides[3]).all()


def test_a_blind_comparison_counts_right_answers_and_says_what_guessing_gives():
    real_left = np.array([True, False, False, True, True, False])
    widget = widgets.which_is_real(real, synthetic, real_left)
    (question, score), (left, right), (picture,) = (parts(widget, kind) for kind in ("HTML", "Button", "Image"))
    assert bytes(picture.value) == widgets._png(echoes.blind_pair(real[0], synthetic[0]))
    for k, (button, verdict) in enumerate(
        [
            (left, "Yes, the real one was on the left. <b>1 of 1 right.</b>"),
            (left, "No, the real one was on the right. <b>1 of 2 right.</b>"),
            (right, "Yes, the real one was on the right. <b>2 of 3 right.</b>"),
            (right, "No, the real one was on the left. <b>2 of 4 right.</b>"),
            (left, "Yes, the real one was on the left. <b>3 of 5 right.</b>"),
        ]
    ):
        button.click()
        assert score.value == verdict
        assert question.value == f"<b>Pair {k + 2} of 6.</b> One is real. Which?"
    assert bytes(picture.value) == widgets._png(echoes.blind_pair(synthetic[5], real[5]))
    right.click()
    # 4, 5 or 6 of 6: (15 + 6 + 1) / 64
    assert question.value == "<b>4 of 6 right.</b> Guessing gives 3 of 6 on average, and 4 or more in 34 % of games."
    assert left.disabled
    assert right.disabled
    assert bytes(picture.value) == widgets._png(echoes.blind_pairs(real, synthetic, real_left))


def test_the_solution_below_the_pairs_is_the_order_in_which_they_are_drawn():
    drawn = echoes.blind_pairs(real[:3], synthetic[:3], np.array([False, True, False]))
    upper = [ax.images[0].get_array() for ax in drawn.axes[:3]]
    plt.close("all")
    assert [(image == r).all() for image, r in zip(upper, real, strict=False)] == [False, True, False]
    assert drawn._supxlabel.get_text() == "real:  1 lower,  2 upper,  3 lower"


@pytest.fixture
def edited():
    """An editor with two edits, one without room above 0.5; and what it had painted."""
    calls = []

    def repaint(noise, **strengths):
        if strengths["dilate_lv"] > 0.5:
            raise ValueError("the LV endo has no room <to grow>")
        calls.append((noise, strengths))
        return plt.subplots(figsize=(len(calls), 1))[0]

    ranges = {"shear": (-45.0, 45.0), "dilate_lv": (0.0, 1.0)}
    return widgets.editor(repaint, ranges, {"shear": 9}, range(5, 9)), calls


def test_an_edit_is_painted_when_its_slider_moves(edited):
    widget, calls = edited
    (shear, dilate), (noise,), (picture,) = (parts(widget, k) for k in ("FloatSlider", "SelectionSlider", "Image"))
    assert [slider.description for slider in (shear, dilate)] == ["shear", "dilate LV"]
    assert calls == [(5, {"shear": 9, "dilate_lv": 0})]
    before = bytes(picture.value)
    dilate.value = 0.3
    assert bytes(picture.value) != before
    noise.value = 7
    assert calls[1:] == [(5, {"shear": 9, "dilate_lv": 0.3}), (7, {"shear": 9, "dilate_lv": 0.3})]


def test_an_edit_without_room_says_so_and_keeps_the_picture(edited):
    widget, calls = edited
    (_shear, dilate), (message,), (picture,) = (parts(widget, kind) for kind in ("FloatSlider", "HTML", "Image"))
    before = bytes(picture.value)
    dilate.value = 0.8
    assert "the LV endo has no room &lt;to grow&gt;" in message.value
    assert bytes(picture.value) == before
    dilate.value = 0.4
    assert message.value == ""
    assert len(calls) == 2


def test_reset_paints_once_without_edits(edited):
    widget, calls = edited
    (shear, dilate), (noise,), (button,) = (parts(widget, k) for k in ("FloatSlider", "SelectionSlider", "Button"))
    dilate.value, noise.value = 0.8, 8
    button.click()
    assert (shear.value, dilate.value, noise.value) == (0, 0, 5)
    assert calls[1:] == [(5, {"shear": 0, "dilate_lv": 0})]
    shear.value = 18  # it listens again
    assert calls[-1] == (5, {"shear": 18, "dilate_lv": 0})
