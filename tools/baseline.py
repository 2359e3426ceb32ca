"""The network computed as the released code computes it, to measure against: same weights, same results, no tricks.

SPADE is convolved anew in every layer at every call, attention multiplies by einsum, scales and shifts are separate
operations, tensors are float32 in the contiguous layout.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo.spade import GroupNorm, SpadeGroupNorm
from echo.unet import AttentionBlock, ResBlock, SemanticUNet, SpadeResBlock


class PlainGroupNorm(GroupNorm):
    forward = nn.GroupNorm.forward


class PlainSpadeGroupNorm(SpadeGroupNorm):
    def forward(self, x: Tensor, label_map: Tensor) -> Tensor:
        x = self.norm(x)
        y = self.mlp_shared(F.interpolate(label_map, size=x.shape[2:], mode="nearest"))
        return x * (1 + self.mlp_gamma(y)) + self.mlp_beta(y)


class PlainResBlock(ResBlock):
    def forward(self, x: Tensor, embedding: Tensor, label_map: Tensor) -> Tensor:
        h = self.in_layers[-1](self.resampled(F.silu(self.first_norm(x, label_map))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.second_norm(h, label_map) * (1 + scale) + shift
        return self.skip_connection(self.resampled(x)) + self.out_layers[-1](F.silu(h))


class PlainSpadeResBlock(SpadeResBlock):
    forward = PlainResBlock.forward


class PlainAttentionBlock(AttentionBlock):
    def forward(self, x: Tensor, embedding: Tensor, label_map: Tensor) -> Tensor:
        b, c, *size = x.shape
        normalised, x, d = self.norm(x).reshape(b, c, -1), x.reshape(b, c, -1), self.head_channels
        qkv = self.qkv(normalised)
        q, k, v = (part.reshape(b * c // d, d, -1) for part in qkv.chunk(3, dim=1))
        scale = 1 / math.sqrt(math.sqrt(d))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), dim=-1)
        a = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, -1)
        return (x + self.proj_out(a)).reshape(b, c, *size)


PLAIN = {
    GroupNorm: PlainGroupNorm,
    SpadeGroupNorm: PlainSpadeGroupNorm,
    ResBlock: PlainResBlock,
    SpadeResBlock: PlainSpadeResBlock,
    AttentionBlock: PlainAttentionBlock,
}


def plain(unet: SemanticUNet, *kinds: type[nn.Module]) -> None:
    """Make modules of these kinds (by default all) compute the plain way."""
    for module in unet.modules():
        if type(module) in (kinds or PLAIN):
            module.__class__ = PLAIN[type(module)]


def ours(unet: SemanticUNet) -> None:
    """Undo `plain`."""
    own = {plain_kind: kind for kind, plain_kind in PLAIN.items()}
    for module in unet.modules():
        module.__class__ = own.get(type(module), type(module))
