import json

import pytest
import torch
from golden import REFERENCE, close, expected, tiny_inputs, tiny_names, tiny_unet

from echo.config import PAPER, SMOKE
from echo.fast import FastConditioning, speed_up
from echo.spade import Conditioning
from echo.unet import SemanticUNet, build_unet


def shapes(unet) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in unet.state_dict().items()}


@pytest.mark.parametrize("quick", [False, True])
def test_output_is_the_authors(quick):
    inputs, unet = tiny_inputs(), tiny_unet()
    conditioning = (FastConditioning if quick else Conditioning)(inputs["label_map"])
    with torch.no_grad():
        output = (speed_up(unet) if quick else unet)(expected()["x_t"], inputs["t"], conditioning).sample
    assert close(output, expected()["model_output"])


def test_paper_configuration_has_the_released_names_and_shapes():
    with torch.device("meta"):
        unet = build_unet(PAPER)
    assert shapes(unet) == json.loads((REFERENCE / "sdm_paper_256.state_dict.json").read_text())
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == 652.2
    assert shapes(tiny_unet()) == tiny_names()


def test_label_map_reaches_the_decoder_only():
    unet, inputs, x = tiny_unet(), tiny_inputs(), expected()["x_t"]
    seen = []
    handle = unet.input_blocks[-1].register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad():
        outputs = [
            unet(x, inputs["t"], Conditioning(y)).sample for y in (inputs["label_map"], inputs["label_map"].flip(-1))
        ]
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
    assert unet(x, torch.tensor([0, 999]), Conditioning(y)).sample.shape == (2, 2 * channels, size, size)


def test_size_must_fit_the_strides():
    with pytest.raises(ValueError, match="50 is not divisible by 2 \\*\\* 2"):
        SemanticUNet(image_size=50, channel_mult=(1, 2, 4))


def test_class_label_is_required_and_matters():
    torch.manual_seed(0)
    unet = build_unet(SMOKE).eval()
    for block in unet.modules():  # blocks start as the identity: wake them up
        for p in block.parameters(recurse=False):
            torch.nn.init.normal_(p, std=0.1)
    x, t, y = torch.randn(1, 1, 32, 32), torch.tensor([5]), Conditioning(torch.zeros(1, 5, 32, 32))
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
