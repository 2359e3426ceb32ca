"""The cascade's second stage: a small, local diffusion U-Net that enlarges an echo and paints its speckle.

Cascaded diffusion (Ho et al. 2022, arXiv 2106.15282; SR3, Saharia et al. 2021, arXiv 2104.07636): the first stage
decides on the anatomy in a small image; the second paints the full-size image x_0, given the small one and the
full-size label map. Speckle is local, so the network is too: no attention, and no statistics over the image. It is
trained on crops and paints whole images. S is the side of a whole image in pixels, s that of a small one, K the number
of SDM classes; images are scaled to [-1, 1].
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from echo.config import EnlargerConfig
from echo.diffusion import Schedule, diffusion_loss, q_sample
from echo.frames import Frames
from echo.labels import CAMUS, NUM_SDM, Classes
from echo.unet import SemanticUNetOutput, timestep_embedding, zeroed


class PixelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (B, C, H, W): blind to the rest of the image, unlike GroupNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LocalBlock(nn.Module):
    """A residual block of two 3 x 3 convolutions, with the time embedding as scale and shift."""

    def __init__(self, channels: int, out_channels: int, embedding: int):
        super().__init__()
        self.first = nn.Sequential(PixelNorm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.norm = PixelNorm(out_channels)
        self.second = nn.Sequential(nn.SiLU(), zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.time(embedding)[:, :, None, None].chunk(2, dim=1)  # (B, out_channels, 1, 1) each
        return self.skip(x) + self.second(self.norm(self.first(x)) * (1 + scale) + shift)


class Enlarger(ModelMixin, ConfigMixin):
    """v-prediction for x_t at full size, given t and a condition (of `conditions`).

    The image is taken apart by space-to-depth (2 x 2 pixels to channels), so that the first level works at S / 2. A
    pixel of the output depends on those less than 98 away from it (for the default's three levels of two blocks).

    Args:
        condition_channels: channels of the condition.
        channels: of each level, from S / 2 down by halves.
        num_res_blocks: blocks of each level, on its way down and again on its way up.
        embedding: channels of the time embedding.
        factor: the small images' side is so many times smaller.
        sector: whether class 0 is what lies outside an ultrasound sector, and is black.
    """

    @register_to_config
    def __init__(
        self,
        condition_channels: int = NUM_SDM + 4,
        channels: tuple[int, ...] = (32, 64, 96),
        num_res_blocks: int = 2,
        embedding: int = 128,
        factor: int = 4,
        sector: bool = True,
    ):
        super().__init__()
        self.time_embed = nn.Sequential(
            nn.Linear(channels[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        ch = channels[0]
        self.opening = nn.Conv2d(4 * (1 + condition_channels), ch, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = []
        for width in channels:
            for _ in range(num_res_blocks):
                self.down.append(LocalBlock(ch, width, embedding))
                ch = width
                skips.append(ch)
        for width in reversed(channels[:-1]):
            for _ in range(num_res_blocks):
                self.up.append(LocalBlock(ch + width, width, embedding))
                ch = width
        self.closing = nn.Sequential(PixelNorm(ch), nn.SiLU(), zeroed(nn.Conv2d(ch, 4, 3, padding=1)))

    @property
    def stride(self) -> int:
        """Image sides, and offsets of crops that are to equal the whole's, are multiples of so many pixels."""
        return 2 ** len(self.config.channels)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> SemanticUNetOutput:
        """Predict v (B, 1, H, W) from x_t (B, 1, H, W), t (B,) from 0 to T - 1 and the condition (B, C, H, W).

        H and W are multiples of `stride`: of a whole image or a crop.
        """
        blocks = self.config.num_res_blocks
        embedding = self.time_embed(timestep_embedding(timestep, self.config.channels[0]).to(sample.dtype))
        h = self.opening(F.pixel_unshuffle(torch.cat([sample, condition], dim=1), 2))  # (B, C_0, H / 2, W / 2)
        skips = []
        for k, block in enumerate(self.down):
            if k and k % blocks == 0:
                h = F.avg_pool2d(h, 2)
            h = block(h, embedding)
            skips.append(h)
        skips = skips[:-blocks]  # the lowest level has no way up of its own
        for k, block in enumerate(self.up):
            if k % blocks == 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return SemanticUNetOutput(sample=F.pixel_shuffle(self.closing(h), 2))


def build_enlarger(config: EnlargerConfig, classes: Classes = CAMUS) -> Enlarger:
    """A new network of that configuration, for label maps of some classes."""
    return Enlarger(
        condition_channels=len(classes.sdm_names) + 4,
        channels=config.channels,
        num_res_blocks=config.num_res_blocks,
        embedding=config.embedding,
        factor=config.factor,
        sector=classes.sector,
    )


def cropped(images: Tensor, corners: Tensor, crop: int) -> Tensor:
    """Crops (B, C, c, c) of images (B, C, S, S), given their upper left corners (B, 2), row and column."""
    return torch.stack([x[:, i : i + crop, j : j + crop] for x, (i, j) in zip(images, corners.tolist(), strict=True)])


def conditions(
    small: Tensor,
    sdm_labels: Tensor,
    noise_level: Tensor,
    corners: Tensor | None = None,
    crop: int | None = None,
    num_classes: int = NUM_SDM,
) -> Tensor:
    """What the network is told of whole images, or of crops: (B, K + 4, c, c).

    That is the small image, enlarged; the label map, one-hot; how noisy the small image is; and the place, each
    pixel's row and column from -1 to 1 over the whole image, for speckle widens with depth.

    Args:
        small: images (B, 1, s, s) in [-1, 1], with the noise of the conditioning augmentation added.
        sdm_labels: whole label maps uint8 (B, S, S).
        noise_level: that noise's sd as a fraction of the largest in training (B,).
        corners: upper left corners of the crops (B, 2), and `crop` their side c; None: the whole images.
        num_classes: K.
    """
    size = sdm_labels.shape[-1]
    line = (2 * torch.arange(size, device=small.device) + 1) / size - 1
    place = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(small), -1, -1, -1)
    parts = [F.interpolate(small, (size, size), mode="bicubic"), sdm_labels[:, None], place]
    if corners is not None:
        parts = [cropped(part, corners, crop) for part in parts]
    enlarged, labels, place = parts
    label_map = F.one_hot(labels[:, 0].long(), num_classes).movedim(-1, 1).float()
    level = noise_level[:, None, None, None].expand_as(enlarged)
    return torch.cat([enlarged, label_map, level, place], dim=1)


def draw_crops(
    frames: Frames, config: EnlargerConfig, seed: int, step: int, share: int = 0, shares: int = 1
) -> tuple[Tensor, ...]:
    """What a step learns from: images uint8 (B, S, S), SDM label maps uint8 (B, S, S), the crops' corners (B, 2), t
    (B,), epsilon (B, 1, c, c), and the small images' noise (B, 1, s, s) and its sd (B,).

    The batch is a function of (seed, step), divided into shares, as `echo.training.draw_batch`'s. Conditioning
    augmentation (Ho et al. 2022, section 3): noise of an sd up to `most_noise` teaches the network to forgive what the
    first stage gets wrong.
    """
    rng = np.random.default_rng((seed, step))
    n, size, crop = config.training.batch_size, frames.images.shape[-1], config.crop
    rows = rng.integers(len(frames), size=n)
    t = rng.integers(config.training.num_train_timesteps, size=n)
    # Clamped, so that the image's border is drawn as often as its middle.
    corners = rng.integers(-crop // 2, size - crop // 2, (n, 2), endpoint=True).clip(0, size - crop)
    epsilon = rng.standard_normal((n, 1, crop, crop), dtype=np.float32)
    sd = rng.uniform(0, config.most_noise, n).astype(np.float32)
    noise = rng.standard_normal((n, 1, size // config.factor, size // config.factor), dtype=np.float32)
    rows, corners, t, epsilon, noise, sd = (x[share::shares] for x in (rows, corners, t, epsilon, noise, sd))
    noise = noise * sd[:, None, None, None]
    return tuple(map(torch.from_numpy, (frames.images[rows], frames.sdm_labels[rows], corners, t, epsilon, noise, sd)))


def crop_loss(
    network: nn.Module,
    schedule: Schedule,
    batch: tuple[Tensor, ...],
    config: EnlargerConfig,
    num_classes: int = NUM_SDM,
) -> Tensor:
    """The loss of each crop (B,) of `draw_crops`, on the network's device: the squared error of v (Salimans and Ho
    2022)."""
    images, sdm_labels, corners, t, epsilon, noise, sd = batch
    whole = images.float()[:, None] / 127.5 - 1
    small = F.avg_pool2d(whole, config.factor) + noise
    condition = conditions(small, sdm_labels, sd / config.most_noise, corners, config.crop, num_classes)
    x_0 = cropped(whole, corners, config.crop)
    x_t = q_sample(schedule, x_0, t, epsilon)
    output = network(x_t, t, condition).sample.float()
    return diffusion_loss(schedule, output, x_0, x_t, epsilon, t, "v_prediction", config.training.snr_gamma)
