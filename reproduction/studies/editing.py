"""Whether images follow edited label maps."""

from contextlib import suppress

import numpy as np
import pandas as pd
from monai.networks.nets import UNet

from echo.config import Profile
from echo.dice import frame_dice
from echo.frames import Frames
from echo.labels import NUM_SDM, to_camus
from echo.sampler import paint_all
from echo.segmenter import predict
from echo.unet import SemanticUNet
from reproduction.synthesis.edits import DEFAULTS, edited


def label_editing(
    models: dict[int, SemanticUNet], frames: Frames, segmenter: UNet, profile: Profile, seed: int
) -> pd.DataFrame:
    """Does the image follow its label map? Each edit is made on every frame's map, and an echo painted for it from the
    same noise as for the original map.

    Returns:
        A row for each edit, and "none" first: `edit`, `strength`, `frames` (maps without room for it are left out).
        "Dice, ... map": in % the mean Dice of what a segmenter trained on real images finds. It knows real anatomy
        only. "grey response": in %, how far the pixels that change their class take on that class's grey level; 0 if
        they stay as in the image of the original map, 100 if they change as much as the classes' means differ.
    """
    classes, noise = frames.index["class_label"].to_numpy(), seed + np.arange(len(frames))
    plain = paint_all(models, profile, frames.sdm_labels, classes, noise)
    grey = np.array([plain[frames.sdm_labels == k].mean() for k in range(NUM_SDM)])
    rows = []
    for name, strength in ({"none": 0.0} | DEFAULTS).items():
        maps = {}
        for k, (label, sdm_label) in enumerate(zip(frames.labels, frames.sdm_labels, strict=True)):
            with suppress(ValueError):
                maps[k] = edited(label, sdm_label, {name: strength})
        take, new = np.array(list(maps)), np.stack(list(maps.values()))
        images = paint_all(models, profile, new, classes[take], noise[take])
        found = predict(segmenter, images)
        row = {"edit": name, "strength": strength, "frames": len(take)}
        for which, label in (("edited", to_camus(new)), ("original", frames.labels[take])):
            row[f"Dice, {which} map"] = frame_dice(found, label).mean().mean() * 100
        expected = grey[new] - grey[frames.sdm_labels[take]]
        if expected.any():
            row["grey response"] = (expected * (images - plain[take].astype(float))).sum() / (expected**2).sum() * 100
        rows.append(row)
    return pd.DataFrame(rows)
