import logging
import os

import pytest
import torch

from echo import threads
from echo.device import environment_number, launched, training_processes


@pytest.fixture
def two_threads(monkeypatch):
    """A machine of two cores where PyTorch's default is two threads."""
    monkeypatch.delenv("ECHO_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("free", "recorded", "asked", "expected"), [
    (2, None, "", 2), (1, None, "", 1), (64, None, "", 2),  # never more than the default
    (1, 2, "", 2), (2, 1, "", 1),  # never changed silently
    (2, 2, "1", 1), (1, None, "3", 3),  # but by the user
])  # fmt: skip
def test_number_of_threads(two_threads, monkeypatch, caplog, free, recorded, asked, expected):
    monkeypatch.setattr(threads, "free_cores", lambda: free)
    monkeypatch.setenv("ECHO_THREADS", asked)
    assert threads.training_threads(recorded) == expected
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (bool(recorded) and not asked)
    assert all(f"goes on with {recorded} CPU threads" in line and f"ECHO_THREADS={free}" in line for line in said)


@pytest.mark.parametrize(
    ("busy", "slow", "said"), [(0.0, 1, ""), (1.0, 1, "1 instead of 2 CPU threads"), (0.0, 3, "2 of 2 cores are free")]
)
def test_what_slows_a_training_down_is_said_once(two_threads, monkeypatch, caplog, busy, slow, said):
    clock, steps = [0.0], 0
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(threads.Cores, "_read", lambda self: (clock[0], clock[0] * busy * (steps > 20)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    with caplog.at_level(logging.WARNING):
        for steps in threads.paced(range(60), 2):
            clock[0] += 0.5 * (slow if steps >= 20 else 1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(said)
    assert not said or said in lines[0]


def test_cores_that_others_use(monkeypatch):
    cores = threads.Cores()
    cores.numbers = [0, 1, 2, 3]
    readings = iter([(1.0, 11.0), (2.0, 12.6), (3.0, 99.0)])
    cores.before = (0.0, 10.9)
    monkeypatch.setattr(threads.Cores, "_read", lambda self: next(readings))
    assert [cores.free() for _ in range(3)] == [4, 2, 1]


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads.using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("settings", "named"), [
    ({"RANK": "0"}, "RANK is set and WORLD_SIZE is not"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
    ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
    ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2: with WORLD_SIZE 2"),
    ({"LOCAL_RANK": "z"}, "LOCAL_RANK is 'z'"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
])  # fmt: skip
def test_half_of_a_launchers_variables_is_named(monkeypatch, settings, named):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=named):
        launched()


def test_whole_numbers_of_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == (1, 2)
    monkeypatch.setenv("ECHO_PROCESSES", "")
    assert training_processes() >= 1
    for wrong in ("two", "-1", "1.5", "0", "99999"):
        monkeypatch.setenv("ECHO_PROCESSES", wrong)
        with pytest.raises(ValueError, match="ECHO_PROCESSES is "):
            training_processes()
    monkeypatch.setenv("ECHO_THREADS", "4")
    assert environment_number("ECHO_THREADS", 0) == 4
    for wrong in ("abc", "-2", "99999", "1e3"):
        monkeypatch.setenv("ECHO_THREADS", wrong)
        with pytest.raises(ValueError, match=f"ECHO_THREADS is '{wrong}'"):
            threads.training_threads(None)
