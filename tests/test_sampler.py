import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from golden import close, expected, tiny_inputs, tiny_unet

from echo.sampler import SCHEDULERS, SemanticDiffusionPipeline, make_scheduler


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
    with torch.no_grad(), unet.conditioning(inputs["label_map"]):
        for t in scheduler.timesteps:
            output = unet(x, t.expand(2), inputs["label_map"]).sample[:, :3]
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    assert close(x, expected()["ddim10_sample"])


class Gaussian(torch.nn.Module):
    """The optimal v-prediction for pixels that are independently normal with this mean and sd."""

    def __init__(self, mean: float, sd: float):
        super().__init__()
        from echo.diffusion import cosine_schedule

        self.mean, self.sd, self.alpha_bar = mean, sd, cosine_schedule().alpha_bar.float()

    def __call__(self, x, t):
        a = self.alpha_bar[t][:, None, None, None]
        x_0 = self.mean + a.sqrt() * self.sd**2 / (a * self.sd**2 + 1 - a) * (x - a.sqrt() * self.mean)
        epsilon = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return a.sqrt() * epsilon - (1 - a).sqrt() * x_0


@pytest.mark.parametrize(("name", "steps"), [("ddim", 25), ("dpm++", 25), ("ddpm", 200)])
def test_sampler_returns_a_known_distribution(name, steps):
    mean, sd = 0.1, 0.3  # wide against the last step's noise, narrow against the clip at 1
    model, scheduler = Gaussian(mean, sd), make_scheduler(name, "v_prediction", False)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 64, 64, generator=generator)
    for t in scheduler.timesteps:
        options = {} if name == "ddim" else {"generator": generator}
        x = scheduler.step(model(x, t.expand(4)), t, x, **options).prev_sample
    assert x.mean() == pytest.approx(mean, abs=0.01)
    assert x.std() == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_learned_variance_keeps_the_images_shape(name, channels):
    from echo.unet import SemanticUNet

    network = SemanticUNet(
        image_size=32, in_channels=channels, model_channels=16, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), head_channels=16, spade_hidden=4, norm_groups=4,
    )  # fmt: skip
    pipeline = SemanticDiffusionPipeline(network, make_scheduler(name, "epsilon", True))
    images = pipeline(one_hot_labels(2), seeds=[0, 1], num_inference_steps=3)
    assert images.shape == (2, channels, 32, 32)


def test_guidance_of_one_is_none_and_more_changes_the_image(random_unet):
    y = one_hot_labels(2)
    assert torch.equal(paint(random_unet, y, [1, 2]), paint(random_unet, y, [1, 2], guidance_scale=1.0))
    assert not torch.allclose(paint(random_unet, y, [1, 2]), paint(random_unet, y, [1, 2], guidance_scale=3.0))


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
