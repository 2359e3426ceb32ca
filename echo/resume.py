"""What survives a kill: files written whole or not at all, digests of inputs, stages that are begun and finished."""

import hashlib
import json
import shutil
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


def read_json(path: Path) -> object:
    """The value of a JSON file."""
    return json.loads(path.read_text())


def digest(*values: object) -> str:
    """Sixteen hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def begin(stage: Path, inputs: str, parts: bool = False) -> bool:
    """Open a stage's folder for work from these inputs (a digest); False when it is finished already.

    What an interrupted run left there is kept if it came from the same inputs, and removed if not; all of it is kept
    where the stage has `parts` that begin by themselves, each from its own inputs.
    """
    marker = stage / "inputs.json"
    if marker.exists() and read_json(marker) != inputs:
        if parts:
            (stage / "done").unlink(missing_ok=True)
        else:
            old = stage.with_name(f".{stage.name}.old")  # renamed first: a kill leaves all of it, or nothing
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(stage.rename(old))
    if is_done(stage):
        return False
    write_json(marker, inputs)
    return True


def is_done(stage: Path) -> bool:
    """Whether the stage in this folder is finished."""
    return (stage / "done").exists()


def finish(stage: Path) -> None:
    """Mark the stage in this folder as finished."""
    (stage / "done").touch()
