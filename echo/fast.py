"""What makes the network of `echo.unet` fast, with the same results up to rounding. To be skipped at a first reading.

`speed_up(unet)` exchanges modules for subclasses with the same parameters; `FastConditioning` replaces `Conditioning`.
SPADE's convolutions are most of the published network's work, yet their input is a label map: piecewise constant, and
the same at every t. So they are computed for each different patch of labels, and, in sampling, only once.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo.spade import Conditioning, SpadeGroupNorm
from echo.unet import AttentionBlock, ResBlock, SpadeResBlock

SMALL_MAP = 32 * 32  # pixels below which a CPU normalises bfloat16 slowly
MOST_PATCHES = 50_000  # the fourth power of their number has to fit 63 bits
WIDE = 64  # hidden channels from which on a CPU computes SPADE by label patches; a GPU would have to wait for them


class Normalise(torch.autograd.Function):
    """(x - mean) / standard deviation over each group of channels, for x (B, C, H, W).

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

        def group_mean(z: Tensor) -> Tensor:
            """(B, groups, 1)."""
            return z.sum((2, 3)).float().view(b, rstd.shape[1], -1).mean(2, keepdim=True) / (h * w)

        def to_channels(z: Tensor) -> Tensor:
            """The groups' values (B, groups, 1), repeated for their channels: (B, C, 1, 1)."""
            return z.expand(-1, -1, c // rstd.shape[1]).reshape(b, c, 1, 1).to(gradient.dtype)

        rstd = rstd[:, :, None]
        constant, slope = -rstd * group_mean(gradient), -rstd * group_mean(gradient * out)
        rest = torch.addcmul(to_channels(constant), out, to_channels(slope))
        return torch.addcmul(rest, gradient, to_channels(rstd)), None, None


class FastGroupNorm(nn.GroupNorm):
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
    """Number the different patterns that `grid` (B, H, W), of values below `base`, holds at these offsets.

    Returns the sorted keys of the patterns, and which of them stands at each place (B, H - offsets[-1], W - ...).
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
    5 x 5 ones. So scale and shift are computed once for each patch, and looked up for each pixel.
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
        nine = torch.stack([grid[b, i + di, j + dj] for di in range(3) for dj in range(3)], dim=1)
        return patches, nine, pixels


class FastConditioning(Conditioning):
    """Scales and shifts from label patches, where that pays, and kept from the first call on as long as all those that
    are kept stay below `most_bytes` (0, for training, keeps none); other layers compute theirs again each time."""

    def __init__(self, label_map: Tensor, most_bytes: float = 0):
        super().__init__(label_map)
        self.patches = LabelPatches(label_map)
        self.held: dict[SpadeGroupNorm, tuple[Tensor, Tensor]] = {}
        self.bytes_left = most_bytes

    def scale_and_shift(self, layer: SpadeGroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Conditioning`'s, in the type of x."""
        if layer in self.held:
            return self.held[layer]
        wide = x.device.type == "cpu" and layer.mlp_gamma.in_channels >= WIDE
        patches = self.patches.at(tuple(x.shape[2:])) if wide else None
        both = by_patches(layer, *patches) if patches else super().scale_and_shift(layer, x)
        both = tuple(values.to(x.dtype) for values in both)
        if 2 * x.nbytes <= self.bytes_left:
            self.held[layer] = both
            self.bytes_left -= 2 * x.nbytes
        return both


def by_patches(layer: SpadeGroupNorm, patches: Tensor, nine: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """1 + gamma and beta of a layer, (B, C, h, w) each, from what `LabelPatches.at` returns."""
    shared, relu = layer.mlp_shared
    y = relu(F.linear(patches, shared.weight.movedim(1, -1).flatten(1), shared.bias))  # (V, hidden)
    y = F.pad(y, (0, 0, 0, 1))  # outside the image the second convolution meets zeros
    first_rows = (torch.arange(9, device=y.device) * len(y))[None]

    def table(convolution: nn.Conv2d) -> Tensor:
        """The convolution's value for each 5 x 5 patch, (U, C)."""
        # Each 3 x 3 patch through each of the kernel's nine places, (9, V + 1, C); nine make a 5 x 5 patch.
        weight = convolution.weight.flatten(2).permute(2, 1, 0)  # (9, hidden, C)
        terms = torch.matmul(y, weight.to(y.dtype)).flatten(0, 1)
        return Lookup.apply(terms, nine + first_rows).sum(1) + convolution.bias.to(y.dtype)

    tables = 1 + table(layer.mlp_gamma), table(layer.mlp_beta)
    return tuple(Lookup.apply(values, pixels).movedim(-1, 1) for values in tables)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x scale + shift; written over x where no gradient needs it, so nothing else may use x."""
    return torch.addcmul(shift, x, scale, out=None if torch.is_grad_enabled() else x)


class FastSpadeGroupNorm(SpadeGroupNorm):
    """SPADE with one operation for scale and shift."""

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        scale, shift = conditioning.scale_and_shift(self, x)
        return modulated(self.norm(x), scale.to(x.dtype), shift.to(x.dtype))


class FastResBlock(ResBlock):
    """The residual block; in place where no gradient is needed."""

    def forward(self, x: Tensor, embedding: Tensor, conditioning: Conditioning) -> Tensor:
        in_place = not torch.is_grad_enabled()
        h = self.in_layers[-1](self.resampled(F.silu(self.first_norm(x, conditioning), in_place)))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = modulated(self.second_norm(h, conditioning), 1 + scale, shift)
        h = self.out_layers[-1](F.silu(h, in_place))
        skip = self.skip_connection(self.resampled(x))
        return h.add_(skip) if in_place else h + skip


class FastSpadeResBlock(SpadeResBlock):
    """The same, with SPADE."""

    forward = FastResBlock.forward


class FastAttentionBlock(AttentionBlock):
    """Attention with the channels last, as matrix products want them."""

    def forward(self, x: Tensor, embedding: Tensor, conditioning: Conditioning) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(b, height * width, c)
        qkv = F.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        qkv = qkv.reshape(b, height * width, 3, c // self.head_channels, self.head_channels)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, d) each
        a = dot_product_attention(q, k, v).transpose(1, 2).reshape(b, height * width, c)
        a = F.linear(a, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + a.reshape(b, height, width, c).permute(0, 3, 1, 2)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (B, heads, N, d), by a flash kernel where that is the faster.

    On a CPU, written out image by image, so that an image's N x N weights stay in the cache, it is about 2.5 times as
    fast; but a backward pass would keep them.
    """
    if q.device.type == "cpu" and q.shape[2] <= 1024 and not torch.is_grad_enabled():
        k = (k * q.shape[3] ** -0.5).transpose(2, 3)
        return torch.stack([(q_i @ k_i).softmax(-1) @ v_i for q_i, k_i, v_i in zip(q, k, v, strict=True)])
    return F.scaled_dot_product_attention(q, k, v)


FASTER = {
    nn.GroupNorm: FastGroupNorm,
    SpadeGroupNorm: FastSpadeGroupNorm,
    ResBlock: FastResBlock,
    SpadeResBlock: FastSpadeResBlock,
    AttentionBlock: FastAttentionBlock,
}


def speed_up(unet: nn.Module) -> nn.Module:
    """Make a network compute the fast way from now on, whatever `Conditioning` it is given; returns it."""
    for module in unet.modules():
        module.__class__ = FASTER.get(type(module), type(module))
    return unet
