"""The options that several commands share."""

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from echo.config import PROFILES
from reproduction.runs.table import PIPELINE, STUDIES


def here(path: str) -> Path:
    """A path option, with ~ expanded: no shell does it after "="; an empty one is a variable that is not set."""
    if not path:
        raise typer.BadParameter("it is empty")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~name of nobody, or a user without a home
        raise typer.BadParameter(f"{path}: {error}") from None


def expanded(text: str) -> str:
    """The same, where a path may be absent."""
    return str(here(text)) if text.startswith("~") else text


def dataset(text: str) -> str:
    """The same, where a path may be "phantom", and must not be empty."""
    here(text)
    return expanded(text)


def refuse(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Refuse options that were given on the command line and would change nothing."""
    given = [name for name in names if context.get_parameter_source(name).name == "COMMANDLINE"]
    if given:
        raise ValueError(f"--{given[0]}: {reason}")


def parse_shard(shard: str) -> tuple[int, int]:
    """(k, N) of "k/N"."""
    k, slash, n = shard.partition("/")
    if not (slash and k.isdigit() and n.isdigit()):
        raise ValueError(f"--shard is k/N, such as 0/4, not {shard!r}")
    return int(k), int(n)


ProfileName = StrEnum("ProfileName", {name: name for name in PROFILES})
StageName = StrEnum("StageName", {name: name for name in PIPELINE})
StudyName = StrEnum("StudyName", {name: name for name in STUDIES})
Layout = StrEnum("Layout", {"camus": "camus", "nnunet": "nnunet"})
Source = StrEnum("Source", {"camus": "camus", "weights": "released-weights"})
ProfileOption = Annotated[ProfileName, typer.Option(help="Sizes of everything; see echo/config.py.")]
DataOption = Annotated[str, typer.Option(help='"phantom", or the folder of a dataset.', callback=dataset)]
RunOption = Annotated[str, typer.Option(help="Run folder; by default runs/PROFILE-DATA.", callback=expanded)]
SeedOption = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of every random draw.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Move stages that were made from other inputs aside, and begin them anew.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave patients with a faulty file out; the manifest names them.")
]
PatternOption = Annotated[
    str,
    typer.Option(
        "--patient-pattern",
        help='Of an nnU-Net dataset: a case\'s patient is its name up to this; "$": each case. [default: _\\d+$]',
    ),
]
SetArgument = Annotated[Path, typer.Argument(help="A finished synthetic dataset: runs/NAME/synthetic.", parser=here)]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, of a run under way or finished.", parser=here)]
DropOption = Annotated[float, typer.Option(help="Leave out the worst so many %, after `fidelity`.")]
