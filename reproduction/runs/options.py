"""The options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from echo.config import PROFILES
from reproduction.runs.table import PIPELINE, STUDIES


def here(path: str) -> Path:
    """A path option, with ~ expanded: no shell does it after "="."""
    return Path(path).expanduser()


def expanded(text: str) -> str:
    """The same, where a path may be absent or "phantom"."""
    return str(here(text)) if text.startswith("~") else text


ProfileName = StrEnum("ProfileName", {name: name for name in PROFILES})
StageName = StrEnum("StageName", {name: name for name in PIPELINE})
StudyName = StrEnum("StudyName", {name: name for name in STUDIES})
Layout = StrEnum("Layout", {"camus": "camus", "nnunet": "nnunet"})
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
PatternOption = Annotated[
    str,
    typer.Option(
        "--patient-pattern",
        help='Of an nnU-Net dataset: a case\'s patient is its name up to this; "$": each case. [default: _\\d+$]',
    ),
]
SetArgument = Annotated[Path, typer.Argument(help="A finished synthetic set: runs/NAME/synthetic.", parser=here)]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, of a run under way or finished.", parser=here)]
DropOption = Annotated[float, typer.Option(help="Leave out the worst so many %, after `fidelity`.")]
