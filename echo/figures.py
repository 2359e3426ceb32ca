"""One function a figure, each returning the matplotlib Figure; one colour a structure everywhere."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from torch import nn

from echo import augment
from echo.anatomy import anatomy, virtual_patient
from echo.config import VIEW_PHASES
from echo.labels import STRUCTURES, to_camus
from echo.metrics import nearest_distances
from echo.paths import atomic
from echo.tables import TRAIN_NAMES, VOLUMES, agreement, main_rows, paper_results
from echo.unet import AttentionBlock, ResBlock, SemanticUNet, SpadeResBlock

# Okabe and Ito's palette, safe for colour-blind readers.
COLOURS = {"LV endo": "#56B4E9", "LV epi": "#E69F00", "LA": "#CC79A7"}
TRAIN_COLOURS = {
    "real-only": "#7F7F7F",
    "synthetic-only": "#009E73",
    "real + synthetic": "#0072B2",
    "synthetic, then real": "#D55E00",
}
SDM_COLOURS = ListedColormap(["black", COLOURS["LV endo"], "#4D4D4D", COLOURS["LV epi"], COLOURS["LA"]])
# (edge, fill) of the network's blocks; the label map's lines have the edge colour of the blocks that it enters.
BLOCK_COLOURS = {
    "convolution": ("#4D4D4D", "#E6E6E6"),
    "ResBlock": ("#0072B2", "#D6E8F4"),
    "SPADE ResBlock": ("#D55E00", "#FBE3D3"),
}


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.png` and `name.pdf`, with no creation date, so that the same figure gives the same bytes."""
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with atomic(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata=metadata)


def show(ax: Axes, image: NDArray, title: str = "", **options) -> None:
    """An echo or a label map without axes."""
    ax.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "bicubic"} | options))
    ax.set(xticks=[], yticks=[])  # invisible, but laid out at a cost
    ax.set_axis_off()
    ax.set_title(title, fontsize=9)


def show_labels(ax: Axes, sdm_label: NDArray[np.uint8], title: str = "") -> None:
    """An SDM label map (H, W) in the structures' colours."""
    show(ax, sdm_label, title, cmap=SDM_COLOURS, vmin=0, vmax=4, interpolation="nearest")


def draw_contours(ax: Axes, label: NDArray[np.uint8], **style) -> None:
    """Contours of the three structures of a CAMUS label map (H, W)."""
    for name, classes in STRUCTURES.items():
        mask = np.isin(label, classes)
        if mask.any():
            ax.contour(mask, [0.5], colors=COLOURS[name], linewidths=1.2, **style)


def structure_legend(figure: Figure) -> None:
    """The structures' colours, below the figure."""
    names = {"LV epi": "LV epi (in label maps: the wall)"}
    handles = [Line2D([], [], color=colour, label=names.get(name, name)) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def example_views(frames, rows: list[int]) -> Figure:
    """Image, label map and contours for some frames (`echo.dataset.Frames`), a column each."""
    figure, axes = plt.subplots(3, len(rows), figsize=(2 * len(rows), 6.4), layout="constrained")
    for column, row in zip(axes.T, rows, strict=True):
        facts = frames.index.iloc[row]
        show(column[0], frames.images[row], f"{facts['view']} {facts['phase']}")
        show_labels(column[1], frames.sdm_labels[row])
        show(column[2], frames.images[row])
        draw_contours(column[2], frames.labels[row])
    structure_legend(figure)
    return figure


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


def frame_views(frames, row: int) -> Figure:
    """Echo, label map and contours of one frame (`echo.dataset.Frames`), with what its label map measures."""
    facts, label = frames.index.iloc[row], frames.labels[row]
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 3.4), layout="constrained")
    show(axes[0], frames.images[row], "echo")
    show_labels(axes[1], frames.sdm_labels[row], "label map")
    show(axes[2], frames.images[row], "contours")
    draw_contours(axes[2], label)
    size = augment.shape_statistics(label, (facts["spacing_row_mm"], facts["spacing_col_mm"]))
    cm2 = {"cavity": size["LV endo area"], "wall": size["LV myo area"], "atrium": size["LA area"]}
    areas = ", ".join(f"{name} {area / 100:.1f} cm²" for name, area in cm2.items())
    figure.suptitle(
        f"{facts['patient']}, {facts['view']} {facts['phase']}: {areas}; wall {size['wall thickness']:.1f} mm thick",
        fontsize=9,
    )
    structure_legend(figure)
    return figure


def schedules(alpha_bars: dict[str, NDArray]) -> Figure:
    """alpha_bar_t and the signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t) of some noise schedules, by name."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    for k, (name, alpha_bar) in enumerate(alpha_bars.items()):
        style = {"color": "#7F7F7F", "linestyle": "--"} if k else {"color": "#0072B2"}
        for ax, values in zip(axes, (alpha_bar, alpha_bar / (1 - alpha_bar)), strict=True):
            ax.plot(values, **style, label=name)
            ax.set(xlabel="t", xlim=(0, len(alpha_bar) - 1))
            sns.despine(ax=ax)
    axes[0].set(ylabel=r"$\bar\alpha_t$", ylim=(0, 1.02))
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].set(ylabel=r"SNR $=\bar\alpha_t\,/\,(1-\bar\alpha_t)$", yscale="log", ylim=(1e-5, 1e5))
    axes[1].axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes[1].annotate(
        "as much signal as noise", (len(alpha_bar) - 1, 1), (0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    return figure


def loss_weights(alpha_bar: NDArray, snr_gamma: float = 5) -> Figure:
    """What each loss weighs an error in x_0 with, over t: SNR, SNR + 1, and min(SNR, snr_gamma) (Hang et al. 2023)."""
    figure, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
    snr = alpha_bar / (1 - alpha_bar)
    ax.plot(snr + 1, color="#0072B2", label=r"$\mathbf{v}$-prediction: SNR + 1")
    ax.plot(snr, "--", color="#D55E00", label=r"$\boldsymbol{\epsilon}$-prediction: SNR")
    ax.plot(np.minimum(snr, snr_gamma), ":", color="black", label=f"min-SNR: min(SNR, {snr_gamma:g})")
    ax.set(xlabel="t", ylabel=r"weight of $\|\mathbf{x}_0-\hat{\mathbf{x}}_0\|^2$", yscale="log")
    ax.set(xlim=(0, len(alpha_bar) - 1), ylim=(1e-3, 1e5))
    ax.legend(frameon=False, fontsize=8)
    sns.despine(ax=ax)
    return figure


def noising(images: NDArray, steps: list[int], alpha_bar: NDArray) -> Figure:
    """q(x_t | x_0): alpha_bar over t, and below it one image at each of some steps; images (n, H, W) in [-1, 1]."""
    figure = plt.figure(figsize=(1.1 * len(steps), 3.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1])
    ax = top.subplots()
    ax.plot(np.sqrt(alpha_bar), label=r"signal $\sqrt{\bar\alpha_t}$", color="#0072B2")
    ax.plot(np.sqrt(1 - alpha_bar), label=r"noise $\sqrt{1-\bar\alpha_t}$", color="#D55E00")
    ax.plot(steps, np.sqrt(alpha_bar)[steps], "k.", clip_on=False)
    ax.set(xlabel="t", ylabel="weight", xlim=(0, len(alpha_bar) - 1), ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)
    sns.despine(ax=ax)
    for axis, image, t in zip(bottom.subplots(1, len(steps)), images, steps, strict=True):
        show(axis, image, f"t = {t}", vmin=-1, vmax=1)
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
        unet(x_t, zero, y, zero if config.num_classes else None)
    finally:
        for hook in hooks:
            hook.remove()
    return pd.DataFrame(rows)


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

    def write(x: float, y: float, text: str, **options) -> None:
        ax.text(x, y, text, **({"ha": "center", "va": "center_baseline", "fontsize": 8, "zorder": 5} | options))

    def line(*points: tuple[float, float], arrow: bool = True, **options) -> None:
        style = {"color": "#4D4D4D", "linewidth": 0.9} | options
        ax.plot(*zip(*points[: -1 if arrow else None], strict=True), **({"zorder": 2} | style))
        if arrow:  # its last piece
            head = {"arrowstyle": "-|>,head_width=0.14,head_length=0.3", "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", points[-1], points[-2], arrowprops=head | style)

    # Bands of one resolution.
    encoder = blocks[blocks["part"] == "encoder"]
    firsts = encoder.reset_index().groupby("side", sort=False)["block"].first()
    edges = [0.55 * pitch, *(places[name][1] + pitch / 2 for name in firsts.iloc[1:]), bottom - 0.42]
    for k, side in enumerate(firsts.index):
        ax.axhspan(edges[k + 1], edges[k], color="white" if k % 2 else "#F4F4F4", linewidth=0, zorder=0)
        write(0.22, (edges[k] + edges[k + 1]) / 2, f"{side} px", rotation=90, va="center", color="#4D4D4D")

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

    # The blocks.
    for name, (x, y) in places.items():
        kind, attention = blocks.loc[name, ["kind", "attention"]]
        edge, fill = BLOCK_COLOURS[kind]
        style = "round,pad=0,rounding_size=0.04"
        ax.add_patch(FancyBboxPatch((x, y - half), width, 2 * half, style, fc=fill, ec=edge, lw=0.9, zorder=3))
        mark = {"down": " ↓2", "up": " ↑2", "": ""}[blocks.loc[name, "resample"]]
        write(x + 0.07, y, kind + mark, ha="left")
        write(x + width - 0.07, y, "{} × {} × {}".format(*blocks.loc[name, ["channels", "side", "side"]]), ha="right")
        if attention:
            ax.add_patch(FancyBboxPatch((x + 1.1, y - 0.075), 0.62, 0.15, style, fc="#4D4D4D", ec="none", zorder=4))
            write(x + 1.41, y, "attention", color="white", fontsize=7)

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
    write(time_line - 0.07, -pitch + 0.15, "skip", ha="right", fontsize=7, color="#4D4D4D")
    return figure


def training_curve(log: pd.DataFrame) -> Figure:
    """Training and validation loss of the diffusion model over its steps; `log` is a stage's log.csv."""
    figure, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
    ax.plot(log["step"], log["loss"], color="#7F7F7F", label="training (running mean)")
    ax.plot(
        log["step"],
        log["validation_loss"],
        color="#0072B2",
        marker=".",
        label="validation (averaged weights)",
    )
    ax.set(xlabel="training step", ylabel="loss", yscale="log", xlim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    sns.despine(ax=ax)
    return figure


def augmented_maps(sources: NDArray[np.uint8], augmented: NDArray[np.uint8]) -> Figure:
    """SDM label maps of real patients (n, H, W) above augmented versions of them."""
    n = len(sources)
    figure, axes = plt.subplots(2, n, figsize=(1.5 * n, 3.2), layout="constrained")
    for column, source, new in zip(axes.T, sources, augmented, strict=True):
        show_labels(column[0], source)
        show_labels(column[1], new)
    axes[0, 0].set_title("real label map", fontsize=9)
    axes[1, 0].set_title("augmented", fontsize=9)
    structure_legend(figure)
    return figure


SHAPE_COLOURS = {"real": TRAIN_COLOURS["real-only"], "warped": "#009E73", "shape model": "#0072B2"}


def shape_statistics(statistics: pd.DataFrame) -> Figure:
    """How real maps, warped ones and those of the shape model are distributed in each measure of their shape.

    Args:
        statistics: one row a map: `maps` ("real", "warped" or "shape model") and its measures, each a column whose name
            is the axis label.
    """
    measures = [name for name in statistics.columns if name != "maps"]
    figure, axes = plt.subplots(2, -(-len(measures) // 2), figsize=(9.5, 4.2), layout="constrained")
    colours = {name: SHAPE_COLOURS[name] for name in statistics["maps"].unique()}
    for ax, measure in zip(axes.flat, measures, strict=False):
        options = {"hue": "maps", "palette": colours, "legend": False, "cut": 0, "linewidth": 0.8}
        sns.violinplot(statistics, x=measure, y="maps", inner="quart", density_norm="width", ax=ax, **options)
        ax.set_ylabel("")
        ax.tick_params(axis="y", length=0)
        ax.label_outer()
        ax.tick_params(axis="x", labelbottom=True)
        ax.set_xlabel(measure)
        sns.despine(ax=ax)
    return figure


def label_edits(
    names: list[str], sdm_labels: NDArray[np.uint8], images: NDArray[np.uint8], predictions: NDArray[np.uint8]
) -> Figure:
    """Label maps (n, S, S), a column each; the echoes painted for them; and on these the contours of the label map
    (dotted) and of what a segmenter finds (CAMUS classes, solid)."""
    n = len(names)
    figure, axes = plt.subplots(3, n, figsize=(1.7 * n + 0.2, 5.6), layout="constrained", squeeze=False)
    for column, name, sdm_label, image, found in zip(axes.T, names, sdm_labels, images, predictions, strict=True):
        show_labels(column[0], sdm_label, name)
        show(column[1], image)
        show(column[2], image)
        draw_contours(column[2], to_camus(sdm_label), linestyles=":")
        draw_contours(column[2], found)
    for ax, name in zip(axes[:, 0], ("label map", "painted", "contours"), strict=True):
        ax.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", transform=ax.transAxes, fontsize=9)
    structure_legend(figure)
    return figure


def denoising(x_t: NDArray, x_0: NDArray, sdm_label: NDArray[np.uint8], columns: int = 8) -> Figure:
    """Some of a sampler's steps, evenly spread, each a column: x_t after it, and x_0 as the network saw it there.

    Args:
        x_t, x_0: (n, H, W) in [-1, 1], of every step, as `echo.sampler` collects them in `trajectory` and `guesses`.
        sdm_label: the label map (H, W) that they were painted for; its contours are dotted.
    """
    steps = np.linspace(0, len(x_t) - 1, min(columns, len(x_t))).round().astype(int)
    figure, axes = plt.subplots(2, len(steps), figsize=(1.3 * len(steps), 3.3), layout="constrained", squeeze=False)
    for column, k in zip(axes.T, steps, strict=True):
        show(column[0], x_t[k], f"step {k + 1}", vmin=-1, vmax=1)
        show(column[1], x_0[k], vmin=-1, vmax=1)
        draw_contours(column[1], to_camus(sdm_label), linestyles=":")
    for ax, name in zip(axes[:, 0], (r"$\mathbf{x}_t$", r"$\hat{\mathbf{x}}_0$"), strict=True):
        ax.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", transform=ax.transAxes, fontsize=10)
    structure_legend(figure)
    return figure


def denoising_step(x_t: NDArray, x_0: NDArray, sdm_label: NDArray[np.uint8], title: str) -> Figure:
    """One step of `denoising`, large, beside the label map; arrays (H, W)."""
    figure, axes = plt.subplots(1, 3, figsize=(7.6, 3.4), layout="constrained")
    show(axes[0], x_t, r"$\mathbf{x}_t$, what the sampler has", vmin=-1, vmax=1)
    show(axes[1], x_0, r"$\hat{\mathbf{x}}_0$, where the network is heading", vmin=-1, vmax=1)
    draw_contours(axes[1], to_camus(sdm_label), linestyles=":")
    show_labels(axes[2], sdm_label, r"$\mathbf{y}$, the label map")
    figure.suptitle(title, fontsize=10)
    structure_legend(figure)
    return figure


def real_beside_synthetic(real: NDArray[np.uint8], synthetic: NDArray[np.uint8], frames) -> Figure:
    """For the same label maps: label map, the real echo, and the echo painted from noise; n columns."""
    n = len(real)
    figure, axes = plt.subplots(3, n, figsize=(1.6 * n, 5.2), layout="constrained")
    for k, column in enumerate(axes.T):
        facts = frames.index.iloc[k]
        show_labels(column[0], frames.sdm_labels[k], f"{facts['view']} {facts['phase']}")
        for ax, image in zip(column[1:], (real[k], synthetic[k]), strict=True):
            show(ax, image)
            draw_contours(ax, frames.labels[k], linestyles=":")
    for ax, name in zip(axes[:, 0], ("label map", "real", "synthetic"), strict=True):
        ax.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", transform=ax.transAxes, fontsize=9)
    structure_legend(figure)
    return figure


def blind_pair(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> Figure:
    """Two echoes (H, W) side by side, without a word about them."""
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.3), layout="constrained")
    for ax, image in zip(axes, (left, right), strict=True):
        show(ax, image)
    return figure


def blind_pairs(real: NDArray[np.uint8], synthetic: NDArray[np.uint8], real_left: NDArray[np.bool_]) -> Figure:
    """Pairs of echoes (n, H, W), a real and a synthetic one, one above the other; below, upside down, which is which.

    Args:
        real_left: whether the real echo is the left one (n,), here the upper one.
    """
    n = len(real)
    figure, axes = plt.subplots(2, n, figsize=(1.3 * n, 3.2), layout="constrained", squeeze=False)
    for k, (column, upper) in enumerate(zip(axes.T, real_left, strict=True)):
        images = (real[k], synthetic[k]) if upper else (synthetic[k], real[k])
        show(column[0], images[0], f"pair {k + 1}")
        show(column[1], images[1])
    places = ["upper" if upper else "lower" for upper in real_left]
    text = "real:  " + ",  ".join(f"{k} {place}" for k, place in enumerate(places, 1))
    figure.supxlabel(text, rotation=180, fontsize=8, color="0.4")
    return figure


def synthetic_grid(synthetic, columns: int = 6) -> Figure:
    """Label maps and the synthetic echoes painted for them, `columns` of each view and phase (Frames)."""
    figure, axes = plt.subplots(8, columns, figsize=(1.35 * columns, 11.6), layout="constrained")
    for k, (view, phase) in enumerate(VIEW_PHASES):
        rows = np.flatnonzero(synthetic.index["class_label"] == k)[:columns]
        for column, row in enumerate(rows):
            show_labels(axes[2 * k, column], synthetic.sdm_labels[row])
            show(axes[2 * k + 1, column], synthetic.images[row])
        axes[2 * k, 0].set_title(f"{view} {phase}", fontsize=9, loc="left")
    structure_legend(figure)
    return figure


def segmentations(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], predictions: NDArray[np.uint8], titles: Sequence[str] = ()
) -> Figure:
    """Echoes (n, H, W) with the label's contours (dotted) and the prediction's (solid)."""
    n = len(images)
    figure, axes = plt.subplots(1, n, figsize=(1.9 * n, 2.5), layout="constrained")
    titles = titles or [""] * n
    for ax, image, label, prediction, title in zip(axes, images, labels, predictions, titles, strict=True):
        show(ax, image, title)
        draw_contours(ax, label, linestyles=":")
        draw_contours(ax, prediction)
    structure_legend(figure)
    return figure


def segmenter_curves(logs: dict[str, pd.DataFrame]) -> Figure:
    """Validation Dice of each structure over the training of each segmenter ("real-only", ...)."""
    figure, axes = plt.subplots(1, len(logs), figsize=(2.7 * len(logs) + 0.6, 2.8), sharey=True, layout="constrained")
    for ax, (name, log) in zip(np.atleast_1d(axes), logs.items(), strict=True):
        for structure, colour in COLOURS.items():
            ax.plot(log["step"], log[structure], color=colour, label=structure)
        best = log.loc[log["mean"].idxmax(), "step"]
        ax.axvline(best, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=name, xlabel="training step")
        sns.despine(ax=ax)
    np.atleast_1d(axes)[0].set_ylabel("validation Dice, %")
    np.atleast_1d(axes)[-1].legend(frameon=False, fontsize=8)
    return figure


def dice_boxes(scores: pd.DataFrame) -> Figure:
    """Raw Dice of the test frames: a box and a dot a frame for each structure and main row, beside the paper's mean.

    A frame's Dice is averaged over training seeds. Where the axis leaves frames out below, their number stands there.

    Args:
        scores: tidy, as `tables.table` takes them.
    """
    raw, rows = scores[scores["processing"] == "raw"], main_rows(scores["train"])
    dice = 100 * raw.groupby(["structure", "train", "patient", "view", "phase"])["dice"].mean().dropna()
    low = max(0, np.floor(dice.loc[:, rows].quantile(0.005) / 5) * 5 - 5)
    figure, ax = plt.subplots(figsize=(4 + 1.1 * len(rows), 3.6), layout="constrained")
    names, width = [TRAIN_NAMES[row] for row in rows], 0.84 / len(rows)
    order = {"order": STRUCTURES, "hue_order": names, "palette": TRAIN_COLOURS}
    table = dice.reset_index().assign(name=lambda frames: frames["train"].map(TRAIN_NAMES))
    sns.boxplot(
        table, x="structure", y="dice", hue="name", **order, width=0.84, gap=0.25, showfliers=False, fill=False, ax=ax
    )
    for (k, structure), (i, row) in product(enumerate(STRUCTURES), enumerate(rows)):
        values, place = dice[structure, row].to_numpy(), k + (i + 0.5) * width - 0.42
        # Spread by the golden ratio: as even as random, and the same every time.
        jitter = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.7 * width
        ax.scatter(place + jitter, values, s=3, color=TRAIN_COLOURS[names[i]], alpha=0.4, linewidth=0)
        if below := int((values < low).sum()):
            ax.annotate(f"↓{below}", (place, low), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    for k, structure in enumerate(STRUCTURES):
        label = "paper, synthetic-only (mean)" if k == 0 else None
        ax.plot([k - 0.46, k + 0.46], 2 * [paper_results().loc[structure, "dice_mean"]], "k--", lw=1.2, label=label)
    ax.set(xlabel="", ylabel="Dice on test frames, %", ylim=(low, 100), xlim=(-0.5, len(STRUCTURES) - 0.5))
    ax.get_legend().remove()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    sns.despine(ax=ax)
    return figure


def bland_altman(volumes: pd.DataFrame, column: str = "ef") -> Figure:
    """Difference against mean of predicted and expert EF (or another of `tables.VOLUMES`), a panel a main row.

    The solid line is the bias, the dashed ones the limits of agreement, as in Table 3: means over training seeds.

    Args:
        volumes: one row a patient and model, as `tables.table` takes them.
    """
    rows, (quantity, unit) = main_rows(volumes["train"]), VOLUMES[column].split(", ")
    figure, axes = plt.subplots(
        1, len(rows), figsize=(2.7 * len(rows), 3), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    for ax, row in zip(axes[0], rows, strict=True):
        found = volumes[volumes["train"] == row]
        ours, expert = found[column], found[f"expert_{column}"]
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.scatter((ours + expert) / 2, ours - expert, s=14, color=TRAIN_COLOURS[TRAIN_NAMES[row]], alpha=0.6, lw=0)
        lines = agreement(found, column)[["bias", "low", "high"]]
        for value, style in zip(lines, ("-", "--", "--"), strict=True):
            ax.axhline(value, color="black", linewidth=0.9, linestyle=style)
            ax.text(1.01, value, f"{value:+z.1f}", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.set_title(TRAIN_NAMES[row], fontsize=10)
        sns.despine(ax=ax)
    figure.supylabel(f"prediction - expert: {quantity}, {unit}", fontsize=9)
    figure.supxlabel(f"mean of prediction and expert: {quantity}, {unit.replace('points', '%')}", fontsize=9)
    return figure


def scaling(dice: pd.DataFrame, x_label: str) -> Figure:
    """Test Dice against how much there was to train on: a line a series through its means, a dot a training seed.

    Args:
        dice: columns structure, train (the series), x, seed, dice in [0, 1].
        x_label: what x is, with its unit.
    """
    figure, axes = plt.subplots(1, len(STRUCTURES), figsize=(10, 3.2), layout="constrained")
    places = sorted(dice["x"].unique())
    for ax, structure in zip(axes, STRUCTURES, strict=True):
        series = dice[dice["structure"] == structure].groupby("train", sort=False)
        for (name, rows), colour, marker in zip(series, sns.color_palette("colorblind"), "os^Dv", strict=False):
            ax.plot(rows["x"], 100 * rows["dice"], marker, color=colour, markersize=4, alpha=0.5, linewidth=0)
            means = 100 * rows.groupby("x")["dice"].mean()
            ax.plot(means.index, means, color=colour, linewidth=1.4, marker=marker, markersize=5, label=name)
        ax.set(title=structure, xlabel=x_label, xscale="log")
        ax.set_xticks(places, [f"{x:g}" for x in places])
        ax.minorticks_off()
        middle, half = np.mean(ax.get_ylim()), np.ptp(ax.get_ylim()) / 2
        ax.set_ylim(middle - max(half, 1), middle + max(half, 1))  # a tenth of a point must not look like a slope
        sns.despine(ax=ax)
    axes[0].set_ylabel("Dice on test frames, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


STUDY_MEASURES = {
    "mean Dice": "label fidelity: mean Dice, %",
    "frechet_distance": "Fréchet distance of features",
    "ms_ssim": "MS-SSIM of two images\nof one label map (low: diverse)",
}


def quality_against_time(study: pd.DataFrame, references: pd.Series) -> Figure:
    """Label fidelity, distance to real images and diversity against seconds an image: a line a sampler, more steps to
    the right. Settings that fail (mean Dice more than 10 points under the best) leave the axes."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    good = study[study["mean Dice"] > study["mean Dice"].max() - 10]
    for ax, (measure, name) in zip(axes, STUDY_MEASURES.items(), strict=True):
        samplers = study.groupby("sampler", sort=False)
        for (sampler, rows), colour in zip(samplers, sns.color_palette("colorblind"), strict=False):
            rows = rows.sort_values("steps")
            ax.plot(rows["seconds_per_image"], rows[measure], "o-", ms=3.5, lw=1.2, color=colour, label=sampler)
        values = [*good[measure], *references[references.index == measure]]
        margin = 0.08 * (max(values) - min(values))
        if measure in references:
            ax.axhline(references[measure], color="0.4", ls=":", lw=1.2, label="real images")
        ax.set(xscale="log", xlabel="seconds an image (log scale)", ylabel=name)
        ax.set_ylim(min(values) - margin, max(values) + margin)
        sns.despine(ax=ax)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    return figure


def guidance_sweep(study: pd.DataFrame, references: pd.Series) -> Figure:
    """Label fidelity, realism and diversity against the guidance scale."""
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained")
    for ax, (measure, name) in zip(axes, STUDY_MEASURES.items(), strict=True):
        ax.plot(study["guidance_scale"], study[measure], "o-", ms=4, color=TRAIN_COLOURS["synthetic-only"])
        if measure in references:
            ax.axhline(references[measure], color="0.4", ls=":", lw=1.2)
            place = study["guidance_scale"].max(), references[measure]
            ax.annotate("real images", place, fontsize=8, color="0.4", ha="right", va="bottom")
        ax.set(xlabel="guidance scale", ylabel=name)
        sns.despine(ax=ax)
    return figure


def image_quality(spectrum: pd.DataFrame, nearest: pd.DataFrame) -> Figure:
    """Power spectra of synthetic and real images, and their distances to the nearest training image."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    colours = {"synthetic": TRAIN_COLOURS["synthetic-only"], "real": TRAIN_COLOURS["real-only"]}
    for name, rows in spectrum.groupby("images", sort=False):
        axes[0].plot(rows["frequency"], rows["power"], color=colours[name], label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="frequency, cycles per image side", ylabel="power, grey levels²")
    axes[0].legend(frameon=False, fontsize=8)
    units = {"grey levels": "RMS difference, grey levels", "features": "distance in features"}
    for ax, (space, unit) in zip(axes[1:], units.items(), strict=True):
        rows = nearest[nearest["space"] == space].reset_index(drop=True)
        options = {"element": "step", "stat": "density", "common_norm": False, "palette": colours, "legend": False}
        sns.histplot(rows, x="distance", hue="images", bins=20, ax=ax, **options)
        ax.set(xlabel=f"to the nearest training image:\n{unit}", ylabel="density")
    for ax in axes:
        sns.despine(ax=ax)
    return figure


def closest_pairs(images: NDArray[np.uint8], training: NDArray[np.uint8], pairs: int = 6) -> Figure:
    """Those of the images (N, S, S) that are closest to a training image (M, S, S), above that one: copies, if any.

    Closest is by `relative` distance in grey levels (`metrics.nearest_distances`), which a copy alone makes small.
    """
    nearest = nearest_distances(images, training).nsmallest(pairs, "relative")
    figure, axes = plt.subplots(2, len(nearest), figsize=(1.5 * len(nearest), 3.3), layout="constrained", squeeze=False)
    for column, row in zip(axes.T, nearest.itertuples(), strict=True):
        show(column[0], images[row.Index], f"{row.relative:.2f}")
        show(column[1], training[row.index])
    for ax, name in zip(axes[:, 0], ("image", "nearest in training"), strict=True):
        ax.text(-0.08, 0.5, name, transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=8)
    figure.suptitle("distance to the nearest training image / mean distance to the nearest 50", fontsize=9)
    return figure
