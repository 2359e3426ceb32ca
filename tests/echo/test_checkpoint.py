import json

import numpy as np
import pytest
import torch

from echo.resume import Checkpoint, DamagedFile


def begun(path):
    """A small training's checkpoint after three steps, and what it holds."""
    torch.manual_seed(0)
    network = torch.nn.Linear(40, 40)
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(3):
        network(torch.randn(2, 40)).square().mean().backward()
        optimizer.step()
    checkpoint = Checkpoint(path, network=network, optimizer=optimizer, scaler=None)
    checkpoint.save(step=3, log=[{"step": 3, "loss": 0.1}], threads=2)
    return network, optimizer


def other(path) -> Checkpoint:
    network = torch.nn.Linear(40, 40)
    return Checkpoint(path, network=network, optimizer=torch.optim.AdamW(network.parameters()), scaler=None)


def test_round_trip_to_the_bit(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert other(path).load() == {}
    network, optimizer = begun(path)
    (tmp_path / ".ab12.checkpoint.pt").touch()  # left by a process that was killed while it wrote
    resumed = other(path)
    assert resumed.load() == {"step": 3, "log": [{"step": 3, "loss": 0.1}], "threads": 2}
    assert all(torch.equal(p, resumed.parts["network"].state_dict()[name]) for name, p in network.state_dict().items())
    moments = [o.state_dict()["state"][0]["exp_avg"] for o in (optimizer, resumed.parts["optimizer"])]
    assert torch.equal(*moments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.csv"]


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, seed):
    path, rng = tmp_path / "checkpoint.pt", np.random.default_rng(seed)
    begun(path)
    data = bytearray(path.read_bytes())
    kind = ("cut", "swapped", "tensor", "empty")[seed % 4]
    if kind == "cut":
        data = data[: rng.integers(1, len(data) - 1)]
    if kind == "swapped":
        data[:2000], data[-2000:] = data[-2000:], data[:2000]
    if kind == "tensor":  # a bit of a weight, which torch.load would not notice
        weight = torch.load(path, weights_only=True)["network"]["weight"].numpy().tobytes()
        data[data.index(weight) + rng.integers(len(weight))] ^= 1 << rng.integers(8)
    path.write_bytes(b"" if kind == "empty" else bytes(data))
    with pytest.raises(DamagedFile, match="remove it to begin this training anew") as error:
        other(path).load()
    assert str(error.value).startswith(f"{path}: damaged (")
    assert "\n" not in str(error.value)
    assert path.exists()


@pytest.mark.parametrize("content", ["text", "list", "no step", "other network"])
def test_a_file_of_something_else_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    begun(path)
    state = torch.load(path, weights_only=True)
    if content == "text":
        path.write_text(json.dumps({"step": 3}))
    if content == "list":
        torch.save([1, 2], path)
    if content == "no step":
        torch.save({name: value for name, value in state.items() if name != "step"}, path)
    if content == "other network":
        torch.save(state | {"network": torch.nn.Linear(3, 3).state_dict()}, path)
    with pytest.raises(DamagedFile, match="checkpoint.pt: damaged"):
        other(path).load()
