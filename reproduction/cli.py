"""The command line: `python -m echo --help`."""

import logging
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from echo.config import PROFILES
from reproduction import RESULTS, need_checkout
from reproduction.runs.table import PIPELINE, STAGES, STUDIES

EXPECTED = (ValueError, OSError, FloatingPointError)  # what a user can mend; their messages say what
DEBUG = "ECHO_DEBUG"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Every error is one line and exit status 1, with a traceback where it is asked for; an interruption is 130."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        leave(f"interrupted{f': {stopped}' if str(stopped) else ''}; the same command goes on from here", 130)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("typer", "click"):  # its own: help, a wrong option, an exit
            raise
        if os.environ.get(DEBUG):
            traceback.print_exc()
        lines = [" ".join(part.split()) for part in str(error).splitlines()]
        line = ("\n  " if type(error).__name__ == "DataFaults" else " ").join(lines)  # one line for each fault
        if not isinstance(error, EXPECTED) and type(error).__name__ != "NotebookError":
            line = f"{type(error).__name__}: {line} (a traceback with --debug)"
        leave(f"error: {line}", 1)


def leave(line: str, status: int) -> None:
    """End the command with one line on stderr."""
    typer.echo(line, err=True)
    raise typer.Exit(status) from None


class Commands(TyperGroup):
    """All commands, with `plain_errors`."""

    def invoke(self, ctx: typer.Context) -> object:
        with plain_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="Echo from Noise: from raw echocardiograms to the Dice table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Print an error's traceback.")] = False) -> None:
    """Echo from Noise: from raw echocardiograms to the Dice table."""
    if debug:
        os.environ[DEBUG] = "1"


def main() -> None:
    """The program `python -m echo`."""
    app(prog_name="python -m echo")


def here(path: str) -> Path:
    """A path option, with ~ expanded: no shell does it after "="."""
    return Path(path).expanduser()


def expanded(text: str) -> str:
    """The same, where a path may be absent or "phantom"."""
    return str(here(text)) if text.startswith("~") else text


ProfileName = StrEnum("ProfileName", {name: name for name in PROFILES})
StageName = StrEnum("StageName", {name: name for name in PIPELINE})
StudyName = StrEnum("StudyName", {name: name for name in STUDIES})
Source = StrEnum("Source", {"camus": "camus", "weights": "released-weights"})
ProfileOption = Annotated[ProfileName, typer.Option(help="Sizes of everything; see echo/config.py.")]
DataOption = Annotated[str, typer.Option(help='"phantom", or the folder of a dataset.', callback=expanded)]
RunOption = Annotated[str, typer.Option(help="Run folder; by default runs/PROFILE-DATA.", callback=expanded)]
SeedOption = Annotated[int, typer.Option(help="Seed of every random draw.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Move stages that were made from other inputs aside, and begin them anew.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave patients with a faulty file out; the manifest names them.")
]
SetArgument = Annotated[Path, typer.Argument(help="A finished synthetic set: runs/NAME/synthetic.", parser=here)]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, of a run under way or finished.", parser=here)]
DropOption = Annotated[float, typer.Option(help="Leave out the worst so many %, after `fidelity`.")]


def stop_kernels_too() -> None:
    """SIGTERM ends a notebook's kernel too, as Ctrl-C does, which a shell's background jobs start out ignoring."""

    def stop(number: int, frame: object) -> None:
        logging.disable(logging.CRITICAL)  # what nbclient and asyncio log of a kernel that is gone
        signal.default_int_handler(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def hand_on(fresh: bool, skip_bad: bool = False) -> None:
    """What --fresh and --skip-bad ask for, in this process and those that it starts."""
    from reproduction.runs.inputs import FRESH, SKIP_BAD

    for name, wanted in ((FRESH, fresh), (SKIP_BAD, skip_bad)):
        os.environ.pop(name, None)
        if wanted:
            os.environ[name] = "1"


@app.command()
def reproduce(
    profile: ProfileOption = ProfileName.laptop,
    data: DataOption = "phantom",
    run: RunOption = "",
    seed: SeedOption = 0,
    only: Annotated[StageName | None, typer.Option(help="One stage alone; those before it must be finished.")] = None,
    fresh: FreshOption = False,
    skip_bad: SkipOption = False,
) -> None:
    """Run the notebooks from raw frames to the Dice table. Called again, it resumes: finished stages are skipped."""
    from reproduction.runs import notebooks
    from reproduction.runs.publish import summary

    stop_kernels_too()
    hand_on(fresh, skip_bad)
    root = notebooks.reproduce(profile.value, data, run, seed, only.value if only else None)
    if only in (None, StageName.tables):
        typer.echo(summary(root))


@app.command()
def study(
    name: Annotated[
        StudyName,
        typer.Argument(help="; ".join(f"{n}: {STAGES[n].study} (notebook {STAGES[n].notebook[:2]})" for n in STUDIES)),
    ],
    profile: ProfileOption = ProfileName.laptop,
    data: DataOption = "phantom",
    run: RunOption = "",
    seed: SeedOption = 0,
    fresh: FreshOption = False,
) -> None:
    """Run a study's notebook on a finished run. Called again, it resumes."""
    from reproduction.runs import notebooks

    stop_kernels_too()
    hand_on(fresh)
    root = notebooks.reproduce(profile.value, data, run, seed, name.value)
    typer.echo(root / STAGES[name.value].folder)


@app.command()
def train(
    profile: ProfileOption = ProfileName.laptop,
    data: DataOption = "phantom",
    run: RunOption = "",
    seed: SeedOption = 0,
    fresh: FreshOption = False,
    skip_bad: SkipOption = False,
) -> None:
    """Train the diffusion model without a notebook, preparing its data first. Called again, it resumes.

    On several GPUs: torchrun --standalone --nproc_per_node N -m -- echo train ...
    """
    from echo.device import launched
    from reproduction.runs import stages
    from reproduction.runs.run import one_command, open_run

    hand_on(fresh, skip_bad)
    opened = open_run(profile.value, data, run, seed, recompute=True)
    with one_command(opened):
        stages.complete(opened, "diffusion")
    rank, _processes = launched() or (0, 1)
    if rank == 0:
        typer.echo(opened.folder("diffusion"))


@app.command()
def trace(
    table: Annotated[int, typer.Argument(help="1 (Dice), 2 (by view, phase, quality) or 3 (mm, volumes, EF).")],
    row: Annotated[str, typer.Argument(help='Such as "LV endo"; an unknown one lists those there are.')],
    column: Annotated[str, typer.Argument(help="A training set, such as synthetic-only.")],
    run: Annotated[Path, typer.Option(help="A run folder, or its extract in results/.", parser=here)] = (
        RESULTS / "laptop-phantom"
    ),
) -> None:
    """Where a number in a table comes from: its run, files, columns and command; and the number, computed again."""
    from reproduction.runs.trace import trace as origin

    need_checkout()
    typer.echo(origin(run.resolve(), table, row, column))


@app.command()
def generate(
    directory: Annotated[
        Path | None, typer.Argument(help="With --pretrained: the folder of the new data set.", show_default=False)
    ] = None,
    profile: ProfileOption = ProfileName.laptop,
    data: DataOption = "phantom",
    run: RunOption = "",
    seed: SeedOption = 0,
    shard: Annotated[
        str, typer.Option(help="k/N: every N-th batch from the k-th on. Under torchrun: its rank.", show_default=False)
    ] = "",
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Another number of training images, as a set of its own: synthetic-IMAGES in the run."
        ),
    ] = None,
    pretrained: Annotated[
        str,
        typer.Option(
            help='"camus": paint labelled echoes into DIRECTORY, in CAMUS\'s layout, with published weights. No run '
            "and no data are needed.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Paint the synthetic set of a run whose diffusion model is trained, or a data set with --pretrained. Called again,
    it resumes.

    The set is the same bit for bit however it is divided: by --shard over independent jobs, in any order, or by
    torchrun --standalone --nproc_per_node N -m -- echo generate ...
    """
    from dataclasses import replace

    from echo.device import launched
    from reproduction.runs import stages
    from reproduction.runs.run import open_run

    if pretrained:
        paint_without_data(pretrained, directory, images or 100, seed)
        return
    k, n = parse_shard(shard) if shard else launched() or (0, 1)
    opened = open_run(profile.value, data, run, seed, recompute=True)
    folder = opened.folder("generation")
    if images:
        folder = opened.root / f"synthetic-{images}"
        changed = replace(opened.profile, generation=replace(opened.profile.generation, images=images))
        stages.paint_set(replace(opened, profile=changed), folder, (k, n))
    else:
        stages.generation_stage(opened, (k, n))
    complete = (folder / "manifest.csv").exists()
    typer.echo(folder if complete else f"{folder}: shard {k}/{n} is painted, others are not")


def paint_without_data(name: str, directory: Path | None, images: int, seed: int) -> None:
    """`generate --pretrained`."""
    from echo.config import CPU
    from reproduction.synthesis.pretrained import PRETRAINED, paint_pretrained

    if name not in PRETRAINED:
        raise ValueError(f"no pretrained weights {name!r}: there are {', '.join(PRETRAINED)}")
    if directory is None:
        raise ValueError("--pretrained needs the folder of the new data set: generate --pretrained camus DIRECTORY")
    table = paint_pretrained(PRETRAINED[name], CPU, directory, images, seed)
    typer.echo(f"{directory}: {len(table)} images of {table['patient'].nunique()} patients, with label maps")


def parse_shard(shard: str) -> tuple[int, int]:
    """(k, N) of "k/N"."""
    k, slash, n = shard.partition("/")
    if not (slash and k.isdigit() and n.isdigit()):
        raise ValueError(f"--shard is k/N, such as 0/4, not {shard!r}")
    return int(k), int(n)


@app.command()
def verify(
    folder: SetArgument,
    regenerate: Annotated[list[str], typer.Option(help="Paint this image again (an id; may be repeated).")] = [],  # noqa: B006
    sample: Annotated[int, typer.Option(help="Paint so many images again, drawn at random.")] = 0,
    seed: SeedOption = 0,
) -> None:
    """Hash a synthetic set again: a line for each file that is missing, changed or too many; exit status 1 on any.

    An image painted again must be the same bit for bit, on the device that painted the set.
    """
    from reproduction.runs.publish import check_set

    faults = check_set(folder.resolve(), regenerate, sample, seed)
    typer.echo("\n".join(faults) if faults else f"{folder}: every file is what was written")
    raise typer.Exit(1 if faults else 0)


@app.command()
def fidelity(folder: SetArgument) -> None:
    """Score how well each image shows its label map, by the run's segmenter trained on real images: fidelity.csv."""
    from reproduction.runs import stages

    table = stages.score_fidelity(folder.resolve())
    typer.echo(f"{folder / 'fidelity.csv'}: mean Dice {100 * table['mean'].mean():.1f} %")


@app.command()
def export(
    folder: SetArgument,
    target: Annotated[Path, typer.Argument(help="A new folder.", parser=here)],
    drop_worst: DropOption = 0.0,
) -> None:
    """Write a synthetic set in CAMUS's NIfTI layout, for any tool that reads CAMUS; the testing list is empty."""
    from reproduction.synthesis.synthetic_set import export_camus

    lacking = export_camus(folder, target, drop_worst)
    typer.echo(f"{target}: written; {lacking} patients lack a view or phase that others have")


@app.command()
def publish(run: RunArgument) -> None:
    """Copy the committable extract of a run (numbers, logs, manifest; phantom weights and figures)."""
    from reproduction.runs.publish import publish as copy_extract

    need_checkout()
    typer.echo("\n".join(map(str, copy_extract(run.resolve()))))


@app.command()
def fetch(
    source: Annotated[
        Source, typer.Argument(help="camus: its NIfTI release; released-weights: what the paper's authors released.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put it.", parser=here)],
    accept_license: Annotated[bool, typer.Option("--accept-license", help="CAMUS's: CC BY-NC-SA 4.0.")] = False,
    url: Annotated[
        str, typer.Option(help="A mirror; by default the addresses in reproduction/datasets/fetch.py.")
    ] = "",
) -> None:
    """Download CAMUS, and open every frame once; or the authors' weights. Called again, it goes on."""
    from reproduction.datasets import fetch as download

    if source is Source.weights:
        found = download.fetch_weights(folder, url or download.WEIGHTS_URL)
        typer.echo("\n".join(map(str, found)) or f"{folder}: the record holds no checkpoint (*.pt)")
    elif accept_license:
        typer.echo(download.describe(download.fetch_camus(folder, url or download.CAMUS_URL)))
    else:
        raise ValueError(download.CAMUS_LICENCE)


@app.command()
def status(run: RunArgument) -> None:
    """Print how far each stage is, how fast it goes, and its last losses: from the run's files alone."""
    from reproduction.runs.status import status as look

    typer.echo(look(run).to_string(index=False))


if __name__ == "__main__":
    main()
