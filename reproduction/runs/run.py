"""A run: its folder and its manifest, and how a stage of it begins and ends."""

import ast
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure

import __main__
from echo.config import Profile, get_profile
from echo.device import device_name, get_device, launched, peak_memory_gb
from echo.resume import begin, digest, finish, is_done, read_json, write_json
from reproduction import REPOSITORY, RESULTS
from reproduction.datasets import prepare
from reproduction.datasets.camus import Camus
from reproduction.plots import echoes
from reproduction.synthesis import synthetic_set

PACKAGES = ("torch", "diffusers", "accelerate", "monai", "numpy", "scipy", "scikit-image", "pandas")


# Stage -> its folder in the run, and the notebook that runs it.
STAGES = {
    "data": ("dataset", "01_data_preparation"),
    "diffusion": ("diffusion", "02_diffusion_training"),
    "generation": ("synthetic", "03_generation"),
    "segmentation": ("segmenter", "04_segmentation"),
    "tables": ("tables", "05_dice_tables"),
}


# Studies beside the pipeline, which start from a finished run.
STUDIES = {
    "sampler": ("sampler_study", "06_sampler_study"),
    "editing": ("label_editing", "07_label_editing"),
    "quality": ("image_quality", "08_image_quality"),
    "grid": ("grid", "09_experiment_grid"),
}


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

    def open_data(self) -> Camus:
        """The raw data set. Where only an extract is shown, the phantom's patients are others than the run's."""
        seed = self.seed if self.recompute else self.seed + 1_000_000
        with only_one(self):
            return prepare.open_data(self.data, self.profile, self.data_home, seed, progress=self.recompute)

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


def only_one(run: Run) -> FileLock:
    """A lock on the data: two notebooks may be opened at once."""
    run.data_home.mkdir(parents=True, exist_ok=True)
    return FileLock(run.data_home / ".lock", is_singleton=True)


def home_of(run: Run, name: str) -> Path:
    """The folder of a stage."""
    return (run.data_home if name == "data" else run.folder) / (STAGES | STUDIES)[name][0]


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


def inputs_of(run: Run, name: str) -> str:
    """A digest of all that a stage depends on: its own settings, and the inputs of the stage before it.

    Raises:
        FileNotFoundError: when the stage before it is not finished.
    """
    p = run.profile
    if name == "data":
        return digest(run.open_data().digest(), p.image_size)
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
        "quality": tuple(filter(None, [os.environ.get("ECHO_INCEPTION")])),
        "grid": (p.grid,),
    }[name]
    return digest(read_json(home_of(run, before) / "inputs.json"), run.seed, *map(repr, settings))


@contextmanager
def stage(run: Run, name: str, product: str = "", parts: bool = False) -> Iterator[bool]:
    """Work on a stage: yields whether there is any; times it, and enters it into the manifest.

    Where several processes work on it together, the first keeps the books. Where each works by itself, each does, and
    the stage is finished once it has its `product`, a file; their seconds add up. `parts` is for `begin`.
    """
    rank, _processes = launched() or (0, 1)
    is_main = bool(product) or rank == 0
    clock = time.perf_counter()  # the phantom is made while the data stage asks for its inputs
    folder = home_of(run, name)
    with only_one(run):
        work = begin(folder, inputs_of(run, name), parts)
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


def is_current(run: Run, name: str) -> bool:
    """Whether a stage is finished, and from its present inputs."""
    folder = home_of(run, name)
    return is_done(folder) and read_json(folder / "inputs.json") == inputs_of(run, name)


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
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "echo", "reproduction", "notebooks"])
    try:
        commit, changes = (
            subprocess.run(c, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")


def keep(run: Run, figure: Figure, name: str) -> None:
    """Save a figure with the run; nothing when only an extract is shown."""
    if run.recompute:
        echoes.save(figure, run.folder / "figures", name)


def read_table(run: Run, name: str) -> pd.DataFrame:
    """A table of the run, such as "scores", "volumes" or "dice" (`tables.write_tables`)."""
    return run.log(*(["tables"] if run.recompute else []), f"{name}.csv")


def all_results(run: Run) -> dict[str, pd.DataFrame]:
    """The Dice table of each committed run and of this one, by name."""
    committed = {path.parent.name: pd.read_csv(path) for path in sorted(RESULTS.glob("*/dice.csv"))}
    return committed | {run.folder.name: read_table(run, "dice")}
