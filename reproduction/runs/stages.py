"""The stages: functions over one run, which the notebooks call; `reproduction.runs.table` lists them.

A stage is skipped when it is finished and its inputs are unchanged, and goes on where it was interrupted otherwise.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState, notebook_launcher
from accelerate.state import AcceleratorState

from echo import segmenter
from echo.device import get_device, launched, peak_memory_gb, training_processes
from echo.frames import Frames
from echo.resume import read_csv, read_json, write_csv, write_json
from echo.threads import USED
from reproduction import alone
from reproduction.datasets import prepare
from reproduction.evaluation import tables
from reproduction.runs import trainings
from reproduction.runs.inputs import SKIP_BAD, OtherInputs, begin, compare, finish, is_done, recorded, refusal
from reproduction.runs.manifest import enter_ledger, enter_manifest
from reproduction.runs.run import WAIT, Run, inputs_of, is_current, old_digest, one_at_a_time, one_worker, run_of_set
from reproduction.runs.table import STAGES
from reproduction.studies import editing, grid, quality, samplers
from reproduction.synthesis import cards, generate, synthetic_set


def begin_stage(run: Run, name: str, by: Callable = begin) -> bool:
    """`inputs.begin` of a stage, or another function of its arguments.

    Raises:
        ValueError: for a study of an anatomy that the dataset does not have.
    """
    anatomy = STAGES[name].anatomy
    if anatomy and run.classes.anatomy != anatomy:
        raise ValueError(f"{name}: this study is of an {anatomy}, and the dataset shows none")
    old, disposable = (lambda: old_digest(run, name)), not run.recompute
    return by(run.folder(name), inputs_of(run, name), old, STAGES[name].has_parts, disposable)


def check_needs(run: Run, name: str) -> None:
    """Stop where a finished stage before this one has other data or settings, which would be taken over unseen.

    Raises:
        OtherInputs: naming what differs.
    """
    for needed in STAGES[name].needs:
        folder = run.folder(needed)  # one that has parts keeps those that it has, whatever its settings are now
        if is_done(folder) and not STAGES[needed].has_parts and not is_current(run, needed):
            raise OtherInputs(refusal(folder, recorded(folder)[1], inputs_of(run, needed)))


def check_stage(run: Run, name: str) -> None:
    """Stop before any work where a stage before this one is missing, or what is there was made from other inputs.

    Raises:
        FileNotFoundError: naming the missing stage.
        OtherInputs: naming what differs; with ECHO_FRESH the old stage is moved aside instead.
        ValueError: when another process works on the stage.
    """
    check_needs(run, name)
    with one_worker(run, name):
        begin_stage(run, name, compare)


@contextmanager
def stage(run: Run, name: str) -> Iterator[bool]:
    """Work on a stage: yields whether there is any; times it, and enters it into the manifest.

    Where several processes work on it together, rank 0 writes the manifest. Where each works by itself, each does, and
    the stage is finished once it has its product; their seconds add up.
    """
    product, folder = STAGES[name].product, run.folder(name)
    is_main = bool(product) or (launched() or (0, 1))[0] == 0
    clock = time.perf_counter()  # the phantom is made while the data stage asks for its inputs
    with one_worker(run, name):
        with one_at_a_time(run):
            work = begin_stage(run, name)
        if not work:
            yield False
            return
        if STAGES[name].scores_test and is_main:
            enter_ledger(run.root, name)
        USED.clear()
        try:
            yield True
            if is_main and (folder / product).exists():
                finish(folder)
        finally:
            if is_main:
                facts = {"seconds": round(time.perf_counter() - clock, 1), "finished": is_done(folder)}
                if USED:  # of CPU threads, by the trainings of this stage; the last digits depend on it
                    facts["threads"] = sorted(USED)
                facts["peak_memory_gb"] = round(peak_memory_gb(get_device()), 2)
                with one_at_a_time(run):
                    enter_manifest(folder.parent, run.profile, run.seed, name, facts)


def work_of(name: str) -> Callable[[Callable], Callable]:
    """The decorated function is called with the run only where the stage has work to do."""

    def decorate(work: Callable) -> Callable:
        @wraps(work)
        def perform(run: Run, *options) -> None:
            with stage(run, name) as needed:
                if needed:
                    work(run, *options)

        return perform

    return decorate


def complete(run: Run, name: str) -> None:
    """Do the work of a stage, if it has any."""
    globals()[STAGES[name].work](run)


def data_stage(run: Run) -> tuple[Frames, Frames]:
    """Prepare the frames; returns those of training and validation.

    Without `recompute` this is a small set (phantom) or the whole (of any other source), kept in `data/demo`.
    """
    with one_at_a_time(run), stage(run, "data") as work:
        if work:
            on_error = "skip" if os.environ.get(SKIP_BAD) == "1" else "raise"
            raw, folder = run.open_data(everybody=True), run.folder("data")
            source = "phantom" if run.data == "phantom" else raw.source
            prepare.prepare(raw, source, run.profile, folder, progress=run.recompute, on_error=on_error)
    return run.load_frames()


def diffusion_stage(run: Run) -> None:
    """Train the diffusion model, or one for each view and phase; on several GPUs in as many processes."""
    if training_processes() > 1 and not launched():
        AcceleratorState._reset_state(True)  # a training before this one, in this process, forbids others
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        notebook_launcher(diffusion_stage, (run,), num_processes=training_processes(), use_port=port)
        return
    # Rank 0 prepares data and folder, the others find them.
    patience = timedelta(hours=6)
    with PartialState(cpu=get_device().type == "cpu", timeout=patience).main_process_first():
        frames = data_stage(run)
        begin_stage(run, "diffusion")
    with stage(run, "diffusion") as work:
        if work:
            trainings.train_generator(run.profile, *frames, run.folder("diffusion"), run.seed)


@work_of("generation")
def generation_stage(run: Run, shard: tuple[int, int] = (0, 1)) -> None:
    """Generate the synthetic dataset, or the k-th of N shards of it."""
    paint_set(run, run.folder("generation"), shard)


def paint_set(run: Run, folder: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """Generate a set by the run's diffusion model in `folder`, or a shard of it; a whole set gets its cards."""
    frames, (k, n) = data_stage(run), shard
    lock = folder.with_name(f".{folder.name}-{k}-of-{n}.lock")
    with alone(lock, f"{folder}: another process paints {'this set' if n == 1 else f'shard {k}/{n}'}: {WAIT}"):
        if generate.generate(run.folder("diffusion"), *frames, run.profile, folder, run.seed, shard) is not None:
            cards.write_cards(folder, run.root)


def score_fidelity(folder: Path) -> pd.DataFrame:
    """`quality.label_fidelity` of a set by its run's first segmenter trained on real images; the cards get the means.

    It is measured again only when the set or the segmenter is another.
    """
    run, file, marker = run_of_set(folder), folder / "fidelity.csv", folder / "fidelity.json"
    inputs, _ = recorded(run.folder("segmentation"))
    if file.exists() and marker.exists() and read_json(marker) == inputs:
        return read_csv(file)
    with alone(folder.with_name(f".{folder.name}-fidelity.lock"), f"{folder}: another process scores this set: wait"):
        table = quality.label_fidelity(folder, load_segmenter(run, "real"))
        write_json(marker, inputs)
        cards.write_cards(folder, run.root)
    return table


@work_of("segmentation")
def segmentation_stage(run: Run) -> None:
    """Train the segmenters of the main table: each row, each seed."""
    rows = grid.main_trainings(run.profile, run.seed)
    folders = run.folder("generation"), run.folder("segmentation")
    trainings.train_each(rows, run.profile, data_stage(run), *folders, run.seed)


def segmenter_folder(run: Run, row: str, seed: int) -> Path:
    """Where the segmenter of a row of the main table is kept."""
    return run.folder("segmentation") / grid.Training(row, seed).name


def load_segmenter(run: Run, row: str, seed: int | None = None) -> torch.nn.Module:
    """A trained segmenter of the profile's first recipe, by default that of the run's first seed."""
    folder = segmenter_folder(run, row, run.seed if seed is None else seed)
    return segmenter.load_segmenter(run.profile.segmenter, folder, run.classes)


@work_of("tables")
def tables_stage(run: Run) -> None:
    """Score every segmenter on the real test frames, once, and write the tables."""
    rows = grid.main_trainings(run.profile, run.seed)
    scores, volumes = grid.score_trainings(rows, run.profile, run.folder("segmentation"), run.open_data())
    tables.write_tables(scores, volumes, run.folder("tables"), run.seed)


@work_of("samplers")
def sampler_study_stage(run: Run) -> None:
    """Compare samplers, numbers of steps and guidance scales on the validation patients' label maps."""
    models = generate.load_models(run.folder("diffusion"), run.profile, run.classes)
    folder = run.folder("samplers")
    (training, validation), network = data_stage(run), load_segmenter(run, "real")
    samplers.sampler_study(models, validation, network, run.profile, folder / "settings.csv", run.seed)
    real = samplers.references(training, validation, network).rename_axis("measure").reset_index(name="value")
    write_csv(folder / "references.csv", real, float_format="%.6g")


@work_of("editing")
def label_editing_stage(run: Run) -> None:
    """Measure for each edit whether images follow it, on the validation patients' label maps."""
    models = generate.load_models(run.folder("diffusion"), run.profile, run.classes)
    network, frames = load_segmenter(run, "real"), data_stage(run)[1]
    table = editing.label_editing(models, frames, network, run.profile, run.seed)
    write_csv(run.folder("editing") / "edits.csv", table, float_format="%.6g")


@work_of("quality")
def image_quality_stage(run: Run) -> None:
    """Compare the synthetic images of validation patients' label maps with those patients' real images."""
    score_fidelity(run.folder("generation"))
    synthetic = synthetic_set.load_synthetic(run.folder("generation"), "validation")
    training, validation = data_stage(run)
    network, inception = load_segmenter(run, "real"), os.environ.get("ECHO_INCEPTION", "")
    results = quality.image_quality(synthetic, validation, training, network, run.seed, inception)
    for name, table in results.items():
        write_csv(run.folder("quality") / f"{name}.csv", table, float_format="%.6g")


@work_of("grid")
def grid_stage(run: Run) -> None:
    """Train what the experiment grid has beside the main table, one training after the other; then score, once."""
    folder = run.folder("grid")
    rows, segmenters = grid.study_trainings(run.profile, run.seed), folder / "segmenters"
    score_fidelity(run.folder("generation"))  # for those that leave out the worst images
    trainings.train_each(rows, run.profile, data_stage(run), run.folder("generation"), segmenters, run.seed)
    tables.write_scores(*grid.score_trainings(rows, run.profile, segmenters, run.open_data()), folder)
