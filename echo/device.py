"""The device that computes, and the precision it computes in."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Asking whether there is a GPU must not open it: processes that share a training are forked later.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def get_device() -> torch.device:
    """This process's CUDA GPU (torchrun numbers them; else the first) if there is one, else the CPU."""
    return (
        torch.device("cuda", environment_number("LOCAL_RANK", 0)) if torch.cuda.is_available() else torch.device("cpu")
    )


def device_name() -> str:
    """The GPU's name, or the CPU's architecture and best instruction set."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def tune_cpu() -> None:
    """Settings that make a CPU compute faster: no denormal numbers, and freed memory is kept for the next tensor.

    glibc gives large blocks back to the system, which then fills them with zeros anew, page by page.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
        ctypes.CDLL(None).mallopt(mmap_max, 0)


@contextmanager
def dividing_threads(batch_size: int) -> Iterator[None]:
    """As many CPU threads as there are, but a number that divides the batch.

    Each thread then computes whole images. Images shared between threads are summed in another order, and differ in
    their last bits from those of other numbers of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(n for n in range(1, before + 1) if batch_size % n == 0))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment_number(name: str, default: int, most: int = 2**31 - 1) -> int:
    """The whole number in an environment variable, or the default where it is not set.

    Raises:
        ValueError: when it is something else, negative or more than `most`, naming the variable.
    """
    value = os.environ.get(name) or str(default)
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"the environment variable {name} is {value!r}: it must be a whole number")
    if int(value) > most:
        raise ValueError(f"the environment variable {name} is {value!r}: on this machine it is {most} at most")
    return int(value)


def launched() -> tuple[int, int] | None:
    """This process's rank and how many there are, where torchrun or `notebook_launcher` started it with others.

    Raises:
        ValueError: when only one of RANK and WORLD_SIZE is set, or the rank is not below their number, or LOCAL_RANK
            (which accelerate reads) is no number.
    """
    environment_number("LOCAL_RANK", 0)
    given = [name for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)]
    if len(given) == 1:
        (missing,) = {"RANK", "WORLD_SIZE"} - set(given)
        raise ValueError(f"the environment variable {given[0]} is set and {missing} is not: set both, or neither")
    if not given:
        return None
    rank, processes = environment_number("RANK", 0), environment_number("WORLD_SIZE", 1)
    if rank >= processes:
        raise ValueError(f"the environment variable RANK is {rank}: with WORLD_SIZE {processes} it must be below that")
    return rank, processes


def training_processes() -> int:
    """Processes that share a training: one for each GPU, or what ECHO_PROCESSES says.

    Raises:
        ValueError: when ECHO_PROCESSES is not a whole number above 0, or more than there are GPUs and cores.
    """
    gpus = torch.cuda.device_count()
    processes = environment_number("ECHO_PROCESSES", max(1, gpus), most=max(2, gpus, os.cpu_count()))
    if not processes:
        raise ValueError("the environment variable ECHO_PROCESSES is '0': it must be 1 or more")
    return processes


def supported_precision(precision: str, device: torch.device) -> str:
    """`precision` ("fp16", "bf16", "fp32") where this device computes it fast, else the nearest it does.

    A CPU has no fast fp16, and bf16 only with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        slow = precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp16" if slow else precision
    fast_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if precision in ("bf16", "fp16") and fast_bf16 else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of that precision on that device."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    name = supported_precision(precision, device)
    return torch.autocast(device.type, dtype[name] if name != "fp32" else None, enabled=name != "fp32")


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far in GB: of the GPU, or of this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.exists():  # Linux; its getrusage begins with the peak of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
