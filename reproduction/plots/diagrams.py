"""Diagrams of what the paper takes for granted: an apical view of the heart, the network block by block, a cascade."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from torch import nn

from echo.spade import Conditioning
from echo.unet import AttentionBlock, ResBlock, SemanticUNet, SpadeResBlock
from reproduction.datasets.anatomy import anatomy, virtual_patient
from reproduction.plots.echoes import COLOURS, WIDTH, show, show_labels

# (edge, fill) of the network's blocks; the label map's lines have the edge colour of the blocks that it enters.
BLOCK_COLOURS = {
    "convolution": ("#4D4D4D", "#E6E6E6"),
    "ResBlock": ("#0072B2", "#D6E8F4"),
    "SPADE ResBlock": ("#D55E00", "#FBE3D3"),
}


def four_chamber_schematic() -> Figure:
    """What an apical four-chamber view shows: the phantom's anatomy in mm, each part with its name."""
    patient = virtual_patient(np.random.default_rng(11))  # an ordinary heart
    x, z = np.meshgrid(np.arange(-100, 100.5, 0.5), np.arange(0, patient.depth + 0.5, 0.5))
    parts = anatomy(patient, "4CH", "ED", x, z)
    parts["cavity"] = np.maximum(parts["endo"], parts["base"])
    parts["wall"] = np.maximum.reduce([parts["epi"], parts["ends"], -parts["endo"]])
    figure, ax = plt.subplots(figsize=(7.2, 4.3), layout="constrained")
    beams = np.radians(np.linspace(-patient.sector_deg / 2, patient.sector_deg / 2, 60))
    ax.fill([0, *patient.depth * np.sin(beams)], [0, *patient.depth * np.cos(beams)], color="#E6E6E6")
    colours = {"wall": COLOURS["LV epi"], "cavity": COLOURS["LV endo"], "la": COLOURS["LA"]}
    for part, colour in ({"rv": "#C4C4C4", "ra": "#C4C4C4"} | colours).items():
        ax.contourf(x, z, parts[part], [-1e3, 0], colors=[colour])
    ax.add_patch(Rectangle((-9, -8), 18, 8, color="#333333"))

    names = {
        "left ventricle\n(LV): cavity": (10, 72),
        "left\natrium\n(LA)": (11, 126),
        "right\nventricle": (-39, 86),
        "right\natrium": (-25, 128),
    }
    for name, place in names.items():
        ax.text(*place, name, ha="center", va="center", fontsize=9)
    notes = {  # what is pointed at, where the text stands
        "probe, on the chest over the heart's tip": ((0, -4), (72, -4)),
        "apex, the tip": ((4, 31), (72, 15)),
        "myocardium, the muscle (wall)": ((32, 48), (72, 34)),
        "endocardium, the cavity's border: LV endo": ((30.5, 72), (72, 53)),
        "epicardium, the wall's outer border:\nLV epi is cavity and wall together": ((43, 80), (72, 77)),
        "mitral valve, from LA to LV:\nthe wall is open here": ((24, 107), (72, 102)),
        "sector: where the beam goes;\noutside it there is nothing": ((62, 131), (98, 129)),
        "septum, the wall\nbetween left and right": ((-18, 60), (-98, 24)),
    }
    line = {"arrowstyle": "-", "lw": 0.8, "shrinkB": 0}
    for name, (target, place) in notes.items():
        side = {"relpos": (float(place[0] < 0), 0.5)}
        ax.annotate(name, target, place, fontsize=9, va="center", arrowprops=line | side)
        ax.plot(*target, ".", color="black", markersize=4)
    ax.annotate("", (-104, patient.depth), (-104, 0), arrowprops={"arrowstyle": "->", "lw": 0.8})
    ax.text(-108, 76, f"depth\n{patient.depth:.0f} mm", va="center", ha="right", fontsize=9)
    ax.set(xlim=(-138, 200), ylim=(patient.depth + 2, -14), aspect="equal")
    ax.set_axis_off()
    return figure


@torch.no_grad()
def network_blocks(unet: SemanticUNet) -> pd.DataFrame:
    """The blocks of a network in the order in which it runs them, with the output shapes of a dry run.

    The dry run takes a batch of one on the network's own device; on "meta" it costs neither memory nor time.

    Returns:
        A row a block: `block` (the module's name), `part` (embedding, encoder, middle, decoder or output), `kind`
        (embedding, convolution, ResBlock or SPADE ResBlock), `resample` ("", "down" or "up"), `attention` (whether
        self-attention follows it), `channels`, `side` (in pixels; 1 for an embedding) and `parameters`, with the
        attention's; these add up to the whole network's.
    """
    parts = {"time_embed": "embedding", "label_emb": "embedding", "input_blocks": "encoder"}
    parts |= {"middle_block": "middle", "output_blocks": "decoder", "out": "output"}
    rows: list[dict] = []

    def record(name: str, module: nn.Module, output: torch.Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        if isinstance(module, AttentionBlock):  # belongs to the block before it
            rows[-1] |= {"attention": True, "parameters": rows[-1]["parameters"] + parameters}
            return
        part = parts[name.split(".")[0]]
        kind = "embedding" if part == "embedding" else "convolution"
        if isinstance(module, ResBlock):
            kind = "SPADE ResBlock" if isinstance(module, SpadeResBlock) else "ResBlock"
        row = {"block": name, "part": part, "kind": kind, "resample": getattr(module, "resample", None) or ""}
        size = {"channels": output.shape[1], "side": output.shape[-1] if output.ndim == 4 else 1}
        rows.append(row | {"attention": False} | size | {"parameters": parameters})

    hooks = [
        module.register_forward_hook(lambda module, _inputs, output, name=name: record(name, module, output))
        for name, module in unet.named_modules()
        if isinstance(module, ResBlock | AttentionBlock)
        or name in ("time_embed", "label_emb", "input_blocks.0.0", "out")
    ]
    config, side = unet.config, unet.config.image_size
    x_t, y = (
        torch.zeros(1, channels, side, side, device=unet.device, dtype=unet.dtype)
        for channels in (config.in_channels, config.label_channels)
    )
    zero = torch.zeros(1, dtype=torch.long, device=unet.device)  # t, and the class
    try:
        unet(x_t, zero, Conditioning(y), zero if config.num_classes else None)
    finally:
        for hook in hooks:
            hook.remove()
    return pd.DataFrame(rows)


def parameter_table(blocks: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Parameters in millions of each part and of the whole: a column for each network's `network_blocks`, by name."""
    parts = {name: table.groupby("part", sort=False)["parameters"].sum() for name, table in blocks.items()}
    counts = pd.DataFrame(parts)
    counts.loc["whole network"] = counts.sum()
    return (counts / 1e6).rename_axis("parameters, millions")


def _places(blocks: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """(column, row) of each drawn block: decoder blocks stand opposite the encoder block whose output they take."""
    side = blocks.loc[blocks["part"] == "encoder", "side"].to_numpy()
    # A free row in the encoder wherever the resolution changes: there the decoder upsamples.
    row = np.arange(len(side)) + np.cumsum(np.diff(side, prepend=side[0]) != 0) + 1.0
    places = {}
    for name, part, resample in blocks[["block", "part", "resample"]].itertuples(index=False):
        number = int(f"{name}.0".split(".")[1])
        if part == "encoder":
            places[name] = "left", row[number]
        elif part == "middle":
            places[name] = "right" if number else "left", row[-1] + 1.25
        elif part == "decoder":
            places[name] = "right", row[-1 - number] - (resample == "up")
        elif part == "output":
            places[name] = "right", 0.0
    return places


def _write(ax: Axes, x: float, y: float, text: str, **options) -> None:
    """Text centred at a place, 8 points high unless `options` say otherwise."""
    ax.text(x, y, text, **({"ha": "center", "va": "center_baseline", "fontsize": 8, "zorder": 5} | options))


def _draw_bands(ax: Axes, encoder: pd.DataFrame, places: dict, pitch: float, bottom: float) -> None:
    """Bands of one resolution."""
    firsts = encoder.reset_index().groupby("side", sort=False)["block"].first()
    edges = [0.55 * pitch, *(places[name][1] + pitch / 2 for name in firsts.iloc[1:]), bottom - 0.42]
    for k, side in enumerate(firsts.index):
        ax.axhspan(edges[k + 1], edges[k], color="white" if k % 2 else "#F4F4F4", linewidth=0, zorder=0)
        _write(ax, 0.22, (edges[k] + edges[k + 1]) / 2, f"{side} px", rotation=90, va="center", color="#4D4D4D")


def _draw_blocks(ax: Axes, blocks: pd.DataFrame, places: dict, width: float, half: float) -> None:
    """The blocks, each with its kind and the shape of its output."""
    for name, (x, y) in places.items():
        kind, attention = blocks.loc[name, ["kind", "attention"]]
        edge, fill = BLOCK_COLOURS[kind]
        style = "round,pad=0,rounding_size=0.04"
        ax.add_patch(FancyBboxPatch((x, y - half), width, 2 * half, style, fc=fill, ec=edge, lw=0.9, zorder=3))
        mark = {"down": " ↓2", "up": " ↑2", "": ""}[blocks.loc[name, "resample"]]
        shape = "{} × {} × {}".format(*blocks.loc[name, ["channels", "side", "side"]])
        _write(ax, x + 0.07, y, kind + mark, ha="left")
        _write(ax, x + width - 0.07, y, shape, ha="right")
        if attention:
            ax.add_patch(FancyBboxPatch((x + 1.1, y - 0.075), 0.62, 0.15, style, fc="#4D4D4D", ec="none", zorder=4))
            _write(ax, x + 1.41, y, "attention", color="white")


def draw_network(unet: SemanticUNet) -> Figure:
    """The network's blocks with the shapes of their outputs, and what enters each.

    The encoder runs down the left side, the decoder up the right; opposite blocks share a skip connection, and a band
    has one resolution. A network on "meta" will do.
    """
    config, blocks = unet.config, network_blocks(unet)
    # Coordinates are in inches.
    pitch, width, gap = 0.31, 2.84, 1.6
    half = 0.11  # of a block's height
    start = {"left": 0.45, "right": 0.45 + width + gap}
    places = {name: (start[column], -row * pitch) for name, (column, row) in _places(blocks).items()}
    blocks = blocks.set_index("block")
    top, bottom, end = 0.5, min(y for _x, y in places.values()), start["right"] + width
    figure = plt.figure(figsize=(end + 0.95, top - bottom + 0.75))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, end + 0.95), ylim=(bottom - 0.5, top + 0.25))
    ax.set_axis_off()

    write = partial(_write, ax)

    def line(*points: tuple[float, float], arrow: bool = True, **options) -> None:
        style = {"color": "#4D4D4D", "linewidth": 0.9} | options
        ax.plot(*zip(*points[: -1 if arrow else None], strict=True), **({"zorder": 2} | style))
        if arrow:  # its last piece
            head = {"arrowstyle": "-|>,head_width=0.14,head_length=0.3", "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", points[-1], points[-2], arrowprops=head | style)

    encoder = blocks[blocks["part"] == "encoder"]
    _draw_bands(ax, encoder, places, pitch, bottom)

    # x_t, down the encoder, through the middle, up the decoder, to the prediction.
    middle = start["left"] + width / 2, start["right"] + width / 2
    order = [(x + width / 2, y) for x, y in places.values()]
    line((middle[0], top - 0.12), (middle[0], order[0][1] + half))
    line((middle[1], order[-1][1] + half), (middle[1], top - 0.12))
    for (x0, y0), (x1, y1) in zip(order[:-1], order[1:], strict=True):
        if y0 == y1:
            line((x0 + width / 2, y0 + 0.05), (x1 - width / 2, y1 + 0.05))
        else:
            line((x0, y0 - half * np.sign(y0 - y1)), (x1, y1 + half * np.sign(y0 - y1)))
    for k in range(len(encoder)):
        y = places[f"input_blocks.{k}.0"][1] + 0.05
        line((start["left"] + width, y), (start["right"], y), linewidth=0.7, color="#7F7F7F")

    # The embedding of t (and of the class) enters every residual block, the label map every SPADE block.
    time_line, label_line, route = start["right"] - gap / 2, end + 0.42, bottom - 0.28
    green, red = "#009E73", BLOCK_COLOURS["SPADE ResBlock"][0]
    line((time_line, top - 0.12), (time_line, bottom - 0.05), arrow=False, color=green)
    line((label_line, top - 0.16), (label_line, route), (middle[0], route), (middle[0], bottom - half), color=red)
    for name, (x, y) in places.items():
        inner = x if x > time_line else x + width
        if blocks.loc[name, "kind"] != "convolution":
            line((time_line, y - 0.05), (inner, y - 0.05), linewidth=0.7, color=green)
            ax.plot(time_line, y - 0.05, ".", markersize=4, color=green, zorder=3)
        if blocks.loc[name, "kind"] == "SPADE ResBlock" and x > time_line:
            line((label_line, y), (end, y), color=red)

    _draw_blocks(ax, blocks, places, width, half)

    # What goes in, what comes out, and names for the rest.
    square, classes = f"{config.image_size} × {config.image_size}", " and class" * bool(config.num_classes)
    write(middle[0], top, rf"noised image $\mathbf{{x}}_t$:  {config.in_channels} × {square}")
    write(middle[1], top, "prediction" + " and variance" * config.learned_variance)
    write(time_line, top, f"embedding of $t${classes}:  {blocks.loc['time_embed', 'channels']}", color="#006B4F")
    write(label_line, top + 0.12, r"label map $\mathbf{y}$", color="#A84A00")
    write(label_line, top - 0.05, f"{config.label_channels} × {square}", color="#A84A00")
    for x, y, name in ((start["left"], 0.28, "encoder"), (start["right"], 0.28, "decoder")):
        write(x, y, name, ha="left", weight="bold")
    write(start["left"], route, "middle", ha="left", weight="bold")
    write(time_line - 0.07, -pitch + 0.15, "skip", ha="right", color="#4D4D4D")
    return figure


def two_stages(
    sdm_label: NDArray[np.uint8], echoes: NDArray, small: NDArray, enlarged: NDArray, corner: tuple[int, int], side: int
) -> Figure:
    """What noise decides in each stage of a cascade: a label map (S, S) and echoes (n, S, S) painted for it, each from
    other noise in both stages; below, a square of the first one's small image (s, s), and of what the second stage
    alone makes of that image from other noise (n, S, S).

    Args:
        corner: row and column of the square in full-size pixels; multiples of S / s, as is `side`.
    """
    n, factor = len(echoes), len(sdm_label) // len(small)
    figure, axes = plt.subplots(2, n + 1, figsize=(WIDTH, 2 * WIDTH / (n + 1) + 0.6), layout="constrained")
    show_labels(axes[0, 0], sdm_label, "label map")
    axes[0, 0].add_patch(Rectangle(corner[::-1], side, side, fill=False, edgecolor="white", linewidth=1))
    square = tuple(slice(start, start + side) for start in corner)
    coarse = tuple(slice(start // factor, (start + side) // factor) for start in corner)
    show(axes[1, 0], small[coarse], f"first stage, {side // factor} pixels", interpolation="nearest")
    for k in range(n):
        show(axes[0, k + 1], echoes[k], f"both stages, noise {k + 1}")
        show(axes[1, k + 1], enlarged[k][square], f"second stage, noise {k + 1}", interpolation="nearest")
    return figure
