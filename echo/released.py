"""The authors' released checkpoints."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from echo.config import PAPER
from echo.device import get_device
from echo.sampler import paint
from echo.unet import SemanticUNet


def paint_released(
    checkpoint: str | Path, sdm_labels: NDArray[np.uint8], seeds: list[int], **options
) -> NDArray[np.uint8]:
    """Echoes uint8 (B, S, S) for SDM label maps (B, S, S), by one of the authors' checkpoints; S is 256 for theirs.

    Args:
        checkpoint: `ema_0.9999_050000_*.pt`; there is one for each view and phase.
        options: as for `paint`; by default the paper's 1000 steps of DDPM.

    Raises:
        ValueError: when the file is not such a checkpoint.
    """
    unet = SemanticUNet.from_released(checkpoint, image_size=sdm_labels.shape[-1])
    unet.to(get_device(), memory_format=torch.channels_last)
    return paint(unet, PAPER, sdm_labels, np.zeros(len(sdm_labels), int), seeds, **options)
