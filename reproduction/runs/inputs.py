"""What a stage was made from: recorded when it begins, compared when it is opened again, and never thrown away."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from echo.resume import DamagedFile, digest, read_json, write_json
from reproduction.datasets.errors import DataError
from reproduction.datasets.facts import read_text
from reproduction.datasets.prepare import Source

FRESH = "ECHO_FRESH"  # --fresh sets it, and the kernels of notebooks and the ranks of a training inherit it
SKIP_BAD = "ECHO_SKIP_BAD"  # and --skip-bad this
PATIENTS = "ECHO_PATIENTS"  # and --patient-pattern this


READ = re.compile(r"_[24]CH_E[DS](_gt)?\.(nii(\.gz)?|mhd|z?raw)")
FACTS = re.compile(r"^\s*(EF|LVef|Image[ _]?Quality)\s*[:=]\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)


class OtherInputs(ValueError):
    """A stage or training that is there was made from other inputs; the message is one line that names them."""


def is_done(folder: Path) -> bool:
    """Whether the stage in this folder is finished."""
    return (folder / "done").exists()


def finish(folder: Path) -> None:
    """Mark the stage in this folder as finished."""
    (folder / "done").touch()


def recorded(folder: Path) -> tuple[str, dict | None]:
    """The digest of the inputs that a stage or training was made from, and these inputs.

    Earlier versions recorded the digest alone; the inputs are None then.

    Raises:
        FileNotFoundError: when it has not begun.
        DamagedFile: when `inputs.json` is none.
    """
    path = folder / "inputs.json"
    held = read_json(path)
    if isinstance(held, str):
        return held, None
    if isinstance(held, dict) and isinstance(held.get("digest"), str) and isinstance(held.get("inputs"), dict):
        return held["digest"], held["inputs"]
    raise DamagedFile(path, "it does not hold the inputs of a stage")


def is_made_from(folder: Path, inputs: dict, old: Callable[[], str]) -> bool:
    """Whether what is in `folder` was made from these inputs.

    Args:
        old: their digest as earlier versions computed it, for what these left.
    """
    held, readable = recorded(folder)
    return held == (old() if readable is None else digest(inputs))


def digest_of_splits(raw: Source, *splits: str) -> str:
    """Identifies what is read of these splits' patients: their frames and labels, in the order of the lists, and the
    quality and ejection fraction of their cfg. Other text in these files changes nothing. (Of CAMUS's layout; datasets
    of nnU-Net's have a digest of their own.) What cannot be read is left out: the data stage reports it.
    """
    if raw.source != "camus":
        return raw.digest(*splits)
    found = []
    for split in splits:
        patients = []
        with suppress(DataError):  # of a split that is not defined
            patients = raw.patients(split)
        for patient in patients:
            if not os.access(raw._folders[patient], os.R_OK | os.X_OK):
                continue
            files = sorted(p for p in raw._folders[patient].iterdir() if p.is_file() and os.access(p, os.R_OK))
            found += [(p.name, sha256(p.read_bytes()).hexdigest()) for p in files if READ.search(p.name)]
            texts = [read_text(p).replace("\r\n", "\n") for p in files if p.suffix == ".cfg"]
            found += [FACTS.findall(text) for text in texts]
        found.append(split)
    return digest(found)


def flat(value: object, name: str = "") -> dict[str, object]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}" if name else key).items()}


def differences(then: dict, now: dict) -> dict[str, str]:
    """What differs between two records of inputs: name -> "A, now B"."""
    before, after = flat(then), flat(json.loads(json.dumps(now)))
    names = [name for name in [*after, *(n for n in before if n not in after)] if before.get(name) != after.get(name)]
    return {name: f"{before.get(name, 'none')}, now {after.get(name, 'none')}" for name in names}


def move_aside(folder: Path) -> Path:
    """Rename a folder to the first free `NAME.old-1`, `NAME.old-2`, ..., say so, and return the new place."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"{folder}: moved aside to {aside}", flush=True)
    return aside


def begin(
    folder: Path,
    inputs: dict,
    old: Callable[[], str] = str,
    has_parts: bool = False,
    disposable: bool = False,
) -> bool:
    """Open the folder of a stage, or of one training of it, for work from these inputs; False when it is finished.

    What an interrupted run left there is kept when it came from the same inputs.

    Args:
        inputs: all that the result depends on, JSON-able and readable.
        old: `is_made_from`.
        has_parts: the stage consists of trainings that begin by themselves, each from its own inputs: only its mark
            of being finished is removed where its own settings are others.
        disposable: the folder is a cache, made again in seconds.

    Raises:
        OtherInputs: when the folder holds work from other inputs, unless ECHO_FRESH is set: it is moved aside then.
    """
    record = compare(folder, inputs, old, has_parts, disposable) or {"digest": digest(inputs), "inputs": inputs}
    if is_done(folder):
        return False
    write_json(folder / "inputs.json", record)
    return True


def compare(
    folder: Path, inputs: dict, old: Callable[[], str], has_parts: bool = False, disposable: bool = False
) -> object:
    """Make way for `inputs` in a folder that may hold work from others, as `begin` does; its record, if that stays."""
    if not (folder / "inputs.json").exists():
        return None
    fresh = disposable or os.environ.get(FRESH) == "1"
    try:
        held, readable = recorded(folder)
        if is_made_from(folder, inputs, old):
            return held if readable is None else {"digest": held, "inputs": inputs}
    except DamagedFile:
        if not fresh:
            raise
        has_parts, readable = False, None
    if has_parts and (readable is None or all(name.startswith("settings.") for name in differences(readable, inputs))):
        (folder / "done").unlink(missing_ok=True)
    elif disposable:
        shutil.rmtree(folder)
    elif fresh:
        move_aside(folder)
    else:
        raise OtherInputs(refusal(folder, readable, inputs))
    return None


def refusal(folder: Path, then: dict | None, now: dict) -> str:
    """The line that says what differs, and how to go on."""
    if then is None:
        what = "which an earlier version did not record"
    else:
        found = [f"{name.removeprefix('settings.')} {change}" for name, change in differences(then, now).items()]
        what = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
    return (
        f"{folder}: made from inputs that differ ({what}). Choose another --run, or add --fresh to move it aside and "
        "begin anew"
    )
