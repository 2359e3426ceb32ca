"""The diffusion process and its losses (Ho 2020, Nichol and Dhariwal 2021).

Symbols follow the papers: x_0 the image in [-1, 1], epsilon unit Gaussian noise, alpha_bar_t the cumulated signal,
x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Constants of q and of its posterior at each t, float64 (T,)."""

    beta: Tensor
    alpha_bar: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor  # that at t = 0 is clipped to the one at t = 1
    x_0_coefficient: Tensor  # of the posterior's mean, equation 7 of Ho et al. 2020
    x_t_coefficient: Tensor

    def to(self, device: torch.device) -> "Schedule":
        """The same constants on a device, where looking one up waits for nothing."""
        return Schedule(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


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

    # the released code's tanh approximation of the normal distribution function
    def cdf(z: Tensor) -> Tensor:
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
    snr_gamma: float | None = None,
) -> Tensor:
    """The loss of each image (B,): L_simple, plus 0.001 L_vlb where the output (B, 2 C, H, W) carries a variance.

    Args:
        prediction_type: "epsilon", or "v_prediction": v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0 (Salimans
            and Ho 2022). A learned variance goes with epsilon, as in the paper.
        snr_gamma: weigh L_simple as if x_0 were predicted, with weight min(SNR, gamma) (Hang et al. 2023, equation 8;
            they advise 5); None weighs all t alike.

    Raises:
        ValueError: for a learned variance with "v_prediction".
    """
    alpha_bar = at(schedule.alpha_bar, t, x_0).flatten()
    snr = alpha_bar / (1 - alpha_bar)
    target, x_0_weight = epsilon, snr  # the error of epsilon is sqrt(SNR) times that of x_0
    if prediction_type == "v_prediction":
        signal, noise = at(schedule.alpha_bar.sqrt(), t, x_0), at((1 - schedule.alpha_bar).sqrt(), t, x_0)
        target, x_0_weight = signal * epsilon - noise * x_0, snr + 1
    simple = (output[:, : x_0.shape[1]] - target).square().flatten(1).mean(1)
    if snr_gamma is not None:
        simple = simple * snr.clamp(max=snr_gamma) / x_0_weight
    if output.shape[1] == x_0.shape[1]:
        return simple
    if prediction_type != "epsilon":
        raise ValueError(f"a learned variance goes with epsilon, not with {prediction_type}")
    # The released code counts L_vlb over T terms and divides by 1000: T / 1000 each, 1 for T = 1000.
    vlb = variational_bound(schedule, output, x_0, x_t, t)
    return simple + 0.001 * vlb
