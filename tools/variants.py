"""What `make bench` measures: networks with batches of their inputs, and ways to compute them."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from echo.config import CPU, SMOKE
from echo.device import autocast, get_device
from echo.diffusion import cosine_schedule, q_sample
from echo.fast import FASTER, FastConditioning, speed_up
from echo.labels import one_hot
from echo.spade import Conditioning
from echo.unet import AttentionBlock, SemanticUNet, build_unet
from reproduction.datasets.prepare import open_data, read_frames


@dataclass(frozen=True)
class Case:
    """A network, and the batches of a training and of a sampling step."""

    name: str
    image_size: int
    training_batch: int
    sampling_batch: int
    arguments: dict | None = None  # of SemanticUNet; None is the cpu profile's

    def build(self) -> SemanticUNet:
        torch.manual_seed(0)
        unet = build_unet(CPU) if self.arguments is None else SemanticUNet(self.image_size, **self.arguments)
        for p in unet.parameters():  # a fresh network returns zeros
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        return unet.to(get_device())


def cases(quick: bool) -> list[Case]:
    """The compact network of the cpu profile, and one of the paper's type: 64 channels at 128 px, 46 M parameters."""
    scale = 1
    if get_device().type == "cuda":
        scale = 16 if torch.cuda.mem_get_info()[1] > 60e9 else 4
    if quick:
        tiny = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (16,)}
        return [Case("paper-type", 32, 2, 2, tiny | {"head_channels": 32})]
    wide = {"model_channels": 64, "channel_mult": (1, 1, 2, 3, 4)}
    return [Case("compact", 56, 16 * scale, 16 * scale), Case("paper-type", 128, 4 * scale, 8 * scale, wide)]


@dataclass(frozen=True)
class Variant:
    """A way to compute: what is switched on."""

    bf16: bool = True
    channels_last: bool = True
    patches: bool = True  # in training; SPADE for each label patch
    held: bool = True  # in sampling; SPADE once for all steps
    norm: bool = True  # our GroupNorm
    attention: bool = True
    fused: bool = True  # optimiser and average
    checkpointing: bool = False
    compiled: bool = False


BASELINE = Variant(*[False] * 7)
TRAINING = {
    "as published": BASELINE,
    "ours": Variant(),
    "ours, SPADE by convolution": Variant(patches=False),
    "ours, float32": Variant(bf16=False),
    "ours, contiguous layout": Variant(channels_last=False),
    "ours, PyTorch's GroupNorm": Variant(norm=False),
    "ours, einsum attention": Variant(attention=False),
    "ours, optimiser not fused": Variant(fused=False),
    "ours, gradient checkpointing": Variant(checkpointing=True),
}
COMPILED = {"ours, torch.compile": Variant(compiled=True)}  # takes minutes, so only when asked for
SAMPLING = {
    "as published": BASELINE,
    "ours": Variant(),
    "ours, SPADE at every step": Variant(held=False),
    "ours, SPADE at every step, by convolution": Variant(held=False, patches=False),
    "ours, float32": Variant(bf16=False),
    "ours, contiguous layout": Variant(channels_last=False),
    "ours, PyTorch's GroupNorm": Variant(norm=False),
    "ours, einsum attention": Variant(attention=False),
}


def prepare(unet: SemanticUNet, variant: Variant) -> None:
    """Make the network compute this way."""
    slow = set()
    if variant == BASELINE:
        slow = set(FASTER)
    if not variant.norm:
        slow |= {nn.GroupNorm}
    if not variant.attention:
        slow |= {AttentionBlock}
    speed_up(unet)
    plain = {fast: kind for kind, fast in FASTER.items() if kind in slow}
    for module in unet.modules():
        module.__class__ = plain.get(type(module), type(module))
    unet.to(memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format)
    unet.disable_gradient_checkpointing()
    if variant.checkpointing:
        unet.enable_gradient_checkpointing()


def precision(variant: Variant) -> torch.autocast:
    """The autocast context of a variant."""
    return autocast("bf16" if variant.bf16 else "fp32", get_device())


def conditioning(variant: Variant, y: Tensor, most_bytes: float = 0) -> Conditioning:
    """The label map as a variant takes it."""
    return FastConditioning(y, most_bytes * variant.held) if variant.patches else Conditioning(y)


def label_maps(case: Case, count: int) -> Tensor:
    """One-hot label maps (count, 5, S, S) of phantom patients."""
    profile = replace(SMOKE, phantom_patients={"training": 4, "validation": 0, "testing": 0})
    with tempfile.TemporaryDirectory() as folder:
        labels = read_frames(open_data("phantom", profile, Path(folder), 0), "training", case.image_size).sdm_labels
    return one_hot(np.resize(labels, (count, *labels.shape[1:]))).to(get_device())


def inputs(case: Case, unet: SemanticUNet, y: Tensor, n: int) -> tuple[Tensor, ...]:
    """x_0, x_t, epsilon (N, C, S, S), t (N,), label maps and classes (N,) of a batch."""
    generator = torch.Generator().manual_seed(0)
    shape = n, unet.config.in_channels, case.image_size, case.image_size
    x_0, epsilon = (torch.randn(shape, generator=generator).to(y.device) for _ in range(2))
    t = torch.randint(1000, (n,), generator=generator).to(y.device)
    classes = torch.zeros(n, dtype=torch.long, device=y.device) if unet.config.num_classes else None
    return x_0.clamp(-1, 1), q_sample(cosine_schedule(), x_0, t, epsilon), epsilon, t, y[:n], classes
