"""How a command ends: every error is one line."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import typer
from typer.core import TyperGroup

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
        if interrupted(error):
            leave("interrupted; the same command goes on from here", 130)
        if type(error).__module__.partition(".")[0] in ("typer", "click"):  # its own: help, a wrong option, an exit
            raise
        if os.environ.get(DEBUG):
            traceback.print_exc()
        lines = [" ".join(part.split()) for part in str(error).splitlines()]
        line = ("\n  " if type(error).__name__ == "DataFaults" else " ").join(lines)  # one line for each fault
        if not isinstance(error, EXPECTED) and type(error).__name__ != "NotebookError":
            line = f"{type(error).__name__}: {line} (a traceback with --debug)"
        leave(f"error: {line}", 1)


def check_environment() -> None:
    """Name the environment variable where a library that reads it while it loads refuses its value.

    Raises:
        ValueError: in one line.
    """
    for module, prefix in (("tqdm", "TQDM_"), ("matplotlib", "MPLBACKEND")):
        if given := [f"{name}={value}" for name, value in os.environ.items() if name.startswith(prefix)]:
            try:
                import_module(module)
            except ValueError as error:
                raise ValueError(f"{', '.join(given)} in the environment: {error}") from None


def interrupted(error: BaseException | None) -> bool:
    """Whether an interruption is behind an error: compiled modules that are loading turn it into an ImportError."""
    return isinstance(error, KeyboardInterrupt) or (
        error is not None and interrupted(error.__cause__ or error.__context__)
    )


def leave(line: str, status: int) -> None:
    """End the command with one line on stderr."""
    typer.echo(line, err=True)
    raise typer.Exit(status) from None


class Commands(TyperGroup):
    """All commands, with `plain_errors`."""

    def invoke(self, ctx: typer.Context) -> object:
        with plain_errors():
            check_environment()
            return super().invoke(ctx)
