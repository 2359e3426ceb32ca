"""A run: its folder, and what a notebook reads from it and keeps in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure

from echo.config import Profile, get_profile
from echo.device import launched
from echo.frames import Frames
from echo.labels import Classes
from echo.resume import DamagedFile, digest, read_csv, read_json, whole, write_json
from reproduction import REPOSITORY, RESULTS, alone, writable
from reproduction.datasets import prepare
from reproduction.datasets.nnunet import PATTERN
from reproduction.plots import echoes
from reproduction.runs.inputs import PATIENTS, digest_of_splits, is_done, is_made_from, recorded
from reproduction.runs.manifest import read_manifest
from reproduction.runs.table import STAGES
from reproduction.synthesis import synthetic_set

KIND = "echo-from-noise run"
WAIT = "wait, or choose another --run"
DEMO_PATIENTS = {"training": 16, "validation": 4, "testing": 6}


@dataclass(frozen=True)
class Run:
    """What a notebook works on.

    Attributes:
        profile: the sizes of everything.
        data: "phantom", or the path of a dataset.
        root: the run's folder, or the committed extract of one (`results/NAME`) when `recompute` is false.
        seed: of every random draw.
        recompute: do the full work of a stage, or only show the extract beside a small live piece.
    """

    profile: Profile
    data: str
    root: Path
    seed: int
    recompute: bool

    def folder(self, stage: str) -> Path:
        """The folder of a stage; an extract has its tables beside its manifest."""
        if stage == "data":
            return self.data_root / STAGES[stage].folder
        return self.root if stage == "tables" and not self.recompute else self.root / STAGES[stage].folder

    @property
    def data_root(self) -> Path:
        """Where phantom and prepared frames are: in the run, or in a cache when only an extract is shown."""
        return self.root if self.recompute else writable(REPOSITORY / "data" / "demo") / self.root.name

    def open_data(self, everybody: bool = False) -> prepare.Source:
        """The raw dataset, without the patients whom the data stage left out, unless everybody is asked for. Where
        only an extract is shown, the phantom's patients are others than the run's."""
        seed, known = self.seed if self.recompute else self.seed + 1_000_000, prepare.read_facts(self.folder("data"))
        left_out = {fault["patient"] for fault in known.get("left_out", []) if not everybody}
        pattern = os.environ.get(PATIENTS) or known.get("patient_pattern", PATTERN)
        with one_at_a_time(self):
            return prepare.open_data(self.data, self.profile, self.data_root, seed, self.recompute, left_out, pattern)

    @property
    def classes(self) -> Classes:
        """What the labels of the prepared frames mean."""
        return prepare.load_classes(self.folder("data"))

    def load_frames(self) -> tuple[Frames, Frames]:
        """The prepared frames of training and validation.

        Raises:
            FileNotFoundError: when the data stage has not run.
        """
        return tuple(prepare.load_frames(self.folder("data"), split) for split in ("training", "validation"))

    def validation_frames(self) -> Frames:
        """The prepared frames of validation: a run's, or of an extract where its data are in the public domain.

        Raises:
            FileNotFoundError: when there are none.
        """
        return prepare.load_frames(self.root / STAGES["data"].folder, "validation")

    def table(self, stage: str, name: str) -> pd.DataFrame:
        """A table of a stage, without its suffix: `table("tables", "dice")`, `table("diffusion", "all/log")`.

        Raises:
            FileNotFoundError: when the stage has not written it.
            DamagedFile: when its end was cut off.
        """
        path = self.folder(stage) / f"{name}.csv"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run notebook {STAGES[stage].notebook}, or `make reproduce`")
        return read_csv(path)

    def keep(self, figure: Figure, name: str) -> None:
        """Save a figure with the run; nothing when only an extract is shown."""
        if self.recompute:
            echoes.save(figure, self.root / "figures", name)


def resolved(data: str) -> str:
    """ "phantom", or the absolute path of a dataset."""
    return data if data == "phantom" else str(Path(data).expanduser().resolve())


def run_name(profile: str, data: str) -> str:
    """`laptop-phantom`, `cpu-camus`: the profile, and the last folder of the data's path."""
    return f"{profile}-{Path(resolved(data)).name}"


def default_root(profile: str, data: str) -> Path:
    """`runs/PROFILE-DATA`; where that is the run of another dataset whose last folder has the same name, a part of
    the digest of the dataset's path is added."""
    root = writable(REPOSITORY / "runs") / run_name(profile, data)
    marker = root / "run.json"
    if marker.exists() and read_json(marker, {"data?": str}).get("data") != resolved(data):
        return root.with_name(f"{root.name}-{sha256(resolved(data).encode()).hexdigest()[:6]}")
    return root


def check_root(root: Path) -> None:
    """Refuse a folder that holds something other than a run: nothing of it would be safe.

    A run has its marker, `run.json`; one of an earlier version has a manifest, or a stage's inputs.

    Raises:
        ValueError: in one line.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file: choose another --run")
    found = [path.name for path in root.glob("[!.]*")]
    if not found:
        return
    if "run.json" in found:
        held = read_json(root / "run.json")
        if isinstance(held, dict) and held.get("kind") == KIND:
            return
    for stage in STAGES.values():
        try:
            recorded(root / stage.folder)
            return
        except DamagedFile:
            return  # a stage's, and named when it is opened
        except OSError:
            continue
    try:
        if read_manifest(root)["profile"]:
            return
    except (ValueError, OSError, KeyError):
        pass
    named = next((name for name in ("run.json", "manifest.json") if name in found), min(found))
    raise ValueError(f"{root} holds other files ({named}) and no run: choose another --run, a new or empty folder")


def open_run(profile: str, data: str, run: str = "", seed: int = 0, recompute: bool = False) -> Run:
    """The run that a notebook's parameters name; `run` is a folder, by default `runs/PROFILE-DATA`.

    Raises:
        ValueError: for an unknown profile, or a folder that holds something else.
        FileNotFoundError: when there is no extract to show.
    """
    settings = get_profile(profile)
    if (link := Path(run).expanduser()).is_symlink() and not link.exists():  # a disk that is not there, say
        raise ValueError(f"{link} is a link to {link.readlink()}, which is missing: choose another --run")
    if recompute:
        root = link.resolve() if run else default_root(profile, data)
        check_root(root)
        return Run(settings, resolved(data), root, seed, recompute)
    root = link.resolve() if run else RESULTS / run_name(profile, data)
    if not root.exists():
        raise FileNotFoundError(
            f"{root} is missing: there are no results of {root.name} here; set recompute=True to make them"
        )
    return Run(replace(settings, phantom_patients=DEMO_PATIENTS), resolved(data), root, seed, recompute)


@contextmanager
def one_at_a_time(run: Run) -> Iterator[None]:
    """A lock on the run's bookkeeping, which waits: notebooks, ranks and shards may work on a run together.

    The first to come marks the folder as a run.
    """
    run.data_root.mkdir(parents=True, exist_ok=True)
    with FileLock(run.data_root / ".lock", is_singleton=True):
        marker = run.root / "run.json"
        if run.recompute and not marker.exists():
            write_json(marker, {"kind": KIND, "data": run.data})
        yield


@contextmanager
def one_command(run: Run) -> Iterator[None]:
    """A lock on the run for the whole of a command, which does not wait; rank 0 holds it for all of a training.

    Raises:
        ValueError: when another command works on the run.
    """
    if (launched() or (0, 1))[0]:
        yield
        return
    with alone(run.root / ".command.lock", f"{run.root}: another command works on this run: {WAIT}"):
        yield


@contextmanager
def one_worker(run: Run, name: str) -> Iterator[None]:
    """A lock on a stage, which does not wait: a command, and a notebook that somebody works in, never do the same.

    None is held by ranks but the first, nor where processes share the work (`paint_set` has a lock for each shard), nor
    where only an extract is shown.

    Raises:
        ValueError: when another process works on the stage.
    """
    if run.recompute and not STAGES[name].product and (launched() or (0, 1))[0] == 0:
        with alone(run.root / f".{name}.lock", f"{run.root}: another process works on stage {name}: {WAIT}"):
            yield
    else:
        yield


def run_of_set(folder: Path) -> Run:
    """The run that a synthetic dataset belongs to, with the settings the set was made with.

    Raises:
        FileNotFoundError: when `folder` has no finished set.
        DamagedFile: when its `set.json` is none.
    """
    synthetic_set.read_manifest(folder)
    facts = synthetic_set.read_facts(folder)
    with whole(folder / "set.json"):
        profile = get_profile(facts["profile"])
    profile = replace(profile, generation=replace(profile.generation, images=facts["generation"]["images"]))
    return Run(profile, "", folder.parent, facts["seed"], recompute=True)


def before(run: Run, name: str) -> str:
    """The digest recorded by the stage that this one depends on directly.

    Raises:
        FileNotFoundError: when that is not finished.
    """
    needed = STAGES[STAGES[name].needs[-1]]
    folder = run.folder(needed.name)
    if not is_done(folder):
        raise FileNotFoundError(f"{folder}: stage {needed.name} is not finished; run notebook {needed.notebook}")
    return recorded(folder)[0]


def inputs_of(run: Run, name: str) -> dict:
    """All that a stage depends on: its own settings, the seed, and the digest of the stage before it.

    Training and validation data are inputs of the data stage; the test patients of those alone that score them.

    Raises:
        FileNotFoundError: when the stage before it is not finished.
    """
    stage = STAGES[name]
    inputs = {"settings": stage.settings(run.profile)}
    if name == "data":
        if run.data == "phantom":
            inputs |= {"seed": run.seed, "phantom": run.profile.phantom_patients}
        return inputs | {"data": digest_of_splits(run.open_data(everybody=True), "training", "validation")}
    inputs |= {"seed": run.seed, stage.needs[-1]: before(run, name)}
    if stage.scores_test:
        inputs["test data"] = digest_of_splits(run.open_data(), "testing")
    return inputs


def old_digest(run: Run, name: str) -> str:
    """The digest of a stage's inputs as earlier versions computed it; what they finished stays finished."""
    p = run.profile
    if name == "data":
        return digest(run.open_data(everybody=True).digest(), p.image_size)
    inception = STAGES["quality"].settings(p).values()
    settings = {
        "diffusion": (p.unet, p.training, p.per_view_phase),
        "generation": (p.augmentation, p.generation),
        "segmentation": (p.segmenter, p.other_segmenter),
        "samplers": (p.study,),
        "quality": tuple(inception),
        "grid": (p.grid,),
    }
    return digest(before(run, name), run.seed, *map(repr, settings.get(name, ())))


def is_current(run: Run, name: str) -> bool:
    """Whether a stage is finished, and from its present inputs."""
    folder = run.folder(name)
    return is_done(folder) and is_made_from(folder, inputs_of(run, name), lambda: old_digest(run, name))


def all_results(run: Run) -> dict[str, pd.DataFrame]:
    """The Dice table of each committed run and of this one, by name."""
    committed = {path.parent.name: read_csv(path) for path in sorted(RESULTS.glob("*/dice.csv"))}
    return committed | {run.root.name: run.table("tables", "dice")}
