from itertools import product

import numpy as np
import pandas as pd
import pytest

from echo.labels import STRUCTURES
from reproduction.plots import charts, echoes

pytestmark = pytest.mark.usefixtures("closed_figures")


def tidy_scores(rows) -> pd.DataFrame:
    facts = product(rows, (0, 1), ["p1", "p2", "p3"], ("2CH", "4CH"), ("ED", "ES"), STRUCTURES)
    columns = ["train", "seed", "patient", "view", "phase", "structure"]
    scores = pd.DataFrame(facts, columns=columns).assign(processing="raw")
    return scores.assign(dice=np.random.default_rng(0).uniform(0.8, 1, len(scores)))


def tidy_volumes(rows) -> pd.DataFrame:
    volumes = pd.DataFrame(product(rows, (0, 1), ["p1", "p2", "p3"]), columns=["train", "seed", "patient"])
    return volumes.assign(ef=np.arange(len(volumes)) + 50.0, expert_ef=52.0)


def test_boxes_are_of_frames_and_count_what_the_axis_leaves_out():
    scores = tidy_scores(["real", "both"])
    scores = pd.concat([scores.assign(patient=f"p{k}") for k in range(40)])
    one = (scores[["train", "patient", "view", "phase"]] == ["both", "p7", "2CH", "ED"]).all(axis=1)
    scores.loc[one & (scores["structure"] == "LA"), "dice"] = 0
    ax = charts.dice_boxes(scores).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == list(STRUCTURES)
    assert [t.get_text() for t in ax.texts] == ["↓1"]
    dots = [c.get_offsets() for c in ax.collections]
    assert len(dots) == 3 * 2  # in the order of structures, and of rows within
    frames = scores[(scores["structure"] == "LV endo") & (scores["train"] == "both")]
    expected = 100 * frames.groupby(["patient", "view", "phase"])["dice"].mean()
    assert np.asarray(dots[1])[:, 1] == pytest.approx(expected.to_numpy())


def test_boxes_of_the_other_recipe_are_dashed_beside_their_own():
    figure = charts.dice_boxes(tidy_scores(["real", "synthetic", "real, paper recipe"]))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:3] == ["real-only", "real-only, paper recipe", "synthetic-only"]
    assert [line.get_linestyle() for line in figure.legends[0].get_lines()[:3]] == ["-", "--", "-"]


def test_dice_by_size_has_a_dot_a_frame_and_training_set():
    share, dice = np.array([1.0, 4.0]), {"real-only": np.array([60.0, 90.0]), "synthetic-only": np.array([50.0, 91.0])}
    ax = charts.dice_by_size(share, dice, "LV").axes[0]
    for dots, values in zip(ax.collections, dice.values(), strict=True):
        assert np.asarray(dots.get_offsets()) == pytest.approx(np.column_stack([share, values]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(dice)
    assert ax.get_xlabel() == "LV, % of the image"


def test_each_sampler_has_panels_of_its_own_with_the_others_in_grey():
    facts = product(["ddim", "unipc"], [5, 10])
    study = pd.DataFrame(facts, columns=["sampler", "steps"]).assign(seconds_per_image=[1.0, 2, 1, 2])
    study = study.assign(**{"mean Dice": 95.0, "frechet_distance": 0.04, "ms_ssim": float("nan")})
    axes = charts.quality_against_time(study, pd.Series({"mean Dice": 94.0})).axes
    assert [ax.get_title() for ax in axes] == ["ddim", "unipc", "", ""]  # no row for what is NaN
    assert [len(ax.lines) for ax in axes] == [3, 3, 2, 2]
    assert all(ax.lines[0].get_color() == "0.85" != ax.lines[1].get_color() for ax in axes)


def test_bland_altman_draws_bias_and_limits_of_table_3():
    volumes = tidy_volumes(["real"])
    ax = charts.bland_altman(volumes).axes[0]
    written = [float(t.get_text()) for t in ax.texts]
    gaps = [v["ef"] - v["expert_ef"] for _seed, v in volumes.groupby("seed")]
    bias, spread = np.mean([g.mean() for g in gaps]), 1.96 * np.mean([g.std() for g in gaps])
    assert written == pytest.approx([bias, bias - spread, bias + spread], abs=0.06)
    assert ax.collections[0].get_offsets()[0].tolist() == [51, -2]


def test_scaling_draws_the_means_over_seeds():
    scores = pd.DataFrame(product(["real"], (20, 400), (0, 1), STRUCTURES), columns=["train", "x", "seed", "structure"])
    scores["dice"] = np.linspace(0.8, 0.95, len(scores))
    ax = charts.scaling(scores, "training patients").axes[0]
    expected = 100 * scores[scores["structure"] == "LV endo"].groupby("x")["dice"].mean()
    assert ax.lines[1].get_ydata() == pytest.approx(expected.to_numpy())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["20", "400"]


def test_every_chart_draws_and_saves(tmp_path):
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5], "validation_loss": [0.9, 0.6]})
    dice = pd.DataFrame({"step": [1, 2], **dict.fromkeys(STRUCTURES, [50.0, 60.0]), "mean": [50.0, 60.0]})
    names = {"real": "real-only", "synthetic": "synthetic-only"}
    scores = tidy_scores(names)
    drawn = {
        "schedules": charts.schedules({"cosine": np.linspace(0.9, 0.1, 10), "linear": np.linspace(0.8, 0.1, 10)}),
        "loss_weights": charts.loss_weights(np.linspace(0.9, 0.1, 10)),
        "noising": charts.noising(rng.normal(size=(2, 8, 8)), [0, 9], np.linspace(1, 0, 10)),
        "training_curve": charts.training_curve(log),
        "segmenter_curves": charts.segmenter_curves(dict.fromkeys(names.values(), dice)),
        "dice_boxes": charts.dice_boxes(scores),
        "bland_altman": charts.bland_altman(tidy_volumes(names)),
        "scaling": charts.scaling(scores.assign(x=[10, 20] * (len(scores) // 2)), "training patients"),
        "shape_statistics": charts.shape_statistics(
            pd.DataFrame({"maps": ["real", "warped", "shape model"] * 4, "area": rng.normal(size=12), "ratio": 1.0})
        ),
    }
    for name, figure in drawn.items():
        echoes.save(figure, tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 2000
    echoes.save(charts.training_curve(log), tmp_path, "again")
    for suffix in (".png", ".pdf"):  # the same figure gives the same bytes
        assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"training_curve{suffix}").read_bytes()
