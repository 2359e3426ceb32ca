"""Normalisations of the semantic diffusion network: GroupNorm, and SPADE, whose scale and shift a label map paints.

SPADE's convolutions are most of the published network's work, yet their input is a label map: piecewise constant, and
the same at every t. Both are used here, exactly.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_MAP = 32 * 32  # pixels below which a CPU normalises bfloat16 slowly
MOST_PATCHES = 50_000  # the fourth power of their number has to fit 63 bits


class Normalise(torch.autograd.Function):
    """x (B, C, H, W) less its mean, over its standard deviation, of each group of channels.

    For a CPU, where PyTorch's backward is 10 to 40 times slower in channels_last, which convolutions want, than in the
    contiguous layout, and its forward is slow in bfloat16 on small maps.
    """

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, eps: float) -> Tensor:
        b, c, h, w = x.shape
        wide = x.float() if h * w < SMALL_MAP else x
        one, zero = torch.ones(c), torch.zeros(c)  # in float32, and so the statistics are
        out, _, rstd = torch.native_group_norm(wide, one, zero, b, c, h * w, groups, eps)
        out = out.to(x.dtype)
        ctx.save_for_backward(out, rstd)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        out, rstd = ctx.saved_tensors
        b, c, h, w = out.shape

        def mean(z: Tensor) -> Tensor:
            """Of each group, (B, groups, 1)."""
            return z.sum((2, 3)).float().view(b, rstd.shape[1], -1).mean(2, keepdim=True) / (h * w)

        def each(z: Tensor) -> Tensor:
            """Of a group's value (B, groups, 1), each channel's (B, C, 1, 1)."""
            return z.expand(-1, -1, c // rstd.shape[1]).reshape(b, c, 1, 1).to(gradient.dtype)

        rstd = rstd[:, :, None]
        constant, slope = -rstd * mean(gradient), -rstd * mean(gradient * out)
        return torch.addcmul(torch.addcmul(each(constant), out, each(slope)), gradient, each(rstd)), None, None


class GroupNorm(nn.GroupNorm):
    """GroupNorm in the type of its input, where autocast would go through float32; statistics are float32 anyway."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        with torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext():
            if x.device.type == "cpu" and torch.is_grad_enabled():
                x = Normalise.apply(x, self.num_groups, self.eps)
                weight, bias = (p[:, None, None].to(x.dtype) if self.affine else None for p in (weight, bias))
                return torch.addcmul(bias, x, weight) if self.affine else x
            wide = x.float() if x.device.type == "cpu" and x[0, 0].numel() < SMALL_MAP else x
            weight, bias = (p.to(wide.dtype) if self.affine else None for p in (weight, bias))
            return F.group_norm(wide, self.num_groups, weight, bias, self.eps).to(x.dtype)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x scale + shift; in x's own memory where no gradient needs x, which is why x must be nobody else's."""
    return torch.addcmul(shift, x, scale, out=None if torch.is_grad_enabled() else x)


class Lookup(torch.autograd.Function):
    """Rows (*index.shape, D) of a table (R, D). What several places add to a row's gradient is summed in float32."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return F.embedding(index, table)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        if flat.is_cuda:  # a CPU sums in float32 of itself
            flat = flat.float()
        total = flat.new_zeros(ctx.rows, flat.shape[1])
        return total.scatter_add_(0, index.reshape(-1, 1).expand_as(flat), flat).to(gradient.dtype), None


def distinct(grid: Tensor, base: int, offsets: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Number the places (B, H, W) by what `grid` (values below `base`) holds at these offsets, down and across.

    Returns the sorted keys of the different ones, and each place's rank among them (B, H - offsets[-1], W - ...).
    """
    height, width = (n - offsets[-1] for n in grid.shape[1:])
    key = torch.zeros((), dtype=torch.long, device=grid.device)
    for i in offsets:
        for j in offsets:
            key = key * base + grid[:, i : i + height, j : j + width]
    return torch.unique(key, return_inverse=True)


class LabelPatches:
    """A one-hot label map (B, K, H, W), taken apart into the few different patches it is made of.

    SPADE's scale and shift at a pixel are two 3 x 3 convolutions of the label map: they depend on the 5 x 5 labels
    around the pixel alone. A batch of 50 000 pixels has some hundreds of different 3 x 3 patches and a few thousand
    5 x 5 ones. Each is computed once, and every pixel looks its own up.
    """

    def __init__(self, label_map: Tensor):
        self.label_map = label_map
        self.sizes: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor] | None] = {}

    def at(self, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
        """The patches at a resolution (h, w): the V different 3 x 3 ones, one-hot (V, 9 K); the nine of them that
        make each of the U different 5 x 5 ones, (U, 9), V standing for a place outside; each pixel's one, (B, h, w).

        None where convolution is better: a map that is not one-hot, a side of one pixel, or too many patches.
        """
        if size not in self.sizes:
            self.sizes[size] = self._take_apart(F.interpolate(self.label_map, size=size, mode="nearest"))
        return self.sizes[size]

    @staticmethod
    def _take_apart(y: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        base = y.shape[1] + 1
        one_hot = bool(((y == 0) | (y == 1)).all()) and y.sum(1).max() <= 1
        if not one_hot or min(y.shape[2:]) < 2 or base**9 >= 2**63:
            return None
        classes = torch.arange(1, base, dtype=y.dtype, device=y.device)[:, None, None]
        labels = (y * classes).sum(1).long()  # 0: no label, as outside the image
        keys, small = distinct(F.pad(labels, (1, 1, 1, 1)), base, (0, 1, 2))
        outside = len(keys)
        if outside >= MOST_PATCHES:
            return None
        digits = keys[:, None] // base ** torch.arange(8, -1, -1, device=y.device) % base
        patches = F.one_hot(digits, base)[..., 1:].to(y.dtype).flatten(1)
        # The 3 x 3 patches at its four corners cover a 5 x 5 patch.
        grid = F.pad(small, (1, 1, 1, 1), value=outside)
        keys, pixels = distinct(grid, outside + 1, (0, 2))
        if 2 * len(keys) > pixels.numel():
            return None
        places = torch.arange(pixels.numel(), device=y.device)
        example = torch.zeros_like(keys).scatter_(0, pixels.flatten(), places)  # one pixel of each 5 x 5 patch
        b, i, j = torch.unravel_index(example, pixels.shape)
        parts = torch.stack([grid[b, i + di, j + dj] for di in range(3) for dj in range(3)], dim=1)
        return patches, parts, pixels


class SpadeGroupNorm(nn.Module):
    """GroupNorm whose scale and shift are painted by the label map: norm(x) (1 + gamma(y)) + beta(y).

    Spatially-adaptive normalisation, Park et al. 2019 (arXiv 1903.07291, equation 1).
    """

    def __init__(self, channels: int, label_channels: int, hidden: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_channels, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)
        self.held: tuple[Tensor, Tensor] | None = None

    def modulation(self, label_map: Tensor | LabelPatches, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(1 + gamma, beta), each (B, channels, *size), of a one-hot label map (B, K, H, W)."""
        patches = label_map.at(size) if isinstance(label_map, LabelPatches) else None
        if patches is None:
            y = label_map.label_map if isinstance(label_map, LabelPatches) else label_map
            y = self.mlp_shared(F.interpolate(y, size=size, mode="nearest"))
            return 1 + self.mlp_gamma(y), self.mlp_beta(y)
        patches, parts, pixels = patches
        shared, relu = self.mlp_shared
        y = relu(F.linear(patches, shared.weight.movedim(1, -1).flatten(1), shared.bias))  # (V, hidden)
        y = F.pad(y, (0, 0, 0, 1))  # outside the image the second convolution meets zeros
        outside = (torch.arange(9, device=y.device) * len(y))[None]

        def table(convolution: nn.Conv2d) -> Tensor:
            # Each 3 x 3 patch through each of the kernel's nine places, (9, V + 1, channels); nine make a 5 x 5 patch.
            weight = convolution.weight.flatten(2).permute(2, 1, 0)  # (9, hidden, channels)
            terms = torch.matmul(y, weight.to(y.dtype)).flatten(0, 1)
            return Lookup.apply(terms, parts + outside).sum(1) + convolution.bias.to(y.dtype)

        tables = 1 + table(self.mlp_gamma), table(self.mlp_beta)
        return tuple(Lookup.apply(t, pixels).movedim(-1, 1) for t in tables)

    def forward(self, x: Tensor, label_map: Tensor | LabelPatches) -> Tensor:
        scale, shift = self.held or self.modulation(label_map, tuple(x.shape[2:]))
        return modulated(self.norm(x), scale.to(x.dtype), shift.to(x.dtype))


@contextmanager
def held(network: nn.Module, most_bytes: float) -> Iterator[None]:
    """Within this context each SPADE layer keeps the first scale and shift it computes, as long as all together stay
    below `most_bytes`; the layers beyond go on computing theirs."""
    layers = [m for m in network.modules() if isinstance(m, SpadeGroupNorm)]
    left = most_bytes

    def hold(layer: SpadeGroupNorm, inputs: tuple[Tensor, Tensor | LabelPatches]) -> None:
        nonlocal left
        x, y = inputs
        if layer.held is None and 2 * x.nbytes <= left:
            layer.held = tuple(m.to(x.dtype) for m in layer.modulation(y, tuple(x.shape[2:])))
            left -= 2 * x.nbytes

    hooks = [layer.register_forward_pre_hook(hold) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.held = None
