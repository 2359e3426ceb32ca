"""Training of a diffusion network: one loop for both stages, a laptop and several GPUs, that survives being killed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch import Tensor

from echo.config import Profile, TrainingConfig
from echo.device import get_device, supported_precision, tune_cpu
from echo.diffusion import Schedule, cosine_schedule, diffusion_loss, q_sample
from echo.enlarger import build_enlarger, crop_loss, draw_crops
from echo.fast import FastConditioning, speed_up
from echo.frames import Frames
from echo.labels import Classes, one_hot
from echo.progress import steps_left
from echo.resume import Checkpoint, asked_to_stop
from echo.unet import build_unet


def draw_batch(
    frames: Frames, config: TrainingConfig, in_channels: int, seed: int, step: int, share: int = 0, shares: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x_0 (B, C, H, W), label map one-hot (B, K, H, W), class (B,), t (B,), epsilon (B, C, H, W)) of a step.

    The batch is a function of (seed, step), so training resumes without any random state. Each process, and each
    round of gradient accumulation, takes its share, every `shares`-th image. A dropped label map is all zeros.
    """
    rng = np.random.default_rng((seed, step))
    n = config.batch_size
    rows = rng.integers(len(frames), size=n)
    t = rng.integers(config.num_train_timesteps, size=n)
    flip = rng.random(n) < config.flip_probability
    epsilon = rng.standard_normal((n, in_channels, *frames.images.shape[1:]), dtype=np.float32)
    dropped = rng.random(n) < config.label_dropout
    rows, t, flip, epsilon, dropped = (whole[share::shares] for whole in (rows, t, flip, epsilon, dropped))
    images, labels = frames.images[rows], frames.sdm_labels[rows]
    images[flip], labels[flip] = images[flip, :, ::-1], labels[flip, :, ::-1]
    x_0 = torch.from_numpy(images).float()[:, None].expand(-1, in_channels, -1, -1) / 127.5 - 1
    label_map = one_hot(labels, len(frames.classes.sdm_names)) * torch.from_numpy(~dropped)[:, None, None, None]
    batch = x_0, label_map, frames.index["class_label"].to_numpy()[rows], t, epsilon
    return tuple(map(torch.as_tensor, batch))


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then linear to zero (the paper's decay)."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warm * (1 - step / config.steps)


def batch_loss(unet: torch.nn.Module, schedule: Schedule, batch: tuple[Tensor, ...], config: TrainingConfig) -> Tensor:
    """The loss of each image (B,) of `draw_batch`, on the network's device."""
    x_0, label_map, class_labels, t, epsilon = batch
    x_t = q_sample(schedule, x_0, t, epsilon)
    output = unet(x_t, t, FastConditioning(label_map), class_labels).sample.float()
    return diffusion_loss(schedule, output, x_0, x_t, epsilon, t, config.prediction_type, config.snr_gamma)


class Stage(NamedTuple):
    """What the two networks of a cascade differ in while they are trained.

    Attributes:
        name: what the progress bar says.
        config: settings of the training.
        build: makes the new network.
        frames: the frames that it learns from, of those at full size.
        draw: draw(frames, seed, step, share, shares) -> the tensors of a batch, on the CPU.
        loss: loss(network, schedule, batch) -> the loss of each image (B,), on the network's device.
    """

    name: str
    config: TrainingConfig
    build: Callable[[], ModelMixin]
    frames: Callable[[Frames], Frames]
    draw: Callable[..., tuple[Tensor, ...]]
    loss: Callable[..., Tensor]


def first_stage(profile: Profile, classes: Classes) -> Stage:
    """The semantic diffusion model; it is all there is where the profile has no enlarger."""
    config, channels = profile.training, profile.unet.in_channels
    return Stage(
        "diffusion",
        config,
        build=lambda: speed_up(build_unet(profile, classes)),
        frames=lambda frames: frames.shrunk(profile.first_size),
        draw=lambda frames, *place: draw_batch(frames, config, channels, *place),
        loss=lambda unet, schedule, batch: batch_loss(unet, schedule, batch, config),
    )


def second_stage(profile: Profile, classes: Classes) -> Stage:
    """The enlarger of a cascade."""
    config = profile.enlarger
    return Stage(
        "enlarger",
        config.training,
        build=lambda: build_enlarger(config, classes),
        frames=lambda frames: frames,
        draw=lambda frames, *place: draw_crops(frames, config, *place),
        loss=lambda network, schedule, batch: crop_loss(network, schedule, batch, config, len(classes.sdm_names)),
    )


def open_accelerator(config: TrainingConfig) -> Accelerator:
    """This process's device, precision and rank.

    Raises:
        ValueError: when processes and rounds of gradient accumulation do not divide the batch.
    """
    device, rounds = get_device(), config.gradient_accumulation
    AcceleratorState._reset_state()  # or the first training's precision would bind all others of this process
    precision = supported_precision(config.precision, device).replace("fp32", "no")
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    ranks = accelerator.num_processes
    if config.batch_size % (ranks * rounds):
        raise ValueError(f"batch_size {config.batch_size} is not divisible by {ranks} processes x {rounds} rounds")
    return accelerator


def mean_loss(
    network: torch.nn.Module, schedule: Schedule, batch: tuple[Tensor, ...], stage: Stage, accelerator: Accelerator
) -> Tensor:
    """The mean loss of a batch that lies on the CPU, in the accelerator's precision."""
    with accelerator.autocast():
        on_device = tuple(values.to(accelerator.device, non_blocking=True) for values in batch)
        return stage.loss(network, schedule, on_device).mean()


def add_up_gradient(
    network: torch.nn.Module,
    schedule: Schedule,
    batches: list[tuple[Tensor, ...]],
    stage: Stage,
    accelerator: Accelerator,
) -> Tensor:
    """The gradient of a step's batches (one a round of gradient accumulation); returns their mean loss."""
    total = torch.zeros((), device=accelerator.device)
    for k, batch in enumerate(batches, start=1):
        with accelerator.no_sync(network) if k < len(batches) else nullcontext():
            loss = mean_loss(network, schedule, batch, stage, accelerator) / len(batches)
            accelerator.backward(loss)
        total += loss.detach()
    return total


@torch.no_grad()
def held_out_loss(
    network: ModelMixin,
    ema: EMAModel,
    schedule: Schedule,
    validation: Frames,
    seed: int,
    stage: Stage,
    accelerator: Accelerator,
) -> float:
    """The loss of the averaged weights on validation frames; NaN without any.

    Frames, noise and t never change (they are those of steps that no training reaches), so that values compare.
    """
    if not len(validation):
        return math.nan
    shares = accelerator.num_processes * stage.config.gradient_accumulation
    draws = ((step, share) for step in range(2**40, 2**40 + 4) for share in range(shares))
    batches = (stage.draw(validation, seed, step, share, shares) for step, share in draws)
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    losses = [mean_loss(network, schedule, batch, stage, accelerator).item() for batch in batches]
    ema.restore(network.parameters())
    return float(np.mean(losses))


def draw_rounds(
    frames: Frames, stage: Stage, seed: int, start: int, accelerator: Accelerator
) -> Iterator[list[tuple[Tensor, ...]]]:
    """For each step from `start` on, this process's batches: one for each round of gradient accumulation."""
    shares = accelerator.num_processes * stage.config.gradient_accumulation
    ours = range(accelerator.process_index, shares, accelerator.num_processes)
    for step in range(start, stage.config.steps):
        yield [stage.draw(frames, seed, step, share, shares) for share in ours]


def take_step(
    network: ModelMixin,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    loss: float,
    norm: float,
    learning_rate: float,
    scaler: torch.amp.GradScaler | None,
) -> bool:
    """Optimiser and average, unless loss or gradient is not finite; whether they were."""
    # With a loss scale, a gradient that is not finite is the scale's matter: it skips the step and falls.
    finite = math.isfinite(loss) and (scaler is not None or math.isfinite(norm))
    if finite or scaler is not None:
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
    if finite:
        ema.step(network.parameters())
    optimizer.zero_grad()
    return finite


def mean_over_ranks(accelerator: Accelerator, *values: float | Tensor) -> list[float]:
    """Each value's mean over the processes, so that all of them decide alike."""
    tensors = [torch.as_tensor(v, dtype=torch.float32, device=accelerator.device) for v in values]
    return accelerator.reduce(torch.stack(tensors), "mean").tolist()


def new_network(
    stage: Stage, accelerator: Accelerator, seed: int
) -> tuple[ModelMixin, torch.nn.Module, torch.optim.Optimizer]:
    """A stage's network, the same as the accelerator wraps it for a training, and its optimiser."""
    torch.manual_seed(seed)
    tune_cpu()
    # Channels last: the layout in which CPUs and tensor cores convolve fastest.
    network = stage.build().to(memory_format=torch.channels_last)
    if stage.config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(network.parameters(), lr=stage.config.learning_rate, weight_decay=0.0, fused=True)
    wrapped = torch.compile(network) if stage.config.compile else network
    return network, *accelerator.prepare(wrapped, optimizer)


def train(
    profile: Profile,
    training: Frames,
    validation: Frames,
    folder: Path,
    seed: int,
    of: Callable[[Profile, Classes], Stage] = first_stage,
) -> ModelMixin:
    """Train a diffusion network; resume from `folder` if it was interrupted.

    Called in each of several processes (torchrun, `notebook_launcher`), they share every batch. Batches and the
    learning rate are functions of the seed and the step, so the checkpoint needs no random state.

    Args:
        training, validation: frames at the profile's size.
        folder: gets `checkpoint.pt`, `log.csv` and, at the end, the averaged weights in `model/`.
        of: `first_stage`, the semantic diffusion model, or `second_stage`, the enlarger.

    Returns the network with its exponentially averaged weights, in evaluation mode.

    Raises:
        DamagedFile: for a checkpoint that cannot be read.
        FloatingPointError: when loss or gradient is not finite ten steps in a row; a single such step is skipped.
        KeyboardInterrupt: on SIGTERM or Ctrl-C, after the step under way and a checkpoint.
        ValueError: when processes and gradient accumulation do not divide the batch.
    """
    stage = of(profile, training.classes)
    config, training, validation = stage.config, stage.frames(training), stage.frames(validation)
    accelerator = open_accelerator(config)
    network, wrapped, optimizer = new_network(stage, accelerator, seed)
    ema = EMAModel(network.parameters(), decay=config.ema_decay, foreach=True)
    schedule = cosine_schedule(config.num_train_timesteps).to(accelerator.device)
    scaler, is_rank_0 = accelerator.scaler, accelerator.is_main_process
    checkpoint = Checkpoint(folder / "checkpoint.pt", unet=network, optimizer=optimizer, ema=ema, scaler=scaler)
    done = {"step": 0, "log": [], "losses": [], "seconds": 0.0, "threads": None} | checkpoint.load()
    ema.to(accelerator.device)
    began, in_a_row = time.perf_counter() - done["seconds"], 0
    rounds = draw_rounds(training, stage, seed, done["step"], accelerator)
    batches = next(rounds, [])
    with asked_to_stop() as stop, steps_left(done, config.steps, stage.name, hidden=not is_rank_0) as bar:
        for step in bar:
            loss = add_up_gradient(wrapped, schedule, batches, stage, accelerator)
            batches = next(rounds, [])  # drawn while a GPU still works on those before
            norm = accelerator.clip_grad_norm_(network.parameters(), config.gradient_clip)
            loss, norm, leave = mean_over_ranks(accelerator, loss, norm, float(stop.is_set()))
            rate = learning_rate_at(config, step - 1)
            finite = take_step(network, optimizer, ema, loss, norm, rate, scaler)
            in_a_row = 0 if finite else in_a_row + 1
            if in_a_row == 10:
                raise FloatingPointError(f"{folder}: the loss was not finite ten steps in a row, up to step {step}")
            done |= {"step": step, "seconds": time.perf_counter() - began}
            done["losses"] += [loss] if finite else []
            due = step % config.validate_every == 0 or step == config.steps
            if due:
                found = {"loss": float(np.mean(done["losses"] or math.nan))}
                found["validation_loss"] = held_out_loss(network, ema, schedule, validation, seed, stage, accelerator)
                bar.set_postfix({name: f"{value:.4f}" for name, value in found.items()})
                done["seconds"], done["losses"] = time.perf_counter() - began, []
                done["log"].append({"step": step} | found | {"learning_rate": rate, "seconds": done["seconds"]})
            if (due or leave) and is_rank_0:
                checkpoint.save(**done)
            if leave:
                raise KeyboardInterrupt(f"stopped after step {step}, which {checkpoint.path} holds")
        (leave,) = mean_over_ranks(accelerator, float(stop.is_set()))  # since the last step
    ema.copy_to(network.parameters())
    network = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False, keep_torch_compile=False).eval()
    if is_rank_0:
        network.save_pretrained(folder / "model")
    accelerator.wait_for_everyone()
    if leave:
        raise KeyboardInterrupt(f"stopped after the last step, which {checkpoint.path} holds")
    return network
