"""reproduction.synthesis.synthetic_set, its cards, and the commands over it: every planted fault is found and named."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from skimage.io import imread, imsave
from typer.testing import CliRunner

from echo.config import SMOKE
from echo.resume import DamagedFile, read_json, write_json
from echo.segmenter import build_segmenter
from reproduction.cli import app
from reproduction.datasets.camus import open_camus
from reproduction.runs import stages
from reproduction.runs.run import open_run
from reproduction.studies import quality
from reproduction.synthesis import cards, export, generate, synthetic_set


@pytest.fixture(scope="module")
def painted(trained, frames, smoke, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    generate.generate(trained / "diffusion", *frames.values(), smoke, folder, seed=0)  # 8 + 4 images
    return folder


@pytest.fixture
def copy(painted, tmp_path) -> Path:
    return shutil.copytree(painted, tmp_path / "set")


def rewrite(folder: Path, change) -> None:
    path = folder / "manifest.csv"
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)


def flip_a_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_sound_set_has_no_fault(painted):
    assert synthetic_set.verify(painted) == []


@pytest.mark.parametrize("change", [lambda lines: lines[:1], lambda lines: lines[:2], lambda lines: ["id", "1"]])
def test_a_batch_that_lacks_rows_is_named_and_not_joined(copy, trained, frames, smoke, change):
    (copy / "manifest.csv").unlink()
    path = copy / "batches" / "000000.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(DamagedFile, match="batches/000000.csv: damaged"):
        generate.generate(trained / "diffusion", *frames.values(), smoke, copy, seed=0)
    assert not (copy / "manifest.csv").exists()
    path.unlink()  # as the message says
    assert len(generate.generate(trained / "diffusion", *frames.values(), smoke, copy, seed=0)) == 12
    assert synthetic_set.verify(copy) == []


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("shape", [(5, 5), (32, 32, 3), (32, 31)])
def test_an_image_of_another_size_is_named(copy, tmp_path, kind, shape):
    imsave(copy / kind / "000002.png", np.zeros(shape, np.uint8), check_contrast=False)
    for read in (
        lambda: synthetic_set.load_synthetic(copy, "training"),
        lambda: export.export_camus(copy, tmp_path / "x"),
    ):
        with pytest.raises(DamagedFile, match=f"{kind}/000002.png: damaged"):
            read()


def test_a_manifest_of_other_splits_is_named(copy):
    rewrite(copy, lambda table: table.assign(split=table["split"].replace("training", "holdout")))
    with pytest.raises(DamagedFile, match="manifest.csv: damaged .*holdout"):
        synthetic_set.verify(copy)


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda f: (f / "images/000003.png").unlink(), "000003: images/000003.png is missing"),
        (lambda f: shutil.copy(f / "labels/000003.png", f / "labels/000012.png"), "000012: in labels/, but not in man"),
        (lambda f: (f / "images/.77.000002.png").touch(), ".77.000002: in images/, but not in manifest.csv"),
        (lambda f: flip_a_byte(f / "images/000003.png", 60), "000003: its image or a label map is not what was wri"),
        (lambda f: flip_a_byte(f / "labels/000003.png", -20), "000003: its image or a label map is not what was wri"),
        (lambda f: shutil.copy(f / "images/000002.png", f / "images/000003.png"), "000003: its image or a label map"),
        (lambda f: rewrite(f, lambda t: pd.concat([t, t.iloc[[5]]])), "000005: more than one row in manifest.csv"),
    ],
    ids=["missing", "extra", "leftover", "flipped image", "flipped label", "exchanged", "doubled"],
)
def test_a_planted_fault_is_one_line(copy, plant, fault):
    plant(copy)
    faults = synthetic_set.verify(copy)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_a_lost_row_is_noticed_even_without_its_files(copy):
    rewrite(copy, lambda t: t.drop(index=4))
    for kind in synthetic_set.KINDS:
        (copy / kind / "000004.png").unlink()
    assert synthetic_set.verify(copy) == ["000004: no row in manifest.csv"]


def test_missing_sets_are_named(tmp_path):
    for read in (synthetic_set.verify, lambda f: synthetic_set.load_synthetic(f, "training")):
        with pytest.raises(FileNotFoundError, match="no synthetic images; run notebook 03"):
            read(tmp_path)


def test_the_worst_images_by_fidelity_are_left_out(copy, frames, smoke, monkeypatch):
    # A judge that sees every structure where it is, except in noise.
    labels = {imread(p).tobytes(): imread(copy / "labels" / p.name) for p in (copy / "images").glob("*.png")}
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    imsave(copy / "images" / "000007.png", noise, check_contrast=False)
    nothing = np.zeros((32, 32), np.uint8)
    answer = lambda _, images: np.stack([labels.get(i.tobytes(), nothing) for i in images])  # noqa: E731
    monkeypatch.setattr(quality, "predict", answer)

    with pytest.raises(FileNotFoundError, match="fidelity.csv is missing: run `python -m echo fidelity"):
        synthetic_set.load_synthetic(copy, "training", drop_worst=10)
    table = quality.label_fidelity(copy, segmenter=None)
    assert table.set_index("id")["mean"].sort_values().index[0] == "000007"
    assert (table.set_index("id").drop("000007") == 1).all(axis=None)
    everyone = synthetic_set.read_manifest(copy)
    alike = everyone.groupby(["split", "class_label"])["id"].transform("size")[everyone["id"] == "000007"].item()
    kept = synthetic_set.load_synthetic(copy, "training", drop_worst=100 / alike)
    assert "000007" not in set(kept.index["id"])
    assert len(kept) < 8
    assert [len(kept)] * 3 == [len(a) for a in (kept.images, kept.labels, kept.sdm_labels)]
    assert len(synthetic_set.load_synthetic(copy, "training", drop_worst=0)) == 8
    with pytest.raises(ValueError, match="cannot drop the worst 100 %"):
        synthetic_set.load_synthetic(copy, "training", drop_worst=100)
    table.iloc[1:].to_csv(copy / "fidelity.csv", index=False)
    with pytest.raises(ValueError, match="fidelity.csv: no value for image 000000"):
        synthetic_set.load_synthetic(copy, "training", drop_worst=10)


def test_each_view_and_phase_loses_its_share(painted, tmp_path):
    ids = [f"{k:03d}" for k in range(80)]
    table = pd.DataFrame({"id": ids, "split": ["training"] * 40 + ["validation"] * 40, "class_label": [0, 1] * 40})
    mean = np.where(table["class_label"] == 0, 0.9, 0.1) + np.arange(80) / 1000  # one class is far worse throughout
    pd.DataFrame({"id": ids[::-1], "mean": mean[::-1]}).to_csv(tmp_path / "fidelity.csv", index=False)
    kept = synthetic_set.filter_worst(table, tmp_path, 25)
    assert (kept.groupby(["split", "class_label"]).size() == 15).all()
    assert set(ids) - set(kept["id"]) == {f"{k:03d}" for first in (0, 1, 40, 41) for k in range(first, first + 10, 2)}


def test_export_is_read_as_camus(trained, frames, smoke, tmp_path):
    settings = replace(smoke.generation, images=30, validation_images=5)  # 2.5 rounds, 1.25 rounds
    table = generate.generate(
        trained / "diffusion", *frames.values(), replace(smoke, generation=settings), tmp_path / "set", seed=0
    )
    cards.write_cards(tmp_path / "set", trained)
    lacking = export.export_camus(tmp_path / "set", tmp_path / "camus")
    camus = open_camus(tmp_path / "camus", on_error="skip")
    assert camus.skipped == []
    exported = pd.read_csv(tmp_path / "camus" / "synthetic.csv", dtype=str)
    assert exported["id"].is_unique
    assert len(exported) == 35 == len(camus.keys(camus.patients()))
    assert lacking == sum(len(camus.keys([patient])) < 4 for patient in camus.patients()) > 0
    assert (len(camus.patients("validation")), camus.patients("testing")) == (2, [])
    rows = table.set_index("id")
    for e in exported.itertuples():
        frame, row = camus.frame(e.patient, e.view, e.phase), rows.loc[e.id]
        assert (row["view"], row["phase"]) == (e.view, e.phase)
        assert e.patient in camus.patients(row["split"])
        assert (frame.image == imread(tmp_path / "set" / "images" / f"{e.id}.png")).all()
        assert (frame.label == imread(tmp_path / "set" / "labels" / f"{e.id}.png")).all()
        assert frame.spacing_mm == pytest.approx((row["spacing_row_mm"], row["spacing_col_mm"]))
        assert frame.ef is None
    # As long as a source patient has all four frames they stay together: here, in the two full rounds.
    sources = exported.assign(source=rows.loc[exported["id"], "patient"].to_numpy())
    alike = sources.groupby("patient")["source"].nunique() == 1
    assert alike[camus.patients("training")[:6]].all()
    assert (tmp_path / "camus" / "DATA_CARD.md").exists()
    with pytest.raises(ValueError, match="holds other files: choose a new folder"):
        export.export_camus(tmp_path / "set", tmp_path / "camus")


def test_a_set_of_one_view_and_phase_is_exported_too(copy, tmp_path):
    table = synthetic_set.read_manifest(copy)
    wanted = table[table["class_label"] == 2]
    wanted.to_csv(copy / "manifest.csv", index=False)
    assert export.export_camus(copy, tmp_path / "camus") == 0
    camus = open_camus(tmp_path / "camus")
    assert camus.keys(camus.patients()) == [(patient, "4CH", "ED") for patient in camus.patients()]
    assert len(camus.patients()) == len(wanted)
    table[:0].to_csv(copy / "manifest.csv", index=False)
    with pytest.raises(ValueError, match="it has no row"):
        export.export_camus(copy, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_cards_give_licence_and_numbers(copy, trained, tmp_path):
    cards.write_cards(copy, trained)
    model, data = (" ".join((copy / f"{name}_CARD.md").read_text().split()) for name in ("MODEL", "DATA"))
    checkpoint = read_json(copy / "set.json")["checkpoints"]["all"]
    assert f"| all | 12 | 0.5000 | {checkpoint} |" in model
    assert "3 training patients" in model
    assert "# 12 synthetic echocardiograms" in data
    assert "(dpm++, 2 steps, guidance 1.0)" in data
    counts = synthetic_set.read_manifest(copy).query("split == 'training' and class_label == 3")
    row = f"| training 4CH ES | {len(counts)} | {counts['patient'].nunique()} | {counts['rejected'].sum()} |"
    assert row in data
    assert "not been measured" in data and "shape model" not in data
    header = ModelCard.load(copy / "MODEL_CARD.md").data
    assert header.license == DatasetCard.load(copy / "DATA_CARD.md").data.license == "mit"
    assert [(r.metric_type, r.metric_value) for r in header.eval_results] == [("loss", 0.5)] * 2
    assert DatasetCard.load(copy / "DATA_CARD.md").data.size_categories == "n<1K"

    pd.DataFrame({"id": ["000000", "000001"], "LV endo": [0.5, 0.6], "LV epi": [0.8, 0.8], "LA": [0.0, 0.1]}).to_csv(
        copy / "fidelity.csv", index=False
    )
    camus_run = shutil.copytree(trained, tmp_path / "run")
    data = read_json(trained / "manifest.json")["data"] | {"source": "camus"}
    write_json(camus_run / "manifest.json", {"data": data})
    facts = read_json(copy / "set.json")
    write_json(copy / "set.json", facts | {"augmentation": facts["augmentation"] | {"shape_model": 0.25}})
    cards.write_cards(copy, camus_run)
    model, data = (" ".join((copy / f"{name}_CARD.md").read_text().split()) for name in ("MODEL", "DATA"))
    assert "for 25% of them, drawn from a statistical shape model" in data
    assert "LV endo 55.0 %, LV epi 80.0 %, LA 5.0 %" in data
    found = {r.metric_name: r.metric_value for r in ModelCard.load(copy / "MODEL_CARD.md").data.eval_results}
    assert found["label fidelity, Dice of LV epi, %"] == pytest.approx(80)
    (camus_run / "diffusion" / "all" / "log.csv").write_text("stop,validation_loss\n6,0.75\n")
    with pytest.raises(DamagedFile, match=r"log\.csv: damaged"):
        cards.write_cards(copy, camus_run)
    for card in (model, data):
        assert "license: cc-by-nc-sa-4.0" in card
        assert "10.1109/TMI.2019.2900516" in card
        assert "MIT" not in card


def command(*words: object, **env: str) -> tuple[int, str]:
    """Exit status, and what is printed, or else the last line of the errors."""
    result = CliRunner().invoke(app, list(map(str, words)), env=env)
    return result.exit_code, result.stdout.strip() or result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished smoke run, without notebooks."""
    folder = tmp_path_factory.mktemp("runs") / "smoke-phantom"
    opened = open_run("smoke", "phantom", str(folder), recompute=True)
    stages.diffusion_stage(opened)
    stages.generation_stage(opened)
    stages.segmentation_stage(opened)
    return folder


def test_commands_over_a_run(run, tmp_path):
    where = ("--profile", "smoke", "--run", run)
    before = {p: p.stat().st_mtime_ns for p in (run / "synthetic").rglob("*.*")}
    assert command("generate", *where) == (0, str(run / "synthetic"))
    assert {p: p.stat().st_mtime_ns for p in (run / "synthetic").rglob("*.*")} == before
    code, said = command("verify", run / "synthetic", "--regenerate", "000003", "--sample", 2)
    assert (code, said) == (0, f"{run / 'synthetic'}: every file is what was written")

    code, said = command("fidelity", run / "synthetic")
    assert code == 0, said
    measured = pd.read_csv(run / "synthetic" / "fidelity.csv")
    assert f"mean Dice {100 * measured['mean'].mean():.1f} %" in said
    assert "a segmenter trained on real images: LV endo" in " ".join(
        (run / "synthetic" / "DATA_CARD.md").read_text().split()
    )
    assert synthetic_set.verify(run / "synthetic") == []
    assert command("fidelity", run / "synthetic") == (code, said)

    code, said = command("export", run / "synthetic", tmp_path / "camus", "--drop-worst", 1)
    assert code == 0, said
    assert open_camus(tmp_path / "camus").patients()

    folder = shutil.copytree(run, tmp_path / run.name) / "synthetic"
    (folder / "images" / "000001.png").unlink()
    code, said = command("verify", folder)
    assert (code, said) == (1, "000001: images/000001.png is missing")
    (folder / "manifest.csv").unlink()
    code, said = command("verify", folder)
    assert code == 1
    assert said.startswith("error: ") and "no synthetic images; run notebook 03" in said


def test_fidelity_is_measured_again_only_for_another_segmenter(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / run.name)
    file = copy / "synthetic" / "fidelity.csv"
    stages.score_fidelity(copy / "synthetic")
    measured, marked = file.read_text(), "id,mean\n000000,0.25\n"
    file.write_text(marked)
    assert stages.score_fidelity(copy / "synthetic").to_dict("records") == [{"id": "000000", "mean": 0.25}]
    assert file.read_text() == marked
    write_json(copy / "segmenter" / "inputs.json", "of another recipe")
    stages.score_fidelity(copy / "synthetic")
    assert file.read_text() == measured
    file.unlink()
    stages.score_fidelity(copy / "synthetic")
    assert file.read_text() == measured


def test_shards_by_command_and_by_torchrun_make_the_stage(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / run.name)
    shutil.rmtree(copy / "synthetic")
    where = ("--profile", "smoke", "--run", copy)
    for words, env in ((("--shard", "2/3"), {}), ((), {"RANK": "0", "WORLD_SIZE": "3"})):
        code, said = command("generate", *where, *words, **env)
        assert code == 0, said
        assert said.endswith("is painted, others are not")
        assert not (copy / "synthetic" / "done").exists()
        assert not read_json(copy / "manifest.json")["stages"]["generation"]["finished"]
    code, said = command("generate", *where, RANK="1", WORLD_SIZE="3")
    assert said == str(copy / "synthetic")
    assert (copy / "synthetic" / "done").exists()
    assert read_json(copy / "manifest.json")["stages"]["generation"]["finished"]
    names = {p.name for p in (run / "synthetic").iterdir()} - {
        "fidelity.csv",
        "fidelity.json",
        "DATA_CARD.md",
        "MODEL_CARD.md",
    }
    for path in (p for name in names for p in [run / "synthetic" / name, *(run / "synthetic" / name).glob("*")]):
        if path.is_file():
            assert (copy / path.relative_to(run)).read_bytes() == path.read_bytes(), path
    for wrong in ("3", "a/3", "3/3", "-1/3"):
        code, said = command("generate", *where, "--shard", wrong, "--images", 9)
        assert (code, said[:6]) == (1, "error:")


def test_another_number_of_images_is_a_set_of_its_own(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / run.name)
    code, said = command("generate", "--profile", "smoke", "--run", copy, "--images", 9)
    assert said == str(copy / "synthetic-9")
    assert len(synthetic_set.read_manifest(copy / "synthetic-9")) == 9 + SMOKE.generation.validation_images
    assert (copy / "synthetic-9" / "DATA_CARD.md").exists()
    assert synthetic_set.verify(copy / "synthetic") == []
    code, said = command("verify", copy / "synthetic-9", "--sample", 1)
    assert code == 0, said
    # A model trained anew must not go on with the set, nor pass for the one that painted it.
    weights = next((copy / "diffusion").rglob("*.safetensors"))
    flip_a_byte(weights, -1)
    code, said = command("generate", "--profile", "smoke", "--run", copy, "--images", 9)
    assert (code, "was painted with another checkpoints" in said) == (1, True)
    code, said = command("verify", copy / "synthetic-9", "--sample", 1)
    assert (code, "was painted with another checkpoints" in said) == (1, True)


def test_fidelity_is_the_mean_over_structures_and_the_same_in_pieces(copy, smoke):
    torch.manual_seed(0)
    network = build_segmenter(smoke.segmenter).eval()
    whole = quality.label_fidelity(copy, network)
    assert whole["id"].tolist() == [f"{k:06d}" for k in range(12)]
    assert whole[["LV endo", "LV epi", "LA"]].mean(axis=1).to_numpy() == pytest.approx(whole["mean"], abs=1e-5)
    pd.testing.assert_frame_equal(quality.label_fidelity(copy, network, batch_size=5), whole)
    pd.testing.assert_frame_equal(pd.read_csv(copy / "fidelity.csv", dtype={"id": str}), whole, check_dtype=False)
