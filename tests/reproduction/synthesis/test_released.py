import json

import pytest
import torch
from golden import REFERENCE, close, expected, tiny_inputs, tiny_unet, to_released

from echo.config import PAPER
from echo.spade import Conditioning
from echo.unet import build_unet
from reproduction.synthesis.released import _released_config, load_released


def test_released_checkpoint_round_trip(tmp_path):
    original = tiny_unet()
    torch.save(to_released(original), tmp_path / "ema.pt")
    for source in (tmp_path / "ema.pt", to_released(original)):
        loaded = load_released(source, image_size=32, num_head_channels=32)
        names = [name for name in original.config if not name.startswith("_")]
        assert {name: loaded.config[name] for name in names} == {name: original.config[name] for name in names}
        inputs = tiny_inputs()
        with torch.no_grad():
            output = loaded(expected()["x_t"], inputs["t"], Conditioning(inputs["label_map"])).sample
        assert close(output, expected()["model_output"])


def test_released_configuration_of_the_paper_is_read_off_its_shapes():
    names = json.loads((REFERENCE / "sdm_paper_256.state_dict.json").read_text())
    state = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
    config = _released_config(state, 256, 64)
    with torch.device("meta"):
        paper = build_unet(PAPER)
    assert {k: v for k, v in paper.config.items() if k in config} == config
    assert not {k for k in paper.config if not k.startswith("_")} - set(config) - {"norm_groups", "num_classes"}


class Hostile:
    def __reduce__(self):
        return (print, ("code ran",))


def test_wrong_files_are_refused_in_one_line_and_no_code_runs(tmp_path, capsys):
    whole = tmp_path / "whole.pt"
    state = to_released(tiny_unet())
    torch.save(state, whole)
    (tmp_path / "truncated.pt").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"x": Hostile()}, tmp_path / "hostile.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({k: v for k, v in state.items() if k != "out.0.bias"}, tmp_path / "lacking.pt")
    torch.save(state | {"out.0.bias": torch.zeros(7)}, tmp_path / "odd.pt")
    for name in ("truncated", "text", "hostile", "list", "other", "lacking", "odd", "absent"):
        with pytest.raises(ValueError, match=name) as error:
            load_released(tmp_path / f"{name}.pt", image_size=32, num_head_channels=32)
        assert "\n" not in str(error.value)
    assert "out.0.bias has (7,) where (32,) belongs" in str(
        pytest.raises(ValueError, load_released, tmp_path / "odd.pt", image_size=32, num_head_channels=32).value
    )
    assert "code ran" not in capsys.readouterr().out
