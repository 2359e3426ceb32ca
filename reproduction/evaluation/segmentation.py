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
from echo.labels import STRUCTURES
from echo.progress import tqdm
from echo.segmenter import predict
from reproduction.datasets.camus import Camus
from reproduction.evaluation.clinical import patient_volumes

NSD_TOLERANCE_MM = 2.0  # borders that are no farther apart count as the same in the surface Dice


def surface_measures(
    prediction: NDArray[np.uint8], label: NDArray[np.uint8], spacing_mm: tuple[float, float]
) -> pd.DataFrame:
    """How far the borders of each structure (rows) in two label maps (H, W) are apart: hd95_mm, the larger of the two
    directed 95th percentiles of their distance; assd_mm, its mean over both borders; and nsd, the surface Dice
    (normalised surface distance, Nikolov et al. 2021), the share in [0, 1] of both borders that is no farther than
    `NSD_TOLERANCE_MM` from the other one.

    Borders are the masks' outermost pixels. Distances are NaN for a structure that is missing from one of the maps, and
    nsd is 0 then; all are NaN for one that is missing from both.

    Args:
        spacing_mm: size (row, column) of a pixel.
    """
    measures = pd.DataFrame(np.nan, index=list(STRUCTURES), columns=["hd95_mm", "assd_mm", "nsd"])
    for name, classes in STRUCTURES.items():
        masks = [torch.from_numpy(np.isin(m, classes))[None, None] for m in (prediction, label)]
        there = [bool(mask.any()) for mask in masks]
        if not all(there):
            measures.loc[name, "nsd"] = 0.0 if any(there) else np.nan
            continue
        options = {"include_background": True, "spacing": spacing_mm}
        with warnings.catch_warnings():  # MONAI calls its own function with an argument that it has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            hd95 = compute_hausdorff_distance(*masks, percentile=95, **options).item()
            assd = compute_average_surface_distance(*masks, symmetric=True, **options).item()
            nsd = compute_surface_dice(*masks, class_thresholds=[NSD_TOLERANCE_MM], **options).item()
        measures.loc[name] = hd95, assd, nsd
    return measures


def largest_components(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A CAMUS label map (H, W) with the largest connected piece (diagonals connect) of each structure alone.

    First the whole ventricle, then the cavity in it, whose other pieces become wall; and the atrium.
    """
    epi = get_largest_connected_component_mask(np.isin(label, STRUCTURES["LV epi"]))
    endo = get_largest_connected_component_mask(epi & np.isin(label, STRUCTURES["LV endo"]))
    atrium = get_largest_connected_component_mask(np.isin(label, STRUCTURES["LA"]))
    return np.select([endo, epi, atrium], [1, 2, 3]).astype(np.uint8)


def frame_scores(
    prediction: NDArray[np.uint8], label: NDArray[np.uint8], spacing_mm: tuple[float, float]
) -> pd.DataFrame:
    """A row for each structure and processing ("raw", "largest component") of a prediction (H, W): structure,
    processing, dice in [0, 1], the columns of `surface_measures`, and labelled, whether the label has the structure.

    A structure that only one of prediction and label has counts as missing: Dice and surface Dice 0, and no distance
    (NaN). One that neither has is left out: NaN throughout.
    """
    kept = largest_components(prediction)
    dice = frame_dice(np.stack([prediction, kept]), np.stack([label, label]))
    raw = surface_measures(prediction, label, spacing_mm)
    clean = raw if (kept == prediction).all() else surface_measures(kept, label, spacing_mm)
    parts = [d.assign(dice=dice.loc[k]) for k, d in enumerate((raw, clean))]
    table = pd.concat(parts, keys=["raw", "largest component"], names=["processing", "structure"]).reset_index()
    table["labelled"] = table["structure"].map({name: np.isin(label, k).any() for name, k in STRUCTURES.items()})
    return table[["structure", "processing", "dice", "hd95_mm", "assd_mm", "nsd", "labelled"]]


def mean_dice(network: UNet, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> pd.Series:
    """Mean Dice, in %, of each structure that a network finds in images (N, S, S), against label maps (N, S, S) of
    CAMUS classes; NaN for a structure in none of them."""
    return frame_dice(predict(network, images), labels).mean() * 100


def score(
    network: UNet, camus: Camus, patients: list[str], size: int, flip: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of every real frame of some patients, measured on the label's own pixel grid, and the patients' volumes.

    Args:
        size: side of the images that the network was trained on.
        flip: as `predict` takes it.

    Returns:
        Scores: a row for each frame, structure and processing: patient, view, phase, quality, and the columns of
        `frame_scores`. Volumes: a row for each patient: patient, `clinical.patient_volumes` of the predictions
        (edv_ml, esv_ml, ef) and of the expert's labels (expert_edv_ml, expert_esv_ml, expert_ef), each after
        `largest_components`, and release_ef, the EF in % that the data set itself states.
    """
    scores, volumes = [], []
    for patient in tqdm(patients, desc="scoring", unit="patient"):
        predicted, expert = {}, {}
        for _patient, view, phase in camus.keys([patient]):
            frame = camus.frame(patient, view, phase)
            prediction = predict(network, frame.resized(size).image[None], frame.label.shape, flip=flip)[0]
            facts = {"patient": patient, "view": view, "phase": phase, "quality": frame.quality}
            table = frame_scores(prediction, frame.label, frame.spacing_mm)
            scores.append(pd.DataFrame(facts, index=table.index).join(table))
            predicted[view, phase] = largest_components(prediction), frame.spacing_mm
            expert[view, phase] = largest_components(frame.label), frame.spacing_mm
        labelled = {f"expert_{name}": value for name, value in patient_volumes(expert).items()}
        volumes.append({"patient": patient} | patient_volumes(predicted) | labelled | {"release_ef": frame.ef})
    return pd.concat(scores, ignore_index=True), pd.DataFrame(volumes)
