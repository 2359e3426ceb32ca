"""The command line: `python -m echo --help`."""

import logging
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from reproduction import RESULTS, need_checkout
from reproduction.runs.one_line import DEBUG, Commands
from reproduction.runs.options import (
    DataOption,
    DropOption,
    FreshOption,
    Layout,
    PatternOption,
    ProfileName,
    ProfileOption,
    RunArgument,
    RunOption,
    SeedOption,
    SetArgument,
    SkipOption,
    Source,
    StageName,
    StudyName,
    expanded,
    here,
    parse_shard,
    refuse,
)
from reproduction.runs.table import STAGES, STUDIES

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


def stop_kernels_too() -> None:
    """SIGTERM ends a notebook's kernel too, as Ctrl-C does, which a shell's background jobs start out ignoring."""

    def stop(number: int, frame: object) -> None:
        logging.disable(logging.CRITICAL)  # what nbclient and asyncio log of a kernel that is gone
        signal.default_int_handler(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def hand_on(fresh: bool, skip_bad: bool = False, patients: str = "") -> None:
    """What --fresh, --skip-bad and --patient-pattern ask for, in this process and those that it starts."""
    from reproduction.runs.inputs import FRESH, PATIENTS, SKIP_BAD

    for name, wanted in ((FRESH, "1" * fresh), (SKIP_BAD, "1" * skip_bad), (PATIENTS, patients)):
        os.environ.pop(name, None)
        if wanted:
            os.environ[name] = wanted


@app.command()
def reproduce(
    profile: ProfileOption = ProfileName.laptop,
    data: DataOption = "phantom",
    run: RunOption = "",
    seed: SeedOption = 0,
    only: Annotated[StageName | None, typer.Option(help="One stage alone; those before it must be finished.")] = None,
    fresh: FreshOption = False,
    skip_bad: SkipOption = False,
    patient_pattern: PatternOption = "",
) -> None:
    """Run the notebooks from raw frames to the Dice table. Called again, it resumes: finished stages are skipped."""
    from reproduction.runs import notebooks
    from reproduction.runs.publish import summary

    stop_kernels_too()
    hand_on(fresh, skip_bad, patient_pattern)
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
    patient_pattern: PatternOption = "",
) -> None:
    """Train the diffusion model without a notebook, preparing its data first. Called again, it resumes.

    On several GPUs: torchrun --standalone --nproc_per_node N -m -- echo train ...
    """
    from echo.device import launched
    from reproduction.runs import stages
    from reproduction.runs.run import one_command, open_run

    hand_on(fresh, skip_bad, patient_pattern)
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
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Argument(help="With --pretrained: the folder of the new dataset.", show_default=False, parser=here),
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
    """Paint the synthetic dataset of a run whose diffusion model is trained, or a dataset with --pretrained. Called
    again, it resumes.

    The set is the same bit for bit however it is divided: by --shard over independent jobs, in any order, or by
    torchrun --standalone --nproc_per_node N -m -- echo generate ...
    """
    from dataclasses import replace

    from echo.device import launched
    from reproduction.runs import stages
    from reproduction.runs.run import open_run

    if pretrained:
        refuse(context, ("profile", "data", "run", "shard"), "--pretrained paints without a run, by its own weights")
        paint_without_data(pretrained, directory, images or 100, seed)
        return
    if directory:
        raise ValueError(f"{directory}: a folder is for --pretrained; the set of a run lies in it, which --run names")
    k, n = parse_shard(shard) if shard else launched() or (0, 1)
    opened = open_run(profile.value, data, run, seed, recompute=True)
    folder = opened.folder("generation")
    stages.check_needs(opened, "generation")
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
        raise ValueError("--pretrained needs the folder of the new dataset: generate --pretrained camus DIRECTORY")
    need_checkout()
    table = paint_pretrained(PRETRAINED[name], CPU, directory, images, seed)
    typer.echo(f"{directory}: {len(table)} images of {table['patient'].nunique()} patients, with label maps")


@app.command()
def verify(
    folder: SetArgument,
    regenerate: Annotated[list[str], typer.Option(help="Paint this image again (an id; may be repeated).")] = [],  # noqa: B006
    sample: Annotated[int, typer.Option(min=0, help="Paint so many images again, drawn at random.")] = 0,
    seed: SeedOption = 0,
) -> None:
    """Hash a synthetic dataset again: a line for each file that is missing, changed or too many; exit status 1 on any.

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
    target: Annotated[Path, typer.Argument(help="A new folder; for nnU-Net, named DatasetNNN_Name.", parser=here)],
    drop_worst: DropOption = 0.0,
    layout: Annotated[
        Layout, typer.Option("--format", help="camus: its NIfTI layout; nnunet: a raw dataset of nnU-Net's version 2.")
    ] = Layout.camus,
    with_real: Annotated[
        bool, typer.Option("--with-real", help="nnunet: with the run's real training and validation frames too.")
    ] = False,
) -> None:
    """Write a synthetic dataset in the layout of a real one, for any tool that reads that; there are no test cases."""
    from reproduction.runs.run import run_of_set
    from reproduction.synthesis.export import export_camus, export_nnunet

    if layout is Layout.nnunet:
        real = run_of_set(folder.resolve()).load_frames() if with_real else None
        typer.echo(f"{target}: {export_nnunet(folder.resolve(), target.resolve(), drop_worst, real)} cases")
        return
    if with_real:
        raise ValueError("--with-real is for --format nnunet: CAMUS's layout has a patient for each four images")
    lacking = export_camus(folder, target, drop_worst)
    typer.echo(f"{target}: written; {lacking} patients lack a view or phase that others have")


@app.command()
def publish(run: RunArgument) -> None:
    """Copy the committable extract of a run (numbers, logs, manifest; phantom weights and figures)."""
    from reproduction.runs.publish import publish as copy_extract

    need_checkout()
    typer.echo("\n".join(map(str, copy_extract(run.resolve()))))


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="The folder of a dataset.", parser=here)],
    sheet: Annotated[str, typer.Option(help="Contact sheet; by default NAME_contact_sheet.", callback=expanded)] = "",
    profile: ProfileOption = ProfileName.cpu,
    patient_pattern: PatternOption = "",
) -> None:
    """Read a whole dataset: what is in it, with a contact sheet; or every fault, a line each, and exit status 1."""
    from reproduction.datasets.prepare import PATTERN, open_dataset
    from reproduction.runs.check import check as read_all

    raw = open_dataset(data, patient_pattern or PATTERN)
    typer.echo("\n".join(read_all(raw, Path(sheet), profile.value)))


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
