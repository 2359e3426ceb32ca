"""The stages: functions over one run folder, which the notebooks call.

A stage is skipped when it is finished and its inputs are unchanged, and goes on where it was interrupted otherwise.
"""

import os
import socket
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState, notebook_launcher
from accelerate.state import AcceleratorState

from echo import segmenter
from echo.device import get_device, launched, training_processes
from echo.frames import Frames
from echo.resume import begin, read_json, write_csv, write_json
from reproduction.datasets import camus, prepare
from reproduction.evaluation import tables
from reproduction.runs.run import Run, home_of, inputs_of, only_one, run_of_set, stage
from reproduction.studies import editing, grid, quality, samplers
from reproduction.synthesis import cards, generate, synthetic_set


def raw_data(run: Run) -> camus.Camus:
    """The run's raw data set (`Run.open_data`)."""
    return run.open_data()


def data_stage(run: Run) -> tuple[Frames, Frames]:
    """Prepare the frames; returns those of training and validation.

    Without `recompute` this is a small set (phantom) or the whole (CAMUS), kept in `data/demo`.
    """
    folder, source = home_of(run, "data"), "phantom" if run.data == "phantom" else "camus"
    with only_one(run), stage(run, "data") as work:
        if work:
            prepare.prepare(raw_data(run), source, run.profile, folder, progress=run.recompute)
    return prepare.load_frames(folder, "training"), prepare.load_frames(folder, "validation")


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
    """`quality.label_fidelity` of a set by its run's first segmenter trained on real images; the cards get the means.

    It is measured again only when the set or the segmenter is another.
    """
    run, file, marker = run_of_set(folder), folder / "fidelity.csv", folder / "fidelity.json"
    inputs = read_json(home_of(run, "segmentation") / "inputs.json")
    if file.exists() and marker.exists() and read_json(marker) == inputs:
        return pd.read_csv(file, dtype={"id": str})
    table = quality.label_fidelity(folder, load_segmenter(run, "real"))
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
            samplers.sampler_study(models, validation, judge, run.profile, file, run.seed)
            real = samplers.references(training, validation, judge).rename_axis("measure").reset_index(name="value")
            write_csv(file.with_name("references.csv"), real, float_format="%.6g")


def label_editing_stage(run: Run) -> None:
    """Ask of each edit whether images follow it, on the validation patients' label maps."""
    with stage(run, "editing") as work:
        if work:
            models = generate.load_models(run.folder / "diffusion", run.profile)
            judge, frames = load_segmenter(run, "real"), data_stage(run)[1]
            table = editing.label_editing(models, frames, judge, run.profile, run.seed)
            write_csv(home_of(run, "editing") / "edits.csv", table, float_format="%.6g")


def image_quality_stage(run: Run) -> None:
    """Compare the synthetic images of validation patients' label maps with those patients' real images."""
    with stage(run, "quality") as work:
        if work:
            score_fidelity(home_of(run, "generation"))
            synthetic = synthetic_set.load_synthetic(run.folder / "synthetic", "validation")
            training, validation = data_stage(run)
            judge, inception = load_segmenter(run, "real"), os.environ.get("ECHO_INCEPTION", "")
            results = quality.image_quality(synthetic, validation, training, judge, run.seed, inception)
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
