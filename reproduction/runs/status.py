"""How far a run is, from its files alone: it may be under way in another process."""

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pandas as pd

from echo.config import VIEW_PHASES
from echo.resume import read_csv, read_json, whole
from reproduction.datasets.prepare import read_facts
from reproduction.runs.inputs import is_done
from reproduction.runs.manifest import read_manifest
from reproduction.runs.table import STAGES

COLUMNS = ("stage", "state", "progress", "rate", "left", "took", "written", "latest")
LOGGED = ("step", "seconds", "loss", "validation_loss")
Progress = tuple[int, int, str, float, str]  # done, planned, of what, how many a second, the last losses or Dice


def by_time(paths: Iterable[Path]) -> list[tuple[float, Path]]:
    """When each file was last written, in seconds since 1970, and its path; sorted, without empty files."""
    found = []
    for path in paths:
        with suppress(FileNotFoundError):  # files come and go meanwhile
            facts = path.stat()
            found += [(facts.st_mtime, path)] if facts.st_size > 1 else []
    return sorted(found)


def pace(files: list[tuple[float, Path]], begun: float) -> float:
    """Files a second of those written since then; 0 where there is none."""
    times = [t for t, _ in files if t > begun]
    return len(times) / (times[-1] - begun) if times else 0.0


def diffusion(folder: Path, profile: dict, begun: float) -> Progress:
    """Steps at the last validation, over the networks of the profile; their rate since the one before it."""
    logs = [(path.parent.name, read_csv(path, LOGGED)) for _, path in by_time(folder.glob("*/log.csv"))]
    classes = read_facts(folder.parent / STAGES["data"].folder).get("classes", {})
    conditions = classes.get("conditions", VIEW_PHASES)
    planned = profile["training"]["steps"] * (len(conditions) or 1 if profile["per_view_phase"] else 1)
    if second := profile.get("enlarger"):
        planned += second["training"]["steps"]
    if not logs:
        return 0, planned, "steps", 0.0, ""
    name, log = logs[-1]
    last, rows = log.iloc[-1], log[["step", "seconds"]].diff().fillna(log).iloc[-1]
    latest = f"{name}: loss {last['loss']:.4f}, validation {last['validation_loss']:.4f}"
    return sum(int(x["step"].max()) for _, x in logs), planned, "steps", rows["step"] / rows["seconds"], latest


def generation(folder: Path, profile: dict, begun: float) -> Progress:
    """Images generated."""
    images = by_time(folder.glob("images/[0-9]*.png"))
    planned = profile["generation"]["images"] + profile["generation"]["validation_images"]
    return len(images), planned, "images", pace(images, begun), ""


def segmentation(folder: Path, profile: dict, begun: float) -> Progress:
    """Segmenters trained, and the last validation of one."""
    plan, logs, latest = folder / "planned.json", by_time(folder.glob("*/log.csv")), ""
    planned = read_json(plan, [str]) if plan.exists() else []
    trained = by_time(folder / name / "model.safetensors" for name in planned)
    if logs:
        path, last = logs[-1][1], read_csv(logs[-1][1], ("step", "mean")).iloc[-1]
        latest = f"{path.parent.name} at step {last['step']:.0f}: validation Dice {last['mean']:.1f} %"
    return len(trained), len(planned), "segmenters", pace(trained, begun), latest


MEASURES = {"diffusion": diffusion, "generation": generation, "segmentation": segmentation}
MEASURES["grid"] = lambda folder, *rest: segmentation(folder / "segmenters", *rest)


def status(folder: Path) -> pd.DataFrame:
    """One row for each stage, and for each study that has begun, as text; `written` is the age of the newest file.

    A stage that ended with an error or a signal is interrupted; one that was killed stays "running" and grows old.

    Raises:
        FileNotFoundError: where no stage of a run has begun.
    """
    if not [*folder.glob("*/inputs.json")]:
        raise FileNotFoundError(f"{folder}: no run folder, or none of its stages has begun")
    path, now, rows = folder / "manifest.json", time.time(), []
    manifest = read_manifest(folder) if path.exists() else {"stages": {}}
    for name, entry in STAGES.items():
        stage, facts = folder / entry.folder, manifest["stages"].get(name, {})
        files, marker = by_time(stage.rglob("*.*")), stage / "inputs.json"
        row = dict.fromkeys(COLUMNS, "") | {"stage": name, "state": "waiting"}
        if not marker.exists():
            if not entry.study:
                rows.append(row)
            continue
        begun = marker.stat().st_mtime
        age = now - max([begun, *(written for written, _ in files)])
        failed = facts and not facts["finished"] and path.stat().st_mtime > begun
        row["state"] = "done" if is_done(stage) else "interrupted" if failed else "running"
        row["written"] = f"{timedelta(seconds=round(age))} ago"
        if name in MEASURES and "profile" in manifest:
            with whole(path):  # of a profile that has not what a stage asks for
                done, planned, what, rate, row["latest"] = MEASURES[name](stage, manifest["profile"], begun)
            row["progress"] = f"{done} of {planned} {what}"
            if row["state"] == "running" and rate:
                row["rate"] = f"{rate:.3g}/s" if rate > 0.1 else f"{rate * 3600:.3g}/h"
                row["left"] = str(timedelta(seconds=round(max(0, (planned - done) / rate - age))))
        if is_done(stage) and facts:
            row["took"] = str(timedelta(seconds=round(facts["seconds"])))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))
