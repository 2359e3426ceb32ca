"""Our normalisations against the plain way to compute them (tools/baseline.py)."""

import copy

import pytest
import torch
from torch import nn

from echo import spade
from echo.spade import GroupNorm, LabelPatches, SpadeGroupNorm
from tools.baseline import plain


def blocks(batch: int, size: int, cell: int, seed: int = 0) -> torch.Tensor:
    """One-hot label maps of squares; the last one has no label in its left third."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (batch, -(-size // cell), -(-size // cell)), generator=generator)
    labels = labels.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :size, :size]
    y = nn.functional.one_hot(labels, 5).movedim(-1, 1).float()
    y[-1, :, :, : size // 3] = 0
    return y


def layer(channels: int = 8) -> SpadeGroupNorm:
    torch.manual_seed(0)
    norm = SpadeGroupNorm(channels, 5, 6, 4)
    for p in norm.parameters():
        nn.init.normal_(p, std=0.5)
    return norm


@pytest.mark.parametrize(("size", "cell"), [(16, 4), (15, 5), (7, 1), (2, 1), (33, 11)])
def test_patches_give_every_pixel_what_convolution_gives(size, cell):
    y, x, norm = blocks(3, size, cell), torch.randn(3, 8, size, size), layer()
    reference = copy.deepcopy(norm)
    plain(reference)
    outputs, gradients = [], []
    for module, label_map in ((norm, LabelPatches(y)), (reference, y)):
        z = x.clone().requires_grad_()
        output = module(z, label_map)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        outputs.append(output.detach())
        gradients.append([z.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_patches_follow_the_layers_resolution():
    y, norm = blocks(4, 64, 16), layer()
    patches = LabelPatches(y)
    for size in (64, 32, 16, 8):
        x = torch.randn(4, 8, size, size)
        torch.testing.assert_close(norm(x, patches), norm(x, y), rtol=1e-4, atol=1e-4)
    assert list(patches.sizes) == [(s, s) for s in (64, 32, 16, 8)]
    small, parts, pixels = patches.at((64, 64))
    assert len(small) < len(parts) < pixels.numel() / 3  # it is worth it


@pytest.mark.parametrize("why", ["soft", "two classes", "one pixel", "many patches"])
def test_where_patches_cannot_be_had_it_convolves(why, monkeypatch):
    y, norm, size = blocks(2, 16, 4), layer(), 16
    if why == "soft":
        y = y * 0.7
    if why == "two classes":
        y[:, :, 3] = 1
    if why == "one pixel":
        size = 1
    if why == "many patches":
        monkeypatch.setattr(spade, "MOST_PATCHES", 5)
    patches, x = LabelPatches(y), torch.randn(2, 8, size, size)
    assert patches.at((size, size)) is None
    assert torch.equal(norm(x, patches), norm(x, y))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [40, 9])
def test_group_norm_is_pytorchs(affine, size):
    ours = GroupNorm(4, 12, affine=affine)
    theirs = nn.GroupNorm(4, 12, affine=affine)
    for module in (ours, theirs):
        torch.manual_seed(1)
        for p in module.parameters():
            nn.init.normal_(p)
    x = torch.randn(2, 12, size, size).mul(3).add(5).to(memory_format=torch.channels_last)
    results = []
    for module in (ours, theirs):
        z = x.clone().requires_grad_()
        output = module(z)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append([output.detach(), z.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x.bfloat16()).float(), theirs(x), atol=0.06, rtol=0.02)


@pytest.mark.parametrize("patchwise", [True, False])
def test_conditioning_within_a_memory_bound_is_bit_identical(random_unet, monkeypatch, patchwise):
    monkeypatch.setattr(random_unet, "patchwise", patchwise)
    x, y, t = torch.randn(2, 1, 32, 32), blocks(2, 32, 8), torch.tensor([3, 700])
    layers = [m for m in random_unet.modules() if isinstance(m, SpadeGroupNorm)]

    def holders(most_bytes: float) -> int:
        with random_unet.conditioning(y, most_bytes):
            outputs = [random_unet(x, t, y, t % 4).sample for _ in range(2)]
            count = sum(m.held is not None for m in layers)
            used = sum(part.nbytes for m in layers if m.held for part in m.held)
        assert all(torch.equal(plain_output, output) for output in outputs)
        assert used <= most_bytes
        return count

    with torch.no_grad():
        plain_output = random_unet(x, t, y, t % 4).sample
        assert holders(0) == 0
        assert 0 < holders(200_000) < len(layers)
        assert holders(8e9) == len(layers)


def test_gradients_of_one_row_add_up_in_float32():
    table = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    rows = spade.Lookup.apply(table, torch.zeros(4096, dtype=torch.long))
    rows.float().sum().backward()
    assert table.grad[0].item() == 4096  # one by one in bfloat16 the sum would stop at 256


@pytest.mark.parametrize("affine", [True, False])
def test_group_norms_backward_in_bfloat16(affine):
    module = GroupNorm(4, 12, affine=affine)
    x = torch.randn(2, 12, 40, 40).add(2).to(memory_format=torch.channels_last)
    weight = torch.randn(2, 12, 40, 40)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        z = x.detach().clone().to(dtype).requires_grad_()
        (module(z).float() * weight).sum().backward()
        gradients.append(z.grad.float())
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[0].norm()


def test_ragged_label_maps_are_convolved():
    ragged = nn.functional.one_hot(torch.randint(0, 5, (2, 32, 32)), 5).movedim(-1, 1).float()
    assert LabelPatches(ragged).at((32, 32)) is None
    assert LabelPatches(blocks(2, 32, 8)).at((32, 32)) is not None
