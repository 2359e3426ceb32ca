import numpy as np
import pytest
import torch
from golden import REFERENCE, close, expected, tiny_inputs, tiny_unet

from echo.diffusion import cosine_schedule, diffusion_loss, p_distribution, q_sample, variational_bound
from echo.spade import Conditioning

SCHEDULE = cosine_schedule(1000)


def test_schedule_is_the_authors():
    with np.load(REFERENCE / "schedule_cosine_1000.npz") as golden:
        pairs = {
            "beta": "betas",
            "alpha_bar": "alphas_cumprod",
            "posterior_variance": "posterior_variance",
            "posterior_log_variance": "posterior_log_variance_clipped",
        }
        for ours, theirs in pairs.items():
            np.testing.assert_allclose(getattr(SCHEDULE, ours).numpy(), golden[theirs], rtol=1e-12, atol=1e-15)


def test_noising_and_reverse_distribution_are_the_authors():
    inputs, golden = tiny_inputs(), expected()
    assert close(q_sample(SCHEDULE, inputs["x_0"], inputs["t"], inputs["epsilon"]), golden["x_t"])
    parts = p_distribution(SCHEDULE, golden["model_output"], golden["x_t"], inputs["t"])
    for part, name in zip(parts, ("p_mean", "p_log_variance", "pred_xstart"), strict=True):
        assert close(part, golden[name]), name


@pytest.mark.parametrize(("name", "t"), [("loss", None), ("loss_t0", torch.zeros(2, dtype=torch.long))])
def test_hybrid_loss_is_the_authors(name, t):
    inputs, golden = tiny_inputs(), expected()
    t = inputs["t"] if t is None else t
    x_t = q_sample(SCHEDULE, inputs["x_0"], t, inputs["epsilon"])
    with torch.no_grad():
        output = tiny_unet()(x_t, t, Conditioning(inputs["label_map"])).sample
    simple = diffusion_loss(SCHEDULE, output[:, :3], inputs["x_0"], x_t, inputs["epsilon"], t, "epsilon")
    hybrid = diffusion_loss(SCHEDULE, output, inputs["x_0"], x_t, inputs["epsilon"], t, "epsilon")
    assert close(simple, golden[f"{name}_mse"])
    assert close(variational_bound(SCHEDULE, output, inputs["x_0"], x_t, t), golden[f"{name}_vb"])
    assert close(hybrid, golden[f"{name}_loss"])


def test_variational_bound_teaches_the_variance_only():
    inputs = tiny_inputs()
    output = expected()["model_output"].clone().requires_grad_()
    variational_bound(SCHEDULE, output, inputs["x_0"], expected()["x_t"], inputs["t"]).sum().backward()
    assert output.grad[:, :3].abs().max() == 0
    assert output.grad[:, 3:].abs().max() > 0


def test_v_prediction_recovers_x_0():
    inputs = tiny_inputs()
    x_0, t, epsilon = inputs["x_0"].double(), inputs["t"], inputs["epsilon"].double()
    x_t = q_sample(SCHEDULE, x_0, t, epsilon)
    alpha_bar = SCHEDULE.alpha_bar[t][:, None, None, None]
    v = alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x_0
    loss = diffusion_loss(SCHEDULE, v, x_0, x_t, epsilon, t, "v_prediction")
    assert loss.max() < 1e-20
    torch.testing.assert_close(alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v, x_0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_as_if_x_0_were_predicted(prediction_type):
    inputs = tiny_inputs()
    x_0, epsilon = inputs["x_0"].double(), inputs["epsilon"].double()
    t = torch.tensor([20, 800])  # SNR far above 5, and far below 1
    alpha_bar = SCHEDULE.alpha_bar[t]
    x_t = q_sample(SCHEDULE, x_0, t, epsilon)
    wrong = x_0 + 0.1  # a network that misses x_0 by this, in the terms of its prediction
    a = alpha_bar[:, None, None, None]
    noise = (x_t - a.sqrt() * wrong) / (1 - a).sqrt()
    output = noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * wrong
    loss = diffusion_loss(SCHEDULE, output, x_0, x_t, epsilon, t, prediction_type, snr_gamma=5.0)
    snr = alpha_bar / (1 - alpha_bar)
    torch.testing.assert_close(loss, torch.stack([torch.tensor(5.0).double(), snr[1]]) * 0.01)


def test_learned_variance_goes_with_epsilon():
    inputs = tiny_inputs()
    output = expected()["model_output"]
    with pytest.raises(ValueError, match="a learned variance goes with epsilon"):
        diffusion_loss(SCHEDULE, output, inputs["x_0"], inputs["x_0"], inputs["epsilon"], inputs["t"], "v_prediction")
