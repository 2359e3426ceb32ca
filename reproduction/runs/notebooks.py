"""Notebooks, executed by papermill: the whole experiment, or one stage of it."""

import os
import sys
import tempfile
from pathlib import Path

from echo.resume import read_json
from reproduction import REPOSITORY
from reproduction.datasets import camus
from reproduction.runs.run import STAGES, STUDIES, inputs_of, is_current, open_run


def executed_well(notebook: Path) -> bool:
    """Whether papermill executed this notebook to its end; it clears every count at the start."""
    if not notebook.exists():
        return False
    content = read_json(notebook)
    counts = [c["execution_count"] for c in content["cells"] if c["cell_type"] == "code" and c["source"]]
    return content["metadata"]["papermill"]["exception"] is None and None not in counts


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
