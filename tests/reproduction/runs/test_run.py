"""A run's folder: its marker, its name, its locks, its tables; and what the digests of its stages depend on."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

import reproduction
from echo.config import SMOKE
from echo.resume import DamagedFile, digest, read_json, write_json
from reproduction.cli import app
from reproduction.datasets.phantom import write_phantom
from reproduction.runs import run as runs
from reproduction.runs import stages
from reproduction.runs.inputs import OtherInputs, finish, is_done, recorded
from reproduction.runs.manifest import enter_manifest, read_manifest
from reproduction.runs.run import inputs_of, is_current, old_digest, one_command, one_worker, open_run
from reproduction.runs.table import PIPELINE, STAGES, STUDIES


def opened(root: Path, data: str = "phantom", seed: int = 0):
    return open_run("smoke", str(data), str(root), seed, recompute=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """A small dataset in CAMUS's layout."""
    root = tmp_path_factory.mktemp("data") / "echo"
    return write_phantom(root, {"training": 2, "validation": 1, "testing": 1}, 0, size=96, progress=False)


@pytest.fixture
def data(release, tmp_path) -> Path:
    return shutil.copytree(release, tmp_path / "echo")


def patients(data: Path, split: str) -> list[Path]:
    names = (data / "database_split" / f"subgroup_{split}.txt").read_text().split()
    return [data / "database_nifti" / name for name in names]


def test_every_stage_has_its_work_and_its_notebook():
    assert [*PIPELINE, *STUDIES] == list(STAGES)
    for name, stage in STAGES.items():
        assert callable(getattr(stages, stage.work))
        assert (REPOSITORY / "notebooks" / f"{stage.notebook}.ipynb").exists()
        assert all(needed in STAGES for needed in stage.needs)
        assert name == stage.name
    assert len({stage.folder for stage in STAGES.values()}) == len(STAGES)


def test_the_table_of_stages_loads_no_torch():
    code = "import sys, reproduction.cli; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", '{"name": "another project"}'),
        ("manifest.json", ""),
        ("thesis.tex", "three years"),
        ("dataset/photos.txt", "mine"),
        ("run.json", '{"kind": "marathon"}'),
        ("run.json", "{"),
    ],
)
def test_a_folder_of_something_else_is_refused_untouched(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_text() == text


@pytest.mark.parametrize("target", ["/nowhere/at/all", "missing", "run"])
def test_a_link_to_nothing_is_refused(tmp_path, target):
    (tmp_path / "run").symlink_to(target)
    for recompute in (True, False):
        with pytest.raises(ValueError, match=f"run is a link to {target}, which is missing"):
            open_run("smoke", "phantom", str(tmp_path / "run"), recompute=recompute)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_of_ours_is_known(tmp_path):
    def known(name: str, **files) -> None:
        for path, value in files.items():
            write_json(tmp_path / name / path.replace("__", "/").replace("_json", ".json"), value)
        opened(tmp_path / name)

    (tmp_path / "empty").mkdir()
    known("new")
    known("empty")
    known("marked", run_json={"kind": runs.KIND, "data": "phantom"}, other_json={})
    known("before the marker", manifest_json={"stages": {}, "profile": {"name": "smoke"}})
    known("killed early", dataset__inputs_json="0123456789abcdef")
    with pytest.raises(ValueError, match="is a file"):
        opened(tmp_path / "marked" / "run.json")


def test_a_run_is_marked_before_any_work(tmp_path, data):
    run = opened(tmp_path / "run", data)
    assert not run.root.exists()  # to open is to touch nothing
    stages.data_stage(run)
    assert read_json(run.root / "run.json") == {"kind": runs.KIND, "data": str(data)}


def test_default_names_tell_datasets_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "writable", lambda _folder: tmp_path / "runs")
    names = []
    for parent in ("a", "b", "c", "a", "b"):
        run = open_run("smoke", str(tmp_path / parent / "echo"), recompute=True)
        with runs.one_at_a_time(run):
            names.append(run.root.name)
    assert names[0] == names[3] == "smoke-echo"
    assert names[1] == names[4]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"smoke-echo(-[0-9a-f]{6})?", name) for name in names)


def test_a_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = open_run("smoke", "~/echo", "~/run", recompute=True)
    assert (run.root, run.data) == (tmp_path / "run", str(tmp_path / "echo"))


def test_the_second_command_on_a_run_says_so(tmp_path):
    run, other = opened(tmp_path / "run"), opened(tmp_path / "other")
    with one_command(run):
        with pytest.raises(ValueError, match="another command works on this run"), one_command(run):
            pass
        with one_command(other), runs.one_at_a_time(run):  # neither another run nor a notebook of this one waits
            pass
        command = [sys.executable, "-m", "echo", "train", "--profile", "smoke", "--run", run.root]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f"error: {run.root}: another command works on this run: wait, or choose another --run"
        ]
    with one_command(run):
        pass


def test_two_processes_never_work_on_one_stage(tmp_path, monkeypatch):
    run = opened(tmp_path / "run")
    busy = f"{run.root}: another process works on stage diffusion"
    with one_command(run), one_worker(run, "diffusion"):  # a command, and its notebook
        for begins in (stages.check_stage, lambda *known: stages.stage(*known).__enter__()):
            with pytest.raises(ValueError, match=busy):
                begins(run, "diffusion")
        with one_worker(run, "samplers"), one_worker(replace(run, root=tmp_path / "other"), "diffusion"):
            pass
        with one_worker(run, "generation"), one_worker(run, "generation"):  # its shards have a lock each
            pass
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with one_worker(run, "diffusion"):
            pass
    shown = replace(run, root=tmp_path / "extract", recompute=False)
    with one_worker(shown, "samplers"):
        assert not shown.root.exists()


@pytest.mark.parametrize(("shard", "named"), [((0, 1), "paints this set"), ((1, 3), "paints shard 1/3")])
def test_two_processes_never_paint_the_same_images(shard, named, tmp_path, monkeypatch):
    run, painted = opened(tmp_path / "run"), []
    monkeypatch.setattr(stages, "data_stage", lambda _run: (None, None))
    monkeypatch.setattr(stages.generate, "generate", lambda *known: painted.append(known[-1]))
    lock = run.root / ".synthetic-{}-of-{}.lock".format(*shard)
    with reproduction.alone(lock, "busy"):
        with pytest.raises(ValueError, match=f"synthetic: another process {named}"):
            stages.paint_set(run, run.folder("generation"), shard)
        stages.paint_set(run, run.folder("generation"), (0, 3))  # another shard
        stages.paint_set(run, run.root / "synthetic-4", shard)  # another set
    assert painted == [(0, 3), shard]


def test_what_a_stage_takes_over_is_of_its_data_and_settings(tmp_path, data):
    run = opened(tmp_path / "run", data)
    finished_until(run, "samplers")
    stages.check_needs(run, "samplers")
    wider = replace(SMOKE, unet=replace(SMOKE.unet, model_channels=64))
    for other, named in (
        (replace(run, data="phantom"), "dataset: made from inputs that differ"),
        (replace(run, profile=wider), r"diffusion: made from .* \(unet.model_channels 16, now 64\)"),
        (replace(run, seed=1), r"diffusion: made from inputs that differ \(seed 0, now 1\)"),
    ):
        with pytest.raises(OtherInputs, match=named):
            stages.check_stage(other, "samplers")
        assert is_done(run.folder("diffusion"))
    more = replace(SMOKE, generators=2)  # trainings are added to a stage that has parts
    stages.check_needs(replace(run, profile=more), "samplers")


def test_ranks_of_one_training_do_not_exclude_each_other(tmp_path, monkeypatch):
    run = opened(tmp_path / "run")
    with one_command(run):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with one_command(run):
            pass


def finished_until(run, name: str) -> None:
    """Mark the stages before one as finished, as if they had been made from the present inputs."""
    for needed in STAGES[name].needs:
        inputs = inputs_of(run, needed)
        write_json(run.folder(needed) / "inputs.json", {"digest": digest(inputs), "inputs": inputs})
        finish(run.folder(needed))


def test_what_no_training_reads_changes_no_training(tmp_path, data):
    run = opened(tmp_path / "run", data)
    finished_until(run, "grid")

    def changed(path: Path, text: str) -> set[str]:
        """The stages whose inputs are others after that text is appended."""
        before = {name: inputs_of(run, name) for name in STAGES}
        kept = path.read_bytes()
        path.write_bytes(kept + text.encode())
        after = {name: inputs_of(run, name) for name in STAGES}
        path.write_bytes(kept)
        return {name for name in STAGES if before[name] != after[name]}

    (test,), (validation,) = (patients(data, split) for split in ("testing", "validation"))
    assert changed(test / "Info_2CH.cfg", "\nComment: reviewed\n") == set()
    assert changed(validation / "Info_4CH.cfg", "\nComment: reviewed\n") == set()
    assert changed(test / f"{test.name}_4CH_ED_gt.nii.gz", "\0") == {"tables", "grid"}
    assert changed(validation / f"{validation.name}_4CH_ED_gt.nii.gz", "\0") == {"data"}
    assert changed(validation / f"{validation.name}_2CH_ES.nii.gz", "\0") == {"data"}


def test_the_refusal_names_seed_profile_and_data(tmp_path, data):
    run = opened(tmp_path / "run", data)
    finished_until(run, "grid")
    assert is_current(run, "diffusion")
    wider = replace(SMOKE, unet=replace(SMOKE.unet, model_channels=64))
    others = {
        "seed 0, now 1": (replace(run, seed=1), "diffusion"),
        "unet.model_channels 16, now 64": (replace(run, profile=wider), "diffusion"),
        "image_size 32, now 48": (replace(run, profile=replace(SMOKE, image_size=48)), "data"),
    }
    for named, (other, name) in others.items():
        with pytest.raises(ValueError, match=re.escape(f"({named})")):
            stages.check_stage(other, name)
    (validation,) = patients(data, "validation")
    (validation / "Info_2CH.cfg").write_text("EF: 1\n")
    with pytest.raises(ValueError, match=r"dataset: made from .* \(data \w{16}, now \w{16}\)"):
        stages.check_stage(run, "data")


def by_the_old_rule(run) -> dict[str, str]:
    """What earlier versions wrote into each `inputs.json`, by their own words."""
    p, seed = run.profile, run.seed
    found = {"data": digest(run.open_data().digest(), p.image_size)}
    found["diffusion"] = digest(found["data"], seed, repr(p.unet), repr(p.training), repr(p.per_view_phase))
    found["generation"] = digest(found["diffusion"], seed, repr(p.augmentation), repr(p.generation))
    found["segmentation"] = digest(found["generation"], seed, repr(p.segmenter), repr(p.other_segmenter))
    after = {"tables": (), "samplers": (p.study,), "editing": (), "quality": (), "grid": (p.grid,)}
    return found | {name: digest(found["segmentation"], seed, *map(repr, own)) for name, own in after.items()}


def test_a_run_of_an_earlier_version_stays_finished(tmp_path, data):
    run = opened(tmp_path / "run", data, seed=3)
    for name, old in by_the_old_rule(run).items():
        write_json(run.folder(name) / "inputs.json", old)
        finish(run.folder(name))
    for name in STAGES:
        assert is_current(run, name), name
        assert old_digest(run, name) == recorded(run.folder(name))[0]
        stages.check_stage(run, name)
        if name not in ("data", "diffusion"):  # those read frames, of which there are none here
            stages.complete(run, name)  # no work
    other = replace(run, seed=4)
    assert not is_current(other, "diffusion")
    with pytest.raises(ValueError, match="earlier version"):
        stages.check_stage(other, "diffusion")


def test_old_names_of_stages_are_read(tmp_path):
    one, two = {"seconds": 1, "finished": True}, {"seconds": 2, "finished": False}
    write_json(tmp_path / "manifest.json", {"stages": {"sampler": one, "grid": two}})
    assert read_manifest(tmp_path)["stages"] == {"samplers": one, "grid": two}
    assert "samplers" in read_manifest(REPOSITORY / "results" / "laptop-phantom")["stages"]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n3", b"a,b\n1,2,3\n4,5,6,7\n", b"\xff\xfe\x00\n"])
def test_a_damaged_table_is_named(tmp_path, content):
    run = opened(tmp_path / "run")
    path = run.folder("tables") / "dice.csv"
    with pytest.raises(FileNotFoundError, match="run notebook 05_dice_tables"):
        run.table("tables", "dice")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a,b\n1,2\n")
    assert run.table("tables", "dice").to_dict("list") == {"a": [1], "b": [2]}
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=re.escape(str(path))) as error:
        run.table("tables", "dice")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"stages": 3}', '{"name": "another project"}'])
def test_a_foreign_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedFile, match=r"manifest\.json: damaged"):
        read_manifest(tmp_path)


def test_threads_and_seconds_of_an_interrupted_stage_add_up(tmp_path, smoke):
    begun = {"seconds": 2.0, "finished": False, "threads": [2]}
    enter_manifest(tmp_path, smoke, 0, "diffusion", begun)
    enter_manifest(tmp_path, smoke, 0, "diffusion", {"seconds": 1.5, "finished": True, "threads": [1]})
    facts = read_manifest(tmp_path)["stages"]["diffusion"]
    assert (facts["seconds"], facts["threads"]) == (3.5, [1, 2])


def test_an_extract_has_its_tables_beside_its_manifest():
    run = open_run("laptop", "phantom")
    assert run.folder("tables") == run.root
    assert run.table("tables", "dice").equals(run.table("tables", "dice"))
    assert len(run.table("diffusion", "all/log"))


def test_a_checkout_that_cannot_be_written_has_its_runs_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECHO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    reproduction.writable.cache_clear()
    try:
        for _ in range(2):
            run = open_run("smoke", "phantom", recompute=True)
            assert run.root == tmp_path / "cache" / "runs" / "smoke-phantom"
        demo = open_run("laptop", "phantom")
        assert demo.data_root == tmp_path / "cache" / "data" / "demo" / "laptop-phantom"
    finally:
        reproduction.writable.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [str(REPOSITORY / "runs"), str(REPOSITORY / "data" / "demo")]


@pytest.mark.parametrize("cache", ["/proc/nowhere", "/dev/null/cache", "~nobody-of-this-name/cache"])
def test_where_no_place_can_be_written_one_line_says_so(cache, monkeypatch):
    monkeypatch.setenv("ECHO_CACHE", cache)
    monkeypatch.setattr(os, "access", lambda *_: False)
    reproduction.writable.cache_clear()
    with pytest.raises(PermissionError, match=f"nor {cache} can be written: give --run, or set ECHO_CACHE"):
        open_run("smoke", "phantom", recompute=True)


def test_faulty_patients_are_listed_or_left_out(tmp_path, monkeypatch):
    counts = {"training": 4, "validation": 2, "testing": 3}
    root = write_phantom(tmp_path / "echoes", counts, 0, size=64, progress=False)
    for name in ("patient0002_2CH_ES", "patient0003_4CH_ED_gt", "patient0007_4CH_ED"):
        (root / "database_nifti" / name[:11] / f"{name}.nii.gz").unlink()
    command = ["train", "--profile", "smoke", "--data", str(root), "--run", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert [line.split(": ")[1] for line in refused.stderr.splitlines() if line.startswith("  ")] == [
        "patient0002", "patient0003", "patient0007",
    ]  # fmt: skip
    monkeypatch.setenv("ECHO_SKIP_BAD", "1")
    run = open_run("smoke", str(root), str(tmp_path / "run"), seed=0, recompute=True)
    stages.data_stage(run)
    monkeypatch.delenv("ECHO_SKIP_BAD")
    assert run.open_data().patients("testing") == ["patient0008", "patient0009"]
    assert set(run.load_frames()[0].index["patient"]) == {"patient0001", "patient0004"}
    stages.data_stage(run)  # finished: the patients left out do not make its inputs others
    assert is_current(run, "data")
    left_out = read_json(run.root / "manifest.json")["data"]["left_out"]
    assert [fault["patient"] for fault in left_out] == ["patient0002", "patient0003", "patient0007"]


def test_damaged_frames_of_a_run_are_named(tmp_path):
    run = open_run("smoke", "phantom", str(tmp_path / "run"), seed=0, recompute=True)
    stages.data_stage(run)
    file = run.folder("data") / "training.npz"
    for damage in (lambda data: data[:1000], lambda data: b"", lambda data: b"not a zip file at all"):
        content = file.read_bytes()
        file.write_bytes(damage(content))
        with pytest.raises(DamagedFile, match=r"training\.npz: damaged"):
            run.load_frames()
        file.write_bytes(content)
    assert len(run.load_frames()[0])
