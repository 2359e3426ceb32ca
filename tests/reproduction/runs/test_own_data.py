"""An nnU-Net raw dataset through the stages of a run: what a source has not is left out, everything else is there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_sets import change_json, made_set
from skimage.io import imread, imsave

from echo import labels, segmenter, training
from echo.augment import anatomy_fault, augment
from echo.config import PAPER, SMOKE
from echo.labels import Classes
from echo.resume import read_json
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.prepare import open_dataset, prepare, read_frames
from reproduction.evaluation import segmentation, tables
from reproduction.runs import notebooks, publish, stages
from reproduction.runs.run import open_run
from reproduction.runs.table import PIPELINE, STAGES
from reproduction.synthesis.generate import load_models, model_groups

CLASSES = ("cup", "disc", "vein")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the smoke profile, through all stages, on RGB images of three classes, of which half lack the third;
    with two conditions."""
    root = made_set(tmp_path_factory.mktemp("data") / "Dataset301_Rgb", CLASSES, rgb=True, every_other=3)
    cases = [path.name.removesuffix("_0000.png") for path in sorted(root.glob("images*/*.png"))]
    (root / "conditions.csv").write_text("case,condition\n" + "".join(f"{c},eye {c[-1]}\n" for c in cases))
    run = open_run("smoke", str(root), str(tmp_path_factory.mktemp("runs") / "rgb"), 0, recompute=True)
    for name in (*PIPELINE, "quality"):
        stages.complete(run, name)
    return run


def test_the_run_knows_its_classes(finished):
    facts = read_json(finished.folder("data") / "data.json")
    assert (facts["source"], facts["modality"], facts["patients"]["testing"]) == ("nnunet", "R, G, B", 2)
    assert finished.classes == Classes(("background", *CLASSES), conditions=("eye 0", "eye 1"))
    assert list(finished.classes.structures) == list(CLASSES)  # in the order of dataset.json, which JSON does not keep
    frames, _ = finished.load_frames()
    assert (frames.sdm_labels == frames.labels).all()  # no sector
    assert frames.titles[:2] == ["eye 0", "eye 1"]
    assert list(frames.index.columns[:3]) == ["patient", "case", "condition"]


def test_the_networks_have_its_channels(finished):
    models = load_models(finished.folder("diffusion"), finished.profile, finished.classes)
    assert set(models) == {0, 1}
    unet = getattr(models[0], "unet", models[0])
    assert (unet.config.label_channels, unet.config.num_classes) == (4, 2)
    network = stages.load_segmenter(finished, "synthetic")
    assert network.out_channels == 4


def test_the_synthetic_set_is_of_its_cases(finished):
    folder = finished.folder("generation")
    manifest = finished.table("generation", "manifest")
    assert {"patient", "case", "condition", "class_label", "seed"} <= set(manifest.columns)
    assert not {"view", "phase", "quality"} & set(manifest.columns)
    assert set(np.unique(imread(folder / "labels" / "000000.png"))) <= {0, 1, 2, 3}
    card = " ".join((folder / "DATA_CARD.md").read_text().split())
    assert "0 background, 1 cup, 2 disc, 3 vein" in card
    assert "CC0 1.0, as the data it derives from." in card
    assert "echo" not in card.replace("echo verify", "").replace("echo fidelity", "").lower()


def test_tables_leave_out_what_the_source_has_not(finished):
    scores, volumes = (finished.table("tables", name) for name in ("scores", "volumes"))
    assert list(volumes.columns) == ["train", "seed", "patient"]
    assert list(scores["structure"].unique()) == list(CLASSES)
    lacking = scores.query("structure == 'vein' and not labelled")
    assert set(lacking["condition"]) == {"eye 1"}
    table_1 = tables.table(1, scores, volumes, 0)
    assert list(table_1.index) == list(CLASSES)
    assert "paper" not in table_1.columns and "real-only" in table_1.columns
    assert list(tables.table(2, scores, volumes, 0).index[:2]) == ["cup, eye 0", "cup, eye 1"]
    measures = "\n".join(tables.table(3, scores, volumes, 0).index)
    assert "cup, HD95, pixels" in measures and not [word for word in ("EF", "mm", "NSD") if word in measures]
    assert "cup" in publish.summary(finished.root)
    assert list(pd.read_csv(finished.folder("tables") / "dice.csv")["structure"].unique()) == list(CLASSES)


def test_image_quality_leaves_out_what_there_is_not(finished):
    """No speckle without a sector; a value is missing where no condition has two validation images."""
    measures = list(finished.table("quality", "quality")["measure"])
    assert measures[:3] == ["Dice of cup, %", "Dice of disc, %", "Dice of vein, %"]
    assert measures[-2:] == ["grey-level distance", "MS-SSIM of pairs"]


def test_public_domain_may_be_published_with_its_weights(finished):
    places = [path.as_posix() for path in publish.published_files(finished.root)]
    assert any(place.endswith("diffusion/all/model/diffusion_pytorch_model.safetensors") for place in places)
    assert publish.is_free({"licence": "CC0 1.0"}) and publish.is_free({"license": "Public Domain"})
    assert not publish.is_free({"licence": "CC BY-NC-SA 4.0"}) and not publish.is_free({"source": "camus"})


def test_a_model_of_its_own_for_each_condition():
    classes = Classes(("background", "a"), conditions=("2CH ED", "short axis / base"))
    assert model_groups(PAPER, classes) == ["2CH_ED", "short_axis_base"]
    assert model_groups(PAPER, replace(classes, conditions=())) == ["all"]
    assert model_groups(SMOKE, classes) == ["all", "all"]


def test_edits_are_the_hearts(finished):
    assert STAGES["editing"].anatomy == labels.HEART
    with pytest.raises(ValueError, match="editing: this study is of an apical heart, and the dataset shows none"):
        notebooks.reproduce("smoke", finished.data, str(finished.root), only="editing")
    assert not (finished.root / "notebooks").exists()


def test_anisotropic_pixels_are_scored_in_mm(tmp_path):
    raw = open_dataset(made_set(tmp_path, ("a",), ".nii.gz", np.uint16))
    frames = read_frames(raw, "training", 24, progress=False)
    assert frames.index.loc[0, ["spacing_row_mm", "spacing_col_mm"]].tolist() == [3.0, 1.25]
    label = raw.frame("p01", "p01_0").label
    down = segmentation.frame_scores(np.roll(label, 2, 0), label, (1.5, 0.75), raw.classes)
    across = segmentation.frame_scores(np.roll(label, 2, 1), label, (1.5, 0.75), raw.classes)
    assert list(down.columns[3:6]) == ["hd95_mm", "assd_mm", "nsd"]
    assert down["hd95_mm"][0] == pytest.approx(3.0)
    assert across["hd95_mm"][0] == pytest.approx(1.5)


def test_without_test_labels_all_but_the_tables_is_made(tmp_path, monkeypatch, capsys):
    root = made_set(tmp_path / "Dataset302_NoTests", test_labels=False)
    done = []
    monkeypatch.setattr(notebooks, "run_notebook", lambda run, name: done.append(name))
    run = notebooks.reproduce("smoke", str(root), str(tmp_path / "run"))
    assert done == ["data", "diffusion", "generation", "segmentation", "quality"]
    assert "== tables: skipped, the test cases have no labels" in capsys.readouterr().out
    assert "no Dice table, the test cases have no labels" in publish.summary(publish_ready(run))
    opened = open_run("smoke", str(root), str(tmp_path / "run"), 0, recompute=True)
    training_frames, _ = stages.data_stage(opened)
    assert len(training_frames) == 10
    assert read_json(opened.folder("data") / "data.json")["patients"] == {"training": 5, "validation": 1}
    with pytest.raises(DataError, match="labelsTs: the test cases have no labels, so nothing can be scored on them"):
        opened.open_data().patients("testing")


def publish_ready(root):
    """A run folder with the manifest that the summary reads."""
    (root / "manifest.json").write_text('{"stages": {}, "data": null}')
    return root


def test_faulty_patients_are_reported_or_left_out(tmp_path):
    root = made_set(tmp_path / "made")
    imsave(root / "labelsTr" / "p02_0.png", np.full((48, 40), 7, np.uint8), check_contrast=False)
    profile = replace(SMOKE, enlarger=None)
    with pytest.raises(DataFaults, match="p02_0.png: p02: values from 7 to 7, allowed are 0 background, 1 LV"):
        prepare(open_dataset(root), "nnunet", profile, tmp_path / "a", progress=False)
    prepare(open_dataset(root), "nnunet", profile, tmp_path / "b", progress=False, on_error="skip")
    facts = read_json(tmp_path / "b" / "data.json")
    assert facts["patients"] == {"training": 4, "validation": 1, "testing": 2}
    assert [fault["patient"] for fault in facts["left_out"]] == ["p02"]


def test_a_sector_is_the_sources_to_declare(tmp_path):
    plain = read_frames(open_dataset(made_set(tmp_path)), "training", 32, progress=False)
    change_json(tmp_path / "dataset.json", channel_names={"0": "ultrasound"})
    echo = read_frames(open_dataset(tmp_path), "training", 32, progress=False)
    assert set(np.unique(plain.sdm_labels)) == {0, 1}
    assert set(np.unique(echo.sdm_labels)) <= {0, 1, 2}
    assert (labels.to_camus(echo.sdm_labels, echo.classes) == echo.labels).all()
    config = replace(SMOKE.segmenter, ultrasound=1.0)
    drawn = [segmenter.draw_samples([frames], config, 0, 1)[0] for frames in (plain, echo)]
    calm = segmenter.draw_samples([plain], replace(config, ultrasound=0.0), 0, 1)[0]
    assert (drawn[0] == calm).all()  # no disturbances of ultrasound
    assert (drawn[1] != calm).any()


def test_seven_sdm_classes_of_an_ultrasound_with_six():
    classes = Classes(("background", *"abcde"), sector=True)
    label = np.arange(6, dtype=np.uint8)[None]
    inside, outside = np.ones((1, 6), bool), np.zeros((1, 6), bool)
    assert classes.sdm_names == ("outside", "a", "tissue", "b", "c", "d", "e")
    assert labels.to_sdm(label, inside, classes).tolist() == [[2, 1, 3, 4, 5, 6]]
    assert labels.to_sdm(label, outside, classes).tolist() == [[0, 1, 3, 4, 5, 6]]
    assert (labels.to_camus(labels.to_sdm(label, inside, classes), classes) == label).all()


def test_classes_survive_json():
    for classes in (labels.CAMUS, Classes(("background", "b", "a"), {"b": (1,), "all": (1, 2)}, conditions=("x",))):
        again = Classes(**classes.to_json())
        assert again == classes
        assert list(again.structures) == list(classes.structures)


def test_any_organ_is_checked_for_what_it_had(tmp_path):
    classes, source = Classes(("background", "a", "b")), np.zeros((32, 32), np.uint8)
    source[4:12, 4:12], source[20:28, 20:22] = 1, 2
    assert anatomy_fault(source[::-1], source, classes) is None  # upside down is no fault of an unknown organ
    lost, torn, grown = (source.copy() for _ in range(3))
    lost[lost == 2] = 0
    torn[8, :] = 0
    grown[2:20, 2:20] = 1
    assert anatomy_fault(lost, source, classes) == "b has 0.00 times its area"
    assert anatomy_fault(torn, source, classes) == "a is in pieces"
    assert anatomy_fault(grown, source, classes).startswith("a has 5.06 times its area")
    speck = np.zeros((32, 32), np.uint8)
    speck[16:18, 16:18] = 1
    new = augment(speck, SMOKE.augmentation, np.random.default_rng(0), classes)
    assert 1 <= new.label.sum() <= 1.6 * 4 + 4


def test_label_maps_have_as_many_channels_as_classes(tmp_path):
    frames = read_frames(open_dataset(made_set(tmp_path, CLASSES)), "training", 32, progress=False)
    batch = training.draw_batch(frames, SMOKE.training, 1, 0, 0)
    assert batch[1].shape == (SMOKE.training.batch_size, 4, 32, 32)
