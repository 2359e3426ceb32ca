"""The diffusion process and its loss (Ho 2020, Nichol and Dhariwal 2021), and the training loop.

Symbols follow the papers: x_0 the image in [-1, 1], epsilon unit Gaussian noise, alpha_bar_t the cumulated signal,
x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from echo.config import VIEW_PHASES, Profile, TrainingConfig
from echo.device import get_device, supported_precision
from echo.labels import one_hot
from echo.paths import atomic
from echo.progress import tqdm
from echo.unet import SemanticUNet


@dataclass(frozen=True)
class Schedule:
    """Constants of q and of its posterior at each t, float64 (T,)."""

    beta: Tensor
    alpha_bar: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor  # that at t = 0 is clipped to the one at t = 1
    x_0_coefficient: Tensor  # of the posterior's mean, equation 7 of Ho et al. 2020
    x_t_coefficient: Tensor


def cosine_schedule(num_train_timesteps: int = 1000) -> Schedule:
    """The cosine schedule, Nichol and Dhariwal 2021, equation 17 (s = 0.008, beta at most 0.999)."""
    t = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    alpha_bar = torch.cumprod(1 - beta, 0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    variance = beta * (1 - previous) / (1 - alpha_bar)
    return Schedule(
        beta=beta,
        alpha_bar=alpha_bar,
        posterior_variance=variance,
        posterior_log_variance=torch.cat([variance[1:2], variance[1:]]).log(),
        x_0_coefficient=beta * previous.sqrt() / (1 - alpha_bar),
        x_t_coefficient=(1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
    )


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values[t] as (B, 1, 1, 1), in the type and on the device of `like`."""
    return values.to(like.device)[t].to(like.dtype)[:, None, None, None]


def q_sample(schedule: Schedule, x_0: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
    """x_t (B, C, H, W) from q(x_t | x_0), equation 4 of Ho et al. 2020."""
    return at(schedule.alpha_bar.sqrt(), t, x_0) * x_0 + at((1 - schedule.alpha_bar).sqrt(), t, x_0) * epsilon


def p_distribution(
    schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor, *, clip: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log variance of p(x_{t-1} | x_t) and the predicted x_0, from a learned-variance output (B, 2 C, H, W).

    Nichol and Dhariwal 2021, equation 15: the second half v in [-1, 1] interpolates log variance between the
    posterior's (v = -1) and beta (v = 1). x_0 is clipped to [-1, 1] unless `clip` is false.
    """
    epsilon, v = output.chunk(2, dim=1)
    alpha_bar = schedule.alpha_bar
    x_0 = at(alpha_bar.rsqrt(), t, x_t) * x_t - at((1 / alpha_bar - 1).sqrt(), t, x_t) * epsilon
    if clip:
        x_0 = x_0.clamp(-1, 1)
    mean = at(schedule.x_0_coefficient, t, x_t) * x_0 + at(schedule.x_t_coefficient, t, x_t) * x_t
    fraction = (v + 1) / 2
    low, high = at(schedule.posterior_log_variance, t, x_t), at(schedule.beta.log(), t, x_t)
    return mean, fraction * high + (1 - fraction) * low, x_0


def variational_bound(schedule: Schedule, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """L_vlb's term at t in bits per dimension (B,): KL(q || p) for t > 0, -log p(x_0 | x_1) at t = 0.

    The mean is detached, so that only the variance learns from it (Nichol and Dhariwal 2021, section 3.1).
    """
    epsilon, v = output.chunk(2, dim=1)
    output = torch.cat([epsilon.detach(), v], dim=1)
    mean, log_variance, _ = p_distribution(schedule, output, x_t, t, clip=False)
    true_mean = at(schedule.x_0_coefficient, t, x_t) * x_0 + at(schedule.x_t_coefficient, t, x_t) * x_t
    true_log_variance = at(schedule.posterior_log_variance, t, x_t)
    kl = 0.5 * (
        log_variance
        - true_log_variance
        - 1
        + (true_log_variance - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    # The decoder's likelihood is that of 8-bit pixels: the Gaussian's mass in a bin of width 2 / 255.
    inverse_sd = (-0.5 * log_variance).exp()

    def cdf(
        z: Tensor,
    ) -> Tensor:  # the released code's tanh approximation of the normal distribution function
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    above = cdf(inverse_sd * (x_0 - mean + 1 / 255))
    below = cdf(inverse_sd * (x_0 - mean - 1 / 255))
    mass = torch.where(x_0 < -0.999, above, torch.where(x_0 > 0.999, 1 - below, above - below))
    likelihood = -mass.clamp(min=1e-12).log()
    bits = [term.flatten(1).mean(1) / math.log(2) for term in (kl, likelihood)]
    return torch.where(t == 0, bits[1], bits[0])


def diffusion_loss(
    schedule: Schedule,
    output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    epsilon: Tensor,
    t: Tensor,
    prediction_type: str,
) -> Tensor:
    """The loss of each image (B,): L_simple, plus 0.001 L_vlb where the output (B, 2 C, H, W) carries a variance.

    The target is epsilon, or v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022) for
    `prediction_type` "v_prediction". A learned variance goes with epsilon, as in the paper.
    """
    target = epsilon
    if prediction_type == "v_prediction":
        target = q_sample(schedule, epsilon, t, -x_0)
    simple = (output[:, : x_0.shape[1]] - target).square().flatten(1).mean(1)
    if output.shape[1] == x_0.shape[1]:
        return simple
    # The released code counts L_vlb over T terms and divides by 1000: T / 1000 each, 1 for T = 1000.
    vlb = variational_bound(schedule, output, x_0, x_t, t)
    return simple + 0.001 * vlb


def build_unet(profile: Profile) -> SemanticUNet:
    """The profile's network; its weights come from torch's global generator."""
    unet = profile.unet
    return SemanticUNet(
        image_size=profile.image_size,
        num_classes=0 if profile.per_view_phase else len(VIEW_PHASES),
        **{name: getattr(unet, name) for name in unet.__dataclass_fields__},
    )


def draw_batch(
    frames, config: TrainingConfig, in_channels: int, seed: int, step: int, rank: int = 0, ranks: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x_0 (B, C, H, W), label map one-hot (B, K, H, W), class (B,), t (B,), epsilon (B, C, H, W)) of a step.

    The batch is a function of (seed, step), so training resumes without any random state; each of `ranks` processes
    takes its own part of it.
    """
    rng = np.random.default_rng((seed, step))
    n = config.batch_size
    rows = rng.integers(len(frames), size=n)
    t = rng.integers(config.num_train_timesteps, size=n)
    flip = rng.random(n) < config.flip_probability
    epsilon = rng.standard_normal((n, in_channels, *frames.images.shape[1:]), dtype=np.float32)
    images, labels = frames.images[rows], frames.sdm_labels[rows]
    images[flip], labels[flip] = images[flip, :, ::-1], labels[flip, :, ::-1]
    x_0 = torch.from_numpy(images).float()[:, None].expand(-1, in_channels, -1, -1) / 127.5 - 1
    batch = x_0, one_hot(labels), frames.index["class_label"].to_numpy()[rows], t, epsilon
    return tuple(torch.as_tensor(part)[rank::ranks] for part in batch)


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then linear to zero (the paper's decay)."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warm * (1 - step / config.steps)


@torch.no_grad()
def validation_loss(
    unet: SemanticUNet, schedule: Schedule, frames, profile: Profile, seed: int, batches: int = 4
) -> float:
    """Mean loss on validation frames at noise, t and frames that never change, so that steps compare."""
    device, losses = unet.device, []
    for k in range(batches):
        # Steps that no training reaches.
        batch = draw_batch(frames, profile.training, profile.unet.in_channels, seed, 2**40 + k)
        x_0, label_map, class_labels, t, epsilon = (part.to(device) for part in batch)
        x_t = q_sample(schedule, x_0, t, epsilon)
        output = unet(x_t, t, label_map, class_labels).sample.float()
        loss = diffusion_loss(schedule, output, x_0, x_t, epsilon, t, profile.training.prediction_type)
        losses.append(loss.mean().item())
    return float(np.mean(losses))


def train(
    profile: Profile, training, validation, folder: Path, seed: int, *, stop_after: int | None = None
) -> SemanticUNet:
    """Train the semantic diffusion model; resume from `folder` if it was interrupted.

    Args:
        training, validation: `echo.dataset.Frames`.
        folder: gets `checkpoint.pt`, `log.csv`, `tensorboard/` and, at the end, the averaged weights in `model/`.
        stop_after: leave after so many steps of this call, as an interruption would.

    Returns:
        The network with its exponentially averaged weights, in evaluation mode.

    Raises:
        FloatingPointError: when the loss is not finite ten steps in a row.
    """
    config, device = profile.training, get_device()
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=supported_precision(config.precision, device).replace("fp32", "no"),
    )
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    # Channels last: the layout in which CPUs and tensor cores convolve fastest.
    raw = build_unet(profile).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(raw.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    unet, optimizer = accelerator.prepare(raw, optimizer)
    ema = EMAModel(raw.parameters(), decay=config.ema_decay, foreach=True)
    ema.to(device)
    schedule = cosine_schedule(config.num_train_timesteps)

    checkpoint, log_file = folder / "checkpoint.pt", folder / "log.csv"
    start, log = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        raw.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(device)
        start, log = state["step"], state["log"]

    def save(step: int) -> None:
        state = {"unet": raw.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        with atomic(checkpoint) as temporary:
            torch.save({**state, "step": step, "log": log}, temporary)
        with atomic(log_file) as temporary:
            pd.DataFrame(log).to_csv(temporary, index=False)

    writer = SummaryWriter(folder / "tensorboard", purge_step=start)
    bar = tqdm(
        total=config.steps,
        initial=start,
        desc="diffusion",
        unit="step",
        disable=not accelerator.is_main_process,
    )
    losses, bad, clock = [], 0, time.perf_counter()
    last = config.steps if stop_after is None else min(config.steps, start + stop_after)
    for step in range(start, last):
        parts = (accelerator.process_index, accelerator.num_processes)
        batch = draw_batch(training, config, profile.unet.in_channels, seed, step, *parts)
        x_0, label_map, class_labels, t, epsilon = (part.to(device) for part in batch)
        x_t = q_sample(schedule, x_0, t, epsilon)
        with accelerator.autocast():
            output = unet(x_t, t, label_map, class_labels).sample
        loss = diffusion_loss(schedule, output.float(), x_0, x_t, epsilon, t, config.prediction_type).mean()
        # A step that is not finite is skipped; all processes must agree on it.
        value = accelerator.reduce(loss.detach(), "mean").item()
        bad = 0 if math.isfinite(value) else bad + 1
        if bad == 0:
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(raw.parameters(), config.gradient_clip)
            optimizer.param_groups[0]["lr"] = learning_rate_at(config, step)
            optimizer.step()
            ema.step(raw.parameters())
            losses.append(value)
        elif bad == 10:
            raise FloatingPointError(f"{folder}: the loss was not finite ten steps in a row, up to step {step}")
        optimizer.zero_grad()
        bar.update()

        if (step + 1) % config.validate_every == 0 or step + 1 == last:
            ema.store(raw.parameters())
            ema.copy_to(raw.parameters())
            with accelerator.autocast():
                held_out = validation_loss(raw, schedule, validation, profile, seed)
            ema.restore(raw.parameters())
            row = {"step": step + 1, "loss": float(np.mean(losses or math.nan)), "validation_loss": held_out}
            row["learning_rate"] = learning_rate_at(config, step)
            row["seconds"] = (log[-1]["seconds"] if log else 0.0) + time.perf_counter() - clock
            losses, clock = [], time.perf_counter()
            log.append(row)
            for name in ("loss", "validation_loss", "learning_rate"):
                writer.add_scalar(name, row[name], step + 1)
            bar.set_postfix(loss=f"{row['loss']:.4f}", validation=f"{held_out:.4f}")
            if accelerator.is_main_process:
                save(step + 1)
    bar.close()
    writer.close()
    ema.copy_to(raw.parameters())
    raw.eval()
    if last == config.steps and accelerator.is_main_process:
        raw.save_pretrained(folder / "model")
    return raw
