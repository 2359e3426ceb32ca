"""What survives a kill: files written whole or not at all, digests, checkpoints of trainings, signals."""

import hashlib
import json
import signal
import threading
import time
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:  # pandas takes half a second, and the command line needs these functions alone
    import pandas as pd


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well; its folder is made.

    The temporary name keeps the suffix, since libraries choose the format by it.

    Raises:
        OSError: naming `path`, also where the system does not, as for a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name}")  # process numbers repeat between machines
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
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


class Record(dict):
    """A JSON object of a file; a key that it has not is a fault of that file."""

    path: Path

    def __missing__(self, key: str) -> None:
        raise DamagedFile(self.path, f"it has no {key!r}")


def read_json(path: Path, shape: object = object) -> object:
    """The value of a JSON file; each object in it is a `Record`.

    Args:
        shape: what it must be: a type, [shape of each item], or {key: shape}; a key that ends in "?" may be absent, and
            "*" stands for every key.

    Raises:
        DamagedFile: when it is none, or has another shape.
    """

    def record(pairs: dict) -> Record:
        made = Record(pairs)
        made.path = path
        return made

    with whole(path):
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=record)
        check_shape(value, shape, "the whole")
        return value


def check_shape(value: object, shape: object, name: str) -> None:
    """Raise ValueError where a JSON value has another shape (`read_json`)."""
    kind = shape if isinstance(shape, type | UnionType) else type(shape)
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {str(value)[:40]!r}, of another kind than a run's")
    if isinstance(shape, list):
        for item in value:
            check_shape(item, shape[0], f"an item of {name}")
    if isinstance(shape, dict):
        for key, inner in shape.items():
            known = key.removesuffix("?")
            if key == known != "*" and key not in value:
                raise ValueError(f"it has no {key!r}")
            for k in value if key == "*" else {known} & value.keys():
                check_shape(value[k], inner, repr(k))


NAMES = (  # columns of a table that are text, also where it is digits alone
    *("id", "patient", "case", "view", "phase", "condition", "quality", "split", "sha256"),
    *("train", "structure", "processing"),
)


def read_csv(path: Path, needs: Collection[str] = (), **options) -> "pd.DataFrame":
    """A table that `write_csv` wrote; `options` as for `pandas.read_csv`. What is missing is an empty cell alone: "NA"
    and "None" may be names.

    Args:
        needs: columns that it must have, in at least one row; all but NAMES hold numbers.

    Raises:
        DamagedFile: when it is none, lacks what it needs, or its last line was cut off.
    """
    import pandas as pd

    with whole(path):
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("its last line is cut off")
        usual = {"dtype": dict.fromkeys(NAMES, "str"), "keep_default_na": False, "na_values": [""]}
        table = pd.read_csv(path, **usual | options)
        if lacking := [name for name in needs if name not in table]:
            raise ValueError(f"it has no column {lacking[0]!r}")
        if needs and table.empty:
            raise ValueError("it has no row")
        for name in set(needs).difference(NAMES):
            table[name] = pd.to_numeric(table[name])
        return table


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
        """Write the parts' states and these values, atomically; and the rows of `log` as `log.csv` beside them."""
        import pandas as pd
        import torch  # takes a second, and the command line needs other functions of this module alone

        states = {name: part and part.state_dict() for name, part in self.parts.items()}
        with atomic(self.path) as temporary:
            torch.save(states | values, temporary)
        write_csv(self.path.with_name("log.csv"), pd.DataFrame(values["log"]))

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
