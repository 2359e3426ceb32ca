import numpy as np
import pytest
import torch
from matplotlib.text import Text

from echo.config import GPU, LAPTOP, PAPER
from echo.spade import Conditioning
from echo.unet import SemanticUNet, SpadeResBlock, build_unet
from reproduction.datasets.anatomy import anatomy, virtual_patient
from reproduction.plots import diagrams

pytestmark = pytest.mark.usefixtures("closed_figures")


def check_texts(figure) -> None:
    """No text overlaps another, and all are inside the figure."""
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts if text.get_text()]
    assert not [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_schematic_points_at_what_it_names():
    figure = diagrams.four_chamber_schematic()
    check_texts(figure)
    texts = {text.get_text().replace("\n", " "): text for text in figure.axes[0].texts}
    patient = virtual_patient(np.random.default_rng(11))

    def distance(part: str, start: str) -> float:
        """In mm from a part's border, negative inside, of what a note points at, or of where a name stands."""
        text = next(text for name, text in texts.items() if name.startswith(start))
        x, z = getattr(text, "xy", text.get_position())
        return float(anatomy(patient, "4CH", "ED", np.array([[x]]), np.array([[z]]))[part][0, 0])

    for part, name in {
        "endo": "left ventricle",
        "la": "left atrium",
        "rv": "right ventricle",
        "ra": "right at",
    }.items():
        assert distance(part, name) < -5
    assert abs(distance("endo", "endocardium")) < 1.5
    assert abs(distance("epi", "epicardium")) < 1.5
    assert distance("epi", "myocardium") < 0 < distance("endo", "myocardium")


def on_meta(profile) -> SemanticUNet:
    with torch.device("meta"):
        return build_unet(profile)


@pytest.mark.parametrize("profile", [LAPTOP, GPU, PAPER], ids=lambda p: p.name)
def test_block_table_is_the_network(profile):
    unet = on_meta(profile)
    blocks = diagrams.network_blocks(unet)
    assert blocks["parameters"].sum() == sum(p.numel() for p in unet.parameters())
    kinds = blocks["kind"].value_counts()
    assert kinds["SPADE ResBlock"] == sum(isinstance(m, SpadeResBlock) for m in unet.modules())
    assert set(blocks.loc[blocks["kind"] == "SPADE ResBlock", "part"]) == {"middle", "decoder"}
    levels, config = len(profile.unet.channel_mult), profile.unet
    assert len(blocks[blocks["part"] == "encoder"]) == levels * (config.num_res_blocks + 1)
    assert list(blocks["resample"].value_counts()[["down", "up"]]) == [levels - 1] * 2
    deepest = config.channel_mult[-1] * config.model_channels, profile.first_size >> (levels - 1)
    assert set(blocks.query("part == 'middle'")[["channels", "side"]].itertuples(index=False, name=None)) == {deepest}
    output = config.in_channels * (1 + config.learned_variance), profile.first_size
    assert tuple(blocks[["channels", "side"]].iloc[-1]) == output
    # Attention follows the blocks of its resolutions, but never the one that changes the resolution; once the middle's.
    plain = blocks["part"].isin(["encoder", "decoder"]) & (blocks["resample"] == "")
    expected = plain & blocks["side"].isin(config.attention_resolutions)
    assert blocks["attention"].equals(expected | (blocks["block"] == "middle_block.0"))


def test_parameters_add_up(random_unet):
    table = diagrams.parameter_table({"smoke": diagrams.network_blocks(random_unet)})
    assert table.index.to_list() == ["embedding", "encoder", "middle", "decoder", "output", "whole network"]
    whole = sum(p.numel() for p in random_unet.parameters()) / 1e6
    assert table["smoke"].iloc[[-1, -1]].to_list() == pytest.approx([whole, table["smoke"][:-1].sum()])


def test_block_table_has_the_shapes_of_a_forward_pass(random_unet, smoke):
    blocks = diagrams.network_blocks(random_unet).set_index("block")
    seen = {}
    hooks = [
        m.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.shape}))
        for name, m in random_unet.named_modules()
        if name in blocks.index
    ]
    side = smoke.first_size
    with torch.no_grad():
        conditioning = Conditioning(torch.zeros(2, 5, side, side))
        random_unet(torch.randn(2, 1, side, side), torch.tensor([3, 4]), conditioning, torch.arange(2))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(blocks)
    for name, shape in seen.items():
        assert tuple(blocks.loc[name, ["channels", "side"]]) == (shape[1], shape[3] if len(shape) == 4 else 1)
    assert not any(m._forward_hooks for m in random_unet.modules())


@pytest.mark.parametrize("profile", [LAPTOP, GPU, PAPER], ids=lambda p: p.name)
def test_drawn_network_names_every_block_and_no_texts_overlap(profile):
    unet = on_meta(profile)
    figure = diagrams.draw_network(unet)
    blocks = diagrams.network_blocks(unet).query("kind != 'embedding'")
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

    check_texts(figure)


def test_network_of_one_resolution_draws():
    unet = SemanticUNet(
        image_size=8, in_channels=1, model_channels=8, channel_mult=(1,), norm_groups=4, head_channels=8
    )
    assert "8 px" in [text.get_text() for text in diagrams.draw_network(unet).axes[0].texts]


def test_two_stages_show_the_same_square_of_small_and_enlarged_images():
    label, small = np.zeros((32, 32), np.uint8), np.arange(64.0).reshape(8, 8)
    enlarged = np.stack([small.repeat(4, 0).repeat(4, 1) + k for k in range(3)])
    figure = diagrams.two_stages(label, enlarged, small, enlarged, corner=(8, 16), side=12)
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert np.array_equal(shown[4], small[2:5, 4:7])
    for k in range(3):
        assert np.array_equal(shown[5 + k], shown[4].repeat(4, 0).repeat(4, 1) + k)
    assert [ax.get_title() for ax in figure.axes][::4] == ["label map", "first stage, 3 pixels"]
    check_texts(figure)
