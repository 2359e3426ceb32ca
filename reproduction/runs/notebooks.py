"""Notebooks, executed by papermill: the whole experiment, or one stage of it."""

import ast
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from echo.resume import read_json
from reproduction import NOTEBOOKS, REPOSITORY, need_checkout
from reproduction.runs.run import Run, is_current, one_command, open_run
from reproduction.runs.stages import check_stage
from reproduction.runs.table import STAGES

LONGEST = 80  # characters of a folder for sockets: the system takes about 107 for a socket's whole path


class NotebookError(RuntimeError):
    """A notebook failed; the message is one line."""


def executed_well(notebook: Path) -> bool:
    """Whether papermill executed this notebook to its end; it clears every count at the start."""
    if not notebook.exists():
        return False
    try:
        content = read_json(notebook)
        counts = [c["execution_count"] for c in content["cells"] if c["cell_type"] == "code" and c["source"]]
        return content["metadata"]["papermill"]["exception"] is None and None not in counts
    except (ValueError, KeyError, TypeError):
        return False  # damaged, or somebody's own: it is written anew


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse what a notebook does not have, or has with another type: papermill only warns.

    Raises:
        ValueError: naming the parameter.
    """
    from papermill import inspect_notebook

    defaults = {name: ast.literal_eval(known["default"]) for name, known in inspect_notebook(notebook).items()}
    for name, value in parameters.items():
        if name not in defaults:
            raise ValueError(f"unknown parameter {name!r}: this notebook has {', '.join(defaults)}")
        if type(value) is not type(defaults[name]):
            raise ValueError(f"parameter {name} is {value!r}: it must be {type(defaults[name]).__name__}")


@contextmanager
def connection() -> Iterator[dict]:
    """How to reach a kernel: sockets in a folder of their own, so there is no port to clash with, or to listen on.

    A path too long for a socket, as job folders of clusters are, is replaced by /tmp; else it is TCP on this machine.
    """
    folders = (tempfile.gettempdir(), "/tmp")
    short = [folder for folder in folders if len(folder) <= LONGEST and os.access(folder, os.W_OK)]
    with tempfile.TemporaryDirectory(prefix="echo-", dir=short[0] if short else None) as folder:
        settings = {"connection_file": str(Path(folder) / "kernel.json")}
        if short and os.name == "posix":
            settings |= {"transport": "ipc", "ip": str(Path(folder) / "kernel")}
        yield settings


def kernel_of_this_interpreter(log: IO[bytes]) -> type:
    """A kernel manager that starts this very interpreter with this very package, whatever kernelspecs are installed.

    What the kernel's process itself writes to its standard error goes to `log`; notebooks' output comes by messages.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python", env={"PYTHONPATH": path})

        async def start_kernel(self, **options) -> None:
            await super()._async_start_kernel(**options, stderr=log)

    return ThisInterpreter


def last_line(log: IO[bytes], otherwise: object) -> str:
    """The last line in `log`, or of another text where there is none."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else " ".join(str(otherwise).split())


def execute(notebook: str, output: Path, parameters: dict) -> None:
    """Execute a notebook by papermill into the file `output`.

    Raises:
        ValueError: for a parameter that the notebook does not have.
        NotebookError: naming the notebook, the cell and the file that holds the partial output.
    """
    try:
        import papermill  # here, since a notebook on Colab need not have it
        from nbclient.exceptions import DeadKernelError
        from traitlets.config import Config
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: python -m pip install 'echo-from-noise[notebooks]'"
        raise NotebookError(message) from None

    source = NOTEBOOKS / f"{notebook}.ipynb"
    check_parameters(source, parameters)
    with connection() as settings, tempfile.TemporaryFile() as log:
        try:
            papermill.execute_notebook(
                source,
                output,
                parameters,
                kernel_name="python3",
                kernel_manager_class=kernel_of_this_interpreter(log),
                cwd=NOTEBOOKS,
                progress_bar=False,
                stderr_file=sys.stderr,
                config=Config({"KernelManager": settings}),
            )
        except papermill.PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            message = f"notebook {notebook} failed in its cell {error.exec_count}: {reason}; see {output}"
            raise NotebookError(message) from None
        except DeadKernelError:
            reason = last_line(log, "out of memory?")
            message = f"notebook {notebook}: its kernel died ({reason}); see {output}"
            raise NotebookError(message) from None
        except (RuntimeError, TimeoutError, OSError) as error:  # jupyter_client's, when no kernel answers
            reason = last_line(log, error)
            message = f"notebook {notebook}: the kernel of {sys.executable} does not start: {reason}"
            raise NotebookError(message) from None


def check_inception() -> None:
    """Refuse before any work what the last notebook would stop at: ECHO_INCEPTION without its file, or its package. Its
    path is made absolute, since notebooks run in a folder of their own.

    Raises:
        ValueError: naming what is missing.
    """
    if given := os.environ.get("ECHO_INCEPTION"):
        if not (path := Path(given).expanduser().resolve()).is_file():
            raise ValueError(f"the environment variable ECHO_INCEPTION is {given!r}: there is no such file")
        if find_spec("torch_fidelity") is None:
            raise ValueError("ECHO_INCEPTION asks for FID, which needs the package torch-fidelity: pip install it")
        os.environ["ECHO_INCEPTION"] = str(path)


def reproduce(profile: str, data: str, run: str = "", seed: int = 0, only: str | None = None) -> Path:
    """Execute the notebooks of all stages and of the images' quality, or of one stage or study, into a run folder, and
    return it.

    Raises:
        NotebookError: as `execute` does, at the first notebook that fails.
        OtherInputs: when a stage that is there was made from other inputs.
        ValueError: when another command works on this run, or its folder holds something else.
    """
    need_checkout()
    names = [only] if only else [stage.name for stage in STAGES.values() if stage.reproduced]
    if "quality" in names:
        check_inception()
    opened = open_run(profile, data, run, seed, recompute=True)
    tests_labelled = opened.data == "phantom" or opened.open_data().tests_labelled  # a wrong path fails at once
    # The kernel inherits these: progress as text, which papermill passes on to this terminal.
    os.environ |= {"ECHO_TEXT_PROGRESS": "1", "TQDM_MININTERVAL": "2"}
    with one_command(opened):
        for name in names:
            if STAGES[name].scores_test and not tests_labelled:
                print(f"== {name}: skipped, the test cases have no labels", flush=True)
                continue
            run_notebook(opened, name)
    return opened.root


def run_notebook(run: Run, name: str) -> None:
    """Execute the notebook of a stage, unless stage and notebook are finished."""
    notebook = STAGES[name].notebook
    output = run.root / "notebooks" / f"{notebook}.ipynb"
    check_stage(run, name)  # what is missing or differs is named before the notebook starts
    if is_current(run, name) and executed_well(output):
        print(f"== {name}: finished, skipped", flush=True)
        return
    print(f"== {name}: notebook {notebook}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    parameters = {
        "profile": run.profile.name,
        "data": run.data,
        "run": str(run.root),
        "seed": run.seed,
        "recompute": True,
    }
    execute(notebook, output, parameters)
