import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from golden import REFERENCE, close, expected, tiny_inputs, tiny_unet

from echo import diffusion
from echo.diffusion import cosine_schedule, diffusion_loss, p_distribution, q_sample, variational_bound

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
        output = tiny_unet()(x_t, t, inputs["label_map"]).sample
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


def test_batch_is_a_function_of_seed_and_step(frames, smoke):
    config = replace(smoke.training, batch_size=6, flip_probability=0.5)
    draw = [diffusion.draw_batch(frames["training"], config, 1, 3, step) for step in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(draw[0], draw[1], strict=True))
    assert not torch.equal(draw[0][4], draw[2][4])
    halves = [diffusion.draw_batch(frames["training"], config, 1, 3, 5, rank, 2) for rank in (0, 1)]
    for whole, a, b in zip(draw[0], *halves, strict=True):
        assert torch.equal(whole[0::2], a)
        assert torch.equal(whole[1::2], b)


def test_flip_turns_image_and_label_map_together(frames, smoke):
    plain, flipped = (
        diffusion.draw_batch(frames["training"], replace(smoke.training, flip_probability=p), 1, 0, 0)
        for p in (0.0, 1.0)
    )
    assert torch.equal(plain[0].flip(-1), flipped[0])
    assert torch.equal(plain[1].flip(-1), flipped[1])


def test_learning_rate_warms_up_and_falls_to_zero(smoke):
    config = replace(smoke.training, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [diffusion.learning_rate_at(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[100] == 0
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))


def weights(unet) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in unet.state_dict().items()}


def test_resumed_training_is_bit_identical(frames, smoke, tmp_path):
    parts = frames["training"], frames["validation"]
    whole = weights(diffusion.train(smoke, *parts, tmp_path / "whole", seed=1))
    diffusion.train(smoke, *parts, tmp_path / "parts", seed=1, stop_after=5)
    assert not (tmp_path / "parts" / "model").exists()
    resumed = weights(diffusion.train(smoke, *parts, tmp_path / "parts", seed=1))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = weights(diffusion.train(smoke, *parts, tmp_path / "other", seed=2))
    assert not all(torch.equal(whole[name], other[name]) for name in whole)

    log = pd.read_csv(tmp_path / "whole" / "log.csv")
    assert log["step"].tolist() == [6, 12]
    assert log["validation_loss"].iloc[-1] < log["validation_loss"].iloc[0]
    assert list((tmp_path / "whole" / "tensorboard").glob("events*"))


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from echo import dataset, diffusion
from echo.config import SMOKE
profile = replace(SMOKE, training=replace(SMOKE.training, steps=4000, validate_every=2))
parts = [dataset.load_frames(Path(sys.argv[1]), split) for split in ("training", "validation")]
diffusion.train(profile, *parts, Path(sys.argv[2]), seed=0)
"""


def test_kill_leaves_a_whole_checkpoint(phantom, smoke, tmp_path):
    from echo.dataset import prepare

    prepare(phantom, "phantom", smoke, tmp_path / "data")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "data", tmp_path / "run"], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    for _ in range(600):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == state["log"][-1]["step"] >= 2


def test_loss_that_stays_infinite_stops_training(frames, smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "diffusion_loss", lambda _s, output, *_a: output.flatten(1).mean(1) * float("nan"))
    with pytest.raises(FloatingPointError, match="not finite ten steps in a row"):
        diffusion.train(smoke, frames["training"], frames["validation"], tmp_path, seed=0)
