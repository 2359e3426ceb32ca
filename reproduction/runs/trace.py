"""Where a number in a table comes from."""

from pathlib import Path

import pandas as pd

from echo.resume import read_csv, whole
from reproduction.evaluation.statistics import frame_names, structures_of
from reproduction.evaluation.tables import (
    TRAIN_NAMES,
    VOLUMES,
    all_rows,
    cell,
    prepared,
    published_columns,
    select,
    table_rows,
)
from reproduction.runs.manifest import read_manifest
from reproduction.runs.table import STAGES


def trace(folder: Path, number: int, row: str, column: str) -> str:
    """Where a cell of Table 1, 2 or 3 comes from, and its value, computed again from the scores.

    Args:
        folder: a run, or its extract in `results/`.
        column: a training set, by its name in the tables or in the scores; one of the experiment grid's too.

    Raises:
        ValueError: for an unknown table, row or column, listing those there are.
        FileNotFoundError: when the folder holds no scores.
    """
    places = (folder / STAGES["tables"].folder, folder, folder / STAGES["grid"].folder)
    folders = [place for place in places if (place / "scores.csv").exists()]
    if not folders:
        raise FileNotFoundError(f"{folder} holds no scores.csv: run the tables stage, or choose another run")
    needs = {"scores": ("train", "seed", "patient", "structure", "processing", "dice"), "volumes": ()}
    files = {name: [read_csv(place / f"{name}.csv", columns) for place in folders] for name, columns in needs.items()}
    files["scores"] = [prepared(scores) for scores in files["scores"]]
    scores = pd.concat(files["scores"])
    rows = table_rows(number, scores, pd.concat(files["volumes"]))
    if row not in rows:
        raise ValueError(f"table {number} has no row {row!r}: choose one of {'; '.join(rows)}")
    published = published_columns(structures_of(scores)) if number == 1 else {}
    if column in published:
        return f"{published[column][row]}\nfrom data/paper_results.csv; implied is mean Dice / (1 + relative gain)"
    places = {title: (train, k) for k, f in enumerate(files["scores"]) for train, title in all_rows(f["train"]).items()}
    places |= {train: (train, k) for train, k in places.values()}
    if column not in places:
        titles = dict.fromkeys([*published, *(TRAIN_NAMES.get(train, train) for train in places)])
        raise ValueError(f"table {number} has no column {column!r}: choose one of {'; '.join(titles)}")

    train, k = places[column]
    manifest, field = read_manifest(folder), rows[row].column
    found = select(rows[row], train, files["scores"][k], files["volumes"][k])
    value = cell(rows[row], found, manifest["seed"])
    file, fields = ("volumes.csv", f"{field} and expert_{field}") if field in VOLUMES else ("scores.csv", field)
    frames = "" if field in VOLUMES else f"{len(found[frame_names(found)].drop_duplicates())} frames of "
    chosen = ", ".join(f"{name} = {wanted}" for name, wanted in ({"train": train} | rows[row].selection).items())
    seeds = ", ".join(map(str, sorted(found["seed"].unique())))
    with whole(folder / "manifest.json"):
        profile, seed, source = manifest["profile"]["name"], manifest["seed"], manifest["data"]["source"]
    lines = [
        value,
        f"from     {(folders[k] / file).relative_to(folder.parent)}, read again: "
        f"{rows[row].measure} of {fields}, where {chosen}",
        f"         {frames}{found['patient'].nunique()} patients, training seeds {seeds}",
        f"run      {folder.name}: profile {profile}, data {source}, seed {seed}, {manifest['device']}",
    ]
    table_file = folders[k] / f"table_{number}.csv"
    if table_file.exists():
        with whole(table_file):
            there = read_csv(table_file, index_col=0, dtype=str).loc[row, TRAIN_NAMES.get(train, train)]
        lines.insert(1, f"{table_file.name} says " + ("the same" if there == value else f"otherwise: {there}"))
    last, verb = ("grid", "study grid") if folders[k].name == STAGES["grid"].folder else ("tables", "reproduce")
    for name in (*STAGES[last].needs, last):
        if facts := manifest["stages"].get(name):
            lines.append(f"stage    {name}: revision {facts['revision']}, {facts['seconds']} s")
    data = {"camus": "CAMUS_FOLDER", "nnunet": "DATASET_FOLDER"}.get(source, source)
    lines.append(f"command  python -m echo {verb} --profile {profile} --data {data} --seed {seed}")
    return "\n".join(lines)
