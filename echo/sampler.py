"""The sampler: diffusers pipelines from label maps to echoes, by one network or two, over any diffusers scheduler."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

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
from echo.enlarger import Enlarger, conditions
from echo.fast import FastConditioning, speed_up
from echo.frames import shrunk_labels
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


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: SchedulerMixin,
    x: Tensor,
    num_inference_steps: int,
    generators: list[torch.Generator],
    trajectory: list[Tensor] | None = None,
    guesses: list[Tensor] | None = None,
) -> Tensor:
    """The sampler's loop: from x_T (B, C, H, W), standard normal, to x_0 in [-1, 1].

    Args:
        predict: predict(x_t, t) -> the network's output (B, C or 2 C, H, W), float32; t is a number on x's device.
        generators: of an image each, for schedulers that draw noise.
        trajectory, guesses: as `SemanticDiffusionPipeline` takes them.
    """
    # No step may wait for the device. So the schedulers keep their timesteps on the CPU, where looking one up is
    # free; the network gets its own copy. Those that search for their first step are told it: steps even in log
    # sigma share a t, and the search takes the second. What is left to wait for: DDPM's noise, drawn on the CPU
    # to be the same for any device, and the 2 x 2 system that UniPC solves.
    scheduler.set_timesteps(-(-num_inference_steps // scheduler.order))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = x * scheduler.init_noise_sigma  # 1, but for Heun, which works on x_t / sqrt(alpha_bar_t)
    for t, network_t in zip(scheduler.timesteps, scheduler.timesteps.to(x.device), strict=True):
        step = scheduler.step(predict(scheduler.scale_model_input(x, t), network_t), t, x, **extra)
        x = step.prev_sample
        if trajectory is not None:
            trajectory.append(scheduler.scale_model_input(x, t).cpu())
        if guesses is not None:  # multistep solvers keep it for their next step instead of returning it
            guess = step.pred_original_sample if "pred_original_sample" in step else scheduler.model_outputs[-1]
            guesses.append(guess.cpu())
    return x


def noise_of(seeds: list[int], *shape: int) -> tuple[Tensor, list[torch.Generator]]:
    """Standard normal noise (B, *shape) on the CPU, a function of each image's seed alone; and the generators."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=g) for g in generators]), generators


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
        channels = unet.config.in_channels
        x, generators = noise_of(seeds, channels, *label_maps.shape[2:])
        y = label_maps.to(device)
        c = None if class_labels is None else class_labels.to(device)
        guided = guidance_scale != 1.0
        if guided:
            y = torch.cat([y, torch.zeros_like(y)])
            c = None if c is None else torch.cat([c, c])
        # Only DDPM with a learned range reads the output's variance half; any other scheduler would broadcast it.
        keeps_variance = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type == "learned_range"
        conditioning = FastConditioning(y, MOST_BYTES)

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            x_t = torch.cat([x_t, x_t]) if guided else x_t
            output = unet(x_t, t.expand(len(x_t)), conditioning, c).sample.float()
            if guided:
                output, without = output.chunk(2)
                guide = without[:, :channels] + guidance_scale * (output - without)[:, :channels]
                # A variance stays the one predicted with the label map: extrapolated, it would leave its range.
                output = torch.cat([guide, output[:, channels:]], dim=1)
            return output if keeps_variance else output[:, :channels]

        x = denoise(predict, scheduler, x.to(device), num_inference_steps, generators, trajectory, guesses)
        return ((x + 1) / 2).clamp(0, 1).cpu()


class Cascade(NamedTuple):
    """The two networks of a cascade: the semantic diffusion model of small images, and the enlarger."""

    unet: SemanticUNet
    enlarger: Enlarger


class CascadePipeline(DiffusionPipeline):
    """Label maps -> echoes in two stages (Ho et al. 2022): a small image, then the full-size one given it.

    Save and load it with `save_pretrained` and this class's own `from_pretrained`.
    """

    def __init__(
        self,
        unet: SemanticUNet,
        scheduler: SchedulerMixin,
        enlarger: Enlarger,
        enlarging_scheduler: SchedulerMixin,
        most_noise: float = 0.1,
    ):
        super().__init__()
        self.register_modules(
            unet=speed_up(unet), scheduler=scheduler, enlarger=enlarger, enlarging_scheduler=enlarging_scheduler
        )
        self.register_to_config(most_noise=most_noise)

    @torch.no_grad()
    def __call__(
        self,
        sdm_labels: NDArray[np.uint8],
        class_labels: Tensor | None = None,
        *,
        seeds: list[int],
        enlarging_steps: int = 20,
        noise_sd: float = 0.05,
        **options,
    ) -> Tensor:
        """Paint one image for each label map.

        Args:
            sdm_labels: uint8 (B, S, S).
            class_labels: view-and-phase classes (B,), for a network that has them.
            seeds: one for each image: its noise depends on nothing else, so neither does the image.
            enlarging_steps: network evaluations of the second stage.
            noise_sd: of the conditioning augmentation: how far the small image is mistrusted.
            options: of the first stage, as `SemanticDiffusionPipeline` takes them.

        Returns:
            Images (B, 1, S, S) in [0, 1], float32, on the CPU; exactly 0 outside a sector.
        """
        first = SemanticDiffusionPipeline(self.unet, self.scheduler)
        small_labels = shrunk_labels(sdm_labels, sdm_labels.shape[-1] // self.enlarger.config.factor)
        small_maps = one_hot(small_labels, self.unet.config.label_channels)
        small = first(small_maps, class_labels, seeds=seeds, **options).mean(1, keepdim=True)
        return self.enlarge(small, sdm_labels, seeds=seeds, num_inference_steps=enlarging_steps, noise_sd=noise_sd)

    @torch.no_grad()
    def enlarge(
        self,
        small: Tensor,
        sdm_labels: NDArray[np.uint8],
        *,
        seeds: list[int],
        num_inference_steps: int = 20,
        noise_sd: float = 0.05,
    ) -> Tensor:
        """The second stage alone: images as `__call__` returns them, for small images (B, 1, s, s) in [0, 1].

        Raises:
            ValueError: when S is not a multiple of the enlarger's stride.
        """
        enlarger, size = self.enlarger, sdm_labels.shape[-1]
        if size % enlarger.stride:
            raise ValueError(f"images of {size} pixels cannot be enlarged to: a multiple of {enlarger.stride} can")
        # Other numbers than the first stage's noise: seeds of images are below 2**31.
        x, generators = noise_of([int(seed) + 2**31 for seed in seeds], 1, size, size)
        noise = torch.stack([torch.randn(small.shape[1:], generator=g) for g in generators])
        labels = torch.from_numpy(sdm_labels).to(enlarger.device)
        level = torch.full((len(small),), noise_sd / self.config.most_noise, device=enlarger.device)
        noisy, num_classes = (small * 2 - 1 + noise_sd * noise).to(enlarger.device), self.unet.config.label_channels
        condition = conditions(noisy, labels, level, num_classes=num_classes)

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return enlarger(x_t, t.expand(len(x_t)), condition).sample.float()

        x = denoise(predict, self.enlarging_scheduler, x.to(enlarger.device), num_inference_steps, generators)
        images = ((x + 1) / 2).clamp(0, 1)
        return (torch.where(labels[:, None] > 0, images, 0) if enlarger.config.sector else images).cpu()


def build_pipeline(
    model: SemanticUNet | Cascade, profile: Profile, scheduler: str = ""
) -> SemanticDiffusionPipeline | CascadePipeline:
    """The pipeline of a network, or of a cascade's two, with the profile's schedulers; or another one, by its name, in
    the place of the first."""
    training, enlarger = profile.training, profile.enlarger
    first = make_scheduler(
        scheduler or profile.generation.scheduler,
        training.prediction_type,
        profile.unet.learned_variance,
        training.num_train_timesteps,
    )
    if not isinstance(model, Cascade):
        return SemanticDiffusionPipeline(model, first)
    second = enlarger.scheduler, enlarger.training.prediction_type, False, enlarger.training.num_train_timesteps
    return CascadePipeline(model.unet, first, model.enlarger, make_scheduler(*second), enlarger.most_noise)


def paint(
    model: SemanticUNet | Cascade,
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
            `guesses`, to watch the sampler (`echo.sampler`). Of a cascade these are the first stage's, and
            `enlarging_steps` and `noise_sd` the second's.
    """
    tune_cpu()
    generation, enlarger = profile.generation, profile.enlarger
    pipeline = build_pipeline(model, profile, options.pop("scheduler", ""))
    settings = {
        "num_inference_steps": generation.num_inference_steps,
        "guidance_scale": generation.guidance_scale,
    }
    if isinstance(model, Cascade):
        settings |= {"enlarging_steps": enlarger.num_inference_steps, "noise_sd": enlarger.noise_sd}
        condition, device = np.asarray(sdm_labels), model.unet.device
    else:
        condition, device = one_hot(sdm_labels, model.config.label_channels), model.device
    labels = torch.tensor(np.asarray(class_labels).tolist())
    with autocast(profile.training.precision, device):
        images = pipeline(condition, labels, seeds=seeds, **settings | options)
    return (images.mean(1) * 255).round().to(torch.uint8).numpy()


def paint_all(
    models: dict[int, SemanticUNet | Cascade],
    profile: Profile,
    sdm_labels: np.ndarray,
    classes: np.ndarray,
    seeds: np.ndarray,
    **options,
) -> np.ndarray:
    """Echoes uint8 (N, S, S) for SDM label maps of any views and phases, as `paint`, in batches."""
    images, size = np.zeros_like(sdm_labels), profile.generation.batch_size
    for class_label in np.unique(classes):
        places = np.flatnonzero(classes == class_label)
        for first in range(0, len(places), size):
            take = places[first : first + size]
            chosen = sdm_labels[take], classes[take], seeds[take].tolist()
            images[take] = paint(models[class_label], profile, *chosen, **options)
    return images
