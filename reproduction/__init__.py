"""The apparatus: how the paper's method (`echo`) is run, checked, compared and shown."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "docs" / "results.md"]  # which show the tables of published runs
FIGURES = REPOSITORY / "figures"
NOTEBOOKS = REPOSITORY / "notebooks"
PAPER_RESULTS = REPOSITORY / "data" / "paper_results.csv"
ADDRESS = "https://github.com/echo-from-noise/echo-from-noise"


def need_checkout() -> None:
    """Notebooks, committed results and the paper's numbers are files of the repository, not of the installed package.

    Raises:
        FileNotFoundError: when the package was installed without them; the message says what to do.
    """
    for path in (NOTEBOOKS, RESULTS, PAPER_RESULTS):
        if not path.exists():
            raise FileNotFoundError(
                f"{path.name} is not installed with the package: run this in a clone of {ADDRESS}, after "
                "`pip install --editable .`"
            )


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Hold the file `lock` within this block, so that no second process does the same work; its folder is made.

    Raises:
        ValueError: with the message `busy`, when another process holds it; this one does not wait.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, blocking=False)
    try:
        held.acquire()
    except Timeout:
        raise ValueError(busy) from None
    try:
        yield
    finally:
        held.release()


@cache
def writable(folder: Path) -> Path:
    """`folder`, a place below the repository; or the same place below ECHO_CACHE (by default
    ~/.cache/echo-from-noise) where the repository cannot be written, or is not a clone. A line says so, once.

    Raises:
        PermissionError: when that cannot be written either.
    """
    try:
        if not NOTEBOOKS.exists():
            raise OSError
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError
    except OSError:
        cache = os.environ.get("ECHO_CACHE") or "~/.cache/echo-from-noise"
        try:
            elsewhere = Path(cache).expanduser() / folder.relative_to(REPOSITORY)
            elsewhere.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # RuntimeError: a user without a home
            reason = f"neither {folder} nor {cache} can be written: give --run, or set ECHO_CACHE to a folder"
            raise PermissionError(reason) from None
        print(f"{folder} cannot be written: {elsewhere} is used", file=sys.stderr)
        return elsewhere
    return folder
