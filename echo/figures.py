"""One function a figure, each returning the matplotlib Figure; one colour a structure everywhere."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from echo.config import VIEW_PHASES
from echo.labels import STRUCTURES
from echo.paths import atomic
from echo.tables import paper_results

# Okabe and Ito's palette, safe for colour-blind readers.
COLOURS = {"LV endo": "#56B4E9", "LV epi": "#E69F00", "LA": "#CC79A7"}
TRAIN_COLOURS = {"real-only": "#7F7F7F", "synthetic-only": "#009E73"}
SDM_COLOURS = ListedColormap(["black", COLOURS["LV endo"], "#4D4D4D", COLOURS["LV epi"], COLOURS["LA"]])


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.png` and `name.pdf`, with no creation date, so that the same figure gives the same bytes."""
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with atomic(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata=metadata)


def show(ax: Axes, image: NDArray, title: str = "", **options) -> None:
    """An echo or a label map without axes."""
    ax.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "bicubic"} | options))
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


def noising(images: NDArray, steps: list[int], alpha_bar: NDArray) -> Figure:
    """q(x_t | x_0): alpha_bar over t, and below it one image at each of some steps; images (n, H, W) in [-1, 1]."""
    figure = plt.figure(figsize=(1.5 * len(steps), 3.6), layout="constrained")
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


def segmentations(images: NDArray[np.uint8], labels: NDArray[np.uint8], predictions: NDArray[np.uint8]) -> Figure:
    """Echoes (n, H, W) with the label's contours (dotted) and the prediction's (solid)."""
    n = len(images)
    figure, axes = plt.subplots(1, n, figsize=(1.9 * n, 2.5), layout="constrained")
    for ax, image, label, prediction in zip(axes, images, labels, predictions, strict=True):
        show(ax, image)
        draw_contours(ax, label, linestyles=":")
        draw_contours(ax, prediction)
    structure_legend(figure)
    return figure


def segmenter_curves(logs: dict[str, pd.DataFrame]) -> Figure:
    """Validation Dice of each structure over the training of each segmenter ("real-only", ...)."""
    figure, axes = plt.subplots(1, len(logs), figsize=(3.6 * len(logs), 2.8), sharey=True, layout="constrained")
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


def dice_boxes(frames: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Dice of the test frames: a box for each structure and training set, the paper's mean as a line beside it.

    Args:
        frames: one row a frame, as `tables.dice_table` takes it.
        names: the legend's name for each training set.
    """

    long = frames.melt(["train"], list(STRUCTURES), var_name="structure", value_name="dice").dropna()
    long["dice"] *= 100
    long["training set"] = long["train"].map(names)
    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    sns.boxplot(
        long,
        x="structure",
        y="dice",
        hue="training set",
        palette=TRAIN_COLOURS,
        ax=ax,
        fliersize=1.5,
        linewidth=0.9,
    )
    for k, structure in enumerate(STRUCTURES):
        mean = paper_results().loc[structure, "dice_mean"]
        label = "paper, synthetic-only (mean)" if k == 0 else None
        ax.plot([k - 0.45, k + 0.45], [mean, mean], color="#D55E00", linewidth=1.6, label=label)
    low = max(0, np.floor(long["dice"].quantile(0.005) / 5) * 5 - 5)
    ax.set(xlabel="", ylabel="Dice on test frames, %", ylim=(low, 100))
    ax.get_legend().remove()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    sns.despine(ax=ax)
    return figure
