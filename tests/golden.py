"""The golden case: weights and inputs by recipe, outputs from the authors' code (tests/reference/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from echo.labels import one_hot
from echo.unet import SemanticUNet

REFERENCE = Path(__file__).parent / "reference"


def golden_weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)  # noqa: NPY002 (the recipe's generator)
    r = rng.standard_normal(shape).astype(np.float32)
    vector = 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r
    return torch.from_numpy(np.asarray(r / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else vector, np.float32))


def tiny_names() -> dict[str, list[int]]:
    return json.loads((REFERENCE / "sdm_tiny.json").read_text())["state_dict"]


def tiny_unet() -> SemanticUNet:
    unet = SemanticUNet(
        image_size=32,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(16,),
        head_channels=32,
    )
    unet.load_state_dict({name: golden_weights(name, tuple(shape)) for name, shape in tiny_names().items()})
    return unet.eval()


def tiny_inputs() -> dict[str, torch.Tensor]:
    rs, n, size = np.random.RandomState(7), 2, 32  # noqa: NPY002
    x_0 = np.clip(rs.standard_normal((n, 3, size, size)) * 0.5, -1, 1).astype(np.float32)
    epsilon = rs.standard_normal((n, 3, size, size)).astype(np.float32)
    label = rs.randint(0, 5, (n, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    t = rs.randint(0, 1000, n)
    return {
        "x_0": torch.from_numpy(x_0),
        "epsilon": torch.from_numpy(epsilon),
        "label_map": one_hot(label),
        "t": torch.from_numpy(t),
    }


def expected() -> dict[str, torch.Tensor]:
    with np.load(REFERENCE / "sdm_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def close(actual: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Within a tolerance relative to the reference's largest value."""
    return bool((actual - reference).abs().max() <= tolerance * reference.abs().max())


def to_released(unet: SemanticUNet) -> dict[str, torch.Tensor]:
    """A state dict as the authors' checkpoints have it: their names, float32, on the CPU."""
    assert not unet.config.num_classes, "the authors' networks have no view-and-phase classes"
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in unet.state_dict().items()}
