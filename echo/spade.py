"""Spatially-adaptive normalisation (SPADE): GroupNorm whose scale and shift at each pixel follow from the label map.

Park et al. 2019 (arXiv 1903.07291, equation 1): gamma(y) norm(x) + beta(y), where gamma and beta are convolutions of
the label map y. As in the semantic diffusion model's code, the scale is 1 + gamma.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class SpadeGroupNorm(nn.Module):
    """norm(x) (1 + gamma(y)) + beta(y), for x (B, C, h, w).

    Args:
        channels: C.
        label_channels: K, of the label map.
        hidden: channels of the convolution that gamma and beta share.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, label_channels: int, hidden: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_channels, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, conditioning: "Conditioning") -> Tensor:
        scale, shift = conditioning.scale_and_shift(self, x)
        return self.norm(x) * scale + shift


class Conditioning:
    """What the network is conditioned on: a label map, one-hot (B, K, H, W); all zeros stands for "no label map"."""

    def __init__(self, label_map: Tensor):
        self.label_map = label_map

    def scale_and_shift(self, layer: SpadeGroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        """1 + gamma(y) and beta(y) of a layer with the input x (B, C, h, w); each has x's shape."""
        y = F.interpolate(self.label_map, size=x.shape[2:], mode="nearest")
        y = layer.mlp_shared(y)
        return 1 + layer.mlp_gamma(y), layer.mlp_beta(y)
