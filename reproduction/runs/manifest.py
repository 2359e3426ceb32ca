"""A run's `manifest.json`: profile, data, seed, versions and machine, and time and memory of each stage."""

import os
import platform
import subprocess
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from echo.config import Profile
from echo.device import device_name
from echo.resume import read_csv, read_json, write_csv, write_json
from reproduction import REPOSITORY
from reproduction.runs.table import OLD_NAMES, STAGES

LEDGER = "test_ledger.csv"
MANIFEST = {  # its shape
    "stages": {"*": {"finished": bool, "seconds": int | float}},
    "profile?": {"name": str},
    "data?": dict | None,
    "seed?": int,
}
PACKAGES = ("torch", "diffusers", "accelerate", "monai", "numpy", "scipy", "scikit-image", "pandas")


def read_manifest(root: Path) -> dict:
    """The manifest of a run or of its committed extract, with today's names of stages.

    Raises:
        FileNotFoundError: when there is none.
        DamagedFile: when it is not a run's.
    """
    path = root / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {root} is no run folder, or none of its stages has ended")
    manifest = read_json(path, MANIFEST)
    manifest["stages"] = {OLD_NAMES.get(name, name): facts for name, facts in manifest["stages"].items()}
    return manifest


def enter_manifest(root: Path, profile: Profile, seed: int, name: str, facts: dict) -> None:
    """Add a stage's facts to the manifest; seconds add up over interruptions, and so do the numbers of threads."""
    manifest = read_manifest(root) if (root / "manifest.json").exists() else {"stages": {}}
    earlier = manifest["stages"].get(name, {})
    if earlier and not earlier["finished"]:
        facts["seconds"] = round(facts["seconds"] + earlier["seconds"], 1)
        if threads := {*facts.get("threads", []), *earlier.get("threads", [])}:
            facts["threads"] = sorted(threads)
    manifest["stages"][name] = facts | {"revision": revision()}
    data_facts = root / STAGES["data"].folder / "data.json"
    manifest |= {
        "profile": profile.to_dict(),
        "data": read_json(data_facts) if data_facts.exists() else None,
        "seed": seed,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "device": device_name(),
        "cores": os.cpu_count(),
    }
    write_json(root / "manifest.json", manifest)


def enter_ledger(root: Path, what_for: str, folder: Path | None = None) -> None:
    """Add a line to the `test_ledger.csv` in `folder`, by default the run's: test patients are about to be scored
    (results/protocol.md)."""
    path = (folder or root) / LEDGER
    line = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "revision": revision(), "run": root.name, "what_for": what_for}
    earlier = [read_csv(path, dtype=str)] if path.exists() else []
    write_csv(path, pd.concat([*earlier, pd.DataFrame([line])]))


def revision() -> str:
    """The repository's commit, with "+changes" when files differ from it; "unknown" outside a checkout."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "echo", "reproduction", "notebooks"])
    try:
        commit, changes = (
            subprocess.run(c, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")
