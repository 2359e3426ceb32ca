"""A finished run: its summary, its synthetic set checked, and the extract of it that is committed."""

import shutil
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from echo.resume import atomic, read_json, write_text
from reproduction import FIGURES, README, RESULTS
from reproduction.datasets import prepare
from reproduction.evaluation import tables
from reproduction.evaluation.tables import markdown
from reproduction.runs.run import STAGES, STUDIES, home_of, run_of_set
from reproduction.studies import grid
from reproduction.synthesis import generate, synthetic_set

WITHOUT_FRAMES = (  # figures that show no real frame
    "synthetic_grid",
    "map_echo_contours",
    "dice_boxes",
    "bland_altman",
    "scaling_images",
    "scaling_patients",
)


def summary(folder: Path) -> str:
    """The Dice table of a finished run, and where its figures and notebooks are."""
    comparison = tables.comparison(pd.read_csv(folder / "tables" / "dice.csv"))
    lines = [f"Dice on the test patients of {folder.name}, %, mean ± sd over frames:", comparison.to_string(), ""]
    files = sorted(folder.glob("figures/*.png")) + sorted(folder.glob("notebooks/*.ipynb"))
    return "\n".join(lines + [f"  {path}" for path in files])


def publish(folder: Path) -> list[Path]:
    """Copy the small, committable extract of a run into `results/` and `figures/`; return what was written.

    That is tables, logs, manifest; and, for the phantom, figures and the weights that the notebooks load. Of a run on
    CAMUS neither weights nor a figure that holds a real frame leaves the run folder.
    """
    manifest = read_json(folder / "manifest.json")
    phantom = manifest["data"]["source"] == "phantom"
    keep = [folder / "manifest.json", *folder.glob("*/*/log.csv"), *folder.glob("synthetic/*.csv")]
    keep += [*folder.glob("synthetic/*_CARD.md"), *folder.glob("synthetic/set.json")]
    keep += (path for study, _ in STUDIES.values() for path in folder.glob(f"{study}/*.csv"))
    keep += folder.glob("diffusion/*/model/*") if phantom else []
    segmenters = [folder / "segmenter" / grid.Cell(row, manifest["seed"]).name for row in ("real", "synthetic")]
    keep += [path / "model.safetensors" for path in segmenters] if phantom else []
    copies = {path: RESULTS / folder.name / path.relative_to(folder) for path in keep}
    copies |= {path: RESULTS / folder.name / path.name for path in folder.glob("tables/*.[cmt]*")}
    for path in folder.glob("figures/*.*"):
        if phantom:
            copies[path] = FIGURES / path.name
        elif path.stem in WITHOUT_FRAMES:
            copies[path] = FIGURES / f"{folder.name}_{path.name}"
    for source, copy in copies.items():
        with atomic(copy) as temporary:
            if source.suffix == ".safetensors":  # half precision: half the size, and the same to look at
                tensors = load_file(source)
                save_file({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, temporary)
            else:
                shutil.copyfile(source, temporary)
    write_readme(README, RESULTS / folder.name)
    return sorted(copies.values())


def check_set(folder: Path, names: list[str], sample: int, seed: int) -> list[str]:
    """The faults of a set: of its files (`synthetic_set.verify`), and of images painted again: those named, and as
    many more as `sample` says, drawn by `seed`."""
    run, known = run_of_set(folder), synthetic_set.read_manifest(folder)["id"].drop_duplicates()
    faults = synthetic_set.verify(folder)
    names = [*names, *known.sample(min(sample, len(known)), random_state=seed)]
    if names:
        frames = [prepare.load_frames(home_of(run, "data"), split) for split in ("training", "validation")]
        faults += generate.regenerate(folder, names, run.folder / "diffusion", *frames, run.profile)
    return faults


def readme_block(folder: Path) -> str:
    """A published run's Table 1 for the README, a training set a row, and what it took; `folder` is its extract."""
    manifest = read_json(folder / "manifest.json")
    made = pd.read_csv(folder / "table_1.csv", index_col=0, dtype=str).T.rename_axis("trained on")
    stages = [(name, manifest["stages"][name]) for name in STAGES]
    times = ", ".join(f"{name} {facts['seconds'] / 60:.1f}" for name, facts in stages)
    memory = max(facts["peak_memory_gb"] for _name, facts in stages)
    machine = f"{manifest['device']}, {manifest['cores']} cores"
    return (
        f"{markdown(made)}\n\nProfile `{manifest['profile']['name']}`, {machine}. Minutes: {times}; {memory:.1f} GB of "
        f"memory at most ([manifest](results/{folder.name}/manifest.json))."
    )


def write_readme(readme: Path, folder: Path) -> None:
    """Put `readme_block` where the README has `<!-- results NAME -->` and `<!-- end -->`; elsewhere nothing changes."""
    begin, end = f"<!-- results {folder.name} -->\n", "\n<!-- end -->"
    before, found, rest = readme.read_text(encoding="utf-8").partition(begin)
    if found:
        write_text(readme, before + begin + readme_block(folder) + end + rest.partition(end)[2])
