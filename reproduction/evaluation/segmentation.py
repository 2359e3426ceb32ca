"""Scores of a segmentation: Dice, surface distances and surface Dice of a frame, and the one scoring on test frames."""

import warnings

import numpy as np
import pandas as pd
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.networks.nets import UNet
from monai.transforms.utils import get_largest_connected_component_mask
from numpy.typing import NDArray

from echo.dice import frame_dice
from echo.frames import Frames
from echo.labels import CAMUS, HEART, STRUCTURES, Classes
from echo.progress import tqdm
from echo.segmenter import predict
from reproduction.datasets.prepare import Source
from reproduction.evaluation.clinical import patient_volumes

NSD_TOLERANCE_MM = 2.0  # borders that are no farther apart count as the same in the surface Dice


def surface_measures(
    prediction: NDArray[np.uint8],
    label: NDArray[np.uint8],
    spacing_mm: tuple[float, float] | None,
    classes: Classes = CAMUS,
) -> pd.DataFrame:
    """How far the borders of each structure (rows) in two label maps (H, W) are apart: hd95_mm, the larger of the two
    directed 95th percentiles of their distance; assd_mm, its mean over both borders; and nsd, the surface Dice
    (normalised surface distance, Nikolov et al. 2021), the share in [0, 1] of both borders that is no farther than
    `NSD_TOLERANCE_MM` from the other one. Where no size of a pixel is known, hd95_px and assd_px alone, in pixels.

    Borders are the masks' outermost pixels. Distances are NaN for a structure that is missing from one of the maps, and
    nsd is 0 then; all are NaN for one that is missing from both.

    Args:
        spacing_mm: size (row, column) of a pixel.
    """
    names = ["hd95_mm", "assd_mm", "nsd"] if spacing_mm else ["hd95_px", "assd_px"]
    measures = pd.DataFrame(np.nan, index=list(classes.structures), columns=names)
    for name, members in classes.structures.items():
        masks = [torch.from_numpy(np.isin(m, members))[None, None] for m in (prediction, label)]
        there = [bool(mask.any()) for mask in masks]
        if not all(there):
            if spacing_mm:
                measures.loc[name, "nsd"] = 0.0 if any(there) else np.nan
            continue
        options = {"include_background": True, "spacing": spacing_mm or (1.0, 1.0)}
        with warnings.catch_warnings():  # MONAI calls its own function with an argument that it has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            hd95 = compute_hausdorff_distance(*masks, percentile=95, **options).item()
            assd = compute_average_surface_distance(*masks, symmetric=True, **options).item()
            nsd = compute_surface_dice(*masks, class_thresholds=[NSD_TOLERANCE_MM], **options).item()
        measures.loc[name] = (hd95, assd, nsd)[: len(names)]  # no surface Dice without mm
    return measures


def largest_components(label: NDArray[np.uint8], classes: Classes = CAMUS) -> NDArray[np.uint8]:
    """A label map (H, W) with the largest connected piece (diagonals connect) of each class alone.

    Of a heart, first the whole ventricle, then the cavity in it, whose other pieces become wall; and the atrium.
    """
    if classes.anatomy != HEART:
        kept = [get_largest_connected_component_mask(label == k) for k in range(1, len(classes.names))]
        return np.select(kept, range(1, len(classes.names))).astype(np.uint8)
    epi = get_largest_connected_component_mask(np.isin(label, STRUCTURES["LV epi"]))
    endo = get_largest_connected_component_mask(epi & np.isin(label, STRUCTURES["LV endo"]))
    atrium = get_largest_connected_component_mask(np.isin(label, STRUCTURES["LA"]))
    return np.select([endo, epi, atrium], [1, 2, 3]).astype(np.uint8)


def frame_scores(
    prediction: NDArray[np.uint8],
    label: NDArray[np.uint8],
    spacing_mm: tuple[float, float] | None,
    classes: Classes = CAMUS,
) -> pd.DataFrame:
    """A row for each structure and processing ("raw", "largest component") of a prediction (H, W): structure,
    processing, dice in [0, 1], the columns of `surface_measures`, and labelled, whether the label has the structure.

    A structure that only one of prediction and label has counts as missing: Dice and surface Dice 0, and no distance
    (NaN). One that neither has is left out: NaN throughout.
    """
    kept = largest_components(prediction, classes)
    dice = frame_dice(np.stack([prediction, kept]), np.stack([label, label]), classes)
    raw = surface_measures(prediction, label, spacing_mm, classes)
    clean = raw if (kept == prediction).all() else surface_measures(kept, label, spacing_mm, classes)
    parts = [d.assign(dice=dice.loc[k]) for k, d in enumerate((raw, clean))]
    table = pd.concat(parts, keys=["raw", "largest component"], names=["processing", "structure"]).reset_index()
    labelled = {name: np.isin(label, members).any() for name, members in classes.structures.items()}
    table["labelled"] = table["structure"].map(labelled)
    return table[["structure", "processing", "dice", *raw.columns, "labelled"]]


def mean_dice(network: UNet, frames: Frames) -> pd.Series:
    """Mean Dice, in %, of each structure that a network finds in some frames; NaN for a structure in none of them."""
    return frame_dice(predict(network, frames.images), frames.labels, frames.classes).mean() * 100


def score(
    network: UNet, raw: Source, patients: list[str], size: int, flip: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of every real frame of some patients, measured on the label's own pixel grid, and the patients' volumes.

    Args:
        size: side of the images that the network was trained on.
        flip: as `predict` takes it.

    Returns:
        Scores: a row for each frame, structure and processing: what names the frame, such as patient, view, phase,
        quality, and the columns of `frame_scores`. Volumes: a row for each patient, and of an apical heart:
        `clinical.patient_volumes` of the predictions (edv_ml, esv_ml, ef) and of the expert's labels (expert_edv_ml,
        expert_esv_ml, expert_ef), each after `largest_components`, and release_ef, the EF in % that the dataset
        itself states.
    """
    scores, volumes = [], []
    for patient in tqdm(patients, desc="scoring", unit="patient"):
        predicted, expert = {}, {}
        for key in raw.keys([patient]):
            frame = raw.frame(*key)
            prediction = predict(network, frame.resized(size).image[None], frame.label.shape, flip=flip)[0]
            facts = {name: value for name, value in frame.facts().items() if name not in ("class_label", "ef")}
            table = frame_scores(prediction, frame.label, frame.spacing_mm, raw.classes)
            scores.append(pd.DataFrame(facts, index=table.index).join(table))
            predicted[key[1:]] = largest_components(prediction, raw.classes), frame.spacing_mm
            expert[key[1:]] = largest_components(frame.label, raw.classes), frame.spacing_mm
        if raw.classes.anatomy != HEART:
            volumes.append({"patient": patient})
            continue
        labelled = {f"expert_{name}": value for name, value in patient_volumes(expert).items()}
        volumes.append({"patient": patient} | patient_volumes(predicted) | labelled | {"release_ef": frame.ef})
    return pd.concat(scores, ignore_index=True), pd.DataFrame(volumes)
