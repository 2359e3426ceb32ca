from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from echo.config import SMOKE, EnlargerConfig
from echo.diffusion import cosine_schedule
from echo.enlarger import Enlarger, build_enlarger, conditions, crop_loss, cropped, draw_crops
from echo.frames import Frames
from echo.labels import NUM_SDM
from echo.sampler import SCHEDULERS, Cascade, CascadePipeline, make_scheduler, paint

TINY = EnlargerConfig(
    channels=(8, 16, 16),
    num_res_blocks=1,
    embedding=16,
    crop=32,
    training=replace(SMOKE.enlarger.training, batch_size=16),
)
REACH = 98  # pixels, of the default network


def randomised(network):
    """The network with random weights throughout (a fresh one returns zeros)."""
    torch.manual_seed(0)
    for name, p in network.named_parameters():
        nn.init.normal_(p, mean=float("norm" in name or ".first.0" in name), std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return randomised(build_enlarger(TINY))


@pytest.fixture(scope="module")
def images():
    """Four images (4, 96, 96) that tell where a crop comes from: grey is 30 + row + column / 2 + 10 * image."""
    row, column = np.mgrid[:96, :96]
    return np.stack([30 + row + column // 2 + 10 * k for k in range(4)]).astype(np.uint8)


@pytest.fixture(scope="module")
def labels():
    """SDM label maps (4, 96, 96): outside in the left quarter, then the four other classes in columns."""
    return np.tile(np.repeat([0, 2, 3, 1, 4], [24, 18, 18, 18, 18]).astype(np.uint8), (4, 96, 1))


@pytest.fixture(scope="module")
def frames(images, labels):
    return Frames(images, labels, labels, pd.DataFrame(index=range(4)))


def scaled(images):
    return torch.from_numpy(images).float()[:, None] / 127.5 - 1


def small_of(images):
    return torch.nn.functional.avg_pool2d(torch.from_numpy(images).float()[:, None] / 255, 4)


def pipeline(network, random_unet, name="dpm++"):
    scheduler = make_scheduler(name, "v_prediction", learned_variance=False)
    return CascadePipeline(random_unet, make_scheduler("dpm++", "v_prediction", False), network, scheduler)


def test_default_size():
    network = build_enlarger(EnlargerConfig())
    assert sum(p.numel() for p in network.parameters()) == 992_196
    assert network.stride == 8


def crop_and_whole(network, start, side):
    """The prediction for a crop of a whole image of 320 px, and the crop of the prediction for the whole."""
    contrast = torch.linspace(0.1, 3, 320)  # the whole's statistics are not the crop's
    x, condition = torch.randn(1, 1, 320, 320) * contrast, torch.randn(1, NUM_SDM + 4, 320, 320) * contrast
    part = slice(start, start + side)
    t = torch.tensor([400])
    with torch.no_grad():
        whole = network(x, t, condition).sample
        crop = network(x[..., part, part], t, condition[..., part, part]).sample
    return crop, whole[..., part, part]


def test_a_crop_is_painted_as_in_the_whole():
    network = randomised(Enlarger())
    crop, whole = crop_and_whole(network, 40, 240)
    inner = (..., slice(REACH, -REACH), slice(REACH, -REACH))
    torch.testing.assert_close(crop[inner], whole[inner], rtol=0, atol=1e-5)
    assert not torch.allclose(crop, whole, atol=1e-3)  # at the border they differ: the network does look around
    shifted, whole = crop_and_whole(network, 42, 240)  # off the stride
    assert not torch.allclose(shifted[inner], whole[inner], atol=1e-3)


def test_group_norm_would_see_the_whole():
    network = randomised(Enlarger())
    for block in [*network.down, *network.up]:
        block.first[0] = nn.GroupNorm(1, block.first[0].normalized_shape[0])
        block.norm = nn.GroupNorm(1, block.norm.normalized_shape[0])
    crop, whole = crop_and_whole(network, 40, 240)
    inner = (..., slice(REACH, -REACH), slice(REACH, -REACH))
    assert (crop - whole)[inner].abs().max() > 0.01


def test_conditions_of_a_crop_are_the_crop_of_the_conditions(images, labels):
    level, whole_labels = torch.tensor([0.0, 0.2, 0.5, 1.0]), torch.from_numpy(labels)
    small = small_of(images) * 2 - 1
    whole = conditions(small, whole_labels, level)
    corners = torch.tensor([[0, 0], [8, 32], [5, 17], [64, 64]])
    crops = conditions(small, whole_labels, level, corners, 32)
    for crop, image, (i, j) in zip(crops, whole, corners, strict=True):
        assert torch.equal(crop, image[:, i : i + 32, j : j + 32])
    assert torch.equal(whole[:, 1:6].argmax(1), whole_labels.long())
    assert torch.equal(whole[:, 6, 0, 0], level)
    np.testing.assert_allclose(whole[0, 7, :, 5], (np.arange(96) + 0.5) / 48 - 1, atol=1e-6)
    np.testing.assert_allclose(whole[0, 8, 5], (np.arange(96) + 0.5) / 48 - 1, atol=1e-6)
    inner = whole[:, 0, 12:-12, 12:-12], scaled(images)[:, 0, 12:-12, 12:-12]  # bicubic passes a ramp through
    torch.testing.assert_close(*inner, rtol=0, atol=2.5 / 127.5)


def test_frames_shrink_by_means_and_label_maps_by_centres(frames, labels):
    small = frames.shrunk(24)
    means = frames.images.reshape(4, 24, 4, 24, 4).mean((2, 4))
    assert np.abs(small.images - means).max() <= 0.5
    np.testing.assert_array_equal(small.sdm_labels, labels[:, 2::4, 2::4])
    assert frames.shrunk(96) is frames
    with pytest.raises(ValueError, match="frames of 96 pixels cannot be shrunk to 36"):
        frames.shrunk(36)


def test_crops_are_a_function_of_seed_and_step_and_divide_into_shares(frames):
    first = draw_crops(frames, TINY, 3, 7)
    for drawn, again in zip(first, draw_crops(frames, TINY, 3, 7), strict=True):
        assert torch.equal(drawn, again)
    for other in (draw_crops(frames, TINY, 3, 8), draw_crops(frames, TINY, 4, 7)):
        assert not torch.equal(first[4], other[4])
    halves = [draw_crops(frames, TINY, 3, 7, share, 2) for share in (0, 1)]
    for whole, a, b in zip(first, *halves, strict=True):
        assert torch.equal(whole[0::2], a)
        assert torch.equal(whole[1::2], b)
    images, _labels, corners, t, epsilon, noise, sd = first
    assert (len(images), epsilon.shape, noise.shape) == (16, (16, 1, 32, 32), (16, 1, 24, 24))
    assert 0 <= corners.min() <= corners.max() <= 64
    assert 0 <= t.min() <= t.max() < 1000
    torch.testing.assert_close(noise.flatten(1).std(1), sd, rtol=0.15, atol=0)


class Perfect(nn.Module):
    """The v of known images, from x_t: v = (sqrt(alpha_bar) x_t - x_0) / sqrt(1 - alpha_bar)."""

    def __init__(self, x_0):
        super().__init__()
        self.x_0, self.schedule = x_0, cosine_schedule(1000)

    def forward(self, x, t, condition):
        a = self.schedule.alpha_bar[t][:, None, None, None].float()
        return type("Output", (), {"sample": (a.sqrt() * x - self.x_0) / (1 - a).sqrt()})


def test_loss_is_zero_for_the_perfect_prediction(frames):
    batch, schedule = draw_crops(frames, TINY, 0, 0), cosine_schedule(1000)
    images, _labels, corners, t, epsilon, _noise, _sd = batch
    x_0 = cropped(scaled(images.numpy()), corners, 32)
    assert crop_loss(Perfect(x_0), schedule, batch, TINY).max() < 1e-6
    a = schedule.alpha_bar[t][:, None, None, None].float()
    v = a.sqrt() * epsilon - (1 - a).sqrt() * x_0
    fresh = build_enlarger(TINY)  # predicts 0: its loss is the mean of v squared
    torch.testing.assert_close(crop_loss(fresh, schedule, batch, TINY), v.square().mean((1, 2, 3)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_outside_is_zero_and_an_image_depends_on_its_seed_alone(network, random_unet, images, labels, name):
    pipe, small = pipeline(network, random_unet, name), small_of(images)
    painted = pipe.enlarge(small, labels, seeds=[7, 8, 9, 10], num_inference_steps=3)
    assert painted.shape == (4, 1, 96, 96)
    assert (painted[:, 0][torch.from_numpy(labels) == 0] == 0).all()
    assert painted[:, 0][torch.from_numpy(labels) > 0].any()
    take = [0, 3, 2, 2]
    other_company = pipe.enlarge(small[take], labels[take], seeds=[7, 1, 2, 3], num_inference_steps=3)
    assert torch.equal(painted[0], other_company[0])
    assert not torch.equal(painted[0], pipe.enlarge(small, labels, seeds=[70, 8, 9, 10], num_inference_steps=3)[0])


def learned(random_unet, forgetful=False):
    """The error in grey levels of a network trained to enlarge four flat images; `forgetful` is not told which."""
    torch.manual_seed(0)
    grey = np.array([40, 90, 150, 210], np.uint8)
    images = np.broadcast_to(grey[:, None, None], (4, 32, 32)).copy()
    labels = np.full_like(images, 2)
    flat, schedule = Frames(images, labels, labels, pd.DataFrame(index=range(4))), cosine_schedule(1000)
    config = replace(TINY, channels=(8, 16), crop=16)
    network = build_enlarger(config)
    if forgetful:
        network.opening.register_forward_pre_hook(
            lambda _, inputs: (inputs[0] * (torch.arange(40) < 4)[:, None, None],)
        )
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(200):
        crop_loss(network, schedule, draw_crops(flat, config, 0, step), config).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pipe = pipeline(network.eval(), random_unet)
    painted = pipe.enlarge(small_of(images), labels, seeds=[1, 2, 3, 4], num_inference_steps=5)
    return np.abs(painted.mean((1, 2, 3)).numpy() * 255 - grey).mean()


def test_it_learns_to_heed_its_condition(random_unet):
    assert learned(random_unet) < 12
    assert learned(random_unet, forgetful=True) > 25


def test_cascade_saves_loads_and_paints_the_same_in_any_company(smoke, random_unet, random_enlarger, frames, tmp_path):
    labels = np.ascontiguousarray(frames.sdm_labels[:, :32, :32])
    cascade, classes = Cascade(random_unet, random_enlarger), np.array([0, 1, 2, 3])
    painted = paint(cascade, smoke, labels, classes, [5, 6, 7, 8])
    assert painted.shape == labels.shape
    alone = paint(cascade, smoke, labels[[0, 0, 3, 3]], classes[[0, 0, 3, 3]], [5, 1, 8, 2])
    np.testing.assert_array_equal(alone[[0, 2]], painted[[0, 3]])
    for name, network in zip(("unet", "enlarger"), cascade, strict=True):
        network.save_pretrained(tmp_path / name)
    kinds = (type(random_unet), Enlarger)
    loaded = Cascade(*(kind.from_pretrained(tmp_path / n) for kind, n in zip(kinds, ("unet", "enlarger"), strict=True)))
    np.testing.assert_array_equal(paint(loaded, smoke, labels, classes, [5, 6, 7, 8]), painted)


def test_bad_input_is_refused(network, random_unet, images, labels):
    with pytest.raises(ValueError, match="images of 92 pixels cannot be enlarged to: a multiple of 8 can"):
        pipeline(network, random_unet).enlarge(small_of(images), labels[:, :92, :92], seeds=[1, 2, 3, 4])
