"""Where things live, and how they are written: atomically, and skipped when their inputs are unchanged."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
PAPER_RESULTS = REPOSITORY / "data" / "paper_results.csv"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well; its folder is made.

    The temporary name keeps the suffix, since libraries choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def digest(*values: object) -> str:
    """Sixteen hexadecimal digits that identify JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_done(stage: Path, inputs: str) -> bool:
    """Whether the stage in this folder was finished from these inputs (a digest)."""
    stamp = stage / "done.json"
    return stamp.exists() and json.loads(stamp.read_text())["inputs"] == inputs


def mark_done(stage: Path, inputs: str) -> None:
    """Record that the stage in this folder is finished from these inputs."""
    write_json(stage / "done.json", {"inputs": inputs})
