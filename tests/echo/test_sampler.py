from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from golden import close, expected, tiny_inputs, tiny_unet

from echo.diffusion import cosine_schedule, p_distribution
from echo.fast import FastConditioning
from echo.sampler import SCHEDULERS, SemanticDiffusionPipeline, make_scheduler
from echo.unet import SemanticUNet


def paint(network, labels, seeds, name="ddim", steps=3, learned=False, **options):
    pipeline = SemanticDiffusionPipeline(network, make_scheduler(name, "v_prediction", learned))
    classes = torch.zeros(len(labels), dtype=torch.long)
    return pipeline(labels, classes, seeds=seeds, num_inference_steps=steps, **options)


def one_hot_labels(n):
    return torch.nn.functional.one_hot(torch.arange(n)[:, None, None].expand(n, 32, 32) % 5, 5).movedim(-1, 1).float()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_image_depends_on_its_seed_alone(random_unet, name):
    y = one_hot_labels(3)
    images = paint(random_unet, y, [7, 8, 9], name)
    other_company = paint(random_unet, y[[0, 2, 2]], [7, 19, 18], name)
    assert torch.equal(images[0], other_company[0])
    assert not torch.allclose(images[0], paint(random_unet, y, [70, 8, 9], name)[0])
    assert images.shape == (3, 1, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1


def test_ddim_is_the_authors():
    inputs, unet = tiny_inputs(), tiny_unet()
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", timestep_spacing="leading", clip_sample=True, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    np.testing.assert_array_equal(scheduler.timesteps.flip(0), expected()["ddim10_timesteps"])
    x = inputs["epsilon"]
    conditioning = FastConditioning(inputs["label_map"], 8e9)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(x, t.expand(2), conditioning).sample[:, :3]
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    assert close(x, expected()["ddim10_sample"])


class Gaussian(torch.nn.Module):
    """The optimal denoiser, in float64, of images whose rows of four pixels are normal.

    A pixel's mean is that of its label (0 without one), times `gain`; the four orthogonal modes of a row (`MODES`)
    have their own standard deviations, so pixels correlate. `precision` rounds the output, as autocast would.
    """

    MODES = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]], dtype=torch.float64) / 2
    LABEL_MEANS = torch.tensor([-0.2, -0.1, 0.05, 0.1, 0.2], dtype=torch.float64)

    def __init__(self, prediction="epsilon", *, sds=(0.25, 0.2, 0.15, 0.1), channels=1, learned=False, gain=1.0,
                 precision=torch.float64, device="cpu"):  # fmt: skip
        super().__init__()
        self.config, self.device = SimpleNamespace(in_channels=channels), torch.device(device)
        self.prediction, self.learned, self.gain, self.precision = prediction, learned, gain, precision
        self.variances = torch.tensor(sds, dtype=torch.float64) ** 2
        self.schedule, self.batches = cosine_schedule(), []

    def mean(self, label_map):
        return self.gain * torch.einsum("k,bkhw->bhw", self.LABEL_MEANS, label_map.double())[:, None]

    def forward(self, sample, timestep, conditioning, class_labels=None):
        label_map = conditioning.label_map
        self.batches.append(len(sample))
        if self.device.type == "meta":  # it has shapes alone
            return SimpleNamespace(sample=sample)
        x, mean = sample.double(), self.mean(label_map)
        log_sigma = 0.5 * (1 / self.schedule.alpha_bar - 1).log()
        t = float(timestep[0])
        a = torch.sigmoid(torch.tensor(-2 * np.interp(t, np.arange(1000), log_sigma)))
        shrink = a.sqrt() * self.variances / (a * self.variances + 1 - a)
        x_0 = mean + ((x - a.sqrt() * mean) @ self.MODES * shrink) @ self.MODES
        epsilon = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        output = epsilon if self.prediction == "epsilon" else a.sqrt() * epsilon - (1 - a).sqrt() * x_0
        if self.learned:
            output = torch.cat([output, self.variance_output(int(t), label_map).expand_as(output)], dim=1)
        return SimpleNamespace(sample=output.to(self.precision))

    def variance_output(self, t, label_map):
        """The v with which Nichol and Dhariwal's equation 15 is Var(x_{t-1} | x_t); -1 for images without labels."""
        q, d = self.schedule, self.variances[0]
        of_x_0 = 1 / (1 / d + q.alpha_bar[t] / (1 - q.alpha_bar[t]))
        optimal = (q.posterior_variance[t] + q.x_0_coefficient[t] ** 2 * of_x_0).log()
        low, high = q.posterior_log_variance[t], q.beta[t].log()
        v = 2 * (optimal - low) / (high - low) - 1
        return torch.where(label_map.flatten(1).any(1), v, -1.0)[:, None, None, None]


def row_labels(rows, n=2):
    """One-hot (n, 5, rows, 4): a label for each row, in turn."""
    return torch.nn.functional.one_hot((torch.arange(rows) % 5)[None, :, None].expand(n, -1, 4), 5).movedim(-1, 1)


def paint_rows(name, network, steps, rows, n=2, **options):
    """Samples in [-1, 1] less their mean, (n, C, rows, 4), float64, checked for the mean of every label."""
    pipeline = SemanticDiffusionPipeline(network, make_scheduler(name, network.prediction, network.learned))
    y = row_labels(rows, n)
    rest = 2 * pipeline(y, seeds=list(range(n)), num_inference_steps=steps, **options).double() - 1 - network.mean(y)
    for k in range(5):
        assert rest[:, :, k::5].mean().abs() < 0.01
    return rest


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "steps"), [("ddim", 250), ("dpm++", 25), ("unipc", 25), ("heun", 101), ("ddpm", 1000)]
)
def test_sampler_returns_a_known_distribution(name, steps, prediction):
    network = Gaussian(prediction)
    modes = paint_rows(name, network, steps, rows=2500) @ network.MODES
    correlation = torch.corrcoef(modes.reshape(-1, 4).T)
    assert correlation.fill_diagonal_(0).abs().max() < 0.06
    torch.testing.assert_close(modes.std((0, 1, 2)), network.variances.sqrt(), rtol=0.045, atol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_no_first_step_magnifies_bfloat16_rounding(name):
    modes = paint_rows(name, Gaussian(precision=torch.bfloat16, sds=[0.2] * 4), 25, rows=2500)
    assert modes.std() == pytest.approx(0.2, rel=0.15 if name == "ddim" else 0.035)


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("channels", [1, 3])
def test_learned_range_returns_a_known_distribution(channels, steps):
    network = Gaussian(sds=[0.1] * 4, channels=channels, learned=True)
    rest = paint_rows("ddpm", network, steps, rows=2000)
    assert rest.shape == (2, channels, 2000, 4)
    torch.testing.assert_close(rest.std((0, 2, 3)), torch.full((channels,), 0.1).double(), rtol=0.03, atol=0)


@pytest.mark.parametrize("t", [0, 1, 487, 999])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_learned_range_step_is_nichols(channels, t):
    x, epsilon, v = torch.randn(3, 2, channels, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    output = torch.cat([epsilon, v.clamp(-1, 1)], dim=1)
    scheduler = make_scheduler("ddpm", "epsilon", True)
    scheduler.set_timesteps(1000)
    actual = scheduler.step(output, torch.tensor(t), x, generator=torch.Generator().manual_seed(1)).prev_sample
    mean, log_variance, _ = p_distribution(cosine_schedule(), output, x, torch.full((2,), t))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) if t else 0
    # diffusers keeps alpha_bar in float32, where 1 - alpha_bar is coarse at t = 1.
    torch.testing.assert_close(actual, mean + (0.5 * log_variance).exp() * noise, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_step_reads_from_the_device(name):
    """On the meta device, which has no values, any read raises: here only that of the finished image does."""
    for steps in (9, 10):
        network = Gaussian(device="meta")
        pipeline = SemanticDiffusionPipeline(network, make_scheduler(name, "epsilon", False))
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            pipeline(row_labels(8), seeds=[0, 1], num_inference_steps=steps)
        assert network.batches == [2] * (9 if name == "heun" else steps)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_learned_variance_keeps_the_images_shape(name, channels):
    network = SemanticUNet(
        image_size=32, in_channels=channels, model_channels=16, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), head_channels=16, spade_hidden=4, norm_groups=4,
    )  # fmt: skip
    pipeline = SemanticDiffusionPipeline(network, make_scheduler(name, "epsilon", True))
    images = pipeline(one_hot_labels(2), seeds=[0, 1], num_inference_steps=3)
    assert images.shape == (2, channels, 32, 32)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance_of_one_is_none_and_more_changes_the_image(random_unet, name):
    y = one_hot_labels(2)
    assert torch.equal(paint(random_unet, y, [1, 2], name), paint(random_unet, y, [1, 2], name, guidance_scale=1.0))
    assert not torch.allclose(paint(random_unet, y, [1, 2]), paint(random_unet, y, [1, 2], guidance_scale=3.0))


@pytest.mark.parametrize(("name", "learned"), [(name, False) for name in SCHEDULERS] + [("ddpm", True)])
def test_guidance_extrapolates_the_mean_in_one_batched_call(name, learned):
    """epsilon is linear in the mean, so guidance by s from mean 0 to m is the Gaussian of mean s m, step for step."""
    paths = {}
    for guidance_scale, gain in ((1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (1.0 + 1e-6, 1.0)):
        network, path = Gaussian(gain=gain, learned=learned, sds=[0.1] * 4), []
        pipeline = SemanticDiffusionPipeline(network, make_scheduler(name, "epsilon", learned))
        pipeline(row_labels(50), seeds=[0, 1], num_inference_steps=25, guidance_scale=guidance_scale, trajectory=path)
        assert network.batches == [2 if guidance_scale == 1 else 4] * 25
        paths[guidance_scale, gain] = torch.stack(path)
    torch.testing.assert_close(paths[2.0, 1.0], paths[1.0, 2.0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(paths[1.0 + 1e-6, 1.0], paths[1.0, 1.0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_guesses_of_x_0_end_in_the_image(random_unet, name):
    guesses, path = [], []
    image = paint(random_unet, one_hot_labels(2), [1, 2], name, steps=5, guesses=guesses, trajectory=path)
    assert len(guesses) == len(path) == 5
    assert max(guess.abs().max() for guess in guesses) <= 1 < path[0].abs().max()
    torch.testing.assert_close((guesses[-1] + 1) / 2, image, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(guesses[0], guesses[-1], atol=1e-2)


def test_round_trip_and_errors(random_unet, tmp_path):
    pipeline = SemanticDiffusionPipeline(random_unet, make_scheduler("ddim", "v_prediction", False))
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = SemanticDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    y, classes = one_hot_labels(1), torch.zeros(1, dtype=torch.long)
    images = [p(y, classes, seeds=[3], num_inference_steps=2) for p in (pipeline, loaded)]
    torch.testing.assert_close(*images)
    with pytest.raises(ValueError, match="1 label maps, but 2 seeds"):
        pipeline(y, classes, seeds=[1, 2])
    with pytest.raises(ValueError, match="unknown scheduler 'euler'"):
        make_scheduler("euler", "epsilon", True)
