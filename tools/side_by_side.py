"""A run on one GPU, its trainings and paintings side by side in several processes.

python -m tools.side_by_side PROFILE DATA RUN [SEED [PROCESSES]]

The networks are small: what bounds each training is how fast Python launches kernels, so a GPU has room for a dozen.
This does what `python -m echo reproduce` does for the stages data to tables, without notebooks, in the same folders
from the same inputs: each goes on where it was interrupted, and `reproduce` finds them finished. NVIDIA's MPS
(nvidia-cuda-mps-control -d) lets the processes' kernels run at the same time.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from echo.device import get_device, peak_memory_gb
from echo.training import second_stage, train
from reproduction.evaluation.tables import write_tables
from reproduction.runs import stages, trainings
from reproduction.runs.inputs import finish, is_done
from reproduction.runs.manifest import enter_ledger, enter_manifest
from reproduction.runs.run import Run, one_command, open_run
from reproduction.runs.table import PIPELINE
from reproduction.studies.grid import Training, main_trainings, score_trainings
from reproduction.synthesis import cards
from reproduction.synthesis.generate import ENLARGER, generate

SHARDS = 4  # of each generator's images


@dataclass
class Job:
    """One call in a process of its own.

    Attributes:
        stage: of the run, in whose minutes it counts.
        call: a function of this module.
        arguments: of the call.
        needs: jobs that must be finished before.
    """

    stage: str
    call: Callable
    arguments: tuple
    needs: list["Job"] = field(default_factory=list)


class Result(NamedTuple):
    """What a job returned, when it began and ended (seconds of the system's clock), its process's peak memory in GB."""

    value: object
    began: float
    ended: float
    memory: float


def timed(call: Callable, arguments: tuple) -> Result:
    """Call, and say how long it took."""
    began = time.time()
    value = call(*arguments)
    print(f"{call.__name__} {arguments[1:]}: {time.time() - began:.0f} s", flush=True)
    return Result(value, began, time.time(), peak_memory_gb(get_device()))


def train_first(run: Run, diffusion: Path, seed: int) -> None:
    """The first stage of a generator."""
    train(run.profile, *run.load_frames(), diffusion / "all", seed)


def train_second(run: Run, diffusion: Path, seed: int) -> None:
    """The second stage of a generator."""
    train(run.profile, *run.load_frames(), diffusion / ENLARGER, seed, second_stage)


def paint(run: Run, diffusion: Path, folder: Path, seed: int, shard: int) -> None:
    """A shard of a generator's images."""
    frames = run.load_frames()
    if generate(diffusion, *frames, run.profile, folder, seed, (shard, SHARDS)) is not None:
        cards.write_cards(folder, run.root)


def train_segmenter(run: Run, training: Training) -> None:
    """A segmenter of the main table."""
    folders = run.folder("generation"), run.folder("segmentation")
    trainings.train_one(training, run.profile, run.load_frames(), *folders, run.seed)


def score(run: Run, training: Training) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A segmenter's scores and volumes on the test patients."""
    return score_trainings([training], run.profile, run.folder("segmentation"), run.open_data())


@contextmanager
def marked_finished(folder: Path) -> Iterator[None]:
    """A stage counts as finished within this block."""
    before = is_done(folder)
    finish(folder)
    try:
        yield
    finally:
        if not before:
            (folder / "done").unlink()


def plan(run: Run) -> list[Job]:
    """All jobs, those first that others wait for; opens the folders of stages and generators.

    Raises:
        ValueError: for a profile with a diffusion model for each view and phase, or without a second stage.
    """
    profile, main = run.profile, main_trainings(run.profile, run.seed)
    if profile.per_view_phase or not profile.enlarger:
        raise ValueError(f"profile {profile.name}: only cascades with one model for all views are trained side by side")
    diffusion, synthetic, segmenters = (run.folder(name) for name in ("diffusion", "generation", "segmentation"))
    generators = {"": (diffusion, synthetic, run.seed)}
    stages.begin_stage(run, "diffusion")
    with marked_finished(diffusion):  # the folders after it need not wait
        stages.begin_stage(run, "generation")
        with marked_finished(synthetic):
            stages.begin_stage(run, "segmentation")
    for training in main:
        if training.generator:
            folder = trainings.begin_generator(training, profile, synthetic, segmenters, run.seed)
            places = folder / "diffusion", folder / "synthetic", run.seed + training.generator_seed
            generators[training.generator] = places
    jobs, painted = [], {}
    for name, (networks, images, seed) in generators.items():
        stage = "segmentation" if name else "diffusion"  # as in `reproduce`, where other generators belong to the rows
        both = [Job(stage, call, (run, networks, seed)) for call in (train_second, train_first)]
        stage = "segmentation" if name else "generation"
        painted[name] = [Job(stage, paint, (run, networks, images, seed, k), both) for k in range(SHARDS)]
        jobs += both + painted[name]
    of_row = {t.name: Job("segmentation", train_segmenter, (run, t)) for t in main}
    for t in main:
        of_row[t.name].needs = painted[t.generator] if t.synthetic else []
        if t.finetuned:
            of_row[t.name].needs = [of_row[f"synthetic-{t.seed}"]]
    opening = Job("tables", enter_ledger, (run.root, "tables"), [of_row[main[0].name]])
    scoring = [Job("tables", score, (run, t), [of_row[t.name], opening]) for t in main]
    by_seed = sorted(main, key=lambda t: t.seed)  # a run that is cut short has whole seeds
    return jobs + [of_row[t.name] for t in by_seed] + [opening, *scoring]


def work_through(jobs: list[Job], processes: int) -> list[Result]:
    """Do all jobs, so many at a time; returns their results in the order of the jobs."""
    open_jobs, found = list(jobs), {}
    running: dict[Future, Job] = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while open_jobs or running:
            for job in [job for job in open_jobs if all(id(need) in found for need in job.needs)]:
                running[pool.submit(timed, job.call, job.arguments)] = job
                open_jobs.remove(job)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                found[id(job)] = future.result()
    return [found[id(job)] for job in jobs]


def side_by_side(run: Run, processes: int) -> None:
    """The stages data to tables of a run, so many trainings, paintings and scorings at a time."""
    stages.data_stage(run)
    jobs = plan(run)
    results = work_through(jobs, processes)
    for name in PIPELINE[1:]:
        if name == "tables":
            stages.begin_stage(run, name)
            scored = [result.value for job, result in zip(jobs, results, strict=True) if job.call is score]
            scores, volumes = (pd.concat(tables, ignore_index=True) for tables in zip(*scored, strict=True))
            write_tables(scores, volumes, run.folder(name), run.seed)
        finish(run.folder(name))
        own = [result for job, result in zip(jobs, results, strict=True) if job.stage == name]
        seconds = max(r.ended for r in own) - min(r.began for r in own)
        facts = {"seconds": round(seconds, 1), "finished": True, "processes_at_once": processes}
        facts["peak_memory_gb"] = round(max(r.memory for r in own), 2)
        enter_manifest(run.root, run.profile, run.seed, name, facts)


def main(profile: str, data: str, root: str, seed: str = "0", processes: str = "14") -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = open_run(profile, data, root, int(seed), recompute=True)
    with one_command(run):
        side_by_side(run, int(processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
