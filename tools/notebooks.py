"""`python -m tools.notebooks`: the time that each committed notebook takes on this machine, and the memory.

Prints the table, and writes it to `results/bench/notebooks.csv`. Nothing else should run beside it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from echo.resume import write_csv
from reproduction import REPOSITORY, RESULTS


def measure(notebook: Path) -> dict:
    """Run a copy of a notebook with papermill: seconds, and peak resident memory in GB of its largest process.

    That is the kernel. A process counts at least the peak of its parent, so this one stays small: it imports no torch.

    Raises:
        RuntimeError: naming the notebook that fails; papermill's own words stand above it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "papermill", notebook, Path(folder) / "out.ipynb", "--cwd", notebook.parent]
        clock = time.perf_counter()
        process = subprocess.Popen([*command, "--kernel", "python3", "--no-progress-bar", "--log-level", "ERROR"])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{notebook} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return {"notebook": notebook.stem, "seconds": round(seconds, 1), "peak_gb": round(usage.ru_maxrss * unit / 1e9, 2)}


if __name__ == "__main__":
    table = pd.DataFrame([measure(path) for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb"))])
    print(table.to_string(index=False))
    write_csv(RESULTS / "bench" / "notebooks.csv", table)
