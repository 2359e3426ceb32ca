"""The whole experiment: five stages over one run folder, each told by a notebook that papermill executes.

A stage is skipped when it is finished and its inputs are unchanged, and goes on where it was interrupted otherwise.
The notebooks call the `*_stage` functions below; `reproduce` calls the notebooks.
"""

import ast
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState, notebook_launcher
from accelerate.state import AcceleratorState
from filelock import FileLock
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

import __main__
from echo import camus, cards, dataset, figures, generate, grid, segmenter, study, synthetic_set, tables
from echo.config import Profile, get_profile
from echo.device import device_name, get_device, peak_memory_gb, training_processes
from echo.paths import (
    FIGURES,
    README,
    REPOSITORY,
    RESULTS,
    STAGES,
    STUDIES,
    atomic,
    begin,
    digest,
    finish,
    is_done,
    read_json,
    write_json,
)

PACKAGES = ("torch", "diffusers", "accelerate", "monai", "numpy", "scipy", "scikit-image", "pandas")
WITHOUT_FRAMES = ("synthetic_grid", "dice_boxes", "bland_altman", "scaling_images", "scaling_patients")  # no real ones
DEMO_PATIENTS = {"training": 16, "validation": 4, "testing": 6}


@dataclass(frozen=True)
class Run:
    """What a notebook works on.

    Attributes:
        profile: the sizes of everything.
        data: "phantom", or the path of a CAMUS release.
        folder: the run's folder, or the committed extract of one (`results/NAME`) when `recompute` is false.
        seed: of every random draw.
        recompute: do the full work of a stage, or only show the extract beside a small live piece.
    """

    profile: Profile
    data: str
    folder: Path
    seed: int
    recompute: bool

    @property
    def data_home(self) -> Path:
        """Where phantom and prepared frames are: in the run, or in a cache when only an extract is shown."""
        return self.folder if self.recompute else REPOSITORY / "data" / "demo" / self.folder.name

    def log(self, *parts: str) -> pd.DataFrame:
        """A CSV of the run, such as `log("diffusion", "all", "log.csv")`."""
        path = self.folder.joinpath(*parts)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the notebooks before this one, or `make reproduce`")
        return pd.read_csv(path)


def run_name(profile: str, data: str) -> str:
    """`laptop-phantom`, `cpu-camus`: the profile, and the last folder of the data's path."""
    return f"{profile}-{Path(data).expanduser().resolve().name if data != 'phantom' else data}"


def check_parameters(cells: list[str]) -> None:
    """Refuse what papermill gives and the notebook does not have, or has with another type: papermill only warns.

    Args:
        cells: sources that the kernel has run, in order. Papermill's own follows the cell of the defaults.

    Raises:
        ValueError: naming the parameter.
    """

    def assigned(cell: str) -> dict:
        return {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell).body if isinstance(s, ast.Assign)}

    for before, cell in pairwise(cells):
        if cell.startswith("# Parameters\n"):
            defaults = assigned(before)
            for name, value in assigned(cell).items():
                if name not in defaults:
                    raise ValueError(f"unknown parameter {name!r}: this notebook has {', '.join(defaults)}")
                if type(value) is not type(defaults[name]):
                    raise ValueError(f"parameter {name} is {value!r}: it must be {type(defaults[name]).__name__}")


def open_run(profile: str, data: str, run: str = "", seed: int = 0, recompute: bool = False) -> Run:
    """The run that a notebook's parameters name; `run` is a folder, by default `runs/PROFILE-DATA`.

    Raises:
        ValueError: for an unknown profile, or a parameter that papermill gives and the notebook does not have.
        FileNotFoundError: when there is no extract to show.
    """
    check_parameters(getattr(__main__, "In", []))  # IPython's record of the cells; there is none outside a kernel
    settings, name = get_profile(profile), run_name(profile, data)
    default = REPOSITORY / "runs" / name if recompute else RESULTS / name
    folder = Path(run).resolve() if run else default
    if not recompute and not folder.exists():
        raise FileNotFoundError(f"{folder} is missing: there are no results of {name}; set recompute=True to make them")
    if not recompute:
        settings = replace(settings, phantom_patients=DEMO_PATIENTS)
    return Run(settings, data, folder, seed, recompute)


def raw_data(run: Run) -> camus.Camus:
    """The run's raw data set. Where only an extract is shown, the phantom's patients are others than the run's."""
    seed = run.seed if run.recompute else run.seed + 1_000_000
    with only_one(run):
        return dataset.open_data(run.data, run.profile, run.data_home, seed, progress=run.recompute)


def only_one(run: Run) -> FileLock:
    """A lock on the data: two notebooks may be opened at once."""
    run.data_home.mkdir(parents=True, exist_ok=True)
    return FileLock(run.data_home / ".lock", is_singleton=True)


def home_of(run: Run, name: str) -> Path:
    """The folder of a stage."""
    return (run.data_home if name == "data" else run.folder) / (STAGES | STUDIES)[name][0]


def inputs_of(run: Run, name: str) -> str:
    """A digest of all that a stage depends on: its own settings, and the inputs of the stage before it.

    Raises:
        FileNotFoundError: when the stage before it is not finished.
    """
    p = run.profile
    if name == "data":
        return digest(raw_data(run).digest(), p.image_size)
    names = list(STAGES)
    before = names[names.index(name) - 1] if name in STAGES else "segmentation"
    if not is_done(home_of(run, before)):
        notebook = STAGES[before][1]
        raise FileNotFoundError(f"{home_of(run, before)}: stage {before} is not finished; run notebook {notebook}")
    settings = {
        "diffusion": (p.unet, p.training, p.per_view_phase),
        "generation": (p.augmentation, p.generation),
        "segmentation": (p.segmenter, p.other_segmenter),
        "tables": (),
        "sampler": (p.study,),
        "editing": (),
        "quality": (),
        "grid": (p.grid, p.unet, p.training, p.augmentation, p.generation),
    }[name]
    return digest(read_json(home_of(run, before) / "inputs.json"), run.seed, *map(repr, settings))


@contextmanager
def stage(run: Run, name: str, product: str = "") -> Iterator[bool]:
    """Work on a stage: yields whether there is any; times it, and enters it into the manifest.

    Where several processes work on it together, the first keeps the books. Where each works by itself, each does, and
    the stage is finished once it has its `product`, a file; their seconds add up.
    """
    is_main = bool(product) or os.environ.get("RANK", "0") == "0"
    clock = time.perf_counter()  # the phantom is made while the data stage asks for its inputs
    folder = home_of(run, name)
    with only_one(run):
        work = begin(folder, inputs_of(run, name))
    if not work:
        yield False
        return
    try:
        yield True
        if is_main and (folder / product).exists():
            finish(folder)
    finally:
        if is_main:
            facts = {"seconds": round(time.perf_counter() - clock, 1), "finished": is_done(folder)}
            facts["peak_memory_gb"] = round(peak_memory_gb(get_device()), 2)
            with only_one(run):
                enter_manifest(folder.parent, run, name, facts)


def enter_manifest(home: Path, run: Run, name: str, facts: dict) -> None:
    """Add a stage's facts to `home`'s `manifest.json`; seconds add up over interruptions."""
    path = home / "manifest.json"
    manifest = read_json(path) if path.exists() else {"stages": {}}
    earlier = manifest["stages"].get(name, {})
    if earlier and not earlier["finished"]:
        facts["seconds"] = round(facts["seconds"] + earlier["seconds"], 1)
    manifest["stages"][name] = facts | {"revision": revision()}
    data_facts = home / "dataset" / "data.json"
    manifest |= {
        "profile": run.profile.to_dict(),
        "data": read_json(data_facts) if data_facts.exists() else None,
        "seed": run.seed,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "device": device_name(),
        "cores": os.cpu_count(),
    }
    write_json(path, manifest)


def revision() -> str:
    """The repository's commit, with "+changes" when files differ from it; "unknown" outside a checkout."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "echo", "notebooks"])
    try:
        commit, changes = (
            subprocess.run(c, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")


def data_stage(run: Run) -> tuple[dataset.Frames, dataset.Frames]:
    """Prepare the frames; returns those of training and validation.

    Without `recompute` this is a small set (phantom) or the whole (CAMUS), kept in `data/demo`.
    """
    folder, source = home_of(run, "data"), "phantom" if run.data == "phantom" else "camus"
    with only_one(run), stage(run, "data") as work:
        if work:
            dataset.prepare(raw_data(run), source, run.profile, folder, progress=run.recompute)
    return dataset.load_frames(folder, "training"), dataset.load_frames(folder, "validation")


def diffusion_stage(run: Run) -> None:
    """Train the diffusion model, or one for each view and phase; on several GPUs in as many processes."""
    if training_processes() > 1 and "RANK" not in os.environ:
        data_stage(run)
        AcceleratorState._reset_state(True)  # a training before this one, in this process, forbids others
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        notebook_launcher(diffusion_stage, (run,), num_processes=training_processes(), use_port=port)
        return
    # The first process prepares data and folder, the others find them.
    patience = timedelta(hours=6)
    with PartialState(cpu=get_device().type == "cpu", timeout=patience).main_process_first():
        frames = data_stage(run)
        begin(home_of(run, "diffusion"), inputs_of(run, "diffusion"))
    with stage(run, "diffusion") as work:
        if not work:
            return
        grid.train_generator(run.profile, *frames, run.folder / "diffusion", run.seed)


def generation_stage(run: Run, shard: tuple[int, int] = (0, 1)) -> None:
    """Paint the synthetic data set, or the k-th of N shards of it."""
    with stage(run, "generation", "manifest.csv") as work:
        if work:
            paint_set(run, home_of(run, "generation"), shard)


def paint_set(run: Run, folder: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """Paint a set by the run's diffusion model into `folder`, or a shard of it; a whole set gets its cards."""
    frames = data_stage(run)
    if generate.generate(run.folder / "diffusion", *frames, run.profile, folder, run.seed, shard) is not None:
        cards.write_cards(folder, run.folder)


def run_of_set(folder: Path) -> Run:
    """The run whose model painted the set in `folder`, with the profile that it was painted by.

    Raises:
        FileNotFoundError: when `folder` has no finished set.
    """
    synthetic_set.read_manifest(folder)
    facts = read_json(folder / "set.json")
    profile = get_profile(facts["profile"])
    profile = replace(profile, generation=replace(profile.generation, images=facts["generation"]["images"]))
    return Run(profile, "", folder.parent, facts["seed"], recompute=True)


def check_set(folder: Path, names: list[str], sample: int, seed: int) -> list[str]:
    """The faults of a set: of its files (`synthetic_set.verify`), and of images painted again: those named, and as
    many more as `sample` says, drawn by `seed`."""
    run, known = run_of_set(folder), synthetic_set.read_manifest(folder)["id"].drop_duplicates()
    faults = synthetic_set.verify(folder)
    names = [*names, *known.sample(min(sample, len(known)), random_state=seed)]
    if names:
        frames = [dataset.load_frames(home_of(run, "data"), split) for split in ("training", "validation")]
        faults += generate.regenerate(folder, names, run.folder / "diffusion", *frames, run.profile)
    return faults


def score_fidelity(folder: Path) -> pd.DataFrame:
    """`study.label_fidelity` of a set by its run's first segmenter trained on real images; the cards get the means."""
    run = run_of_set(folder)
    table = study.label_fidelity(folder, load_segmenter(run, "real"))
    cards.write_cards(folder, run.folder)
    return table


def segmenter_folder(run: Run, row: str, seed: int) -> Path:
    """Where the segmenter of a row of the main table is kept."""
    return run.folder / "segmenter" / grid.Cell(row, seed).name


def train_cells(run: Run, cells: list[grid.Cell], folder: Path) -> None:
    """Train the segmenters of some cells of the grid into `folder`; those that are there are kept."""
    real = data_stage(run)
    write_json(folder / "planned.json", [cell.name for cell in cells])

    def synthetic(generator: str) -> Path:
        if generator == "run":
            return run.folder / "synthetic"
        return grid.other_generator(generator, run.profile, *real, home_of(run, "grid") / "generators", run.seed)

    painted = run.folder / "synthetic"
    if any(cell.drop_worst for cell in cells) and not (painted / "fidelity.csv").exists():
        study.label_fidelity(painted, load_segmenter(run, "real"))
    for cell in cells:
        grid.train_cell(cell, run.profile, real, synthetic, folder, run.seed)


def segmentation_stage(run: Run) -> None:
    """Train the segmenters of the main table: each row, each seed."""
    with stage(run, "segmentation") as work:
        if work:
            train_cells(run, grid.main_cells(run.profile, run.seed), run.folder / "segmenter")


def load_segmenter(run: Run, row: str, seed: int | None = None) -> torch.nn.Module:
    """A trained segmenter of the profile's own recipe, by default that of the run's first seed."""
    folder = segmenter_folder(run, row, run.seed if seed is None else seed)
    return segmenter.load_segmenter(run.profile.segmenter, folder)


def score_cells(run: Run, cells: list[grid.Cell], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score the segmenters of some cells, kept in `folder`, on the real test frames: `segmenter.score`'s tables, with
    the columns train (the row) and seed before."""
    parts, raw = [], raw_data(run)
    for cell in cells:
        config = grid.recipe(cell, run.profile)
        network = segmenter.load_segmenter(config, folder / cell.name)
        found = segmenter.score(network, raw, raw.patients("testing"), run.profile.image_size, config.flip_test)
        for table in found:
            table.insert(0, "train", cell.row)
            table.insert(1, "seed", cell.seed)
        parts.append(found)
    scores, volumes = (pd.concat(found, ignore_index=True) for found in zip(*parts, strict=True))
    return scores, volumes


def tables_stage(run: Run) -> None:
    """Score every segmenter on the real test frames, once, and write the tables."""
    with stage(run, "tables") as work:
        if not work:
            return
        scores, volumes = score_cells(run, grid.main_cells(run.profile, run.seed), run.folder / "segmenter")
        tables.write_tables(scores, volumes, run.folder / "tables", run.seed)


def sampler_study_stage(run: Run) -> None:
    """Judge each sampler, number of steps and guidance scale on the validation patients' label maps."""
    with stage(run, "sampler") as work:
        if work:
            models = generate.load_models(run.folder / "diffusion", run.profile)
            file = home_of(run, "sampler") / "settings.csv"
            (training, validation), judge = data_stage(run), load_segmenter(run, "real")
            study.sampler_study(models, validation, judge, run.profile, file, run.seed)
            real = study.references(training, validation, judge)
            with atomic(file.with_name("references.csv")) as temporary:
                real.to_frame("value").to_csv(temporary, index_label="measure", float_format="%.6g")


def label_editing_stage(run: Run) -> None:
    """Ask of each edit whether images follow it, on the validation patients' label maps."""
    with stage(run, "editing") as work:
        if work:
            models = generate.load_models(run.folder / "diffusion", run.profile)
            judge, frames = load_segmenter(run, "real"), data_stage(run)[1]
            table = study.label_editing(models, frames, judge, run.profile, run.seed)
            with atomic(home_of(run, "editing") / "edits.csv") as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")


def image_quality_stage(run: Run) -> None:
    """Compare the synthetic images of validation patients' label maps with those patients' real images."""
    with stage(run, "quality") as work:
        if work:
            score_fidelity(home_of(run, "generation"))
            synthetic = synthetic_set.load_synthetic(run.folder / "synthetic", "validation")
            training, validation = data_stage(run)
            judge, inception = load_segmenter(run, "real"), os.environ.get("ECHO_INCEPTION", "")
            results = study.image_quality(synthetic, validation, training, judge, run.seed, inception)
            for name, table in results.items():
                with atomic(home_of(run, "quality") / f"{name}.csv") as temporary:
                    table.to_csv(temporary, index=False, float_format="%.6g")


def grid_stage(run: Run) -> None:
    """Train what the experiment grid has beside the main table, one cell after the other; then score it, once."""
    with stage(run, "grid") as work:
        if work:
            folder, cells = home_of(run, "grid"), grid.study_cells(run.profile, run.seed)
            train_cells(run, cells, folder / "segmenters")
            tables.write_scores(*score_cells(run, cells, folder / "segmenters"), folder)


def keep(run: Run, figure: Figure, name: str) -> None:
    """Save a figure with the run; nothing when only an extract is shown."""
    if run.recompute:
        figures.save(figure, run.folder / "figures", name)


def read_table(run: Run, name: str) -> pd.DataFrame:
    """A table of the run, such as "scores", "volumes" or "dice" (`tables.write_tables`)."""
    return run.log(*(["tables"] if run.recompute else []), f"{name}.csv")


def all_results(run: Run) -> dict[str, pd.DataFrame]:
    """The Dice table of each committed run and of this one, by name."""
    committed = {path.parent.name: pd.read_csv(path) for path in sorted(RESULTS.glob("*/dice.csv"))}
    return committed | {run.folder.name: read_table(run, "dice")}


def is_current(run: Run, name: str) -> bool:
    """Whether a stage is finished, and from its present inputs."""
    folder = home_of(run, name)
    return is_done(folder) and read_json(folder / "inputs.json") == inputs_of(run, name)


def executed_well(notebook: Path) -> bool:
    """Whether papermill executed this notebook to its end; it clears every count at the start."""
    if not notebook.exists():
        return False
    content = read_json(notebook)
    counts = [c["execution_count"] for c in content["cells"] if c["cell_type"] == "code" and c["source"]]
    return content["metadata"]["papermill"]["exception"] is None and None not in counts


class NotebookError(RuntimeError):
    """A notebook failed; the message is one line."""


def reproduce(profile: str, data: str, run: str = "", seed: int = 0, only: str | None = None) -> Path:
    """Execute the notebooks of all stages and of the images' quality, or of one stage or study, into a run folder, and
    return it.

    Raises:
        NotebookError: naming the notebook, the cell and the file that holds the partial output.
    """
    import papermill  # here, since a notebook on Colab need not have it
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    opened = open_run(profile, data, run, seed, recompute=True)
    if opened.data != "phantom":
        camus.open_camus(opened.data)  # a wrong path fails before any notebook starts
    target = opened.folder / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    # The kernel inherits these: progress as text, which papermill passes on to this terminal.
    os.environ |= {"ECHO_TEXT_PROGRESS": "1", "TQDM_MININTERVAL": "2"}
    parameters = {
        "profile": profile,
        "data": data if data == "phantom" else str(Path(data).expanduser().resolve()),
        "run": str(opened.folder),
        "seed": seed,
        "recompute": True,
    }
    # Sockets in a folder of their own: no port to clash with, or to listen on.
    kernel = Config(
        {"KernelManager": {"transport": "ipc", "ip": str(Path(tempfile.mkdtemp(prefix="echo-")) / "kernel")}}
    )
    for name in [only] if only else [*STAGES, "quality"]:
        notebook = (STAGES | STUDIES)[name][1]
        output = target / f"{notebook}.ipynb"
        if name != "data":
            inputs_of(opened, name)  # a missing earlier stage is named before the notebook starts
        if is_current(opened, name) and executed_well(output):
            print(f"== {name}: finished, skipped", flush=True)
            continue
        print(f"== {name}: notebook {notebook}", flush=True)
        try:
            papermill.execute_notebook(
                REPOSITORY / "notebooks" / f"{notebook}.ipynb",
                output,
                parameters,
                kernel_name="python3",
                cwd=REPOSITORY / "notebooks",
                progress_bar=False,
                stderr_file=sys.stderr,
                config=kernel,
            )
        except papermill.PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            message = f"notebook {notebook} failed in its cell {error.exec_count}: {reason}; see {output}"
            raise NotebookError(message) from None
        except DeadKernelError:
            message = f"notebook {notebook}: its kernel died (out of memory?); see {output}"
            raise NotebookError(message) from None
    return opened.folder


def summary(folder: Path) -> str:
    """The Dice table of a finished run, and where its figures and notebooks are."""
    comparison = tables.comparison(pd.read_csv(folder / "tables" / "dice.csv"))
    lines = [f"Dice on the test patients of {folder.name}, %, mean ± sd over frames:", comparison.to_string(), ""]
    files = sorted(folder.glob("figures/*.png")) + sorted(folder.glob("notebooks/*.ipynb"))
    return "\n".join(lines + [f"  {path}" for path in files])


def publish(folder: Path) -> list[Path]:
    """Copy the small, committable extract of a run into `results/` and `figures/`; return what was written.

    That is tables, logs, manifest; and, for the phantom, figures and the weights that the notebooks load. Of a run on
    CAMUS neither weights nor a figure that holds a real frame leaves the run folder.
    """
    manifest = read_json(folder / "manifest.json")
    phantom = manifest["data"]["source"] == "phantom"
    keep = [folder / "manifest.json", *folder.glob("*/*/log.csv"), *folder.glob("synthetic/*.csv")]
    keep += [*folder.glob("synthetic/*_CARD.md"), *folder.glob("synthetic/set.json")]
    keep += (path for study, _ in STUDIES.values() for path in folder.glob(f"{study}/*.csv"))
    keep += folder.glob("diffusion/*/model/*") if phantom else []
    segmenters = [folder / "segmenter" / grid.Cell(row, manifest["seed"]).name for row in ("real", "synthetic")]
    keep += [path / "model.safetensors" for path in segmenters] if phantom else []
    copies = {path: RESULTS / folder.name / path.relative_to(folder) for path in keep}
    copies |= {path: RESULTS / folder.name / path.name for path in folder.glob("tables/*.[cmt]*")}
    for path in folder.glob("figures/*.*"):
        if phantom:
            copies[path] = FIGURES / path.name
        elif path.stem in WITHOUT_FRAMES:
            copies[path] = FIGURES / f"{folder.name}_{path.name}"
    for source, copy in copies.items():
        with atomic(copy) as temporary:
            if source.suffix == ".safetensors":  # half precision: half the size, and the same to look at
                tensors = load_file(source)
                save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, temporary)
            else:
                shutil.copyfile(source, temporary)
    tables.write_readme(README, RESULTS / folder.name)
    return sorted(copies.values())
