"""Dice, the paper's measure."""

import numpy as np
import pandas as pd
import torch
from monai.metrics import compute_dice
from numpy.typing import NDArray

from echo.labels import CAMUS, Classes


def frame_dice(prediction: NDArray[np.uint8], label: NDArray[np.uint8], classes: Classes = CAMUS) -> pd.DataFrame:
    """Dice in [0, 1] of each frame (rows) and structure (columns; of CAMUS LV endo, LV epi, LA), label maps (B, H, W).

    LV epi is cavity and wall together, as in the paper. A structure missing from the prediction scores 0; one absent
    from both is NaN, and drops out of means (the released code scores it 0).
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ in shape")
    columns = {}
    for name, members in classes.structures.items():
        masks = [torch.from_numpy(np.isin(m, members))[:, None] for m in (prediction, label)]
        both_empty = ~(masks[0] | masks[1]).flatten(1).any(1)
        dice = compute_dice(*masks, include_background=True, ignore_empty=False)[:, 0]
        columns[name] = torch.where(both_empty, torch.nan, dice).numpy()
    return pd.DataFrame(columns)
