"""The authors' released checkpoints: read, and painted with."""

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo.config import PAPER
from echo.device import get_device
from echo.sampler import paint
from echo.unet import SemanticUNet


def load_released(
    checkpoint: str | Path | dict[str, Tensor], *, image_size: int = 256, num_head_channels: int = 64
) -> SemanticUNet:
    """The network of one of the authors' checkpoints (`ema_0.9999_050000_*.pt`), a path or a state dict.

    What the names and shapes cannot tell is given: the image size, and the channels of an attention head. Only
    weights are read; a file that holds anything else is refused, and none of its code runs.

    Raises:
        ValueError: when it is not such a checkpoint, naming the first thing that is wrong.
    """
    name, state = "state dict", checkpoint
    if not isinstance(checkpoint, dict):
        name = str(checkpoint)
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever its unpickler meets
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{name}: cannot be read as weights: {reason}") from None
    try:
        config = _released_config(state, image_size, num_head_channels)
        with torch.device("meta"):
            expected = {k: v.shape for k, v in SemanticUNet(**config).state_dict().items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: not a semantic diffusion checkpoint: {error}") from None
    for key in sorted(expected.keys() | state.keys()):
        found = tuple(state[key].shape) if key in state else "nothing"
        wanted = tuple(expected[key]) if key in expected else "nothing"
        if found != wanted:
            raise ValueError(f"{name}: {key} has {found} where {wanted} belongs")
    unet = SemanticUNet(**config)
    unet.load_state_dict(state)
    return unet.eval()


def _released_config(state: dict[str, Tensor], image_size: int, head_channels: int) -> dict:
    """Arguments of `SemanticUNet` read off a released state dict."""
    count = len({name.split(".")[1] for name in state if name.startswith("output_blocks.")})
    # The last output block of each level but the first ends in an upsampling SPADE block, behind any attention.
    ups = sorted(
        int(n.split(".")[1]) for n in state if re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.1\.bias", n)
    )
    num_res_blocks = ups[0] if ups else count - 1
    first_of_level = range(1, count, num_res_blocks + 1)
    out_channels, in_channels = state["out.2.bias"].shape[0], state["input_blocks.0.0.weight"].shape[1]
    width = state["time_embed.0.weight"].shape[1]
    hidden, label_channels = state["middle_block.0.in_norm.mlp_shared.0.weight"].shape[:2]
    return {
        "image_size": image_size,
        "in_channels": in_channels,
        "learned_variance": out_channels == 2 * in_channels,
        "label_channels": label_channels,
        "model_channels": width,
        "channel_mult": tuple(state[f"input_blocks.{k}.0.out_layers.3.bias"].shape[0] // width for k in first_of_level),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(
            image_size >> level for level, k in enumerate(first_of_level) if f"input_blocks.{k}.1.qkv.weight" in state
        ),
        "head_channels": head_channels,
        "spade_hidden": hidden,
    }


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
    unet = load_released(checkpoint, image_size=sdm_labels.shape[-1])
    unet.to(get_device(), memory_format=torch.channels_last)
    return paint(unet, PAPER, sdm_labels, np.zeros(len(sdm_labels), int), seeds, **options)
