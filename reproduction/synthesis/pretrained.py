"""Trained weights that paint labelled echoes without any data: both stages of a cascade, a segmenter, and a statistical
shape model of each view and phase, in half precision.

Of the training patients the file of shapes keeps means and modes of variation, and of some hearts where they lie in
which sector. There is no frame and no label map in it.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from skimage.draw import polygon2mask
from skimage.measure import approximate_polygon, find_contours

from echo.config import VIEW_PHASES, Profile
from echo.device import get_device
from echo.enlarger import Enlarger
from echo.frames import Frames
from echo.labels import sector_of, to_sdm
from echo.progress import tqdm
from echo.resume import DamagedFile, atomic, read_json, write_csv, write_json, write_text
from echo.sampler import Cascade, paint
from echo.unet import SemanticUNet
from reproduction import RESULTS
from reproduction.datasets import layout
from reproduction.synthesis.generate import ENLARGER, model_folder
from reproduction.synthesis.shapes import ShapeModel, fit_shapes, sample_shape

PLACES = 60  # patients of whom it is kept where their hearts lie in the sector
WEIGHTS = "diffusion_pytorch_model.safetensors"
PRETRAINED = {"camus": RESULTS / "camus-weights"}


def halve(source: Path, target: Path) -> None:
    """Copy a file of weights in half precision."""
    tensors = load_file(source)
    with atomic(target) as temporary:
        save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, temporary)


def outline(mask: NDArray[np.bool_], points: int = 32) -> NDArray[np.float32]:
    """A polygon (points, 2) round a mask (S, S), row and column in fractions of the side, its last point repeated: as
    close to the mask as so many points can be."""
    contour = max(find_contours(np.pad(mask, 1).astype(float), 0.5), key=len) - 1
    polygons = (approximate_polygon(contour, tolerance) for tolerance in np.arange(0.5, 20, 0.25))
    polygon = (next(p for p in polygons if len(p) <= points) + 0.5) / len(mask)
    return np.pad(polygon, ((0, points - len(polygon)), (0, 0)), mode="edge").astype(np.float32)


def shape_arrays(frames: Frames, seed: int = 0) -> dict[str, NDArray]:
    """What `load_shapes` reads: a shape model for each view and phase, and `PLACES` patients' places and sectors.

    Raises:
        ValueError: when no patient has every view and phase.
    """
    index = frames.index.reset_index(names="row").pivot(index="patient", columns="class_label", values="row").dropna()
    if index.empty or index.shape[1] < len(VIEW_PHASES):
        raise ValueError("no patient has a frame of every view and phase: there is no shape model of them")
    kept = np.random.default_rng(seed).permutation(len(index))[:PLACES]
    arrays = {}
    for k in range(len(VIEW_PHASES)):
        rows = index[k].to_numpy(int)
        model = fit_shapes(frames.labels[rows])
        for name in ("mean", "components"):
            arrays[f"{name}_{k}"] = getattr(model, name).astype(np.complex64)
        for name in ("sd", "explained"):
            arrays[f"{name}_{k}"] = getattr(model, name).astype(np.float32)
        arrays |= {f"centres_{k}": model.centres[kept], f"scales_{k}": model.scales[kept]}
        arrays[f"sectors_{k}"] = np.stack([outline(sector_of(frames.sdm_labels[row])) for row in rows[kept]])
        columns = ["spacing_row_mm", "spacing_col_mm"]
        arrays[f"spacing_mm_{k}"] = frames.index[columns].to_numpy(np.float32)[rows[kept]].round(4)
    return arrays


def load_shapes(path: Path) -> list[tuple[ShapeModel, NDArray[np.float32], NDArray[np.float32]]]:
    """For each view and phase the shape model, the outlines of sectors (n, points, 2) and the size (n, 2) in mm of a
    pixel, at the size of the frames that they come from, for each place of the model."""
    with np.load(path) as arrays:
        return [
            (
                ShapeModel(
                    *(arrays[f"{name}_{k}"] for name in ("mean", "components", "sd", "explained", "centres", "scales")),
                    left_out=0,
                ),
                arrays[f"sectors_{k}"],
                arrays[f"spacing_mm_{k}"],
            )
            for k in range(len(VIEW_PHASES))
        ]


CARD = """---
license: cc-by-nc-sa-4.0
tags: [echocardiography, ultrasound, diffusion, semantic-image-synthesis, synthetic]
---

# Labelled echoes of {size} x {size} pixels, painted without data

**What.** Weights in half precision: the first stage of a cascade (`all`), which paints an apical echocardiogram (2CH
or 4CH, ED or ES) of {small} x {small} pixels into a label map, after Stojanovski et al., *Echo from Noise*, ASMUS 2023;
the second (`enlarger`), which paints the full-size image given the small one; shape models of the label maps, one for
each view and phase (`shapes.npz`){segmenter}. `python -m echo generate --pretrained camus --images 1000 DIR` paints a
labelled data set in CAMUS's layout.

**How.** Trained on {patients} training patients of CAMUS (Leclerc et al., IEEE TMI 38(9):2198-2210, 2019, doi
10.1109/TMI.2019.2900516); no frame of validation or test patients was used for weights or shapes; the segmenter's best
epoch was chosen on images painted for validation patients' label maps. Validation losses: {losses}. The shape models
hold means and modes of variation, and of {places} patients where the heart lies in which sector; no frame and no label
map.

**Do training images come back?** {memory}

**Limits.** One hospital, one make of scanner. A patient's four frames are not one beating heart. An image may not show
all that its label map says. For research and teaching, not for diagnosis.

**Licence.** CC BY-NC-SA 4.0, as the data that they derive from; not for commercial use. Attribution: Leclerc et al.,
IEEE TMI 38(9):2198-2210, 2019.
"""


def write_pretrained(diffusion: Path, segmenter: Path, training: Frames, target: Path, card: str) -> None:
    """Write a cascade's weights, a segmenter's and the shape models into `target`, with their model card.

    Args:
        diffusion: the folder of a run's diffusion stage.
        segmenter: the folder of the segmenter, trained on synthetic images alone.
        training: the training frames at full size.

    Raises:
        FileNotFoundError: when a network is not trained.
    """
    for group in ("all", ENLARGER):
        folder = model_folder(diffusion, group)
        (target / group).mkdir(parents=True, exist_ok=True)
        halve(folder / WEIGHTS, target / group / WEIGHTS)
        shutil.copyfile(folder / "config.json", target / group / "config.json")
    if (segmenter / "model.safetensors").exists():
        halve(segmenter / "model.safetensors", target / "segmenter" / "model.safetensors")
    with atomic(target / "shapes.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **shape_arrays(training))
    write_text(target / "MODEL_CARD.md", card)


def load_cascade(folder: Path) -> Cascade:
    """The networks that `write_pretrained` wrote, in float32 on this process's device."""
    kinds = {"all": SemanticUNet, ENLARGER: Enlarger}
    return Cascade(
        *(
            kinds[name].from_pretrained(folder / name, local_files_only=True).float().to(get_device()).eval()
            for name in kinds
        )
    )


def draw_heart(
    shapes: tuple[ShapeModel, NDArray, NDArray], size: int, place: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A heart drawn from the shape model, in the sector of a place of it: the condition (size, size) in SDM classes,
    which ends at the sector, and the label (size, size) in CAMUS's, which does not (`generate.augmented_map`)."""
    model, sectors, _spacing = shapes
    sector = polygon2mask((size, size), sectors[place] * size - 0.5)
    label = sample_shape(model, rng, size, place).label
    return to_sdm(np.where(sector, label, np.uint8(0)), sector), label


def paint_hearts(
    model: Cascade,
    shapes: tuple[ShapeModel, NDArray, NDArray],
    profile: Profile,
    patients: Sequence[int],
    view_phase: int,
    seed: int = 0,
    batch: int = 8,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], pd.DataFrame]:
    """Drawn conditions and labels (n, S, S) of `draw_heart`, the echoes (n, S, S) painted for them, and a row for each:
    seed of the noise, size of a pixel in mm.

    Args:
        shapes: of this view and phase, as `load_shapes` gives them.
        patients: numbers, `batch` at most; an image is a function of the seed, its patient's number, view and phase.
        view_phase: place in `config.VIEW_PHASES`.
        batch: size of the network's batch, which is filled up: a network may round otherwise in another.
    """
    model_of_shapes, _sectors, spacing_mm = shapes
    draws = [np.random.default_rng((seed, number, view_phase)) for number in patients]
    table = pd.DataFrame({"seed": [int(rng.integers(2**31)) for rng in draws]})
    # The same for all views and phases of a patient.
    places = [int(np.random.default_rng((seed, n)).integers(len(model_of_shapes.centres))) for n in patients]
    hearts = [draw_heart(shapes, profile.image_size, place, rng) for place, rng in zip(places, draws, strict=True)]
    conditions, labels = (np.stack(maps) for maps in zip(*hearts, strict=True))
    take = np.resize(np.arange(len(labels)), batch)
    images = paint(model, profile, conditions[take], [view_phase] * batch, table["seed"].to_numpy()[take].tolist())
    table[["spacing_row_mm", "spacing_col_mm"]] = spacing_mm[places].astype(float)
    return conditions, labels, images[: len(labels)], table


def paint_pretrained(
    folder: Path, profile: Profile, target: Path, images: int, seed: int = 0, batch: int = 8
) -> pd.DataFrame:
    """Paint labelled echoes with the networks in `folder`, in CAMUS's layout below `target`; resumes.

    A patient has one frame of each view and phase, each with a heart of its own, drawn at one patient's place: no two
    frames are one beating heart, so there is no ejection fraction. Every tenth patient is for validation; the testing
    list is empty. Frames are functions of the seed, the patient's number, view and phase.

    Args:
        images: how many; rounded up to whole patients of four.

    Returns:
        A row for each frame, as in `synthetic.csv`: patient, view, phase, seed of its noise.

    Raises:
        DamagedFile: when a network or the shapes cannot be read.
        ValueError: when `target` holds another dataset.
    """
    facts = {"seed": seed, "weights": folder.name, "image_size": profile.image_size}
    marker = target / "synthetic.json"
    if target.exists() and any(target.iterdir()) and not (marker.exists() and read_json(marker) == facts):
        raise ValueError(f"{target} holds other files: choose a new folder, or go on with the same seed and weights")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the weights are part of a clone of the repository")
    try:
        model, shapes = load_cascade(folder), load_shapes(folder / "shapes.npz")
    except (OSError, ValueError, KeyError) as error:
        raise DamagedFile(folder, error) from None
    write_json(marker, facts)
    numbers = range(-(-images // len(VIEW_PHASES)))
    for first in tqdm(numbers[::batch], desc="patients", unit=f"{batch} patients"):
        block = numbers[first : first + batch]
        folders = [target / "database_nifti" / f"patient{number + 1:04d}" for number in block]
        for k, (view, phase) in enumerate(VIEW_PHASES):
            if all((f / f"{f.name}_{view}_{phase}_gt.nii.gz").exists() for f in folders):
                continue
            _conditions, labels, painted, drawn = paint_hearts(model, shapes[k], profile, block, k, seed, batch)
            for folder_of, row, image, label in zip(folders, drawn.itertuples(), painted, labels, strict=True):
                spacing = row.spacing_row_mm, row.spacing_col_mm
                layout.write_frame(folder_of, view, phase, image, label, spacing)
                layout.write_info(folder_of, "ED: 1\nES: 2\nNbFrame: 2\n")
    names = [f"patient{number + 1:04d}" for number in numbers]
    keys = [(n, number, k) for n, number in zip(names, numbers, strict=True) for k in range(len(VIEW_PHASES))]
    rows = [(n, *VIEW_PHASES[k], np.random.default_rng((seed, number, k)).integers(2**31)) for n, number, k in keys]
    table = pd.DataFrame(rows, columns=["patient", "view", "phase", "seed"])
    validation = names[9::10]
    layout.write_splits(target, {"training": [n for n in names if n not in validation], "validation": validation})
    write_csv(target / "synthetic.csv", table)
    shutil.copyfile(folder / "MODEL_CARD.md", target / "MODEL_CARD.md")
    return table
