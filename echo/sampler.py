"""The sampler: a diffusers pipeline from label maps to echoes, over any diffusers scheduler."""

import inspect

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray
from torch import Tensor

from echo.config import Profile
from echo.device import autocast, tune_cpu
from echo.fast import FastConditioning, speed_up
from echo.labels import one_hot
from echo.unet import SemanticUNet

MOST_BYTES = 8e9  # of SPADE's scales and shifts, kept from the first step for all others
SCHEDULERS = ("ddim", "dpm++", "unipc", "heun", "ddpm")


def make_scheduler(
    name: str, prediction_type: str, learned_variance: bool, num_train_timesteps: int = 1000
) -> SchedulerMixin:
    """A diffusers scheduler on the cosine schedule. Every one clips its predicted x_0 to [-1, 1].

    Args:
        name: "ddim" (Song et al. 2021, eta 0), "dpm++" (DPM-Solver++ 2M, Lu et al. 2022), "unipc" (UniPC-2, Zhao et
            al. 2023), "heun" (Karras et al. 2022, algorithm 1; it overshoots below about 50 network evaluations) or
            "ddpm" (Ho et al. 2020).
        prediction_type: "epsilon" or "v_prediction".
        learned_variance: the network's output carries a variance; only "ddpm" uses it.
    """
    common = {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction_type,
        "num_train_timesteps": num_train_timesteps,
    }
    # Steps even in log(sigma / alpha) treat detail of every contrast alike. Even in t, the last step spans all noise
    # below t = 40 (of 25 steps) and flattens faint texture, and the first multiplies an error in epsilon by 1300.
    even = {"use_exponential_sigmas": True}
    # With diffusers' sample_max_value of 1, thresholding is a plain clip to [-1, 1].
    if name == "ddim":
        return DDIMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
    if name == "dpm++":
        return DPMSolverMultistepScheduler(**common, **even, thresholding=True)
    if name == "unipc":
        return UniPCMultistepScheduler(**common, **even, thresholding=True)
    if name == "heun":
        return HeunDiscreteScheduler(**common, **even, clip_sample=True)
    if name == "ddpm":
        variance = "learned_range" if learned_variance else "fixed_small"
        return DDPMScheduler(**common, variance_type=variance, timestep_spacing="linspace", clip_sample=True)
    raise ValueError(f"unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}")


class SemanticDiffusionPipeline(DiffusionPipeline):
    """Label maps -> echoes. Save and load it with `save_pretrained` and this class's own `from_pretrained`."""

    def __init__(self, unet: SemanticUNet, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=speed_up(unet), scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        label_maps: Tensor,
        class_labels: Tensor | None = None,
        *,
        seeds: list[int],
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
        trajectory: list[Tensor] | None = None,
        guesses: list[Tensor] | None = None,
    ) -> Tensor:
        """Paint one image for each label map.

        Args:
            label_maps: one-hot (B, K, H, W).
            class_labels: view-and-phase classes (B,), for a network that has them.
            seeds: one for each image: its noise depends on nothing else, so neither does the image.
            num_inference_steps: network evaluations for each image. "heun" spends two on each step but the last, so
                that it makes one fewer when the number is even.
            guidance_scale: s of classifier-free guidance (Ho and Salimans 2022, equation 6, with s = 1 + w): the
                prediction without a label map, plus s times the difference that the map makes. 1 is none. For any
                other the network must have been trained with label dropout, and each evaluation costs double.
            trajectory: a list to which x_t after every evaluation is appended.
            guesses: a list to which the clipped prediction of x_0 is appended, which that evaluation gave.

        Returns:
            Images (B, C, H, W) in [0, 1], float32, on the CPU.
        """
        if len(seeds) != len(label_maps):
            raise ValueError(f"{len(label_maps)} label maps, but {len(seeds)} seeds: give one for each")
        unet, scheduler, device = self.unet, self.scheduler, self.unet.device
        channels, size = unet.config.in_channels, label_maps.shape[2:]
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        x = torch.stack([torch.randn((channels, *size), generator=g) for g in generators]).to(device)
        y = label_maps.to(device)
        c = None if class_labels is None else class_labels.to(device)
        guided = guidance_scale != 1.0
        if guided:
            y = torch.cat([y, torch.zeros_like(y)])
            c = None if c is None else torch.cat([c, c])
        # Only DDPM with a learned range reads the output's variance half; any other scheduler would broadcast it.
        keeps_variance = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type == "learned_range"
        # No step may wait for the device. So the schedulers keep their timesteps on the CPU, where looking one up is
        # free; the network gets its own copy. Those that search for their first step are told it: steps even in log
        # sigma share a t, and the search takes the second. What is left to wait for: DDPM's noise, drawn on the CPU
        # to be the same for any device, and the 2 x 2 system that UniPC solves.
        scheduler.set_timesteps(-(-num_inference_steps // scheduler.order))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generators} if takes_generator else {}
        x = x * scheduler.init_noise_sigma  # 1, but for Heun, which works on x_t / sqrt(alpha_bar_t)
        conditioning = FastConditioning(y, MOST_BYTES)
        for t, network_t in zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True):
            model_input = scheduler.scale_model_input(x, t)
            model_input = torch.cat([model_input, model_input]) if guided else model_input
            output = unet(model_input, network_t.expand(len(model_input)), conditioning, c).sample.float()
            if guided:
                output, without = output.chunk(2)
                guide = without[:, :channels] + guidance_scale * (output - without)[:, :channels]
                # A variance stays the one predicted with the label map: extrapolated, it would leave its range.
                output = torch.cat([guide, output[:, channels:]], dim=1)
            if not keeps_variance:
                output = output[:, :channels]
            step = scheduler.step(output, t, x, **extra)
            x = step.prev_sample
            if trajectory is not None:
                trajectory.append(scheduler.scale_model_input(x, t).cpu())
            if guesses is not None:  # multistep solvers keep it for their next step instead of returning it
                guess = step.pred_original_sample if "pred_original_sample" in step else scheduler.model_outputs[-1]
                guesses.append(guess.cpu())
        return ((x + 1) / 2).clamp(0, 1).cpu()


def paint(
    unet: SemanticUNet,
    profile: Profile,
    sdm_labels: NDArray[np.uint8],
    class_labels: NDArray,
    seeds: list[int],
    **options,
) -> NDArray[np.uint8]:
    """Echoes uint8 (B, S, S) for SDM label maps (B, S, S), sampled as the profile says.

    Args:
        class_labels: places in `config.VIEW_PHASES` (B,).
        seeds: one for each image.
        options: `scheduler`, `num_inference_steps`, `guidance_scale`, to depart from the profile; `trajectory`,
            `guesses`, to watch the sampler (`echo.sampler`).
    """
    tune_cpu()
    generation, training = profile.generation, profile.training
    name = options.pop("scheduler", generation.scheduler)
    scheduler = make_scheduler(
        name, training.prediction_type, profile.unet.learned_variance, training.num_train_timesteps
    )
    pipeline = SemanticDiffusionPipeline(unet, scheduler)
    settings = {
        "num_inference_steps": generation.num_inference_steps,
        "guidance_scale": generation.guidance_scale,
    } | options
    labels = torch.tensor(np.asarray(class_labels).tolist())
    with autocast(training.precision, unet.device):
        images = pipeline(one_hot(sdm_labels, unet.config.label_channels), labels, seeds=seeds, **settings)
    return (images.mean(1) * 255).round().to(torch.uint8).numpy()


def paint_all(
    models: dict[int, SemanticUNet],
    profile: Profile,
    sdm_labels: np.ndarray,
    classes: np.ndarray,
    seeds: np.ndarray,
    **options,
) -> np.ndarray:
    """Echoes uint8 (N, S, S) for SDM label maps of any views and phases, as `generate.paint`, in batches."""
    painted, size = np.zeros_like(sdm_labels), profile.generation.batch_size
    for class_label in np.unique(classes):
        places = np.flatnonzero(classes == class_label)
        for first in range(0, len(places), size):
            take = places[first : first + size]
            seeds_taken = seeds[take].tolist()
            model = models[class_label]
            painted[take] = paint(model, profile, sdm_labels[take], classes[take], seeds_taken, **options)
    return painted
