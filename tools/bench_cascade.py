"""`python -m tools.bench_cascade`: what an echo at full size costs, and our first stage beside what else one may take.

The cascade of the cpu profile against the paper's network, computed as the released code does, on the same machine; and
a training and a sampling step of the first stage beside MONAI's `SPADEDiffusionModelUNet` with the same channels. Each
part is measured in a process of its own, in turns. Weights are random. MONAI's attention needs the package einops,
which nothing else here does: without it, MONAI is left out. Part of `make bench`; run nothing beside it. Prints a table
and writes `results/bench/cascade/DEVICE.json`.
"""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers.training_utils import EMAModel
from monai.networks.nets import SPADEDiffusionModelUNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from echo.config import CPU, PAPER
from echo.device import autocast, device_name, get_device, peak_memory_gb, tune_cpu
from echo.enlarger import build_enlarger
from echo.fast import FastConditioning, speed_up
from echo.labels import NUM_SDM
from echo.resume import write_json
from echo.sampler import MOST_BYTES, Cascade, paint
from echo.spade import Conditioning
from echo.unet import SemanticUNet, build_unet
from reproduction import RESULTS
from tools.bench import markdown, seconds
from tools.variants import Case, cases, label_maps

AUTHORS_STEPS = 1000  # DDPM
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NETWORKS = ("ours", "ours, as many parameters as MONAI's", *["MONAI"] * bool(find_spec("einops")))


def build(name: str) -> nn.Module:
    """A first stage: the cpu profile's, a narrower one with MONAI's parameters, or MONAI's with the same channels."""
    unet = CPU.unet
    if name == "MONAI":
        widths = tuple(unet.model_channels * m for m in unet.channel_mult)
        sides = [CPU.first_size // 2**k for k in range(len(widths))]
        return SPADEDiffusionModelUNet(
            spatial_dims=2,
            in_channels=unet.in_channels,
            out_channels=unet.in_channels,
            label_nc=NUM_SDM,
            num_res_blocks=unet.num_res_blocks,
            channels=widths,
            attention_levels=[side in unet.attention_resolutions for side in sides],
            norm_num_groups=unet.norm_groups,
            num_head_channels=unet.head_channels,
            spade_intermediate_channels=unet.spade_hidden,
            num_class_embeds=4,
            use_flash_attention=True,
        )
    if name == "ours":
        return build_unet(CPU)
    arguments = {k: getattr(unet, k) for k in unet.__dataclass_fields__} | {"channel_mult": (1, 2, 4, 5)}
    return SemanticUNet(CPU.first_size, label_channels=NUM_SDM, num_classes=4, **arguments)


def caller(network: nn.Module, y: torch.Tensor, most_bytes: float = 0) -> Callable[..., torch.Tensor]:
    """call(x_t, t, classes) -> the network's output, for label maps y."""
    if isinstance(network, SPADEDiffusionModelUNet):
        return lambda x, t, classes: network(x, t, y, class_labels=classes)
    held = FastConditioning(y, most_bytes) if most_bytes else None
    return lambda x, t, classes: network(x, t, held or FastConditioning(y), classes).sample


def measure_step(case: Case, name: str, layout: str, at_least: float) -> dict:
    """Seconds of a training step (forward, backward, clipping, optimiser, average) and of a sampling step of a network,
    its parameters, and the operations of its forward pass."""
    torch.manual_seed(0)
    network = build(name)
    network = speed_up(network) if isinstance(network, SemanticUNet) else network
    network.to(get_device(), memory_format=LAYOUTS[layout])
    n, device = case.training_batch, get_device()
    y, x, noise = label_maps(case, n), *torch.randn(2, n, 1, case.image_size, case.image_size, device=device)
    t, classes = torch.arange(n, device=device) * (1000 // n), torch.zeros(n, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    ema = EMAModel(network.parameters(), foreach=True)
    call, sampled = caller(network, y), caller(network, y, MOST_BYTES)

    def training() -> None:
        with autocast("bf16", device):
            output = call(x, t, classes)
        (output.float() - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())

    def sampling() -> None:
        with torch.no_grad(), autocast("bf16", device):
            sampled(x, t, classes)

    found = {"training": seconds(training, at_least)}
    peak_gb = peak_memory_gb(device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(x, t, classes)
    return found | {
        "sampling": seconds(sampling, at_least),
        "peak_gb": peak_gb,
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_gflop": counter.get_total_flops() / 1e9 / n,
    }


def measure_cascade(at_least: float, batch: int = 8) -> dict:
    """Seconds an image of the cpu profile's cascade, both stages with all their steps."""
    case = Case("cascade", CPU.image_size, batch, batch)
    maps = label_maps(case, batch).argmax(1).to(torch.uint8).cpu().numpy()
    networks = (network.to(get_device()).eval() for network in (build_unet(CPU), build_enlarger(CPU.enlarger)))
    model = Cascade(*networks)
    took = seconds(lambda: paint(model, CPU, maps, np.zeros(batch, int), list(range(batch))), at_least)
    return {"image": [s / batch for s in took], "peak_gb": peak_memory_gb(get_device())}


def measure_authors(at_least: float, quick: bool) -> dict:
    """Seconds of one evaluation of the paper's network, for one 256-pixel image, as the released code computes it."""
    size = 64 if quick else PAPER.image_size
    with torch.device("meta"):
        unet = build_unet(PAPER) if not quick else SemanticUNet(size, model_channels=32, head_channels=32)
    unet = unet.to_empty(device=get_device())
    for p in unet.parameters():
        nn.init.constant_(p, 0.01)
    y = label_maps(Case("paper", size, 1, 1), 1)
    x, t = torch.randn(1, 3, size, size, device=y.device), torch.zeros(1, dtype=torch.long, device=y.device)

    def step() -> None:
        with torch.no_grad():
            unet(x, t, Conditioning(y))

    return {"step": seconds(step, at_least), "peak_gb": peak_memory_gb(get_device())}


def measured_apart(part: str, quick: bool) -> dict:
    """What a part measures in a process of its own."""
    command = [sys.executable, "-m", "tools.bench_cascade", "--part", part, *["--quick"] * quick]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def bench(quick: bool) -> dict:
    """All measurements: rows of `steps`, and what an `image` costs."""
    parts = [f"{name}:{layout}" for name in NETWORKS for layout in LAYOUTS]
    found: dict[str, list[dict]] = {part: [] for part in parts}
    for _ in range(1 if quick else 2):
        for part in parts:
            found[part].append(measured_apart(part, quick))
    steps = []
    for part, rounds in found.items():
        name, layout = part.split(":")
        row = {"network": name, "layout": layout, "parameters": rounds[0]["parameters"] / 1e6}
        row["forward_gflop"] = rounds[0]["forward_gflop"]
        for kind in ("training", "sampling"):
            row[f"{kind}_s"] = statistics.median(t for one in rounds for t in one[kind])
        steps.append(row | {"training_peak_gb": max(one["peak_gb"] for one in rounds)})
    cascade, authors = measured_apart("cascade", quick), measured_apart("authors", quick)
    ours, theirs = statistics.median(cascade["image"]), statistics.median(authors["step"]) * AUTHORS_STEPS
    image = {"cascade_s": ours, "cascade_peak_gb": cascade["peak_gb"], "authors_s": theirs, "ratio": theirs / ours}
    facts = {"device": device_name(), "cores": torch.get_num_threads(), "torch": torch.__version__}
    return facts | {"image": image, "steps": steps}


def main(
    quick: Annotated[bool, typer.Option(help="Tiny and once: a test of this program.")] = False,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print the tables, and write results/bench/cascade/DEVICE.json (not with --quick)."""
    at_least = 0.0 if quick else 5.0
    if part:
        tune_cpu()
        if part in ("cascade", "authors"):
            found = measure_cascade(at_least) if part == "cascade" else measure_authors(at_least, quick)
        else:
            case = Case("compact", CPU.first_size, 2, 2) if quick else cases(False)[0]
            found = measure_step(case, *part.split(":"), at_least)
        print(json.dumps(found))
        return
    result = bench(quick)
    print(markdown(result["steps"]) + "\n\n" + json.dumps(result["image"], indent=2))
    if not quick:
        slug = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
        write_json(RESULTS / "bench" / "cascade" / f"{slug}.json", result)


if __name__ == "__main__":
    typer.run(main)
