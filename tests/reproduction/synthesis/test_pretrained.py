"""Labelled echoes without data: the committed weights, and writing such weights from a run."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.draw import polygon2mask
from typer.testing import CliRunner

from echo.config import CPU, VIEW_PHASES
from echo.labels import sector_mask, sector_of
from echo.resume import DamagedFile
from reproduction.cli import app
from reproduction.datasets.camus import open_camus
from reproduction.datasets.prepare import read_frames
from reproduction.synthesis import pretrained

CAMUS = pretrained.PRETRAINED["camus"]


@pytest.fixture(scope="module")
def quick():
    """The profile of the weights with one step a stage: the images are poor, and here in a second."""
    return replace(
        CPU,
        generation=replace(CPU.generation, num_inference_steps=1),
        enlarger=replace(CPU.enlarger, num_inference_steps=1),
    )


@pytest.fixture(scope="module")
def painted(quick, tmp_path_factory):
    target = tmp_path_factory.mktemp("painted") / "set"
    return target, pretrained.paint_pretrained(CAMUS, quick, target, images=5, seed=3, batch=2)


def test_a_data_set_that_the_reader_of_camus_reads(painted, quick):
    target, table = painted
    data = open_camus(target)
    assert data.patients("training") == ["patient0001", "patient0002"]  # 5 images are rounded up to whole patients
    assert len(table) == 8 and table["seed"].is_unique
    for patient in data.patients("training"):
        for view, phase in VIEW_PHASES:
            frame = data.frame(patient, view, phase)
            assert frame.image.shape == frame.label.shape == (224, 224)
            assert set(np.unique(frame.label)) == {0, 1, 2, 3}
            sector = sector_mask(frame.image)
            assert 0.3 < sector.mean() < 0.7
            assert (frame.image[~sector] == 0).mean() > 0.995  # exactly black outside
            assert sector[frame.label > 0].mean() > 0.8  # labels go on beyond it, as the experts' do
    assert "CC BY-NC-SA 4.0" in (target / "MODEL_CARD.md").read_text()


def test_images_are_functions_of_seed_and_patient_and_a_stopped_set_goes_on(painted, quick, tmp_path):
    target, table = painted
    again = shutil.copytree(target, tmp_path / "again")
    lost = sorted((again / "database_nifti").glob("patient0002/*4CH_ES*"))
    whole = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    assert pretrained.paint_pretrained(CAMUS, quick, again, images=5, seed=3, batch=2).equals(table)
    assert [path.read_bytes() for path in lost] == whole
    with pytest.raises(ValueError, match="holds other files: choose a new folder, or go on with the same seed"):
        pretrained.paint_pretrained(CAMUS, quick, again, images=5, seed=4, batch=2)


def test_weights_and_shapes_of_a_run_are_written_and_read(trained, phantom, random_unet, tmp_path):
    frames = read_frames(phantom, "training", 96, progress=False)
    pretrained.write_pretrained(trained / "diffusion", tmp_path / "none", frames, tmp_path / "weights", "the card")
    cascade = pretrained.load_cascade(tmp_path / "weights")
    for ours, theirs in zip(cascade.unet.parameters(), random_unet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # half precision
    shapes = pretrained.load_shapes(tmp_path / "weights" / "shapes.npz")
    assert len(shapes) == len(VIEW_PHASES)
    condition, label = pretrained.draw_heart(shapes[2], 96, 0, np.random.default_rng(0))
    assert set(np.unique(condition)) == {0, 1, 2, 3, 4} and set(np.unique(label)) == {0, 1, 2, 3}
    (tmp_path / "weights" / "shapes.npz").write_bytes(b"cut")
    with pytest.raises(DamagedFile, match="weights: damaged"):
        pretrained.paint_pretrained(tmp_path / "weights", CPU, tmp_path / "set", images=1)


def test_an_outline_draws_its_mask_again(frames):
    for sdm in frames["training"].sdm_labels[:4].repeat(4, 1).repeat(4, 2):
        mask = sector_of(sdm)
        drawn = polygon2mask(mask.shape, pretrained.outline(mask) * len(mask) - 0.5)
        assert (drawn & mask).sum() > 0.97 * (drawn | mask).sum()


def test_the_command_says_what_is_missing(tmp_path):
    unknown = CliRunner().invoke(app, ["generate", "--pretrained", "mars", str(tmp_path / "x")])
    assert "no pretrained weights 'mars': there are camus" in unknown.output
    nowhere = CliRunner().invoke(app, ["generate", "--pretrained", "camus"])
    assert "--pretrained needs the folder of the new dataset" in nowhere.output
