"""`make bench`: the plain network of `echo.unet` (float32, contiguous) against the fast one, in one run, on any device.

Prints tables, and writes them to `results/bench/DEVICE.json`. Times are medians after a warm-up; what counts is the
ratios. The weights are random and the label maps the phantom's: neither changes the work.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import psutil
import torch
import typer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from echo.config import CPU, PAPER, SMOKE, VIEW_PHASES
from echo.device import autocast, device_name, get_device, peak_memory_gb, supported_precision, tune_cpu
from echo.diffusion import cosine_schedule, diffusion_loss, q_sample
from echo.fast import FASTER, FastConditioning, speed_up
from echo.labels import one_hot
from echo.resume import write_json
from echo.sampler import MOST_BYTES, SCHEDULERS, SemanticDiffusionPipeline, make_scheduler
from echo.spade import Conditioning
from echo.unet import AttentionBlock, SemanticUNet, build_unet
from reproduction import RESULTS
from reproduction.datasets.prepare import open_data, read_frames

FAST = tuple(name for name in SCHEDULERS if name != "ddpm")


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


AMORTISED = "ours, mean of 25 steps with the first"


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


def training_step(case: Case, unet: SemanticUNet, y: Tensor, variant: Variant) -> Callable[[], None]:
    """A training step: forward, loss, backward, clipping, optimiser, average."""
    prepare(unet, variant)
    x_0, x_t, epsilon, t, y, classes = inputs(case, unet, y, case.training_batch)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=variant.fused or None)
    ema = EMAModel(unet.parameters(), foreach=variant.fused)
    ema.to(y.device)
    schedule = cosine_schedule()
    network = torch.compile(unet) if variant.compiled else unet

    def step() -> None:
        with precision(variant):
            output = network(x_t, t, conditioning(variant, y), classes).sample
        diffusion_loss(schedule, output.float(), x_0, x_t, epsilon, t, "epsilon").mean().backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    return step


def synchronize() -> None:
    """Wait for the device."""
    if get_device().type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], None], repeats: int, warm_up: int = 1) -> list[float]:
    """Times of a step, after those that warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronize()
        clock = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - clock)
    return times[warm_up:]


def sampling_times(
    case: Case, unet: SemanticUNet, y: Tensor, variant: Variant, repeats: int
) -> tuple[list[float], list[float]]:
    """Times of a sampling step, one evaluation of the network as the pipeline makes it: of those after the first, and
    of the mean one of 25, the first with it, which alone computes SPADE where that is held."""
    prepare(unet, variant)
    _, x_t, _, t, y, classes = inputs(case, unet, y, case.sampling_batch)

    def run() -> list[float]:
        with torch.no_grad(), precision(variant):
            label_map = conditioning(variant, y, MOST_BYTES)
            return seconds(lambda: unet(x_t, t, label_map, classes), repeats, warm_up=0)

    run()
    first, *later = run()
    return later, [(first + 24 * statistics.median(later)) / 25]


def flops(case: Case, unet: SemanticUNet, y: Tensor, variant: Variant, kind: str) -> float:
    """Floating-point operations of a step: a backward pass counts as two forward passes, one of optimisers as none."""
    prepare(unet, variant)
    sampling = kind == "sampling"
    n = case.sampling_batch if sampling else case.training_batch
    _, x_t, _, t, y, classes = inputs(case, unet, y, n)
    label_map = conditioning(variant, y, MOST_BYTES * sampling)
    with torch.no_grad():
        unet(x_t, t, label_map, classes)
        with FlopCounterMode(display=False) as counter:
            unet(x_t, t, label_map, classes)
    return counter.get_total_flops() * (1 if sampling else 4 if variant.checkpointing else 3)


def ceilings(repeats: int) -> dict[str, float]:
    """TFLOP/s of a large matrix product and of a 3 x 3 convolution on this device."""
    device, table = get_device(), {}
    n, (batch, channels, side) = (8192, (64, 256, 128)) if device.type == "cuda" else (2048, (8, 64, 128))
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(n, n, device=device, dtype=dtype)
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        work = {
            "matmul": (2 * n**3, lambda a=a: a @ a),
            "convolution": (18 * batch * channels**2 * side**2, lambda x=x, w=w: nn.functional.conv2d(x, w, padding=1)),
        }
        for kind, (count, step) in work.items():
            table[f"{kind} {name}"] = count / statistics.median(seconds(step, repeats)) / 1e12
    return table


def measured_rates(case: Case, unet: SemanticUNet, y: Tensor, quick: bool) -> list[dict]:
    """Images per second of whole pipelines, label maps to images, after a short run that warms up."""
    prepare(unet, Variant())
    unet.eval()
    n, rows = case.sampling_batch, []
    classes = torch.zeros(n, dtype=torch.long) if unet.config.num_classes else None
    learned = unet.config.learned_variance
    longest = {"ddpm": 20, "fast": 10}  # a step costs the same at every t: long runs are told from short ones
    plans = [("ddpm", 1000)] + [(name, steps) for name in FAST for steps in (10, 25, 50)]
    for name, steps in plans:
        measured = 3 if quick else min(steps, longest.get(name, longest["fast"]))
        pipeline = SemanticDiffusionPipeline(unet, make_scheduler(name, "epsilon", learned))
        with precision(Variant()):
            call = partial(pipeline, y[:n], classes, seeds=list(range(n)))
            call(num_inference_steps=2)
            (took,) = seconds(partial(call, num_inference_steps=measured), 0, warm_up=0)
        rate = n / (took * steps / measured)
        rows.append(
            {
                "network": case.name,
                "sampler": name,
                "steps": steps,
                "measured_steps": measured,
                "images_per_second": rate,
            }
        )
    return rows


def measured_apart(case: Case, name: str, kind: str, quick: bool) -> dict:
    """`measure` in a process of its own, whose memory nothing else has shaped: a sampler does not train first."""
    command = [sys.executable, "-m", "tools.bench", "--apart", f"{case.name}:{name}:{kind}"]
    done = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, name: str, kind: str, repeats: int) -> dict:
    """Times of "training" or "sampling" steps; of training, its peak memory in GB, above what this process held."""
    variant, device = TRAINING[name], get_device()
    if variant != BASELINE:
        tune_cpu()
    y = label_maps(case, max(case.training_batch, case.sampling_batch))
    before = psutil.Process().memory_info().rss / 1e9 if device.type == "cpu" else 0.0
    unet = case.build()
    if kind == "sampling":
        times, amortised = sampling_times(case, unet, y, variant, repeats)
        return {"sampling": times, "amortised": amortised}
    times = seconds(training_step(case, unet, y, variant), repeats)
    return {"training": times, "peak_gb": peak_memory_gb(device) - before}


def paper_estimate(batch: int = 12) -> dict[str, float]:
    """Memory in GB and operations that training the paper's configuration takes on a GPU, counted without one.

    Weights, gradients, two moments and the average in float32 and a half-precision copy of the weights; activations
    as autograd keeps them on a dry run without data, in half precision. What kernels use while they work comes on top.
    """
    kept = {}
    with torch.device("meta"):
        unet = speed_up(build_unet(PAPER)).bfloat16()
        x, y = (torch.empty(1, k, PAPER.image_size, PAPER.image_size, dtype=torch.bfloat16) for k in (3, 5))
        t = torch.empty(1, dtype=torch.long)
    own = {p.untyped_storage()._cdata for p in unet.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(x, t, FastConditioning(y))
    weights = sum(p.numel() for p in unet.parameters()) * (5 * 4 + 2) / 1e9
    activations = sum(storage.nbytes() for storage in kept.values()) / 1e9
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(x, t, FastConditioning(y))
    forward, training = counter.get_total_flops(), PAPER.training
    return {
        "batch": batch,
        "weights_gb": weights,
        "activations_gb": batch * activations,
        "forward_tflop": forward / 1e12,
        "training_eflop": len(VIEW_PHASES) * 3 * forward * training.batch_size * training.steps / 1e18,
    }


def markdown(rows: list[dict]) -> str:
    """Rows as a Markdown table."""
    table = pd.DataFrame(rows)
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    return "\n".join(" | ".join(["", *row, ""]).strip() for row in [table.columns, ["---"] * table.shape[1], *cells])


def bench(quick: bool = False, compiled: bool = False) -> dict:
    """All measurements: `device`, the three ratios of the paper-type network, and the rows behind them.

    The published way, ours, and ours with gradient checkpointing are measured each in processes of their own, in turn,
    training apart from sampling; what each part of ours gains, in one process.
    """
    rounds, repeats = (1, 1) if quick else (2, 2)
    result = {"device": device_name(), "cores": torch.get_num_threads(), "torch": version("torch")}
    result |= {"bf16": supported_precision("bf16", get_device()) == "bf16", "ceilings_tflops": ceilings(5)}
    steps, memory, rates = [], [], []
    apart = ("as published", "ours", "ours, gradient checkpointing")
    tune_cpu()
    for case in cases(quick):
        found = {name: [] for name in apart}
        for kind in ("training", "sampling"):
            for _ in range(rounds):
                for name in apart[:2]:
                    found[name].append(measured_apart(case, name, kind, quick))
        found[apart[2]].append(measured_apart(case, apart[2], "training", quick))
        memory += [
            {
                "network": case.name,
                "variant": name,
                "peak_gb": statistics.median(f["peak_gb"] for f in facts if "peak_gb" in f),
            }
            for name, facts in found.items()
        ]
        unet, y = case.build(), label_maps(case, max(case.training_batch, case.sampling_batch))
        for kind, variants in (("training", TRAINING), ("sampling", SAMPLING)):
            variants = variants | (COMPILED if compiled and kind == "training" and case.name == "compact" else {})
            times = {name: [t for f in found[name] for t in f.get(kind, [])] for name in variants if name in found}
            if kind == "sampling":
                times[AMORTISED] = [t for f in found["ours"] for t in f.get("amortised", [])]
            for name, variant in variants.items():
                if name in found:
                    continue
                if kind == "training":
                    times[name] = seconds(training_step(case, unet, y, variant), repeats)
                else:
                    times[name] = sampling_times(case, unet, y, variant, repeats)[0]
            unet.zero_grad()
            batch = case.training_batch if kind == "training" else case.sampling_batch
            for name, values in times.items():
                median = statistics.median(values)
                row = {"network": case.name, "step": kind, "variant": name, "batch": batch, "seconds": median}
                row["speedup"] = statistics.median(times["as published"]) / median
                if name != AMORTISED:
                    row["tflops"] = flops(case, unet, y, variants[name], kind) / median / 1e12
                steps.append(row)
        rates += measured_rates(case, unet, y, quick)
        print(f"{case.name}: measured", file=sys.stderr, flush=True)

    def speedup(kind: str) -> float:
        return next(
            r["speedup"] for r in steps if (r["network"], r["step"], r["variant"]) == ("paper-type", kind, "ours")
        )

    peak = {r["variant"]: r["peak_gb"] for r in memory if r["network"] == "paper-type"}
    return result | {
        "sampling_step_speedup": speedup("sampling"),
        "training_step_speedup": speedup("training"),
        "memory_ratio": peak["ours"] / peak["as published"],
        "steps": steps,
        "memory": memory,
        "images_per_second": rates,
        "paper_training_estimate": paper_estimate(),
    }


def main(
    quick: Annotated[bool, typer.Option(help="A tiny network and single repeats: a test of this program.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also torch.compile, of the compact network.")] = False,
    apart: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print the tables, and write results/bench/DEVICE.json (not with --quick)."""
    if apart:
        network, name, kind = apart.split(":")
        case = next(case for case in cases(quick) if case.name == network)
        print(json.dumps(measure(case, name, kind, 1 if quick else 2)))
        return
    result = bench(quick, compiled)
    for name in ("steps", "memory", "images_per_second"):
        print(f"\n{name}\n{markdown(result[name])}")
    print("\n" + json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}, indent=2))
    if not quick:
        slug = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
        write_json(RESULTS / "bench" / f"{slug}.json", result)


if __name__ == "__main__":
    typer.run(main)
