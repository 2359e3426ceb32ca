"""A synthetic dataset as an nnU-Net raw dataset, held against nnU-Net's documented rules (dataset_format.md)."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from skimage.io import imread
from typer.testing import CliRunner

from echo.config import SPLITS
from echo.frames import Frames
from echo.labels import CAMUS, Classes
from echo.unet import build_unet
from reproduction.cli import app
from reproduction.datasets.nnunet import open_nnunet
from reproduction.synthesis import cards, generate
from reproduction.synthesis.export import export_camus, export_nnunet

CHECKER = "nnunetv2.experiment_planning.verify_dataset_integrity"


@pytest.fixture(scope="module")
def single(smoke):
    """The smoke profile without a second stage."""
    return replace(smoke, enlarger=None)


@pytest.fixture(scope="module")
def run(trained, frames, single, tmp_path_factory) -> Path:
    """A run folder with a set of 8 + 4 images."""
    root = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "smoke-phantom")
    build_unet(single).save_pretrained(root / "diffusion" / "all" / "model")
    generate.generate(root / "diffusion", *frames.values(), single, root / "synthetic", seed=0)
    cards.write_cards(root / "synthetic", root)
    return root


def broken_rules(root: Path) -> list[str]:
    """What nnU-Net would refuse (its verify_dataset_integrity), a line each."""
    facts = json.loads((root / "dataset.json").read_text())
    ending, labels, found = facts["file_ending"], list(facts["labels"].values()), []
    cases = sorted(p.name.removesuffix(f"_0000{ending}") for p in (root / "imagesTr").iterdir())
    found += ["folder name"] * (not re.fullmatch(r"Dataset\d{3}_\w+", root.name))
    found += ["channels are not numbered"] * (list(facts["channel_names"]) != ["0"])
    found += ["labels are not consecutive from background"] * (sorted(labels) != list(range(len(labels))))
    found += ["background"] * (facts["labels"].get("background") != 0)
    found += ["numTraining"] * (facts["numTraining"] != len(cases))
    found += ["cases without labels"] * (
        cases != sorted(p.name.removesuffix(ending) for p in (root / "labelsTr").iterdir())
    )
    for case in cases:
        files = root / "imagesTr" / f"{case}_0000{ending}", root / "labelsTr" / f"{case}{ending}"
        image, label = (sitk.ReadImage(str(f)) for f in files)
        same = [image.GetSize(), image.GetSpacing(), image.GetDirection(), image.GetOrigin()]
        found += [f"{case}: geometry"] * (
            same != [label.GetSize(), label.GetSpacing(), label.GetDirection(), label.GetOrigin()]
        )
        values = set(np.unique(sitk.GetArrayFromImage(label)))
        found += [f"{case}: labels {values}"] * (not values <= set(labels))
    (fold,) = json.loads((root / "splits_final.json").read_text())
    found += ["splits"] * (sorted([*fold["train"], *fold["val"]]) != cases)
    return found


def test_a_set_is_what_nnunet_asks_for(run, tmp_path):
    target = tmp_path / "Dataset801_Synthetic"
    assert export_nnunet(run / "synthetic", target) == 12
    assert broken_rules(target) == []
    raw = open_nnunet(target, "$")  # our own reader finds what was written
    assert (raw.faults, raw.classes.names, raw.classes.structures) == ([], CAMUS.names, CAMUS.structures)
    assert raw.classes.sector
    manifest = pd.read_csv(run / "synthetic" / "manifest.csv", dtype={"id": str})
    (fold,) = json.loads((target / "splits_final.json").read_text())
    assert fold["val"] == list("synthetic_" + manifest.query("split == 'validation'")["id"])
    for row in manifest.itertuples():
        image, label = (
            target / part.format(row.id)
            for part in ("imagesTr/synthetic_{}_0000.nii.gz", "labelsTr/synthetic_{}.nii.gz")
        )
        read = [sitk.ReadImage(str(f)) for f in (image, label)]
        for found, kind in zip(read, ("images", "labels"), strict=True):
            assert (sitk.GetArrayFromImage(found) == imread(run / "synthetic" / kind / f"{row.id}.png")).all()
            assert found.GetSpacing()[::-1] == pytest.approx((row.spacing_row_mm, row.spacing_col_mm), rel=1e-5)
    assert (target / "DATA_CARD.md").exists()
    assert list(pd.read_csv(target / "synthetic.csv")["seed"]) == list(manifest["seed"])
    assert json.loads((target / "dataset.json").read_text())["licence"] == "MIT, as the code."


def test_the_rules_find_what_is_wrong(run, tmp_path):
    target = tmp_path / "Dataset801_Synthetic"
    export_nnunet(run / "synthetic", target)
    (target / "labelsTr" / "synthetic_000000.nii.gz").unlink()
    facts = json.loads((target / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps(facts | {"numTraining": 3, "labels": {"background": 0, "a": 2}}))
    with pytest.raises(RuntimeError):
        broken_rules(target)
    (target / "imagesTr" / "synthetic_000000_0000.nii.gz").unlink()
    found = broken_rules(target)
    assert found[:2] == ["labels are not consecutive from background", "numTraining"]
    assert found[-1] == "splits"


def test_real_frames_join_their_splits(run, frames, tmp_path):
    target = tmp_path / "Dataset802_Both"
    done = CliRunner().invoke(app, ["export", str(run / "synthetic"), str(target), "--format", "nnunet", "--with-real"])
    assert (done.exit_code, done.output) == (0, f"{target}: 28 cases\n")
    assert broken_rules(target) == []
    (fold,) = json.loads((target / "splits_final.json").read_text())
    for name, split in zip(("train", "val"), SPLITS, strict=False):
        index = frames[split].index
        real = [case for case in fold[name] if not case.startswith("synthetic_")]
        assert real == list(index["patient"] + "_" + index["view"] + "_" + index["phase"])
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "imagesTr" / f"{real[0]}_0000.nii.gz")))
    assert (stored == frames["validation"].images[0]).all()


def test_without_the_size_of_a_pixel_images_are_png(frames, single, tmp_path):
    classes = Classes(("background", "a", "b"))
    few = frames["training"].select(np.arange(4))
    labels = np.minimum(few.labels, 2)
    index = pd.DataFrame({"patient": list("1122"), "case": ["1_0", "1_1", "2_0", "2_1"], "class_label": 0})
    made = Frames(few.images, labels, labels, index.assign(spacing_row_mm=np.nan, spacing_col_mm=np.nan), classes)
    build_unet(single, classes).save_pretrained(tmp_path / "diffusion" / "all" / "model")
    generate.generate(tmp_path / "diffusion", made, made, single, tmp_path / "synthetic", seed=0)
    data = {"source": "nnunet", "name": "Dataset009_Made", "modality": "CT", "licence": "CC0 1.0"}
    (tmp_path / "manifest.json").write_text(json.dumps({"data": data}))
    target = tmp_path / "Dataset803_Png"
    export_nnunet(tmp_path / "synthetic", target, real=(made, made.select(np.arange(0))))
    assert broken_rules(target) == []
    assert (imread(target / "labelsTr" / "1_1.png") == labels[1]).all()
    facts = json.loads((target / "dataset.json").read_text())
    assert (facts["channel_names"], facts["labels"]) == ({"0": "CT"}, {"background": 0, "a": 1, "b": 2})
    assert facts["licence"] == "CC0 1.0, as the data it derives from."
    with pytest.raises(ValueError, match="have no view and phase, as CAMUS's have: choose --format nnunet"):
        export_camus(tmp_path / "synthetic", tmp_path / "camus")


@pytest.mark.slow
@pytest.mark.parametrize("with_real", [False, True])
def test_nnunets_own_checker_accepts_it(run, frames, with_real, tmp_path):
    if importlib.util.find_spec("nnunetv2") is None:
        pytest.skip("needs the package nnunetv2")
    target = tmp_path / "Dataset801_Synthetic"
    export_nnunet(run / "synthetic", target, real=tuple(frames.values()) if with_real else None)
    check = f"from {CHECKER} import verify_dataset_integrity as check; check({str(target)!r}, 1)"
    places = {name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    done = subprocess.run([sys.executable, "-c", check], env=os.environ | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "verify_dataset_integrity Done" in done.stdout
    assert "Error" not in done.stdout


def test_a_target_that_will_not_do(run, tmp_path):
    with pytest.raises(ValueError, match="nnU-Net wants a folder named DatasetNNN_Name"):
        export_nnunet(run / "synthetic", tmp_path / "mine")
    export_nnunet(run / "synthetic", tmp_path / "Dataset801_A")
    with pytest.raises(ValueError, match="holds other files: choose a new folder"):
        export_nnunet(run / "synthetic", tmp_path / "Dataset801_A")
    done = CliRunner().invoke(app, ["export", str(run / "synthetic"), str(tmp_path / "camus"), "--with-real"])
    assert done.exit_code == 1
    assert "--with-real is for --format nnunet" in done.output
