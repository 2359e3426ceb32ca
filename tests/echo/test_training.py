import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from echo import training
from echo.spade import Conditioning
from echo.training import draw_batch, learning_rate_at, train
from reproduction.datasets.prepare import prepare


def test_batch_is_a_function_of_seed_and_step(frames, smoke):
    config = replace(smoke.training, batch_size=6, flip_probability=0.5)
    draw = [draw_batch(frames["training"], config, 1, 3, step) for step in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(draw[0], draw[1], strict=True))
    assert not torch.equal(draw[0][4], draw[2][4])
    halves = [draw_batch(frames["training"], config, 1, 3, 5, rank, 2) for rank in (0, 1)]
    for whole, a, b in zip(draw[0], *halves, strict=True):
        assert torch.equal(whole[0::2], a)
        assert torch.equal(whole[1::2], b)


def test_flip_turns_image_and_label_map_together(frames, smoke):
    plain, flipped = (
        draw_batch(frames["training"], replace(smoke.training, flip_probability=p), 1, 0, 0) for p in (0.0, 1.0)
    )
    assert torch.equal(plain[0].flip(-1), flipped[0])
    assert torch.equal(plain[1].flip(-1), flipped[1])


def test_learning_rate_warms_up_and_falls_to_zero(smoke):
    config = replace(smoke.training, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[100] == 0
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))


def weights(unet) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in unet.state_dict().items()}


def test_resumed_training_is_bit_identical(frames, smoke, tmp_path, monkeypatch):
    parts = frames["training"], frames["validation"]
    whole = weights(train(smoke, *parts, tmp_path / "whole", seed=1))
    draw, steps = training.draw_batch, []

    def stops(*arguments):
        steps.append(arguments[4])
        if steps[-1] == 5:  # it is drawn while step 4, the fifth, is computed
            signal.raise_signal(signal.SIGTERM)
        return draw(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after step 5"):
        patch.setattr(training, "draw_batch", stops)
        train(smoke, *parts, tmp_path / "parts", seed=1)
    assert not (tmp_path / "parts" / "model").exists()
    resumed = weights(train(smoke, *parts, tmp_path / "parts", seed=1))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = weights(train(smoke, *parts, tmp_path / "other", seed=2))
    assert not all(torch.equal(whole[name], other[name]) for name in whole)

    log = pd.read_csv(tmp_path / "whole" / "log.csv")
    assert log["step"].tolist() == [6, 12]
    assert log["validation_loss"].iloc[-1] < log["validation_loss"].iloc[0]


WORKER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from reproduction.datasets import prepare
from echo.config import SMOKE
from echo.training import train
profile = replace(SMOKE, training=replace(SMOKE.training, **json.loads(sys.argv[3])))
parts = [prepare.load_frames(Path(sys.argv[1]), split) for split in ("training", "validation")]
train(profile, *parts, Path(sys.argv[2]), seed=0)
"""


@pytest.fixture(scope="module")
def prepared(phantom, smoke, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(phantom, "phantom", smoke, folder)
    return folder


def worker(prepared: Path, folder: Path, processes: int = 1, **settings) -> subprocess.Popen:
    """Train in a process, or in several under torchrun."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    script = folder.parent / "worker.py"
    script.write_text(WORKER)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), script, prepared, folder, json.dumps(settings)]
    return subprocess.Popen(
        list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def ended_well(process: subprocess.Popen) -> bool:
    error = process.communicate(timeout=120)[1]
    if process.returncode:
        print(error)
    return process.returncode == 0


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(900):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.05)


def test_killed_training_goes_on_to_the_same_weights(prepared, tmp_path):
    settings = {"steps": 40, "validate_every": 4}
    whole = worker(prepared, tmp_path / "a" / "whole", **settings)
    assert ended_well(whole)
    process, killed = worker(prepared, tmp_path / "b" / "killed", **settings), tmp_path / "b" / "killed"
    wait_for(lambda: len(log_of(killed)) >= 4, process)  # 16 steps are saved, and it is somewhere beyond
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "model").exists()
    assert torch.load(killed / "checkpoint.pt", weights_only=True)["step"] in range(16, 40)
    process = worker(prepared, killed, **settings)
    assert ended_well(process)
    names = ("model/diffusion_pytorch_model.safetensors", "model/config.json")
    assert all((tmp_path / "a" / "whole" / n).read_bytes() == (killed / n).read_bytes() for n in names)
    logs = [log_of(folder).drop(columns="seconds") for folder in (tmp_path / "a" / "whole", killed)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)


def log_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "log.csv") if (folder / "log.csv").exists() else pd.DataFrame()


def test_sigterm_saves_between_checkpoints_then_leaves(prepared, tmp_path):
    settings = {"steps": 100_000, "validate_every": 50_000}
    process = worker(prepared, tmp_path / "run", **settings)
    watched = {"SigCgt"}  # the mask of signals that a process catches holds SIGTERM (15) once the loop has begun

    def catches_sigterm() -> bool:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (mask,) = (int(line.split()[1], 16) for line in lines if line.split(":")[0] in watched)
        return bool(mask >> (signal.SIGTERM - 1) & 1)

    wait_for(catches_sigterm, process)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert step > 0
    assert f"KeyboardInterrupt: stopped after step {step}" in error


def test_two_processes_follow_one(prepared, tmp_path):
    settings = {"steps": 50, "validate_every": 1, "precision": "fp32"}
    for count in (1, 2):
        process = worker(prepared, tmp_path / str(count) / "run", count, **settings)
        assert ended_well(process)
    one, two = (log_of(tmp_path / str(count) / "run") for count in (1, 2))
    assert len(one) == len(two) == 50
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    np.testing.assert_allclose(two["validation_loss"], one["validation_loss"], rtol=1e-4)
    assert one["loss"].iloc[-5:].mean() < 0.9 * one["loss"].iloc[:5].mean()


def test_accumulation_and_gradient_checkpointing_follow_the_plain_training(frames, smoke, tmp_path):
    parts, plain = (frames["training"], frames["validation"]), replace(smoke.training, precision="fp32", steps=8)
    settings = ({}, {"gradient_accumulation": 2}, {"gradient_checkpointing": True})
    losses = []
    for k, setting in enumerate(settings):
        profile = replace(smoke, training=replace(plain, **setting, validate_every=1))
        train(profile, *parts, tmp_path / str(k), seed=0)
        losses.append(log_of(tmp_path / str(k))["loss"])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4)
    with pytest.raises(ValueError, match="batch_size 4 is not divisible by 1 processes x 3 rounds"):
        train(replace(smoke, training=replace(plain, gradient_accumulation=3)), *parts, tmp_path / "odd", seed=0)


def test_gradient_checkpointing_keeps_less(random_unet):
    def kept(unet) -> int:
        saved = {}

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x, y = torch.randn(4, 1, 32, 32), torch.zeros(4, 5, 32, 32)
        t, classes = torch.arange(4), torch.arange(4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            unet(x, t, Conditioning(y), classes)
        return sum(saved.values())

    plain = kept(random_unet)
    random_unet.enable_gradient_checkpointing()
    try:
        assert kept(random_unet) < 0.5 * plain
    finally:
        random_unet.disable_gradient_checkpointing()


def test_label_maps_are_withheld_as_often_as_asked(frames, smoke):
    config = replace(smoke.training, batch_size=400, label_dropout=0.25)
    _, label_map, *rest = draw_batch(frames["training"], config, 1, 0, 0)
    withheld = label_map.flatten(1).sum(1) == 0
    assert 70 < withheld.sum() < 130
    plain = draw_batch(frames["training"], replace(config, label_dropout=0.0), 1, 0, 0)
    assert torch.equal(plain[1][~withheld], label_map[~withheld])
    assert all(torch.equal(a, b) for a, b in zip(plain[2:], rest, strict=True))


@pytest.mark.parametrize(("rounds", "factor"), [(1, float("inf")), (2, float("nan")), (1, 1e38)])
def test_one_infinite_loss_or_gradient_skips_its_step(frames, smoke, tmp_path, monkeypatch, rounds, factor):
    original, calls = training.diffusion_loss, []

    def sixth_is_infinite(*arguments):
        calls.append(1)
        return original(*arguments) * (factor if len(calls) == 6 else 1.0)

    monkeypatch.setattr(training, "diffusion_loss", sixth_is_infinite)
    settings = replace(smoke.training, steps=6, validate_every=6, gradient_accumulation=rounds)
    profile = replace(smoke, training=settings)
    unet = train(profile, frames["training"], frames["validation"], tmp_path, seed=0)
    assert all(p.isfinite().all() for p in unet.parameters())
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["optimizer"]["state"][0]["step"] == 5
    assert np.isfinite(log_of(tmp_path)["loss"]).all()


def test_loss_that_stays_infinite_stops_training(frames, smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "diffusion_loss", lambda _s, output, *_a: output.flatten(1).mean(1) * float("nan"))
    with pytest.raises(FloatingPointError, match="not finite ten steps in a row"):
        train(smoke, frames["training"], frames["validation"], tmp_path, seed=0)
