from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from echo import figures
from echo.config import GPU, LAPTOP, PAPER
from echo.diffusion import build_unet
from echo.labels import STRUCTURES
from echo.unet import SemanticUNet, SpadeResBlock


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def tidy_scores(rows) -> pd.DataFrame:
    facts = product(rows, (0, 1), ["p1", "p2", "p3"], ("2CH", "4CH"), ("ED", "ES"), STRUCTURES)
    columns = ["train", "seed", "patient", "view", "phase", "structure"]
    scores = pd.DataFrame(facts, columns=columns).assign(processing="raw")
    return scores.assign(dice=np.random.default_rng(0).uniform(0.8, 1, len(scores)))


def tidy_volumes(rows) -> pd.DataFrame:
    volumes = pd.DataFrame(product(rows, (0, 1), ["p1", "p2", "p3"]), columns=["train", "seed", "patient"])
    return volumes.assign(ef=np.arange(len(volumes)) + 50.0, expert_ef=52.0)


def test_every_figure_is_returned():
    assert isinstance(figures.four_chamber_schematic(), plt.Figure)


def test_boxes_are_of_frames_and_count_what_the_axis_leaves_out():
    scores = tidy_scores(["real", "both"])
    scores = pd.concat([scores.assign(patient=f"p{k}") for k in range(40)])
    one = (scores[["train", "patient", "view", "phase"]] == ["both", "p7", "2CH", "ED"]).all(axis=1)
    scores.loc[one & (scores["structure"] == "LA"), "dice"] = 0
    ax = figures.dice_boxes(scores).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == list(STRUCTURES)
    assert [t.get_text() for t in ax.texts] == ["↓1"]
    dots = [c.get_offsets() for c in ax.collections]
    assert len(dots) == 3 * 2  # in the order of structures, and of rows within
    frames = scores[(scores["structure"] == "LV endo") & (scores["train"] == "both")]
    expected = 100 * frames.groupby(["patient", "view", "phase"])["dice"].mean()
    assert np.asarray(dots[1])[:, 1] == pytest.approx(expected.to_numpy())


def test_bland_altman_draws_bias_and_limits_of_table_3():
    volumes = tidy_volumes(["real"])
    ax = figures.bland_altman(volumes).axes[0]
    written = [float(t.get_text()) for t in ax.texts]
    gaps = [v["ef"] - v["expert_ef"] for _seed, v in volumes.groupby("seed")]
    bias, spread = np.mean([g.mean() for g in gaps]), 1.96 * np.mean([g.std() for g in gaps])
    assert written == pytest.approx([bias, bias - spread, bias + spread], abs=0.06)
    assert ax.collections[0].get_offsets()[0].tolist() == [51, -2]


def test_scaling_draws_the_means_over_seeds():
    scores = pd.DataFrame(product(["real"], (20, 400), (0, 1), STRUCTURES), columns=["train", "x", "seed", "structure"])
    scores["dice"] = np.linspace(0.8, 0.95, len(scores))
    ax = figures.scaling(scores, "training patients").axes[0]
    expected = 100 * scores[scores["structure"] == "LV endo"].groupby("x")["dice"].mean()
    assert ax.lines[1].get_ydata() == pytest.approx(expected.to_numpy())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["20", "400"]


def test_every_figure_draws_and_saves(frames, tmp_path):
    training = frames["training"]
    rows, rng = [0, 1, 2], np.random.default_rng(0)
    shown = training.select(np.array(rows))
    log = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5], "validation_loss": [0.9, 0.6]})
    dice = pd.DataFrame({"step": [1, 2], **dict.fromkeys(STRUCTURES, [50.0, 60.0]), "mean": [50.0, 60.0]})
    names = {"real": "real-only", "synthetic": "synthetic-only"}
    scores, volumes = tidy_scores(names), tidy_volumes(names)
    drawn = {
        "example_views": figures.example_views(training, rows),
        "schedules": figures.schedules({"cosine": np.linspace(0.9, 0.1, 10), "linear": np.linspace(0.8, 0.1, 10)}),
        "loss_weights": figures.loss_weights(np.linspace(0.9, 0.1, 10)),
        "noising": figures.noising(rng.normal(size=(2, 8, 8)), [0, 9], np.linspace(1, 0, 10)),
        "training_curve": figures.training_curve(log),
        "augmented_maps": figures.augmented_maps(shown.sdm_labels, shown.sdm_labels),
        "real_beside_synthetic": figures.real_beside_synthetic(shown.images, shown.images, shown),
        "synthetic_grid": figures.synthetic_grid(training, columns=2),
        "segmentations": figures.segmentations(shown.images, shown.labels, shown.labels),
        "segmenter_curves": figures.segmenter_curves(dict.fromkeys(names.values(), dice)),
        "cases": figures.segmentations(shown.images, shown.labels, shown.labels, ["best", "median", "worst"]),
        "dice_boxes": figures.dice_boxes(scores),
        "bland_altman": figures.bland_altman(volumes),
        "scaling": figures.scaling(scores.assign(x=[10, 20] * (len(scores) // 2)), "training patients"),
        "label_edits": figures.label_edits(
            ["one", "two"], *[x[:2] for x in (shown.sdm_labels, shown.images, shown.labels)]
        ),
        "shape_statistics": figures.shape_statistics(
            pd.DataFrame({"maps": ["real", "warped", "shape model"] * 4, "area": rng.normal(size=12), "ratio": 1.0})
        ),
    }
    for name, figure in drawn.items():
        figures.save(figure, tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 2000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    figures.save(figures.training_curve(log), tmp_path, "again")
    for suffix in (".png", ".pdf"):  # the same figure gives the same bytes
        assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"training_curve{suffix}").read_bytes()


def test_closest_pairs_begin_with_a_copy(frames):
    training = frames["training"].images
    noisy = training[7] + np.random.default_rng(0).normal(0, 3, training[7].shape)
    images = np.stack([*frames["validation"].images, noisy.clip(0, 255).astype(np.uint8)])
    axes = figures.closest_pairs(images, training, pairs=3).axes
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
    figures.draw_contours(ax, label)
    boxes = sorted(tuple(c.get_paths()[0].get_extents().bounds) for c in ax.collections)
    assert boxes == [(4.5, 4.5, 10, 10), (7.5, 7.5, 4, 4)]  # epi around endo; no atrium, no contour


def on_meta(profile) -> SemanticUNet:
    with torch.device("meta"):
        return build_unet(profile)


@pytest.mark.parametrize("profile", [LAPTOP, GPU, PAPER], ids=lambda p: p.name)
def test_block_table_is_the_network(profile):
    unet = on_meta(profile)
    blocks = figures.network_blocks(unet)
    assert blocks["parameters"].sum() == sum(p.numel() for p in unet.parameters())
    kinds = blocks["kind"].value_counts()
    assert kinds["SPADE ResBlock"] == sum(isinstance(m, SpadeResBlock) for m in unet.modules())
    assert set(blocks.loc[blocks["kind"] == "SPADE ResBlock", "part"]) == {"middle", "decoder"}
    levels, config = len(profile.unet.channel_mult), profile.unet
    assert len(blocks[blocks["part"] == "encoder"]) == levels * (config.num_res_blocks + 1)
    assert list(blocks["resample"].value_counts()[["down", "up"]]) == [levels - 1] * 2
    deepest = config.channel_mult[-1] * config.model_channels, profile.image_size >> (levels - 1)
    assert set(blocks.query("part == 'middle'")[["channels", "side"]].itertuples(index=False, name=None)) == {deepest}
    output = config.in_channels * (1 + config.learned_variance), profile.image_size
    assert tuple(blocks[["channels", "side"]].iloc[-1]) == output
    # Attention follows the blocks of its resolutions, but never the one that changes the resolution; once the middle's.
    plain = blocks["part"].isin(["encoder", "decoder"]) & (blocks["resample"] == "")
    expected = plain & blocks["side"].isin(config.attention_resolutions)
    assert blocks["attention"].equals(expected | (blocks["block"] == "middle_block.0"))


def test_block_table_has_the_shapes_of_a_forward_pass(random_unet, smoke):
    blocks = figures.network_blocks(random_unet).set_index("block")
    seen = {}
    hooks = [
        m.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.shape}))
        for name, m in random_unet.named_modules()
        if name in blocks.index
    ]
    side = smoke.image_size
    with torch.no_grad():
        random_unet(torch.randn(2, 1, side, side), torch.tensor([3, 4]), torch.zeros(2, 5, side, side), torch.arange(2))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(blocks)
    for name, shape in seen.items():
        assert tuple(blocks.loc[name, ["channels", "side"]]) == (shape[1], shape[3] if len(shape) == 4 else 1)
    assert not any(m._forward_hooks for m in random_unet.modules())


@pytest.mark.parametrize("profile", [LAPTOP, GPU, PAPER], ids=lambda p: p.name)
def test_drawn_network_names_every_block_and_no_texts_overlap(profile):
    unet = on_meta(profile)
    figure = figures.draw_network(unet)
    blocks = figures.network_blocks(unet).query("kind != 'embedding'")
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    written = [text.get_text() for text in texts]
    shapes = [
        f"{channels} × {side} × {side}" for channels, side in zip(blocks["channels"], blocks["side"], strict=True)
    ]
    for shape in set(shapes):  # as often as there are such blocks
        assert written.count(shape) == shapes.count(shape)
    assert written.count("attention") == blocks["attention"].sum()
    assert written.count("SPADE ResBlock ↑2") == written.count("ResBlock ↓2") == len(profile.unet.channel_mult) - 1
    assert any("and class" in text for text in written) != profile.per_view_phase
    assert any("variance" in text for text in written) == profile.unet.learned_variance

    boxes = [text.get_window_extent() for text in texts]
    assert not [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_network_of_one_resolution_draws():
    unet = SemanticUNet(
        image_size=8, in_channels=1, model_channels=8, channel_mult=(1,), norm_groups=4, head_channels=8
    )
    assert "8 px" in [text.get_text() for text in figures.draw_network(unet).axes[0].texts]
