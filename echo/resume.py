"""What survives a kill: files written whole or not at all, digests, checkpoints of trainings, signals."""

import hashlib
import json
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:  # pandas takes half a second, and the command line needs these functions alone
    import pandas as pd


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well; its folder is made.

    The temporary name keeps the suffix, since libraries choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name}")  # process numbers repeat between machines
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` in UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_csv(path: Path, table: "pd.DataFrame", **options) -> None:
    """A table as CSV without its index, atomically; `options` as for `DataFrame.to_csv`."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, **options)


class DamagedFile(ValueError):
    """A file of a run is truncated, or another program's; the message is one line with the file and what to do."""

    def __init__(
        self, path: Path, reason: object, remedy: str = "put a whole copy back, or remove it to have it made again"
    ):
        super().__init__(" ".join(f"{path}: damaged ({reason}): {remedy}".split()))


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Whatever a library says of a damaged file in this block becomes `DamagedFile`; a missing file stays missing."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, DamagedFile):
        raise
    except Exception as error:  # json, zipfile, zlib, numpy and pandas share no narrower class
        raise DamagedFile(path, f"{type(error).__name__}: {error}") from None


def read_json(path: Path) -> object:
    """The value of a JSON file.

    Raises:
        DamagedFile: when it is none.
    """
    with whole(path):
        return json.loads(path.read_text(encoding="utf-8"))


TEXT = dict.fromkeys(("id", "patient", "case", "condition"), "str")  # of a table: names, also those of digits alone


def read_csv(path: Path, **options) -> "pd.DataFrame":
    """A table that `write_csv` wrote; `options` as for `pandas.read_csv`.

    Raises:
        DamagedFile: when it is none, or its last line was cut off.
    """
    import pandas as pd

    with whole(path):
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("its last line is cut off")
        return pd.read_csv(path, **{"dtype": TEXT} | options)


def digest(*values: object) -> str:
    """Sixteen hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Checkpoint:
    """A file with all that a training needs to go on to the bit: the states of its parts, and plain values.

    Args:
        path: of the file.
        parts: by name, what has `state_dict` and `load_state_dict`; None for a part that this training does without.
    """

    def __init__(self, path: Path, **parts: object):
        self.path, self.parts = path, parts

    def save(self, **values: object) -> None:
        """Write the parts' states and these values, atomically."""
        import torch  # takes a second, and the command line needs other functions of this module alone

        states = {name: part and part.state_dict() for name, part in self.parts.items()}
        with atomic(self.path) as temporary:
            torch.save(states | values, temporary)

    def load(self) -> dict[str, object]:
        """Give each part its state, and return the values; an empty dict where there is no checkpoint yet.

        Raises:
            DamagedFile: when the file is cut, changed, or of another training.
        """
        import torch

        for leftover in self.path.parent.glob(f".*.{self.path.name}"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
        if not self.path.exists():
            return {}
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch.load compares no checksums
                if changed := archive.testzip():
                    raise ValueError(f"{changed} has another checksum")
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                found = state.pop(name)
                if part is not None and found is not None:
                    part.load_state_dict(found)
            state["step"]
        except Exception as error:  # torch.load and load_state_dict raise whatever they meet
            reason = f"it holds no {error}" if isinstance(error, KeyError) else str(error)[:200] or type(error).__name__
            raise DamagedFile(self.path, reason, "remove it to begin this training anew") from None
        return state


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets within this block, so that a step is finished and saved first.

    A Ctrl-C two seconds later does not wait; signals come in pairs where a launcher passes on what its processes got
    too. They reach the main thread alone; in any other the event is never set.
    """
    event, previous, first = threading.Event(), {}, 0.0

    def ask(number: int, _frame: object) -> None:
        nonlocal first
        if not event.is_set():
            first = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - first > 2:
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
