"""Training of the semantic diffusion model: one loop for a laptop and for several GPUs, that survives being killed."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from echo.config import Profile, TrainingConfig
from echo.device import get_device, supported_precision, tune_cpu
from echo.diffusion import Schedule, cosine_schedule, diffusion_loss, q_sample
from echo.fast import FastConditioning, speed_up
from echo.frames import Frames
from echo.labels import one_hot
from echo.progress import tqdm
from echo.resume import atomic, write_csv
from echo.unet import SemanticUNet, build_unet


def draw_batch(
    frames: Frames, config: TrainingConfig, in_channels: int, seed: int, step: int, part: int = 0, parts: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x_0 (B, C, H, W), label map one-hot (B, K, H, W), class (B,), t (B,), epsilon (B, C, H, W)) of a step.

    The batch is a function of (seed, step), so training resumes without any random state. Each process, and each
    round of gradient accumulation, takes its own of `parts` equal parts. A dropped label map is all zeros.
    """
    rng = np.random.default_rng((seed, step))
    n = config.batch_size
    rows = rng.integers(len(frames), size=n)
    t = rng.integers(config.num_train_timesteps, size=n)
    flip = rng.random(n) < config.flip_probability
    epsilon = rng.standard_normal((n, in_channels, *frames.images.shape[1:]), dtype=np.float32)
    dropped = rng.random(n) < config.label_dropout
    rows, t, flip, epsilon, dropped = (whole[part::parts] for whole in (rows, t, flip, epsilon, dropped))
    images, labels = frames.images[rows], frames.sdm_labels[rows]
    images[flip], labels[flip] = images[flip, :, ::-1], labels[flip, :, ::-1]
    x_0 = torch.from_numpy(images).float()[:, None].expand(-1, in_channels, -1, -1) / 127.5 - 1
    label_map = one_hot(labels) * torch.from_numpy(~dropped)[:, None, None, None]
    batch = x_0, label_map, frames.index["class_label"].to_numpy()[rows], t, epsilon
    return tuple(map(torch.as_tensor, batch))


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then linear to zero (the paper's decay)."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warm * (1 - step / config.steps)


def batch_loss(
    unet: torch.nn.Module,
    schedule: Schedule,
    batch: tuple[Tensor, ...],
    config: TrainingConfig,
    accelerator: Accelerator,
) -> Tensor:
    """The mean loss of a batch of `draw_batch`."""
    x_0, label_map, class_labels, t, epsilon = (part.to(accelerator.device, non_blocking=True) for part in batch)
    x_t = q_sample(schedule, x_0, t, epsilon)
    with accelerator.autocast():
        output = unet(x_t, t, FastConditioning(label_map), class_labels).sample
    prediction = config.prediction_type, config.snr_gamma
    return diffusion_loss(schedule, output.float(), x_0, x_t, epsilon, t, *prediction).mean()


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets within this block, so that a step is finished and saved first.

    A Ctrl-C two seconds later does not wait; signals come in pairs where a launcher passes on what its processes got
    too. They reach the main thread alone; in any other the event is never set.
    """
    event, previous, first = threading.Event(), {}, 0.0

    def ask(number: int, _frame: object) -> None:
        nonlocal first
        if not event.is_set():
            first = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - first > 2:
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    profile: Profile, training: Frames, validation: Frames, folder: Path, seed: int, *, stop_after: int | None = None
) -> SemanticUNet:
    """Train the semantic diffusion model; resume from `folder` if it was interrupted.

    Called in each of several processes (torchrun, `notebook_launcher`), they share every batch. The checkpoint holds
    weights, their average, optimiser, loss scale and step: all there is, for batches and the learning rate are
    functions of the seed and the step.

    Args:
        folder: gets `checkpoint.pt`, `log.csv`, `tensorboard/` and, at the end, the averaged weights in `model/`.
        stop_after: save and leave after so many steps of this call.

    Returns:
        The network with its exponentially averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: when loss or gradient is not finite ten steps in a row; a single such step is skipped.
        KeyboardInterrupt: on SIGTERM or Ctrl-C, after the step under way and a checkpoint.
        ValueError: when processes and gradient accumulation do not divide the batch.
    """
    config, device = profile.training, get_device()
    AcceleratorState._reset_state()  # or the first training's precision would bind all others of this process
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=supported_precision(config.precision, device).replace("fp32", "no"),
    )
    is_main, scaler = accelerator.is_main_process, accelerator.scaler
    ranks, rounds = accelerator.num_processes, config.gradient_accumulation
    parts = ranks * rounds
    if config.batch_size % parts:
        raise ValueError(f"batch_size {config.batch_size} is not divisible by {ranks} processes x {rounds} rounds")
    torch.manual_seed(seed)
    tune_cpu()
    # Channels last: the layout in which CPUs and tensor cores convolve fastest.
    raw = speed_up(build_unet(profile)).to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        raw.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(raw.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    unet, optimizer = accelerator.prepare(torch.compile(raw) if config.compile else raw, optimizer)
    ema = EMAModel(raw.parameters(), decay=config.ema_decay, foreach=True)
    schedule = cosine_schedule(config.num_train_timesteps).to(accelerator.device)

    checkpoint, log_file = folder / "checkpoint.pt", folder / "log.csv"
    start, log, losses, seconds = 0, [], [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        raw.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        start, log, losses, seconds = (state[name] for name in ("step", "log", "losses", "seconds"))
        del state
    ema.to(accelerator.device)
    clock = time.perf_counter() - seconds
    if is_main:
        for leftover in folder.glob(f".*.{checkpoint.name}"):  # of a process that was killed while it wrote
            leftover.unlink()

    def save(step: int) -> None:
        if not is_main:
            return
        state = {"unet": raw.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        state |= {"scaler": scaler.state_dict() if scaler is not None else None, "step": step}
        state |= {"log": log, "losses": losses, "seconds": time.perf_counter() - clock}
        with atomic(checkpoint) as temporary:
            torch.save(state, temporary)
        write_csv(log_file, pd.DataFrame(log))

    def held_out_loss() -> float:
        """Of the averaged weights, at frames, noise and t that never change (those of steps that no training reaches),
        so that the losses of different steps compare."""
        ema.store(raw.parameters())
        ema.copy_to(raw.parameters())
        draws = (
            draw_batch(validation, config, profile.unet.in_channels, seed, 2**40 + k, part, parts)
            for k in range(4)
            for part in range(parts)
        )
        with torch.no_grad():
            values = [batch_loss(raw, schedule, batch, config, accelerator).item() for batch in draws]
        ema.restore(raw.parameters())
        return float(np.mean(values))

    def agreed(*values: float | Tensor) -> list[float]:
        """The processes' means: they must decide alike."""
        tensors = [torch.as_tensor(v, dtype=torch.float32, device=accelerator.device) for v in values]
        return accelerator.reduce(torch.stack(tensors), "mean").tolist()

    bad, last = 0, config.steps if stop_after is None else min(config.steps, start + stop_after)
    with (
        asked_to_stop() as stop,
        SummaryWriter(folder / "tensorboard", purge_step=start + 1) if is_main else nullcontext() as writer,
        tqdm(total=config.steps, initial=start, desc="diffusion", unit="step", disable=not is_main) as bar,
    ):
        own = range(accelerator.process_index, parts, ranks)
        batches = (
            draw_batch(training, config, profile.unet.in_channels, seed, step, part, parts)
            for step in range(start, last)
            for part in own
        )
        batch = next(batches, None)
        for step in range(start, last):
            total = torch.zeros((), device=accelerator.device)
            for k in range(rounds):
                with accelerator.no_sync(unet) if k < rounds - 1 else nullcontext():
                    loss = batch_loss(unet, schedule, batch, config, accelerator) / rounds
                    accelerator.backward(loss)
                batch = next(batches, None)  # while a GPU still works on this one
                total += loss.detach()
            norm = accelerator.clip_grad_norm_(raw.parameters(), config.gradient_clip)
            value, norm, leave = agreed(total, norm, float(stop.is_set()))
            # With a loss scale, a gradient that is not finite is the scale's matter: it skips the step and falls.
            finite = math.isfinite(value) and (scaler is not None or math.isfinite(norm))
            bad = 0 if finite else bad + 1
            if bad == 10:
                raise FloatingPointError(f"{folder}: the loss was not finite ten steps in a row, up to step {step}")
            if finite or scaler is not None:
                optimizer.param_groups[0]["lr"] = learning_rate_at(config, step)
                optimizer.step()
            if finite:
                ema.step(raw.parameters())
                losses.append(value)
            optimizer.zero_grad()
            bar.update()

            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                held_out = held_out_loss()
                row = {"step": step + 1, "loss": float(np.mean(losses or math.nan)), "validation_loss": held_out}
                row |= {"learning_rate": learning_rate_at(config, step), "seconds": time.perf_counter() - clock}
                losses.clear()
                log.append(row)
                if writer:
                    for name in ("loss", "validation_loss", "learning_rate"):
                        writer.add_scalar(name, row[name], step + 1)
                bar.set_postfix(loss=f"{row['loss']:.4f}", validation=f"{held_out:.4f}")
                save(step + 1)
            elif leave or step + 1 == last:
                save(step + 1)
            if leave:
                raise KeyboardInterrupt(f"stopped after step {step + 1}, which {checkpoint} holds")
        leave = agreed(float(stop.is_set()))[0]  # since the last step
    ema.copy_to(raw.parameters())
    raw = accelerator.unwrap_model(unet, keep_fp32_wrapper=False, keep_torch_compile=False).eval()
    if last == config.steps and is_main:
        raw.save_pretrained(folder / "model")
    accelerator.wait_for_everyone()
    if leave:
        raise KeyboardInterrupt(f"stopped after the last step, which {checkpoint} holds")
    return raw
