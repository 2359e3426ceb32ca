"""The sampler: a diffusers pipeline from label maps to echoes, over any diffusers scheduler."""

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from torch import Tensor

from echo.unet import SemanticUNet

SCHEDULERS = ("ddim", "dpm++", "ddpm")


def make_scheduler(
    name: str, prediction_type: str, learned_variance: bool, num_train_timesteps: int = 1000
) -> SchedulerMixin:
    """A diffusers scheduler on the cosine schedule.

    Args:
        name: "ddim" (Song et al. 2021, eta 0), "dpm++" (DPM-Solver++ 2M, Lu et al. 2022) or "ddpm" (Ho et al. 2020).
        prediction_type: "epsilon" or "v_prediction".
        learned_variance: the network's output carries a variance; only "ddpm" uses it.
    """
    common = {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction_type,
        "num_train_timesteps": num_train_timesteps,
    }
    if name == "ddim":
        return DDIMScheduler(**common, timestep_spacing="trailing", clip_sample=True)
    if name == "dpm++":
        return DPMSolverMultistepScheduler(**common, timestep_spacing="trailing", thresholding=False)
    if name == "ddpm":
        variance = "learned_range" if learned_variance else "fixed_small"
        return DDPMScheduler(**common, variance_type=variance, timestep_spacing="linspace", clip_sample=True)
    raise ValueError(f"unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}")


class SemanticDiffusionPipeline(DiffusionPipeline):
    """Label maps -> echoes. Save and load it with `save_pretrained` and this class's own `from_pretrained`."""

    def __init__(self, unet: SemanticUNet, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

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
    ) -> Tensor:
        """Paint one image for each label map.

        Args:
            label_maps: one-hot (B, K, H, W).
            class_labels: view-and-phase classes (B,), for a network that has them.
            seeds: one for each image: its noise depends on nothing else, so neither does the image.
            num_inference_steps: network evaluations for each image.
            guidance_scale: classifier-free guidance (Ho and Salimans 2022); 1 is none. Above 1 the network must have
                been trained with label dropout, and each step costs two evaluations.
            trajectory: a list to which x_t after every step is appended.

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
        scheduler.set_timesteps(num_inference_steps, device=device)
        takes_generator = not isinstance(scheduler, DDIMScheduler)  # with eta 0 DDIM draws nothing
        extra = {"generator": generators} if takes_generator else {}
        with unet.conditioning(y):
            for t in scheduler.timesteps:
                model_input = scheduler.scale_model_input(x, t)
                model_input = torch.cat([model_input, model_input]) if guided else model_input
                output = unet(model_input, t.expand(len(model_input)), y, c).sample.float()
                if guided:
                    with_label, without = output.chunk(2)
                    output = without + guidance_scale * (with_label - without)
                if not keeps_variance:
                    output = output[:, :channels]
                x = scheduler.step(output, t, x, **extra).prev_sample
                if trajectory is not None:
                    trajectory.append(x.cpu())
        return ((x + 1) / 2).clamp(0, 1).cpu()
