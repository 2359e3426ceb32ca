import json

import pytest
import torch
from golden import REFERENCE, close, expected, tiny_inputs, tiny_names, tiny_unet

from echo.config import PAPER, SMOKE
from echo.unet import SemanticUNet, _released_config, build_unet


def shapes(unet) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in unet.state_dict().items()}


def test_output_is_the_authors():
    inputs = tiny_inputs()
    with torch.no_grad():
        output = tiny_unet()(expected()["x_t"], inputs["t"], inputs["label_map"]).sample
    assert close(output, expected()["model_output"])


def test_paper_configuration_has_the_released_names_and_shapes():
    with torch.device("meta"):
        unet = build_unet(PAPER)
    assert shapes(unet) == json.loads((REFERENCE / "sdm_paper_256.state_dict.json").read_text())
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == 652.2
    assert shapes(tiny_unet()) == tiny_names()


def test_held_conditioning_is_bit_identical_and_let_go():
    unet, inputs, x = tiny_unet(), tiny_inputs(), expected()["x_t"]
    other = inputs["label_map"].flip(-1)
    with torch.no_grad():
        plain = unet(x, inputs["t"], inputs["label_map"]).sample
        with unet.conditioning(inputs["label_map"]):
            held = [unet(x, inputs["t"], inputs["label_map"]).sample for _ in range(2)]
        after = unet(x, inputs["t"], other).sample
    assert all(torch.equal(plain, h) for h in held)
    assert not torch.equal(plain, after)
    assert not any(getattr(m, "held", None) for m in unet.modules())


def test_label_map_reaches_the_decoder_only():
    unet, inputs, x = tiny_unet(), tiny_inputs(), expected()["x_t"]
    seen = []
    handle = unet.input_blocks[-1].register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad():
        outputs = [unet(x, inputs["t"], y).sample for y in (inputs["label_map"], inputs["label_map"].flip(-1))]
    handle.remove()
    assert torch.equal(*seen)
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize(
    ("size", "mult", "channels", "classes"), [(48, (1, 2, 4), 1, 5), (24, (1,), 3, 2), (40, (1, 1, 2), 1, 7)]
)
def test_other_configurations(size, mult, channels, classes):
    unet = SemanticUNet(
        image_size=size,
        in_channels=channels,
        label_channels=classes,
        model_channels=16,
        channel_mult=mult,
        num_res_blocks=1,
        attention_resolutions=(size // 2 ** (len(mult) - 1),),
        head_channels=16,
        spade_hidden=8,
        norm_groups=4,
    )
    x, y = torch.randn(2, channels, size, size), torch.zeros(2, classes, size, size)
    assert unet(x, torch.tensor([0, 999]), y).sample.shape == (2, 2 * channels, size, size)


def test_size_must_fit_the_strides():
    with pytest.raises(ValueError, match="50 is not divisible by 2 \\*\\* 2"):
        SemanticUNet(image_size=50, channel_mult=(1, 2, 4))


def test_class_label_is_required_and_matters():
    torch.manual_seed(0)
    unet = build_unet(SMOKE).eval()
    for block in unet.modules():  # blocks start as the identity: wake them up
        for p in block.parameters(recurse=False):
            torch.nn.init.normal_(p, std=0.1)
    x, t, y = torch.randn(1, 1, 32, 32), torch.tensor([5]), torch.zeros(1, 5, 32, 32)
    with pytest.raises(ValueError, match="class_labels is missing"):
        unet(x, t, y)
    with torch.no_grad():
        a, b = (unet(x, t, y, torch.tensor([k])).sample for k in (0, 3))
    assert not torch.allclose(a, b)


def test_save_and_load_round_trip(tmp_path):
    torch.manual_seed(0)
    unet = build_unet(SMOKE)
    unet.save_pretrained(tmp_path / "model")
    assert [p.suffix for p in (tmp_path / "model").glob("*.*")].count(".safetensors") == 1
    loaded = SemanticUNet.from_pretrained(tmp_path / "model")
    assert loaded.config.channel_mult == unet.config.channel_mult or list(unet.config.channel_mult) == list(
        loaded.config.channel_mult
    )
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), loaded.parameters(), strict=True))


def test_released_checkpoint_round_trip(tmp_path):
    original = tiny_unet()
    torch.save(original.to_released(), tmp_path / "ema.pt")
    for source in (tmp_path / "ema.pt", original.to_released()):
        loaded = SemanticUNet.from_released(source, image_size=32, num_head_channels=32)
        names = [name for name in original.config if not name.startswith("_")]
        assert {name: loaded.config[name] for name in names} == {name: original.config[name] for name in names}
        inputs = tiny_inputs()
        with torch.no_grad():
            output = loaded(expected()["x_t"], inputs["t"], inputs["label_map"]).sample
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
    state = tiny_unet().to_released()
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
            SemanticUNet.from_released(tmp_path / f"{name}.pt", image_size=32, num_head_channels=32)
        assert "\n" not in str(error.value)
    assert "out.0.bias has (7,) where (32,) belongs" in str(
        pytest.raises(
            ValueError, SemanticUNet.from_released, tmp_path / "odd.pt", image_size=32, num_head_channels=32
        ).value
    )
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="no released form"):
        build_unet(SMOKE).to_released()
