"""What survives a kill: files written whole or not at all, and the digest of what they were made from."""

import hashlib
import json
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

    def __init__(self, path: Path, reason: object):
        line = " ".join(
            f"{path}: damaged ({reason}): put a whole copy back, or remove it to have it made again".split()
        )
        super().__init__(" ".join(line.split()))


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


def read_csv(path: Path, **options) -> "pd.DataFrame":
    """A table that `write_csv` wrote; `options` as for `pandas.read_csv`.

    Raises:
        DamagedFile: when it is none, or its last line was cut off.
    """
    import pandas as pd

    with whole(path):
        if not path.read_bytes().endswith(b"\n"):
            raise ValueError("its last line is cut off")
        return pd.read_csv(path, **options)


def digest(*values: object) -> str:
    """Sixteen hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
