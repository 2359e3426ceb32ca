"""The pictures of the site's page "Try it" and of the README.

python -m tools.pictures [CAMUS]

writes figures/worst_frames.webp (phantom; predictions by the weights in `results/laptop-phantom`), and, painted by
`results/camus-weights`, figures/denoising.webp and figures/walls.webp; with the folder of a CAMUS release also
figures/real_or_painted.webp, which holds real frames. These three are CC BY-NC-SA 4.0, as CAMUS is (figures/README.md).
What the page says of all of them is in figures/play.json.
"""

import sys
from io import BytesIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import resize

from echo.config import CPU, VIEW_PHASES, get_profile
from echo.dice import frame_dice
from echo.labels import sector_mask, to_camus, to_sdm
from echo.resume import atomic, read_json, write_json
from echo.sampler import paint
from echo.segmenter import predict
from reproduction.datasets.prepare import open_data, open_dataset
from reproduction.evaluation.shape import shape_statistics
from reproduction.evaluation.tables import TRAIN_NAMES, mean_dice
from reproduction.plots import echoes
from reproduction.runs.run import open_run
from reproduction.runs.stages import load_segmenter
from reproduction.synthesis.edits import edited
from reproduction.synthesis.pretrained import PRETRAINED, load_cascade, load_shapes, paint_hearts

FIGURES = Path(__file__).resolve().parent.parent / "figures"
SIZE = CPU.image_size
FOUR_CHAMBERS_ED = VIEW_PHASES.index(("4CH", "ED"))
STRENGTHS = np.linspace(0, 0.6, 7)  # of `edits.thicken_wall`: all its range
NOISES = range(5)
PAIRS = 8  # real frames that are shown, of validation patients
WORST = 8  # test frames that a cell of the Dice table opens


def write(images: list[Image.Image], name: str, quality: int, **options) -> None:
    """A picture, or a loop of several, as figures/NAME."""
    buffer = BytesIO()
    rest = {"save_all": True, "append_images": images[1:], "loop": 0} if len(images) > 1 else {}
    images[0].save(buffer, "webp", quality=quality, method=6, **rest, **options)
    with atomic(FIGURES / name) as temporary:
        temporary.write_bytes(buffer.getvalue())
    print(f"figures/{name}: {len(buffer.getvalue()) / 1e3:.0f} kB")


def sheet(images: NDArray[np.uint8]) -> Image.Image:
    """Images (rows, columns, S, S) or (rows, columns, S, S, 3) edge to edge."""
    rows, columns, *shape = images.shape
    return Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in images]))


def coloured(sdm_labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label maps (n, S, S) as uint8 (n, S, S, 3), in the figures' colours."""
    palette = np.array([plt.matplotlib.colors.to_rgb(c) for c in echoes.map_palette()])
    return (255 * palette[sdm_labels]).astype(np.uint8)


def film_frame(panels: list[tuple[NDArray, str]]) -> Image.Image:
    """Label map, small and full-size image side by side, each with its title, as one frame of the loop."""
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.75), layout="constrained", dpi=100)
    for ax, (image, title) in zip(axes, panels, strict=True):
        echoes.show(ax, image, title, interpolation="nearest")
    figure.canvas.draw()
    frame = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    plt.close(figure)
    return frame


def denoising(cascade, sdm_label: NDArray[np.uint8], seed: int) -> None:
    """From noise to echo: what the sampler has after each evaluation of the first stage, then of the second."""
    small, large = [], []
    watch = cascade.enlarger.register_forward_pre_hook(lambda _network, inputs: large.append(inputs[0][0, 0].numpy()))
    image = paint(cascade, CPU, sdm_label[None], [FOUR_CHAMBERS_ED], [seed], trajectory=small)[0]
    watch.remove()

    def grey(x: NDArray) -> NDArray[np.uint8]:
        return (127.5 * (x.clip(-1, 1) + 1)).astype(np.uint8)

    small = [grey(x[0].mean(0).numpy()) for x in small]
    large = [np.where(sdm_label > 0, grey(x), np.uint8(0)) for x in large[1:]] + [image]
    label, dark = coloured(sdm_label[None])[0], np.zeros_like(image)
    titles = f"{len(small[0])} x {len(small[0])} pixels", f"{SIZE} x {SIZE} pixels"
    frames = [
        film_frame([(label, "label map"), (x, f"{titles[0]}, step {k} of {len(small)}"), (dark, titles[1])])
        for k, x in enumerate(small, 1)
    ] + [
        film_frame([(label, "label map"), (small[-1], titles[0]), (x, f"{titles[1]}, step {k} of {len(large)}")])
        for k, x in enumerate(large, 1)
    ]
    write(frames, "denoising.webp", 55, duration=[180] * (len(frames) - 1) + [4000])
    write(frames[-1:], "denoising_last.webp", 80)


def walls(cascade, sdm_label: NDArray[np.uint8], spacing_mm: tuple[float, float]) -> dict:
    """One heart with walls of several thicknesses, its label maps above the echoes of several noises."""
    maps = np.stack([edited(to_camus(sdm_label), sdm_label, {"thicken_wall": s}) for s in STRENGTHS])
    views = [FOUR_CHAMBERS_ED] * len(maps)
    painted = np.stack([paint(cascade, CPU, maps, views, [noise] * len(maps)) for noise in NOISES])
    rows = np.concatenate([coloured(maps)[None], np.repeat(painted[..., None], 3, axis=-1)])
    write([sheet(rows)], "walls.webp", 70)
    thickness = [shape_statistics(to_camus(m), spacing_mm)["wall thickness"] for m in maps]
    return {"noises": len(NOISES), "mm": [round(mm, 1) for mm in thickness]}


def real_or_painted(cascade, data: str) -> dict:
    """Frames of validation patients, each beside the echo painted for its label map; both black outside the sector."""
    raw = open_dataset(data)
    patients = raw.patients("validation")[:PAIRS]
    rows = []
    for k, patient in enumerate(patients):
        view_phase = k % len(VIEW_PHASES)
        full = raw.frame(patient, *VIEW_PHASES[view_phase])
        frame = full.resized(SIZE)
        sector = resize(sector_mask(full.image).astype(float), (SIZE, SIZE), anti_aliasing=True) > 0.5
        sdm_label = to_sdm(frame.label, sector, raw.classes)
        painted = paint(cascade, CPU, sdm_label[None], [view_phase], [k])[0]
        rows.append([np.where(sector, frame.image, np.uint8(0)), painted])
    write([sheet(np.array(rows))], "real_or_painted.webp", 80)
    return {"views": [" ".join(VIEW_PHASES[k % len(VIEW_PHASES)]) for k in range(len(patients))]}


def contoured(image: NDArray[np.uint8], label: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame with the contours of its label (dotted) and of a prediction (solid), as uint8 (200, 200, 3)."""
    figure = plt.figure(figsize=(2, 2), dpi=100, facecolor="black")
    ax = figure.add_axes((0, 0, 1, 1))
    echoes.show(ax, image)
    echoes.draw_contours(ax, label, linestyles=":")
    echoes.draw_contours(ax, prediction)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return drawn


def worst_frames() -> dict:
    """Of each cell of the phantom's Dice table whose network is committed: the frames that it segments worst.

    Raises:
        ValueError: where a frame's Dice is not the published one.
    """
    run = open_run("laptop", "phantom")
    scores = run.table("tables", "scores")
    scores = scores[scores["processing"] == "raw"]
    rows, structures = ("real", "synthetic"), list(run.classes.structures)
    drawn, named = [], []
    with TemporaryDirectory() as folder:
        raw = open_data("phantom", get_profile("laptop"), Path(folder), run.seed)
        for row, structure in product(rows, structures):
            network = load_segmenter(run, row)
            of_cell = scores[(scores["train"] == row) & (scores["structure"] == structure)]
            for _, score in of_cell.nsmallest(WORST, "dice").iterrows():
                frame = raw.frame(*score[["patient", "view", "phase"]])
                small = frame.resized(run.profile.image_size).image[None]
                found = predict(network, small, frame.label.shape, flip=run.profile.segmenter.flip_test)
                dice = frame_dice(found, frame.label[None], raw.classes)[structure][0]
                if abs(dice - score["dice"]) > 0.01:
                    raise ValueError(f"{score['patient']}: Dice {dice:.3f}, published is {score['dice']:.3f}")
                drawn.append(contoured(frame.image, frame.label, found[0]))
                named.append(f"{score['view']} {score['phase']}, {100 * score['dice']:.0f} %")
    write([sheet(np.reshape(drawn, (len(rows) * len(structures), WORST, *drawn[0].shape)))], "worst_frames.webp", 70)
    means = mean_dice(scores).loc[list(rows), structures].astype(float).round(1)
    shape = len(rows), len(structures), WORST
    return {
        "rows": [TRAIN_NAMES[row] for row in rows],
        "structures": structures,
        "dice": means.to_numpy().tolist(),
        "frames": np.reshape(named, shape).tolist(),
    }


def main(data: str = "") -> None:
    folder = PRETRAINED["camus"]
    cascade, shapes = load_cascade(folder), load_shapes(folder / "shapes.npz")[FOUR_CHAMBERS_ED]
    maps, _images, table = paint_hearts(cascade, shapes, CPU, [0], FOUR_CHAMBERS_ED, batch=1)
    spacing_mm = tuple(table.loc[0, ["spacing_row_mm", "spacing_col_mm"]] * 1.0)
    facts = read_json(FIGURES / "play.json") if (FIGURES / "play.json").exists() else {}
    facts["cells"] = worst_frames()
    denoising(cascade, maps[0], seed=0)
    facts["walls"] = walls(cascade, maps[0], spacing_mm)
    if data:
        facts["pairs"] = real_or_painted(cascade, data)
    write_json(FIGURES / "play.json", facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
