"""Charts of numbers, one function each, returning the matplotlib Figure; one colour a training set."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from reproduction.evaluation.statistics import frame_names, structures_of
from reproduction.evaluation.tables import TRAIN_NAMES, VOLUMES, agreement, main_rows, paper_results
from reproduction.plots.echoes import WIDTH, blank, colours, show

TRAIN_COLOURS = {
    "real-only": "#7F7F7F",
    "synthetic-only": "#009E73",
    "real + synthetic": "#0072B2",
    "synthetic, then real": "#D55E00",
}


def schedules(alpha_bars: dict[str, NDArray]) -> Figure:
    """alpha_bar_t and the signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t) of some noise schedules, by name."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.6), layout="constrained")
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
    rows = -(-len(steps) // 4)
    figure = plt.figure(figsize=(WIDTH, 2 + 1.9 * rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2, 1.9 * rows])
    ax = top.subplots()
    ax.plot(np.sqrt(alpha_bar), label=r"signal $\sqrt{\bar\alpha_t}$", color="#0072B2")
    ax.plot(np.sqrt(1 - alpha_bar), label=r"noise $\sqrt{1-\bar\alpha_t}$", color="#D55E00")
    ax.plot(steps, np.sqrt(alpha_bar)[steps], "k.", clip_on=False)
    ax.set(xlabel="t", ylabel="weight", xlim=(0, len(alpha_bar) - 1), ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)
    sns.despine(ax=ax)
    axes = bottom.subplots(rows, min(4, len(steps)), squeeze=False)
    blank(axes, len(steps))
    for axis, image, t in zip(axes.flat, images, steps, strict=False):
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


SHAPE_COLOURS = {"real": TRAIN_COLOURS["real-only"], "warped": "#009E73", "shape model": "#0072B2"}


def shape_statistics(statistics: pd.DataFrame) -> Figure:
    """How real maps, warped ones and those of the shape model are distributed in each measure of their shape.

    Args:
        statistics: one row a map: `maps` ("real", "warped" or "shape model") and its measures, each a column whose name
            is the axis label.
    """
    measures = [name for name in statistics.columns if name != "maps"]
    figure, axes = plt.subplots(2, -(-len(measures) // 2), figsize=(WIDTH, 4.2), layout="constrained")
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


def segmenter_curves(logs: dict[str, pd.DataFrame]) -> Figure:
    """Validation Dice of each structure over the training of each segmenter ("real-only", ...)."""
    size = min(WIDTH, 2.7 * len(logs) + 1), 3
    figure, axes = plt.subplots(1, len(logs), figsize=size, sharey=True, layout="constrained")
    for ax, (name, log) in zip(np.atleast_1d(axes), logs.items(), strict=True):
        for structure, colour in colours(log.columns.drop(["step", "loss", "mean"], errors="ignore")).items():
            ax.plot(log["step"], log[structure], color=colour, label=structure)
        best = log.loc[log["mean"].idxmax(), "step"]
        ax.axvline(best, color="black", linewidth=0.8, linestyle=":", label="weights that are kept")
        ax.set_title(name, fontsize=9)
        sns.despine(ax=ax)
    np.atleast_1d(axes)[0].set_ylabel("validation Dice, % (better ↑)")
    for ax in np.atleast_1d(axes):
        ax.set_xlabel("training step", fontsize=9)
    handles = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(4, 2 * len(logs)), frameon=False, fontsize=8)
    return figure


def dice_boxes(scores: pd.DataFrame) -> Figure:
    """Raw Dice of the test frames: a box and a dot a frame for each structure and training set, and the paper's mean.

    A frame's Dice is averaged over training seeds. Boxes of the other recipe, where it was scored, are dashed. Where
    the axis leaves frames out below, their number stands there.

    Args:
        scores: tidy, as `tables.table` takes them.
    """
    raw = scores[scores["processing"] == "raw"]
    structures, paper = structures_of(raw), paper_results()["dice_mean"]
    other = [row for row in raw["train"].unique() if row.endswith(" recipe")]
    rows = [row for main in main_rows(raw["train"]) for row in [main, *(o for o in other if o.startswith(f"{main},"))]]
    dice = 100 * raw.groupby(["structure", "train", *frame_names(raw)])["dice"].mean().dropna()
    low = max(0, np.floor(dice.loc[:, rows].quantile(0.005) / 5) * 5 - 5)
    figure, ax = plt.subplots(figsize=(WIDTH, 4), layout="constrained")
    width = 0.84 / len(rows)
    for (k, structure), (i, row) in product(enumerate(structures), enumerate(rows)):
        values, place = dice[structure, row].to_numpy(), k + (i + 0.5) * width - 0.42
        main, _, recipe = row.partition(", ")
        colour, style = TRAIN_COLOURS[TRAIN_NAMES[main]], (0, (2, 1)) if recipe else "-"
        line = {"color": colour, "linestyle": style, "linewidth": 1.3}
        ax.boxplot(
            values, positions=[place], widths=0.75 * width, showfliers=False, manage_ticks=False,
            boxprops=line, whiskerprops=line, capprops=line, medianprops=line | {"linestyle": "-"},
        )  # fmt: skip
        # Spread by the golden ratio: as even as random, and the same every time.
        jitter = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.7 * width
        ax.scatter(place + jitter, values, s=3, color=colour, alpha=0.4, linewidth=0)
        if below := int((values < low).sum()):
            ax.annotate(f"↓{below}", (place, low), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        if k == 0:
            ax.plot([], [], **line, label=f"{TRAIN_NAMES[main]}{f', {recipe}' if recipe else ''}")
    for k, structure in enumerate(structures if structures == list(paper.index) else ()):
        label = "the paper's mean, synthetic-only" if k == 0 else None
        ax.plot([k - 0.46, k + 0.46], 2 * [paper[structure]], "k:", lw=1.6, label=label)
    ax.set(xlabel="", ylabel="Dice of a test frame, % (better ↑)", ylim=(low, 100), xlim=(-0.5, len(structures) - 0.5))
    ax.set_xticks(range(len(structures)), structures)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    sns.despine(ax=ax)
    return figure


def dice_by_size(share: NDArray, dice: dict[str, NDArray], structure: str) -> Figure:
    """Dice of each frame against how much of it a structure takes up, for some training sets.

    Args:
        share: (N,), the structure's area in % of the image's.
        dice: training set ("real-only", ...) -> (N,), in %.
    """
    figure, ax = plt.subplots(figsize=(0.75 * WIDTH, 3.4), layout="constrained")
    for train, values in dice.items():
        ax.scatter(share, values, s=14, color=TRAIN_COLOURS[train], alpha=0.7, linewidth=0, label=train)
    ax.set(xlabel=f"{structure}, % of the image", ylabel="Dice of a frame, % (better ↑)", xlim=(0, None))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    sns.despine(ax=ax)
    return figure


def bland_altman(volumes: pd.DataFrame, column: str = "ef") -> Figure:
    """Difference against mean of predicted and expert EF (or another of `tables.VOLUMES`), a panel a main row.

    The solid line is the bias, the dashed ones the limits of agreement, as in Table 3: means over training seeds.

    Args:
        volumes: one row a patient and model, as `tables.table` takes them.
    """
    rows, (quantity, unit) = main_rows(volumes["train"]), VOLUMES[column].split(", ")
    height, columns = -(-len(rows) // 2), min(2, len(rows))
    size = WIDTH, 0.6 + 2.5 * height
    options = {"figsize": size, "sharex": True, "sharey": True, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(height, columns, **options)
    blank(axes, len(rows))
    for ax, row in zip(axes.flat, rows, strict=False):
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
    handles = [Line2D([], [], color="black", lw=0.9, ls=style) for style in ("-", "--")]
    names = ["bias", "limits of agreement"]
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.supylabel(f"prediction - expert: {quantity}, {unit}", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel(f"mean of prediction and expert: {quantity}, {unit.replace('points', '%')}", fontsize=9)
    return figure


def scaling(dice: pd.DataFrame, x_label: str) -> Figure:
    """Test Dice against how much there was to train on: a line a series through its means, a dot a training seed.

    Args:
        dice: columns structure, train (the series), x, seed, dice in [0, 1].
        x_label: what x is, with its unit.
    """
    structures = structures_of(dice)
    figure, axes = plt.subplots(1, len(structures), figsize=(WIDTH, 3.2), layout="constrained", squeeze=False)
    axes = axes[0]
    places = sorted(dice["x"].unique())
    for ax, structure in zip(axes, structures, strict=True):
        series = dice[dice["structure"] == structure].groupby("train", sort=False)
        for (name, rows), colour, marker in zip(series, sns.color_palette("colorblind"), "os^Dv", strict=False):
            ax.plot(rows["x"], 100 * rows["dice"], marker, color=colour, markersize=4, alpha=0.5, linewidth=0)
            means = 100 * rows.groupby("x")["dice"].mean()
            ax.plot(means.index, means, color=colour, linewidth=1.4, marker=marker, markersize=5, label=name)
        ax.set(xlabel=x_label, xscale="log")
        ax.set_title(structure, fontsize=9)
        ax.set_xticks(places, [f"{x:g}" for x in places], fontsize=8, rotation=90 if len(places) > 5 else 0)
        ax.minorticks_off()
        middle, half = np.mean(ax.get_ylim()), np.ptp(ax.get_ylim()) / 2
        ax.set_ylim(middle - max(half, 1), middle + max(half, 1))  # a tenth of a point must not look like a slope
        sns.despine(ax=ax)
    axes[0].set_ylabel("Dice on test frames, % (better ↑)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


STUDY_MEASURES = {
    "mean Dice": "mean Dice, %\n(fidelity, better ↑)",
    "frechet_distance": "Fréchet distance\n(better ↓)",
    "ms_ssim": "MS-SSIM of two\n(more diverse ↓)",
}


def quality_against_time(study: pd.DataFrame, references: pd.Series) -> Figure:
    """Label fidelity, distance to real images and diversity against seconds an image: a column of panels a sampler, in
    colour, with the others in grey; a dot a number of steps, more steps to the right. Settings that fail (mean Dice
    more than 10 points under the best) leave the axes. A measure that is NaN (too few images) has no row."""
    measures = {name: title for name, title in STUDY_MEASURES.items() if study[name].notna().any()}
    samplers = list(study["sampler"].unique())
    figure, axes = plt.subplots(
        len(measures), len(samplers), figsize=(WIDTH, 0.7 + 1.6 * len(measures)), layout="constrained",
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    good = study[study["mean Dice"] > study["mean Dice"].max() - 10]
    for row, (measure, name) in zip(axes, measures.items(), strict=True):
        values = pd.concat([good[measure], references[references.index == measure]]).dropna()
        margin = 0.08 * (values.max() - values.min()) or 0.01
        for ax, own, colour in zip(row, samplers, sns.color_palette("colorblind"), strict=False):
            for sampler in sorted(samplers, key=lambda s: s == own):  # its own line above the others
                rows = study[study["sampler"] == sampler].sort_values("steps")
                style = {"color": colour, "marker": "o", "ms": 3.5, "lw": 1.4} if sampler == own else {"color": "0.85"}
                ax.plot(rows["seconds_per_image"], rows[measure], **({"lw": 1} | style))
            if measure in references:
                ax.axhline(references[measure], color="black", ls=":", lw=1.2)
            ax.set(xscale="log", ylim=(values.min() - margin, values.max() + margin))
            ax.tick_params(labelsize=8)
            sns.despine(ax=ax)
        row[0].set_ylabel(name, fontsize=8)
    for ax, sampler in zip(axes[0], samplers, strict=True):
        ax.set_title(sampler, fontsize=9)
    axes[-1, len(samplers) // 2].set_xlabel("seconds an image (log scale)", fontsize=9)
    handles = [Line2D([], [], color="0.85"), Line2D([], [], color="black", ls=":", lw=1.2)]
    figure.legend(
        handles, ["the other samplers", "real images"], loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def guidance_sweep(study: pd.DataFrame, references: pd.Series) -> Figure:
    """Label fidelity, realism and diversity against the guidance scale."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.7), layout="constrained")
    for ax, (measure, name) in zip(axes, STUDY_MEASURES.items(), strict=True):
        ax.plot(study["guidance_scale"], study[measure], "o-", ms=4, color=TRAIN_COLOURS["synthetic-only"])
        if measure in references:
            ax.axhline(references[measure], color="0.4", ls=":", lw=1.2)
            place = study["guidance_scale"].max(), references[measure]
            ax.annotate("real images", place, fontsize=8, color="0.4", ha="right", va="bottom")
        ax.set_xlabel("guidance scale")
        ax.set_ylabel(name, fontsize=9)
        sns.despine(ax=ax)
    return figure


def image_quality(spectrum: pd.DataFrame, nearest: pd.DataFrame) -> Figure:
    """Power spectra of synthetic and real images, and their distances to the nearest training image."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3), layout="constrained")
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
