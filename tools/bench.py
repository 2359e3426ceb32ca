"""`make bench`: the plain network of `echo.unet` (float32, contiguous) against the fast one, in one run, on any device.

Prints tables, and writes them to `results/bench/DEVICE.json`. Times are medians after a warm-up; what counts is the
ratios. The weights are random and the label maps the phantom's: neither changes the work.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Annotated

import pandas as pd
import psutil
import torch
import typer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from echo.config import PAPER, VIEW_PHASES
from echo.device import device_name, get_device, peak_memory_gb, supported_precision, tune_cpu
from echo.diffusion import cosine_schedule, diffusion_loss
from echo.fast import FastConditioning, speed_up
from echo.resume import write_json
from echo.sampler import MOST_BYTES, SCHEDULERS, SemanticDiffusionPipeline, make_scheduler
from echo.unet import SemanticUNet, build_unet
from reproduction import RESULTS
from tools.variants import (
    COMPILED,
    SAMPLING,
    TRAINING,
    Case,
    Variant,
    cases,
    conditioning,
    inputs,
    label_maps,
    precision,
    prepare,
)

FAST = tuple(name for name in SCHEDULERS if name != "ddpm")
PLAIN, OURS, CHECKPOINTING = "as published", "ours", "ours, gradient checkpointing"
AMORTISED = "ours, mean of 25 steps with the first"


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


def seconds(step: Callable[[], object], at_least: float) -> list[float]:
    """Times of a step that together take so many seconds, after one that warms up."""
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).times


def sampling_step(
    case: Case, unet: SemanticUNet, y: Tensor, variant: Variant, count: int | None = None
) -> Callable[[], None]:
    """A sampling step, one evaluation of the network as the pipeline makes it, where SPADE was computed before; or
    `count` steps from the first on, which computes SPADE for them where that is held."""
    prepare(unet, variant)
    _, x_t, _, t, y, classes = inputs(case, unet, y, case.sampling_batch)
    label_map = conditioning(variant, y, MOST_BYTES)

    def step() -> None:
        own = conditioning(variant, y, MOST_BYTES) if count else label_map
        with torch.no_grad(), precision(variant):
            for _ in range(count or 1):
                unet(x_t, t, own, classes)

    return step


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


def ceilings(at_least: float) -> dict[str, float]:
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
            table[f"{kind} {name}"] = count / statistics.median(seconds(step, at_least)) / 1e12
    return table


def measured_rates(case: Case, unet: SemanticUNet, y: Tensor, quick: bool) -> list[dict]:
    """Images per second of whole pipelines, label maps to images."""
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
            took = statistics.median(seconds(partial(call, num_inference_steps=measured), 0.0))
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


def measured_apart(case: Case, name: str, kind: str, quick: bool, threads: int | None = None) -> dict:
    """`measure` in a process of its own, whose memory nothing else has shaped: a sampler does not train first."""
    command = [sys.executable, "-m", "tools.bench", "--apart", f"{case.name}:{name}:{kind}"]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run(command + ["--quick"] * quick, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, name: str, kind: str, at_least: float) -> dict:
    """Times of "training" or "sampling" steps; of training, its peak memory in GB, above what this process held."""
    device = get_device()
    if name != PLAIN:
        tune_cpu()
    y = label_maps(case, max(case.training_batch, case.sampling_batch))
    before = psutil.Process().memory_info().rss / 1e9 if device.type == "cpu" else 0.0
    unet = case.build()
    if kind == "sampling":
        found = {"sampling": seconds(sampling_step(case, unet, y, SAMPLING[name]), at_least)}
        if name == OURS:
            times = seconds(sampling_step(case, unet, y, SAMPLING[name], 25), at_least)
            found["amortised"] = [took / 25 for took in times]
        return found
    times = seconds(training_step(case, unet, y, TRAINING[name]), at_least)
    return {"training": times, "peak_gb": peak_memory_gb(device) - before}


def measured_beside_others(case: Case, quick: bool) -> list[dict]:
    """A training step with all threads and with one fewer, alone and beside a process that keeps one core busy."""
    most, rows = torch.get_num_threads(), []
    for beside in ("nothing", "a busy process"):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside != "nothing" else None
        try:
            for threads in sorted({most, max(1, most - 1)}, reverse=True):
                took = statistics.median(measured_apart(case, OURS, "training", quick, threads)["training"])
                slower = took / rows[0]["seconds"] if rows else 1.0
                row = {"network": case.name, "beside": beside, "threads": threads, "seconds": took, "slower": slower}
                rows.append(row)
        finally:
            if busy:
                busy.kill()
                busy.wait()
    return rows


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
    weights_storage = {p.untyped_storage()._cdata for p in unet.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights_storage:
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


def measured_steps(case: Case, quick: bool, compiled: bool) -> tuple[list[dict], list[dict]]:
    """Rows of steps and of peak memory. The plain network, ours, and ours with gradient checkpointing are measured
    each in processes of their own, in turn; what each part of ours gains, in this one."""
    rounds, at_least = (1, 0.0) if quick else (2, 3.0)
    found = {name: [] for name in (PLAIN, OURS, CHECKPOINTING)}
    for kind in ("training", "sampling"):
        for _ in range(rounds):
            for name in (PLAIN, OURS):
                found[name].append(measured_apart(case, name, kind, quick))
    found[CHECKPOINTING].append(measured_apart(case, CHECKPOINTING, "training", quick))
    peaks = {name: [f["peak_gb"] for f in facts if "peak_gb" in f] for name, facts in found.items()}
    memory = [{"network": case.name, "variant": n, "peak_gb": statistics.median(p)} for n, p in peaks.items()]
    unet, y, steps = case.build(), label_maps(case, max(case.training_batch, case.sampling_batch)), []
    more = COMPILED if compiled and case.name == "compact" else {}
    for kind, variants in (("training", TRAINING | more), ("sampling", SAMPLING)):
        make = training_step if kind == "training" else sampling_step
        times = {name: [t for f in found[name] for t in f.get(kind, [])] for name in variants if name in found}
        if kind == "sampling":
            times[AMORTISED] = [t for f in found[OURS] for t in f.get("amortised", [])]
        for name in variants.keys() - found.keys():
            times[name] = seconds(make(case, unet, y, variants[name]), at_least)
        unet.zero_grad()
        batch = case.training_batch if kind == "training" else case.sampling_batch
        for name in (*variants, *times.keys() - variants.keys()):
            median = statistics.median(times[name])
            row = {"network": case.name, "step": kind, "variant": name, "batch": batch, "seconds": median}
            row["speedup"] = statistics.median(times[PLAIN]) / median
            if name != AMORTISED:
                row["tflops"] = flops(case, unet, y, variants[name], kind) / median / 1e12
            steps.append(row)
    return steps, memory


def bench(quick: bool = False, compiled: bool = False) -> dict:
    """All measurements: `device`, the three ratios of the paper-type network, and the rows behind them."""
    tune_cpu()
    result = {"device": device_name(), "cores": torch.get_num_threads(), "torch": version("torch")}
    at_least = 0.0 if quick else 1.0
    result |= {"bf16": supported_precision("bf16", get_device()) == "bf16", "ceilings_tflops": ceilings(at_least)}
    steps, memory, rates = [], [], []
    for case in cases(quick):
        more_steps, more_memory = measured_steps(case, quick, compiled)
        steps, memory = steps + more_steps, memory + more_memory
        rates += measured_rates(case, case.build(), label_maps(case, case.sampling_batch), quick)
        print(f"{case.name}: measured", file=sys.stderr, flush=True)
    on_cpu = get_device().type == "cpu"
    speedup = {r["step"]: r["speedup"] for r in steps if (r["network"], r["variant"]) == ("paper-type", OURS)}
    peak = {r["variant"]: r["peak_gb"] for r in memory if r["network"] == "paper-type"}
    return result | {
        "sampling_step_speedup": speedup["sampling"],
        "training_step_speedup": speedup["training"],
        "memory_ratio": peak[OURS] / peak[PLAIN],
        "steps": steps,
        "memory": memory,
        "images_per_second": rates,
        "beside_other_work": measured_beside_others(cases(quick)[0], quick) if on_cpu else [],
        "paper_training_estimate": paper_estimate(),
    }


def main(
    quick: Annotated[bool, typer.Option(help="A tiny network and single repeats: a test of this program.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also torch.compile, of the compact network.")] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="Only a CPU training step by its threads, alone and beside a busy process.")
    ] = False,
    apart: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print the tables, and write results/bench/DEVICE.json, or results/bench/beside/DEVICE.json (not with
    --quick). Run nothing beside it."""
    if apart:
        network, name, kind = apart.split(":")
        case = next(case for case in cases(quick) if case.name == network)
        print(json.dumps(measure(case, name, kind, 0.0 if quick else 3.0)))
        return
    slug = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    folder = RESULTS / "bench" / "beside" if beside else RESULTS / "bench"
    if beside:
        result, names = {"beside_other_work": measured_beside_others(cases(quick)[0], quick)}, ["beside_other_work"]
    else:
        result, names = bench(quick, compiled), ["steps", "memory", "images_per_second", "beside_other_work"]
    for name in names:
        print(f"\n{name}\n{markdown(result[name])}")
    print("\n" + json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}, indent=2))
    if not quick:
        write_json(folder / f"{slug}.json", result)


if __name__ == "__main__":
    typer.run(main)
