"""Progress bars, and the steps that a training has still to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import tqdm as _text
import tqdm.auto as _auto

from echo.threads import paced, training_threads, using_threads

# Widgets in a notebook that somebody reads, text where papermill streams them to a terminal.
tqdm = _text.tqdm if os.environ.get("ECHO_TEXT_PROGRESS") else _auto.tqdm


@contextmanager
def steps_left(done: dict, steps: int, name: str, hidden: bool = False) -> Iterator[tqdm]:
    """The steps of a training that are left, numbered from 1, as a progress bar to iterate over.

    Within this block PyTorch computes with as many CPU threads as the training began with.

    Args:
        done: what its checkpoint holds: the "step" that it has reached, and its "threads", None before the first.
        steps: of the whole training.
    """
    done["threads"] = threads = training_threads(done["threads"])
    left = paced(range(done["step"] + 1, steps + 1), threads)
    bar = tqdm(left, total=steps, initial=done["step"], desc=name, unit="step", disable=hidden)
    with using_threads(threads), bar:
        yield bar
