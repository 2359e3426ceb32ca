"""The whole experiment: five stages over one run folder, each told by a notebook that papermill executes.

A stage is skipped when it is finished and its inputs are unchanged, and goes on where it was interrupted otherwise.
The notebooks call the `*_stage` functions below; `reproduce` calls the notebooks.
"""

import os
import socket
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState, notebook_launcher
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure

import __main__
from echo import camus, cards, dataset, figures, generate, grid, segmenter, study, synthetic_set, tables
from echo.config import get_profile
from echo.device import get_device, launched, training_processes
from echo.paths import REPOSITORY, RESULTS, STAGES, STUDIES, begin, read_json, write_csv, write_json
from echo.runs import (
    Run,
    check_parameters,
    executed_well,
    home_of,
    inputs_of,
    is_current,
    only_one,
    run_name,
    run_of_set,
    stage,
)

DEMO_PATIENTS = {"training": 16, "validation": 4, "testing": 6}


def open_run(profile: str, data: str, run: str = "", seed: int = 0, recompute: bool = False) -> Run:
    """The run that a notebook's parameters name; `run` is a folder, by default `runs/PROFILE-DATA`.

    Raises:
        ValueError: for an unknown profile, or a parameter that papermill gives and the notebook does not have.
        FileNotFoundError: when there is no extract to show.
    """
    check_parameters(getattr(__main__, "In", []))  # IPython's record of the cells; there is none outside a kernel
    settings, name = get_profile(profile), run_name(profile, data)
    default = REPOSITORY / "runs" / name if recompute else RESULTS / name
    folder = Path(run).resolve() if run else default
    if not recompute and not folder.exists():
        raise FileNotFoundError(f"{folder} is missing: there are no results of {name}; set recompute=True to make them")
    if not recompute:
        settings = replace(settings, phantom_patients=DEMO_PATIENTS)
    return Run(settings, data, folder, seed, recompute)


def raw_data(run: Run) -> camus.Camus:
    """The run's raw data set (`Run.open_data`)."""
    return run.open_data()


def data_stage(run: Run) -> tuple[dataset.Frames, dataset.Frames]:
    """Prepare the frames; returns those of training and validation.

    Without `recompute` this is a small set (phantom) or the whole (CAMUS), kept in `data/demo`.
    """
    folder, source = home_of(run, "data"), "phantom" if run.data == "phantom" else "camus"
    with only_one(run), stage(run, "data") as work:
        if work:
            dataset.prepare(raw_data(run), source, run.profile, folder, progress=run.recompute)
    return dataset.load_frames(folder, "training"), dataset.load_frames(folder, "validation")


def diffusion_stage(run: Run) -> None:
    """Train the diffusion model, or one for each view and phase; on several GPUs in as many processes."""
    if training_processes() > 1 and not launched():
        AcceleratorState._reset_state(True)  # a training before this one, in this process, forbids others
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        notebook_launcher(diffusion_stage, (run,), num_processes=training_processes(), use_port=port)
        return
    # The first process prepares data and folder, the others find them.
    patience = timedelta(hours=6)
    with PartialState(cpu=get_device().type == "cpu", timeout=patience).main_process_first():
        frames = data_stage(run)
        begin(home_of(run, "diffusion"), inputs_of(run, "diffusion"))
    with stage(run, "diffusion") as work:
        if not work:
            return
        grid.train_generator(run.profile, *frames, run.folder / "diffusion", run.seed)


def generation_stage(run: Run, shard: tuple[int, int] = (0, 1)) -> None:
    """Paint the synthetic data set, or the k-th of N shards of it."""
    with stage(run, "generation", "manifest.csv") as work:
        if work:
            paint_set(run, home_of(run, "generation"), shard)


def paint_set(run: Run, folder: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """Paint a set by the run's diffusion model into `folder`, or a shard of it; a whole set gets its cards."""
    frames = data_stage(run)
    if generate.generate(run.folder / "diffusion", *frames, run.profile, folder, run.seed, shard) is not None:
        cards.write_cards(folder, run.folder)


def score_fidelity(folder: Path) -> pd.DataFrame:
    """`study.label_fidelity` of a set by its run's first segmenter trained on real images; the cards get the means.

    It is measured again only when the set or the segmenter is another.
    """
    run, file, marker = run_of_set(folder), folder / "fidelity.csv", folder / "fidelity.json"
    inputs = read_json(home_of(run, "segmentation") / "inputs.json")
    if file.exists() and marker.exists() and read_json(marker) == inputs:
        return pd.read_csv(file, dtype={"id": str})
    table = study.label_fidelity(folder, load_segmenter(run, "real"))
    write_json(marker, inputs)
    cards.write_cards(folder, run.folder)
    return table


def segmenter_folder(run: Run, row: str, seed: int) -> Path:
    """Where the segmenter of a row of the main table is kept."""
    return run.folder / "segmenter" / grid.Cell(row, seed).name


def segmentation_stage(run: Run) -> None:
    """Train the segmenters of the main table: each row, each seed."""
    with stage(run, "segmentation", parts=True) as work:
        if work:
            cells, painted = grid.main_cells(run.profile, run.seed), home_of(run, "generation")
            grid.train_cells(cells, run.profile, data_stage(run), painted, run.folder / "segmenter", run.seed)


def load_segmenter(run: Run, row: str, seed: int | None = None) -> torch.nn.Module:
    """A trained segmenter of the profile's own recipe, by default that of the run's first seed."""
    folder = segmenter_folder(run, row, run.seed if seed is None else seed)
    return segmenter.load_segmenter(run.profile.segmenter, folder)


def tables_stage(run: Run) -> None:
    """Score every segmenter on the real test frames, once, and write the tables."""
    with stage(run, "tables") as work:
        if not work:
            return
        cells = grid.main_cells(run.profile, run.seed)
        scores, volumes = grid.score_cells(cells, run.profile, run.folder / "segmenter", raw_data(run))
        tables.write_tables(scores, volumes, run.folder / "tables", run.seed)


def sampler_study_stage(run: Run) -> None:
    """Judge each sampler, number of steps and guidance scale on the validation patients' label maps."""
    with stage(run, "sampler") as work:
        if work:
            models = generate.load_models(run.folder / "diffusion", run.profile)
            file = home_of(run, "sampler") / "settings.csv"
            (training, validation), judge = data_stage(run), load_segmenter(run, "real")
            study.sampler_study(models, validation, judge, run.profile, file, run.seed)
            real = study.references(training, validation, judge).rename_axis("measure").reset_index(name="value")
            write_csv(file.with_name("references.csv"), real, float_format="%.6g")


def label_editing_stage(run: Run) -> None:
    """Ask of each edit whether images follow it, on the validation patients' label maps."""
    with stage(run, "editing") as work:
        if work:
            models = generate.load_models(run.folder / "diffusion", run.profile)
            judge, frames = load_segmenter(run, "real"), data_stage(run)[1]
            table = study.label_editing(models, frames, judge, run.profile, run.seed)
            write_csv(home_of(run, "editing") / "edits.csv", table, float_format="%.6g")


def image_quality_stage(run: Run) -> None:
    """Compare the synthetic images of validation patients' label maps with those patients' real images."""
    with stage(run, "quality") as work:
        if work:
            score_fidelity(home_of(run, "generation"))
            synthetic = synthetic_set.load_synthetic(run.folder / "synthetic", "validation")
            training, validation = data_stage(run)
            judge, inception = load_segmenter(run, "real"), os.environ.get("ECHO_INCEPTION", "")
            results = study.image_quality(synthetic, validation, training, judge, run.seed, inception)
            for name, table in results.items():
                write_csv(home_of(run, "quality") / f"{name}.csv", table, float_format="%.6g")


def grid_stage(run: Run) -> None:
    """Train what the experiment grid has beside the main table, one cell after the other; then score it, once."""
    with stage(run, "grid", parts=True) as work:
        if work:
            painted, folder = home_of(run, "generation"), home_of(run, "grid")
            cells, segmenters = grid.study_cells(run.profile, run.seed), folder / "segmenters"
            score_fidelity(painted)  # for those that leave out the worst images
            grid.train_cells(cells, run.profile, data_stage(run), painted, segmenters, run.seed)
            tables.write_scores(*grid.score_cells(cells, run.profile, segmenters, raw_data(run)), folder)


def keep(run: Run, figure: Figure, name: str) -> None:
    """Save a figure with the run; nothing when only an extract is shown."""
    if run.recompute:
        figures.save(figure, run.folder / "figures", name)


def read_table(run: Run, name: str) -> pd.DataFrame:
    """A table of the run, such as "scores", "volumes" or "dice" (`tables.write_tables`)."""
    return run.log(*(["tables"] if run.recompute else []), f"{name}.csv")


def all_results(run: Run) -> dict[str, pd.DataFrame]:
    """The Dice table of each committed run and of this one, by name."""
    committed = {path.parent.name: pd.read_csv(path) for path in sorted(RESULTS.glob("*/dice.csv"))}
    return committed | {run.folder.name: read_table(run, "dice")}


class NotebookError(RuntimeError):
    """A notebook failed; the message is one line."""


def execute(notebook: str, output: Path, parameters: dict) -> None:
    """Execute a notebook by papermill into the file `output`.

    Raises:
        NotebookError: naming the notebook, the cell and the file that holds the partial output.
    """
    import papermill  # here, since a notebook on Colab need not have it
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    # Sockets in a folder of their own: no port to clash with, or to listen on.
    with tempfile.TemporaryDirectory(prefix="echo-") as sockets:
        try:
            papermill.execute_notebook(
                REPOSITORY / "notebooks" / f"{notebook}.ipynb",
                output,
                parameters,
                kernel_name="python3",
                cwd=REPOSITORY / "notebooks",
                progress_bar=False,
                stderr_file=sys.stderr,
                config=Config({"KernelManager": {"transport": "ipc", "ip": str(Path(sockets) / "kernel")}}),
            )
        except papermill.PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            message = f"notebook {notebook} failed in its cell {error.exec_count}: {reason}; see {output}"
            raise NotebookError(message) from None
        except DeadKernelError:
            message = f"notebook {notebook}: its kernel died (out of memory?); see {output}"
            raise NotebookError(message) from None


def reproduce(profile: str, data: str, run: str = "", seed: int = 0, only: str | None = None) -> Path:
    """Execute the notebooks of all stages and of the images' quality, or of one stage or study, into a run folder, and
    return it.

    Raises:
        NotebookError: as `execute` does, at the first notebook that fails.
    """
    opened = open_run(profile, data, run, seed, recompute=True)
    if opened.data != "phantom":
        camus.open_camus(opened.data)  # a wrong path fails before any notebook starts
    target = opened.folder / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    # The kernel inherits these: progress as text, which papermill passes on to this terminal.
    os.environ |= {"ECHO_TEXT_PROGRESS": "1", "TQDM_MININTERVAL": "2"}
    parameters = {
        "profile": profile,
        "data": data if data == "phantom" else str(Path(data).expanduser().resolve()),
        "run": str(opened.folder),
        "seed": seed,
        "recompute": True,
    }
    for name in [only] if only else [*STAGES, "quality"]:
        notebook = (STAGES | STUDIES)[name][1]
        output = target / f"{notebook}.ipynb"
        if name != "data":
            inputs_of(opened, name)  # a missing earlier stage is named before the notebook starts
        if is_current(opened, name) and executed_well(output):
            print(f"== {name}: finished, skipped", flush=True)
            continue
        print(f"== {name}: notebook {notebook}", flush=True)
        execute(notebook, output, parameters)
    return opened.folder
