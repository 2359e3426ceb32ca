import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from echo.config import SMOKE, Profile
from echo.enlarger import Enlarger, build_enlarger
from echo.frames import Frames
from echo.resume import read_json, write_json
from echo.segmenter import build_segmenter
from echo.unet import SemanticUNet, build_unet
from reproduction.datasets.prepare import open_data, prepare, read_frames

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def camus_root() -> Path:
    root = Path(os.environ.get("ECHO_CAMUS", REPOSITORY.parent / "shared" / "camus"))
    if not root.is_dir():
        pytest.skip(f"no CAMUS in {root}: set ECHO_CAMUS to its folder")
    return root


@pytest.fixture(scope="session")
def native_root(camus_root: Path) -> Path:
    root = camus_root.parent / "camus-native"
    if not root.is_dir():
        pytest.skip(f"no folder {root} with patients of both releases at native size")
    return root


@pytest.fixture(scope="session")
def smoke() -> Profile:
    return replace(SMOKE, phantom_patients={"training": 3, "validation": 1, "testing": 1})


@pytest.fixture(scope="session")
def phantom(smoke, tmp_path_factory):
    """A small phantom, as a dataset."""
    return open_data("phantom", smoke, tmp_path_factory.mktemp("data"), seed=0)


@pytest.fixture(scope="session")
def frames(phantom, smoke) -> dict[str, Frames]:
    """Its training and validation frames at the smoke profile's size."""
    return {split: read_frames(phantom, split, smoke.image_size) for split in ("training", "validation")}


@pytest.fixture(scope="session")
def random_unet(smoke) -> SemanticUNet:
    """The smoke network with random weights throughout (a fresh one returns zeros)."""
    torch.manual_seed(0)
    unet = build_unet(smoke).eval()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return unet


@pytest.fixture(scope="session")
def random_enlarger(smoke) -> Enlarger:
    """The smoke profile's second stage with random weights throughout."""
    torch.manual_seed(0)
    enlarger = build_enlarger(smoke.enlarger).eval()
    for p in enlarger.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return enlarger


@pytest.fixture(scope="session")
def judge(smoke) -> torch.nn.Module:
    """A segmenter with random weights."""
    torch.manual_seed(0)
    return build_segmenter(smoke.segmenter).eval()


@pytest.fixture(scope="session")
def trained(phantom, smoke, random_unet, random_enlarger, tmp_path_factory) -> Path:
    """A run folder with the phantom's prepared frames and these networks, as if they had been trained."""
    folder = tmp_path_factory.mktemp("runs") / "smoke-phantom"
    prepare(phantom, "phantom", smoke, folder / "dataset", progress=False)
    write_json(folder / "manifest.json", {"data": read_json(folder / "dataset" / "data.json")})
    for group, network in (("all", random_unet), ("enlarger", random_enlarger)):
        network.save_pretrained(folder / "diffusion" / group / "model")
        (folder / "diffusion" / group / "log.csv").write_text("step,validation_loss\n6,0.75\n12,0.5\n")
    return folder


@pytest.fixture(scope="session")
def chromium():
    """A headless browser (`make test-browser`)."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield browser
        browser.close()


@pytest.fixture
def closed_figures():
    """No figure outlives its test."""
    from matplotlib import pyplot

    yield
    pyplot.close("all")
