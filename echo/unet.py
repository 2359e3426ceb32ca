"""The semantic diffusion U-Net: guided-diffusion's encoder, SPADE-GroupNorm in the middle and the decoder.

Source: Wang et al. 2022, "Semantic Image Synthesis via Diffusion Models" (arXiv 2207.00050), as used by Stojanovski
et al. 2023; the encoder blocks are Dhariwal and Nichol 2021 (arXiv 2105.05233). Module names follow the released
checkpoints, so that their state dicts load as they are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from echo.config import Profile
from echo.labels import CAMUS, Classes
from echo.spade import Conditioning, SpadeGroupNorm


@dataclass
class SemanticUNetOutput(BaseOutput):
    """`sample`: (B, C, H, W), or (B, 2 C, H, W) with a learned variance (prediction first, then variance)."""

    sample: Tensor


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoids of t (B,) as (B, dim): cosines, then sines (Vaswani et al. 2017, in guided-diffusion's order)."""
    half = dim // 2
    omega = torch.exp(-math.log(10_000.0) / half * torch.arange(half, device=timestep.device))
    angle = timestep[:, None].float() * omega
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def zeroed(module: nn.Module) -> nn.Module:
    """`module` with every parameter zero: each block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """A residual block with the time embedding as scale and shift; `resample` is None, "down" or "up" (by 2)."""

    def __init__(self, channels: int, out_channels: int, embedding: int, groups: int, resample: str | None = None):
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the released network's dropout, 0 throughout; it keeps the parameter names in step
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def first_norm(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        return self.in_layers[0](x)

    def second_norm(self, h: Tensor, conditioning: Conditioning) -> Tensor:
        return self.out_layers[0](h)

    def forward(self, x: Tensor, embedding: Tensor, conditioning: Conditioning) -> Tensor:
        h = F.silu(self.first_norm(x, conditioning))
        h = self.in_layers[-1](self.resampled(h))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)  # (B, out_channels, 1, 1) each
        h = self.second_norm(h, conditioning) * (1 + scale) + shift
        h = self.out_layers[-1](F.silu(h))
        return self.skip_connection(self.resampled(x)) + h


class SpadeResBlock(ResBlock):
    """ResBlock whose two normalisations are SPADE (released name: SDMResBlock)."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        groups: int,
        label_channels: int,
        hidden: int,
        resample: str | None = None,
    ):
        super().__init__(channels, out_channels, embedding, groups, resample)
        self.in_norm = SpadeGroupNorm(channels, label_channels, hidden, groups)
        self.in_layers = nn.Sequential(*self.in_layers[1:])
        self.out_norm = SpadeGroupNorm(out_channels, label_channels, hidden, groups)
        self.out_layers = nn.Sequential(*self.out_layers[1:])

    def first_norm(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        return self.in_norm(x, conditioning)

    def second_norm(self, h: Tensor, conditioning: Conditioning) -> Tensor:
        return self.out_norm(h, conditioning)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over pixels, softmax(q^T k / sqrt(d)) v, with a residual connection."""

    def __init__(self, channels: int, head_channels: int, groups: int):
        super().__init__()
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor, conditioning: Conditioning) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # (B, 3 C, N) of the N = height x width pixels
        qkv = qkv.reshape(b, 3, c // self.head_channels, self.head_channels, height * width)
        q, k, v = qkv.unbind(1)  # (B, heads, d, N) each
        weights = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(self.head_channels), dim=-1)  # (B, heads, N, N)
        a = (v @ weights.transpose(2, 3)).reshape(b, c, height * width)
        return x + self.proj_out(a).reshape(b, c, height, width)


class BlockSequence(nn.Sequential):
    """Blocks in a row; the convolution that opens the encoder takes x alone."""

    def forward(self, x: Tensor, embedding: Tensor, conditioning: Conditioning) -> Tensor:
        for block in self:
            x = block(x) if isinstance(block, nn.Conv2d) else block(x, embedding, conditioning)
        return x


class SemanticUNet(ModelMixin, ConfigMixin):
    """epsilon- (or v-) prediction for x_t, given t and a label map.

    Args:
        image_size: side of the square image in pixels; divisible by 2 ** (len(channel_mult) - 1).
        in_channels: image channels C (the paper repeats grey to 3).
        learned_variance: the output has 2 C channels, the second half interpolating the log variance.
        label_channels: classes K of the one-hot label map.
        model_channels, channel_mult, num_res_blocks: width, its multiplier at each level, blocks at each level.
        attention_resolutions: sides in pixels at which blocks attend.
        head_channels: channels of an attention head.
        spade_hidden: channels of the layer that each SPADE normalisation shares (128 in the paper).
        norm_groups: groups of each GroupNorm (32 in the paper).
        num_classes: view-and-phase classes added to the time embedding; 0 for none (the paper trains one model each).

    Raises:
        ValueError: if the image size is not divisible by the strides.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        learned_variance: bool = True,
        label_channels: int = 5,
        model_channels: int = 256,
        channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        head_channels: int = 64,
        spade_hidden: int = 128,
        norm_groups: int = 32,
        num_classes: int = 0,
    ):
        super().__init__()
        if image_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(f"image_size {image_size} is not divisible by 2 ** {len(channel_mult) - 1}")
        self.gradient_checkpointing = False  # set by `enable_gradient_checkpointing`
        d = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, d), nn.SiLU(), nn.Linear(d, d))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, d)

        def spade(channels: int, out_channels: int, resample: str | None = None) -> SpadeResBlock:
            return SpadeResBlock(channels, out_channels, d, norm_groups, label_channels, spade_hidden, resample)

        def attention(channels: int, side: int) -> list[nn.Module]:
            attends = side in attention_resolutions
            return [AttentionBlock(channels, head_channels, norm_groups)] if attends else []

        # Encoder: plain residual blocks; it never sees the label map.
        ch, side = channel_mult[0] * model_channels, image_size
        self.input_blocks = nn.ModuleList([BlockSequence(nn.Conv2d(in_channels, ch, 3, padding=1))])
        skips = [ch]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = ResBlock(ch, mult * model_channels, d, norm_groups)
                ch = mult * model_channels
                self.input_blocks.append(BlockSequence(block, *attention(ch, side)))
                skips.append(ch)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(BlockSequence(ResBlock(ch, ch, d, norm_groups, "down")))
                skips.append(ch)
                side //= 2

        # Middle and decoder: every normalisation is SPADE.
        middle_attention = AttentionBlock(ch, head_channels, norm_groups)
        self.middle_block = BlockSequence(spade(ch, ch), middle_attention, spade(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                block = spade(ch + skips.pop(), mult * model_channels)
                ch = mult * model_channels
                blocks = [block, *attention(ch, side)]
                if level and i == num_res_blocks:
                    blocks.append(spade(ch, ch, "up"))
                    side *= 2
                self.output_blocks.append(BlockSequence(*blocks))
        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, ch),
            nn.SiLU(),
            zeroed(nn.Conv2d(ch, in_channels * (2 if learned_variance else 1), 3, padding=1)),
        )

    def forward(
        self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, class_labels: Tensor | None = None
    ) -> SemanticUNetOutput:
        """Predict from a noised image.

        Args:
            sample: x_t, (B, C, H, W), about unit variance.
            timestep: t, (B,), 0 to T - 1.
            conditioning: `Conditioning(label_map)`, of a one-hot label map (B, K, H, W).
            class_labels: view-and-phase class (B,), required when the network has `num_classes`.
        """
        embedding = self.time_embed(timestep_embedding(timestep, self.config.model_channels).to(sample.dtype))
        if self.config.num_classes:
            if class_labels is None:
                raise ValueError(f"class_labels is missing: this network has {self.config.num_classes} classes")
            embedding = embedding + self.label_emb(class_labels)

        def run(block: BlockSequence, h: Tensor) -> Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(block, h, embedding, conditioning)
            return block(h, embedding, conditioning)

        h, skips = sample, []
        for block in self.input_blocks:
            h = run(block, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], dim=1))
        return SemanticUNetOutput(sample=self.out(h))


def build_unet(profile: Profile, classes: Classes = CAMUS) -> SemanticUNet:
    """The profile's network for label maps of some classes; its weights come from torch's global generator."""
    unet = profile.unet
    return SemanticUNet(
        image_size=profile.first_size,
        label_channels=len(classes.sdm_names),
        num_classes=0 if profile.per_view_phase else len(classes.conditions),
        **{name: getattr(unet, name) for name in unet.__dataclass_fields__},
    )
