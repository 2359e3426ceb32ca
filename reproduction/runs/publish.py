"""A finished run: its summary, its synthetic dataset checked, and the extract of it that is committed."""

import shutil
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from echo.resume import atomic, read_csv, write_csv, write_text
from reproduction import FIGURES, PAGES, RESULTS, alone
from reproduction.evaluation import tables
from reproduction.evaluation.tables import markdown
from reproduction.runs.inputs import is_done
from reproduction.runs.manifest import LEDGER, read_manifest
from reproduction.runs.run import run_of_set
from reproduction.runs.table import PIPELINE, STAGES
from reproduction.synthesis import generate, synthetic_set

PUBLIC_DOMAIN = ("CC0", "PUBLIC DOMAIN", "PDDL")
WITHOUT_FRAMES = (  # figures that show no real frame
    "synthetic_grid",
    "map_echo_contours",
    "dice_boxes",
    "bland_altman",
    "scaling_images",
    "scaling_patients",
)


def summary(root: Path) -> str:
    """The Dice table of a finished run, and where its figures and notebooks are."""
    dice = root / STAGES["tables"].folder / "dice.csv"
    lines = [f"{root.name}: no Dice table, the test cases have no labels", ""]
    if dice.exists():
        table = tables.comparison(read_csv(dice)).to_string()
        lines = [f"Dice on the test patients of {root.name}, %, mean ± sd over frames:", table, ""]
    left_out = {fault["patient"] for fault in (read_manifest(root)["data"] or {}).get("left_out", [])}
    if left_out:
        lines.append(f"Left out for faults in their files: {', '.join(sorted(left_out))}\n")
    files = sorted(root.glob("figures/*.png")) + sorted(root.glob("notebooks/*.ipynb"))
    return "\n".join(lines + [f"  {path}" for path in files])


def is_free(data: dict) -> bool:
    """Whether a dataset says of itself that it is in the public domain."""
    return (data.get("licence") or data.get("license") or "").upper().startswith(PUBLIC_DOMAIN)


def published_files(root: Path) -> dict[Path, Path]:
    """The small, committable files of a run, each with its place in `results/` or `figures/`.

    That is tables, logs, manifest; and, for the phantom and for data in the public domain, figures and the weights that
    the notebooks load. Of a run on CAMUS neither weights nor a figure that holds a real frame leaves the run folder.
    """
    manifest, target = read_manifest(root), RESULTS / root.name
    data = manifest["data"] or {}
    phantom = data.get("source") == "phantom"
    free = phantom or is_free(data)
    copies = {root / "manifest.json": target / "manifest.json"}
    for stage in STAGES.values():
        folder = root / stage.folder
        place = target if stage.name == "tables" else target / stage.folder
        for pattern in (*stage.publishes, *(stage.weights if free else ())):
            found = folder.glob(pattern.format(seed=manifest["seed"]))
            copies |= {path: place / path.relative_to(folder) for path in found if ".old-" not in str(path)}
    if free and not phantom:  # so that a notebook has label maps to paint for
        folder = root / STAGES["data"].folder
        frames = (folder / name for name in ("data.json", "validation.csv", "validation.npz"))
        copies |= {path: target / path.relative_to(root) for path in frames if path.exists()}
    for path in root.glob("figures/*.*"):
        if phantom:
            copies[path] = FIGURES / path.name
        elif free or path.stem in WITHOUT_FRAMES:
            copies[path] = FIGURES / f"{root.name}_{path.name}"
    return copies


def publish(root: Path) -> list[Path]:
    """Copy `published_files`, and put the tables into `PAGES`; returns what was written.

    Raises:
        FileNotFoundError: when the run's tables are not finished; nothing is copied then.
        ValueError: when another process publishes a run.
    """
    copies, folder = published_files(root), root / STAGES["tables"].folder
    if not is_done(folder) or folder / "dice.csv" not in copies:
        raise FileNotFoundError(f"{root}: the tables are not finished, there is nothing to publish")
    with alone(RESULTS / ".lock", f"{RESULTS}: another process publishes a run: wait"):  # they share ledger and pages
        for source, copy in copies.items():
            with atomic(copy) as temporary:
                copy_published(source, temporary)
        if (root / LEDGER).exists():
            ledgers = [read_csv(path / LEDGER, dtype=str) for path in (RESULTS, root) if (path / LEDGER).exists()]
            write_csv(RESULTS / LEDGER, pd.concat(ledgers).drop_duplicates())
        write_pages(PAGES, RESULTS / root.name)
    return sorted(copies.values())


def copy_published(source: Path, copy: Path) -> None:
    """Copy a file; weights in half precision: half the size, and the same to look at."""
    if source.suffix == ".safetensors":
        tensors = load_file(source)
        save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, copy)
    else:
        shutil.copyfile(source, copy)


def check_set(folder: Path, names: list[str], sample: int, seed: int) -> list[str]:
    """The faults of a set: of its files (`synthetic_set.verify`), and of images painted again: those named, and as
    many more as `sample` says, drawn by `seed`."""
    run, known = run_of_set(folder), synthetic_set.read_manifest(folder)["id"].drop_duplicates()
    faults = synthetic_set.verify(folder)
    names = [*names, *known.sample(min(sample, len(known)), random_state=seed)]
    if names:
        faults += generate.regenerate(folder, names, run.folder("diffusion"), *run.load_frames(), run.profile)
    return faults


def results_block(folder: Path) -> str:
    """A published run's Table 1, with a training set in each row, and what the run took; `folder` is its extract."""
    manifest = read_manifest(folder)
    made = read_csv(folder / "table_1.csv", index_col=0, dtype=str).T.rename_axis("trained on")
    stages = [(name, manifest["stages"][name]) for name in PIPELINE]
    times = ", ".join(f"{name} {facts['seconds'] / 60:.1f}" for name, facts in stages)
    memory = max(facts["peak_memory_gb"] for _name, facts in stages)
    machine = f"{manifest['device']}, {manifest['cores']} cores"
    return (
        f"{markdown(made)}\n\nProfile `{manifest['profile']['name']}`, {machine}. Minutes: {times}; {memory:.1f} GB of "
        f"memory at most ([manifest](../results/{folder.name}/manifest.json))."
    )


def write_pages(pages: list[Path], folder: Path) -> None:
    """Write a run's tables into some pages: where one has `<!-- results NAME -->` and `<!-- end -->`, `results_block`
    between them; with `comparison` for `results`, the run's comparison.md. Nothing else changes.

    Args:
        folder: the run's extract in `results/`.
    """
    texts = {"results": results_block(folder), "comparison": (folder / "comparison.md").read_text().strip()}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for kind, table in texts.items():
            begin, end = f"<!-- {kind} {folder.name} -->\n", "<!-- end -->"
            before, found, rest = text.partition(begin)
            if found:
                text = before + begin + table + "\n" + end + rest.partition(end)[2]
        write_text(page, text)
