"""What is fast against what is plain."""

import copy

import pytest
import torch
from torch import nn

from echo import fast
from echo.config import SMOKE
from echo.fast import FastConditioning, FastGroupNorm, LabelPatches, speed_up
from echo.spade import Conditioning, SpadeGroupNorm
from echo.unet import build_unet


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


@pytest.fixture
def by_patches(monkeypatch):
    """SPADE by label patches, however narrow it is."""
    monkeypatch.setattr(fast, "WIDE", 1)


def outputs_and_gradients(module, x, *arguments):
    """A module's output for x, and the gradients of a sum of it by x and by the parameters."""
    z = x.detach().clone().requires_grad_()
    output = module(z, *arguments)
    output = getattr(output, "sample", output)
    module.zero_grad()
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), z.grad, *(p.grad for p in module.parameters())]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-4) -> None:
    """Within a tolerance relative to each tensor's largest value."""
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize(("size", "cell"), [(16, 4), (15, 5), (7, 1), (2, 1), (33, 11)])
def test_patches_give_every_pixel_what_convolution_gives(size, cell, by_patches):
    y, x, plain = blocks(3, size, cell), torch.randn(3, 8, size, size), layer()
    quick = speed_up(copy.deepcopy(plain))
    assert type(quick) is fast.FastSpadeGroupNorm and type(plain) is SpadeGroupNorm
    assert_close(outputs_and_gradients(quick, x, FastConditioning(y)), outputs_and_gradients(plain, x, Conditioning(y)))


@pytest.mark.parametrize("wide", [1, 1000])
def test_the_fast_network_is_the_plain_one(wide, monkeypatch):
    monkeypatch.setattr(fast, "WIDE", wide)
    torch.manual_seed(0)
    plain = build_unet(SMOKE)
    for p in plain.parameters():
        nn.init.normal_(p, std=0.05)
    quick = speed_up(copy.deepcopy(plain)).to(memory_format=torch.channels_last)
    x, y, t, c = torch.randn(2, 1, 32, 32), blocks(2, 32, 8), torch.tensor([3, 700]), torch.tensor([0, 2])
    found = outputs_and_gradients(quick, x, t, FastConditioning(y), c)
    expected = outputs_and_gradients(plain, x, t, Conditioning(y), c)
    assert_close(found, expected, 1e-3)
    assert list(quick.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        output = quick(x, t, FastConditioning(y, 8e9), c).sample
        torch.testing.assert_close(output, expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(quick(x, t, Conditioning(y), c).sample, expected[0], rtol=1e-4, atol=1e-4)


def test_patches_follow_the_layers_resolution(by_patches):
    y, norm = blocks(4, 64, 16), layer()
    conditioning = FastConditioning(y)
    for size in (64, 32, 16, 8):
        x = torch.randn(4, 8, size, size)
        torch.testing.assert_close(norm(x, conditioning), norm(x, Conditioning(y)), rtol=1e-4, atol=1e-4)
    assert list(conditioning.patches.sizes) == [(s, s) for s in (64, 32, 16, 8)]
    small, nine, pixels = conditioning.patches.at((64, 64))
    assert len(small) < len(nine) < pixels.numel() / 3  # it is worth it


@pytest.mark.parametrize("why", ["soft", "two classes", "one pixel", "many patches"])
def test_where_patches_cannot_be_had_it_convolves(why, by_patches, monkeypatch):
    y, norm, size = blocks(2, 16, 4), layer(), 16
    if why == "soft":
        y = y * 0.7
    if why == "two classes":
        y[:, :, 3] = 1
    if why == "one pixel":
        size = 1
    if why == "many patches":
        monkeypatch.setattr(fast, "MOST_PATCHES", 5)
    conditioning, x = FastConditioning(y), torch.randn(2, 8, size, size)
    assert conditioning.patches.at((size, size)) is None
    assert torch.equal(norm(x, conditioning), norm(x, Conditioning(y)))


@pytest.mark.parametrize(("wide", "taken_apart"), [(6, True), (7, False)])
def test_narrow_spade_is_convolved(wide, taken_apart, monkeypatch):
    monkeypatch.setattr(fast, "WIDE", wide)
    conditioning = FastConditioning(blocks(2, 32, 8))
    layer()(torch.randn(2, 8, 32, 32), conditioning)
    assert bool(conditioning.patches.sizes) == taken_apart


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [40, 9])
def test_group_norm_is_pytorchs(affine, size):
    ours = FastGroupNorm(4, 12, affine=affine)
    theirs = nn.GroupNorm(4, 12, affine=affine)
    for module in (ours, theirs):
        torch.manual_seed(1)
        for p in module.parameters():
            nn.init.normal_(p)
    x = torch.randn(2, 12, size, size).mul(3).add(5).to(memory_format=torch.channels_last)
    assert_close(outputs_and_gradients(ours, x), outputs_and_gradients(theirs, x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x.bfloat16()).float(), theirs(x), atol=0.06, rtol=0.02)


@pytest.mark.parametrize("wide", [1, 1000])
def test_held_conditioning_within_a_memory_bound_is_bit_identical(random_unet, monkeypatch, wide):
    monkeypatch.setattr(fast, "WIDE", wide)
    x, y, t = torch.randn(2, 1, 32, 32), blocks(2, 32, 8), torch.tensor([3, 700])
    layers = [m for m in random_unet.modules() if isinstance(m, SpadeGroupNorm)]

    def holders(most_bytes: float) -> int:
        conditioning = FastConditioning(y, most_bytes)
        outputs = [random_unet(x, t, conditioning, t % 4).sample for _ in range(2)]
        assert all(torch.equal(unheld, output) for output in outputs)
        assert sum(values.nbytes for both in conditioning.held.values() for values in both) <= most_bytes
        return len(conditioning.held)

    with torch.no_grad():
        unheld = random_unet(x, t, FastConditioning(y), t % 4).sample
        assert holders(0) == 0
        assert 0 < holders(200_000) < len(layers)
        assert holders(8e9) == len(layers)


def test_gradients_of_one_row_add_up_in_float32():
    table = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    rows = fast.Lookup.apply(table, torch.zeros(4096, dtype=torch.long))
    rows.float().sum().backward()
    assert table.grad[0].item() == 4096  # one by one in bfloat16 the sum would stop at 256


@pytest.mark.parametrize("affine", [True, False])
def test_group_norms_backward_in_bfloat16(affine):
    module = FastGroupNorm(4, 12, affine=affine)
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
