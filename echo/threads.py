"""How many CPU threads a training uses: the cores that are free when it begins, and the same number to its end.

Beside one busy process a step of two threads on two cores takes three times as long, one of one thread no longer than
alone: threads wait for the slowest. The last bits depend on the number, so it is never changed silently.
"""

import logging
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch

from echo.device import environment_number

MOST = 256  # threads that may be asked for; the system takes minutes to start tens of thousands
WINDOW = 10  # steps whose median time is compared
USED: set[int] = set()  # with how many threads trainings computed since somebody emptied it; for a run's manifest
logger = logging.getLogger(__name__)


class Cores:
    """Cores that are free of other processes. Those of lower priority than this one (nice) do not count: they yield."""

    def __init__(self) -> None:
        self.numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
        self.before = self._read()

    def _read(self) -> tuple[float, float]:
        """The clock, and the seconds that other processes have computed."""
        own, cores = psutil.Process().cpu_times(), psutil.cpu_times(percpu=True)
        fields = ("user", "system", "nice") if psutil.Process().nice() > 0 else ("user", "system")
        total = sum(getattr(cores[k], field, 0.0) for k in self.numbers for field in fields)
        return time.perf_counter(), total - own.user - own.system

    def free(self) -> int:
        """How many were free since the last call; at least one."""
        (then, computed), self.before = self.before, self._read()
        busy = (self.before[1] - computed) / max(self.before[0] - then, 1e-9)
        return max(1, round(len(self.numbers) - max(busy, 0.0)))


def free_cores() -> int:
    """Cores that no other process uses in half a second, during which this one waits."""
    cores = Cores()
    time.sleep(0.5)
    return cores.free()


def training_threads(recorded: int | None) -> int:
    """The number of threads for a training: ECHO_THREADS; else the `recorded` one, with which it began; else as many
    as cores are free, but not more than PyTorch's default.

    Raises:
        ValueError: when ECHO_THREADS is not a whole number up to MOST.
    """
    default = torch.get_num_threads()
    asked = environment_number("ECHO_THREADS", 0, most=MOST)
    if asked or (default == 1 and not recorded) or torch.cuda.is_available():
        return asked or default
    best = 1 if default == 1 else min(default, free_cores())
    if recorded and recorded != best:
        logger.warning(
            f"this training goes on with {recorded} CPU threads, as it began; {best} would be faster now, with other "
            f"last digits: set ECHO_THREADS={best} for that"
        )
    return recorded or best


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Within this block PyTorch computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    USED.add(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def paced(steps: Iterable[int], threads: int) -> Iterator[int]:
    """The steps of a training; where other processes slow it down, one line says so, once, and what would be faster."""
    cores, clock, times = Cores(), time.perf_counter(), []
    first = 0.0  # seconds a step at the beginning
    silent = threads == 1 or torch.cuda.is_available()  # there is nothing to choose
    for step in steps:
        yield step
        times.append(time.perf_counter() - clock)
        clock += times[-1]
        if silent or len(times) < WINDOW:
            continue
        seconds, free = statistics.median(times), cores.free()
        times.clear()
        first = first or seconds
        silent = free < threads or seconds > 2 * first
        if silent:
            count = len(cores.numbers)
            line = f"a step takes {seconds:.2g} s, at first {first:.2g} s; {free} of {count} cores are free"
            if free < threads:
                line += f": {free} instead of {threads} CPU threads would be faster. To change it, stop, set "
                line += f"ECHO_THREADS={free} and start again: the training goes on from its last checkpoint"
            logger.warning(line)
