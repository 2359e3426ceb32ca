"""Figures made of echoes and label maps, one function each, returning the matplotlib Figure; one colour a structure."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from echo.frames import Frames
from echo.labels import CAMUS, HEART, Classes, to_camus
from echo.resume import atomic
from reproduction.evaluation.images import nearest_distances
from reproduction.evaluation.shape import shape_statistics

WIDTH = 7.2  # inches, of a page's text: a figure is printed as large as it is drawn, with letters of 8 points or more
plt.rcParams["figure.dpi"] = 150  # so that four columns have 200 pixels an image and more

# Okabe and Ito's palette, safe for colour-blind readers: of the classes, and of the structures, in their order.
PALETTE = ("#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#F0E442", "#0072B2", "#D55E00")


def colours(structures: Iterable[str]) -> dict[str, str]:
    """A colour for each structure."""
    return dict(zip(structures, cycle(PALETTE)))


COLOURS = colours(CAMUS.structures)
CHANGE = 50  # grey levels, that an edit's change has full colour at


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


def map_palette(classes: Classes = CAMUS) -> list[str]:
    """The colour of each class of an SDM label map; black is the background or outside, grey is tissue."""
    own = colours(classes.names[1:])
    return [own.get(name, "#4D4D4D" if name == "tissue" else "black") for name in classes.sdm_names]


def show_labels(ax: Axes, sdm_label: NDArray[np.uint8], title: str = "", classes: Classes = CAMUS) -> None:
    """An SDM label map (H, W) in its classes' colours."""
    palette = map_palette(classes)
    options = {"cmap": ListedColormap(palette), "vmin": 0, "vmax": len(palette) - 1, "interpolation": "nearest"}
    show(ax, sdm_label, title, **options)


def draw_contours(ax: Axes, label: NDArray[np.uint8], classes: Classes = CAMUS, **style) -> None:
    """Contours of each structure of a label map (H, W) in the source's classes."""
    for members, colour in zip(classes.structures.values(), cycle(PALETTE)):
        mask = np.isin(label, members)
        if mask.any():
            ax.contour(mask, [0.5], colors=colour, linewidths=1.2, **style)


def structure_legend(figure: Figure, classes: Classes = CAMUS, dotted: str = "", solid: str = "") -> None:
    """The structures' colours, below the figure, and what dotted and solid contours are, where there are such."""
    names = {"LV epi": "LV epi (in label maps: the wall)"} if classes.anatomy == HEART else {}
    found = colours(classes.structures).items()
    handles = [Line2D([], [], color=colour, label=names.get(name, name)) for name, colour in found]
    styles = {":": dotted, "-": solid}
    handles += [Line2D([], [], color="0.4", ls=style, label=text) for style, text in styles.items() if text]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def stamp(figure: Figure, data: str, size: int) -> Figure:
    """The figure, with the data that it is of and the size of an image written above it, before its own title."""
    name = Path(data).name
    name = {"camus": "CAMUS", "sunnybrook": "Sunnybrook"}.get(name.lower(), name)
    title = f"{name}, {size} x {size} pixels"
    own = figure.get_suptitle()
    figure.suptitle(f"{title}: {own}" if own else title, fontsize=9)
    return figure


def blank(axes: NDArray, used: int) -> None:
    """Hide the axes after the first `used`."""
    for ax in axes.flat[used:]:
        ax.set_axis_off()


def name_rows(axes: NDArray, *names: str) -> None:
    """Write what each row of axes (rows, columns) shows beside it, upright."""
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", transform=ax.transAxes, fontsize=9)


def example_views(frames: Frames, rows: list[int]) -> Figure:
    """Image, label map and contours for some frames, a column each."""
    size = min(WIDTH, 1.9 * len(rows)), 6
    figure, axes = plt.subplots(3, len(rows), figsize=size, layout="constrained", squeeze=False)
    for column, row in zip(axes.T, rows, strict=True):
        show(column[0], frames.images[row], frames.titles[row])
        show_labels(column[1], frames.sdm_labels[row], classes=frames.classes)
        show(column[2], frames.images[row])
        draw_contours(column[2], frames.labels[row], frames.classes)
    structure_legend(figure, frames.classes)
    return figure


def frame_views(frames: Frames, row: int) -> Figure:
    """Echo, label map and contours of one frame, with what its label map measures."""
    facts, label, classes = frames.index.iloc[row], frames.labels[row], frames.classes
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.2), layout="constrained")
    show(axes[0], frames.images[row], "echo" if classes.sector else "image")
    show_labels(axes[1], frames.sdm_labels[row], "label map", classes)
    show(axes[2], frames.images[row], "contours")
    draw_contours(axes[2], label, classes)
    structure_legend(figure, classes)
    if classes.anatomy != HEART:
        shares = [f"{name} {100 * np.isin(label, k).mean():.1f} %" for name, k in classes.structures.items()]
        figure.suptitle(f"{facts['case']} {frames.titles[row]}: {', '.join(shares)} of the image", fontsize=9)
        return figure
    size = shape_statistics(label, (facts["spacing_row_mm"], facts["spacing_col_mm"]))
    cm2 = {"cavity": size["LV endo area"], "wall": size["LV myo area"], "atrium": size["LA area"]}
    areas = ", ".join(f"{name} {area / 100:.1f} cm²" for name, area in cm2.items())
    figure.suptitle(
        f"{facts['patient']}, {facts['view']} {facts['phase']}: {areas}; wall {size['wall thickness']:.1f} mm thick",
        fontsize=9,
    )
    return figure


def augmented_maps(sources: NDArray[np.uint8], augmented: NDArray[np.uint8], classes: Classes = CAMUS) -> Figure:
    """SDM label maps of real patients (n, H, W), and below each an augmented version of it; four columns."""
    n, columns = len(sources), min(4, len(sources))
    rows = 2 * -(-n // columns)
    size = 1.75 * columns + 0.2, 1.75 * rows + 0.4
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for pair in axes.reshape(-1, 2, columns):
        name_rows(pair, "label map", "augmented")
    pairs = axes.reshape(-1, 2, columns).transpose(0, 2, 1).reshape(-1, 2)
    blank(pairs, 2 * n)
    for (above, below), source, new in zip(pairs, sources, augmented, strict=False):
        show_labels(above, source, classes=classes)
        show_labels(below, new, classes=classes)
    structure_legend(figure, classes)
    return figure


def label_edits(
    names: Sequence[str],
    sdm_labels: NDArray[np.uint8],
    images: NDArray[np.uint8],
    predictions: NDArray[np.uint8],
    classes: Classes = CAMUS,
    change: bool = False,
) -> Figure:
    """Label maps (n, S, S), a row each; the echo painted for it; and on this the contours of the label map (dotted) and
    of what a segmenter finds (the source's classes, solid).

    Args:
        change: add how much each echo is brighter (red) or darker (blue) than the first one.
    """
    n, columns = len(names), 4 if change else 3
    size = 1.72 * columns + 0.3, 1.72 * n + 0.7
    figure, axes = plt.subplots(n, columns, figsize=size, layout="constrained", squeeze=False)
    for row, sdm_label, image, found in zip(axes, sdm_labels, images, predictions, strict=True):
        show_labels(row[0], sdm_label, classes=classes)
        show(row[1], image)
        show(row[2], image)
        draw_contours(row[2], to_camus(sdm_label, classes), classes, linestyles=":")
        draw_contours(row[2], found, classes)
        if change:
            show(row[3], image.astype(int) - images[0], cmap="RdBu_r", vmin=-CHANGE, vmax=CHANGE)
    for ax, title in zip(axes[0], ("label map", "image", "contours"), strict=False):
        ax.set_title(title, fontsize=9)
    if change:
        axes[0, 3].clear()
        axes[0, 3].set_axis_off()
        text = (
            f"below: the change\nfrom “{names[0]}”;\nblue is darker, red brighter,\nfull colour by {CHANGE} grey levels"
        )
        axes[0, 3].text(0.5, 0, text, ha="center", va="bottom", fontsize=8)
    name_rows(axes, *names)
    structure_legend(figure, classes, "of the label map", "of the segmenter")
    return figure


def denoising(
    x_t: NDArray, x_0: NDArray, sdm_label: NDArray[np.uint8], classes: Classes = CAMUS, columns: int = 4
) -> Figure:
    """Some of a sampler's steps, evenly spread, each a column: x_t after it, and x_0 as the network saw it there.

    Args:
        x_t, x_0: (n, H, W) in [-1, 1], of every step, as `echo.sampler` collects them in `trajectory` and `guesses`.
        sdm_label: the label map (H, W) that they were painted for; its contours are dotted.
    """
    steps = np.linspace(0, len(x_t) - 1, min(columns, len(x_t))).round().astype(int)
    size = 1.75 * len(steps) + 0.2, 4.2
    figure, axes = plt.subplots(2, len(steps), figsize=size, layout="constrained", squeeze=False)
    for column, k in zip(axes.T, steps, strict=True):
        show(column[0], x_t[k], f"step {k + 1}", vmin=-1, vmax=1)
        show(column[1], x_0[k], vmin=-1, vmax=1)
        draw_contours(column[1], to_camus(sdm_label, classes), classes, linestyles=":")
    name_rows(axes, r"$\mathbf{x}_t$", r"$\hat{\mathbf{x}}_0$")
    structure_legend(figure, classes, "of the label map")
    return figure


def denoising_step(
    x_t: NDArray, x_0: NDArray, sdm_label: NDArray[np.uint8], title: str, classes: Classes = CAMUS
) -> Figure:
    """One step of `denoising`, large, beside the label map; arrays (H, W)."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.2), layout="constrained")
    show(axes[0], x_t, r"$\mathbf{x}_t$, what the sampler has", vmin=-1, vmax=1)
    show(axes[1], x_0, r"$\hat{\mathbf{x}}_0$, where the network is heading", vmin=-1, vmax=1)
    draw_contours(axes[1], to_camus(sdm_label, classes), classes, linestyles=":")
    show_labels(axes[2], sdm_label, r"$\mathbf{y}$, the label map", classes)
    figure.suptitle(title, fontsize=9)
    structure_legend(figure, classes, "of the label map")
    return figure


def real_beside_synthetic(real: NDArray[np.uint8], synthetic: NDArray[np.uint8], frames: Frames) -> Figure:
    """For the same label maps: label map, the real echo, and the echo painted from noise; n columns."""
    n = len(real)
    figure, axes = plt.subplots(3, n, figsize=(1.75 * n + 0.2, 6), layout="constrained", squeeze=False)
    for k, column in enumerate(axes.T):
        show_labels(column[0], frames.sdm_labels[k], frames.titles[k], frames.classes)
        for ax, image in zip(column[1:], (real[k], synthetic[k]), strict=True):
            show(ax, image)
            draw_contours(ax, frames.labels[k], frames.classes, linestyles=":")
    name_rows(axes, "label map", "real", "synthetic")
    structure_legend(figure, frames.classes, "of the label map")
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
    n, columns = len(real), min(4, len(real))
    rows = 2 * -(-n // columns)
    size = 1.75 * columns + 0.1, 1.85 * rows + 0.3
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    pairs = axes.reshape(-1, 2, columns).transpose(0, 2, 1).reshape(-1, 2)
    blank(pairs, 2 * n)
    for k, (pair, upper) in enumerate(zip(pairs, real_left, strict=False)):
        images = (real[k], synthetic[k]) if upper else (synthetic[k], real[k])
        show(pair[0], images[0], f"pair {k + 1}")
        show(pair[1], images[1])
    places = ["upper" if upper else "lower" for upper in real_left]
    text = "real:  " + ",  ".join(f"{k} {place}" for k, place in enumerate(places, 1))
    figure.supxlabel(text, rotation=180, fontsize=8, color="0.4")
    return figure


def synthetic_grid(synthetic: Frames, columns: int = 4) -> Figure:
    """Label maps and the synthetic echoes painted for them, `columns` of each condition (view and phase) there is."""
    groups = synthetic.index.groupby("class_label").indices
    size = (1.75 * columns + 0.2, 0.8 + 3.5 * len(groups))
    figure, axes = plt.subplots(2 * len(groups), columns, figsize=size, layout="constrained", squeeze=False)
    for pair, rows in zip(axes.reshape(-1, 2, columns), groups.values(), strict=True):
        for column, row in zip(pair.T, rows, strict=False):
            show_labels(column[0], synthetic.sdm_labels[row], classes=synthetic.classes)
            show(column[1], synthetic.images[row])
        for ax in pair[:, len(rows) :].flat:
            ax.set_axis_off()
        pair[0, 0].set_title(synthetic.titles[rows[0]], fontsize=9, loc="left")
    structure_legend(figure, synthetic.classes)
    return figure


def segmentations(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    predictions: NDArray[np.uint8],
    titles: Sequence[str] = (),
    classes: Classes = CAMUS,
) -> Figure:
    """Echoes (n, H, W), four a row at most, with the label's contours (dotted) and the prediction's (solid)."""
    rows = -(-len(images) // 4)
    columns = -(-len(images) // rows)
    size = max(1.8 * columns, 5), 2.0 * rows + 0.7
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    blank(axes, len(images))
    titles = titles or [""] * len(images)
    for ax, image, label, prediction, title in zip(axes.flat, images, labels, predictions, titles, strict=False):
        show(ax, image, title)
        draw_contours(ax, label, classes, linestyles=":")
        draw_contours(ax, prediction, classes)
    structure_legend(figure, classes, "label", "prediction")
    return figure


def contact_sheet(frames: Sequence, titles: Sequence[str], classes: Classes) -> Figure:
    """Frames of any source (with `image` and `label`, of any size), eight a row, with their labels' contours."""
    rows = -(-len(frames) // 8)
    figure, axes = plt.subplots(rows, 8, figsize=(12, 1.75 * rows + 0.4), layout="constrained", squeeze=False)
    blank(axes, len(frames))
    for ax, frame, title in zip(axes.flat, frames, titles, strict=False):
        show(ax, frame.image, title)
        draw_contours(ax, frame.label, classes)
    structure_legend(figure, classes)
    return figure


def closest_pairs(images: NDArray[np.uint8], training: NDArray[np.uint8], pairs: int = 4) -> Figure:
    """Those of the images (N, S, S) that are closest to a training image (M, S, S), above that one: copies, if any.

    Closest is by `relative` distance in grey levels (`metrics.nearest_distances`), which a copy alone makes small.
    """
    nearest = nearest_distances(images, training).nsmallest(pairs, "relative")
    size = 1.75 * len(nearest) + 0.2, 4
    figure, axes = plt.subplots(2, len(nearest), figsize=size, layout="constrained", squeeze=False)
    for column, row in zip(axes.T, nearest.itertuples(), strict=True):
        show(column[0], images[row.Index], f"{row.relative:.2f}")
        show(column[1], training[row.index])
    name_rows(axes, "image", "nearest in training")
    figure.suptitle("distance to the nearest training image / mean distance to the nearest 50", fontsize=8)
    return figure
