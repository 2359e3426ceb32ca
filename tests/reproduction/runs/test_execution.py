"""How notebooks are executed: by this interpreter, over short sockets, with parameters that are checked before."""

import json
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from reproduction.runs import notebooks
from reproduction.runs.notebooks import NotebookError, check_parameters, connection, execute


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of notebooks with one, which prints its interpreter and package."""
    made = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell('profile = "laptop"\nseed = 0', metadata={"tags": ["parameters"]})
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made.cells = [parameters, nbformat.v4.new_code_cell("import sys, echo\nprint(sys.executable, echo.__file__)")]
    nbformat.write(made, tmp_path / "a.ipynb")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    return tmp_path


def printed(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[-1].outputs[0]["text"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"profil": "gpu"}, "unknown parameter 'profil': this notebook has profile, seed"),
        ({"profile": 1}, "parameter profile is 1: it must be str"),
        ({"seed": "1"}, "parameter seed is '1': it must be int"),
        ({"seed": True}, "parameter seed is True: it must be int"),
    ],
)
def test_parameters_are_checked_before_anything_runs(folder, parameters, message):
    check_parameters(folder / "a.ipynb", {"profile": "gpu", "seed": -1})
    with pytest.raises(ValueError, match=message):
        execute("a", folder / "out.ipynb", parameters)
    assert not (folder / "out.ipynb").exists()


def test_the_kernel_is_this_interpreter_and_this_package(folder, monkeypatch):
    import echo

    spec = {"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}
    kernels = folder / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    long = folder / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    execute("a", folder / "out.ipynb", {"seed": 1})
    assert printed(folder / "out.ipynb").split() == [sys.executable, echo.__file__]
    assert not list(long.iterdir())


@pytest.mark.parametrize("length", [10, 60, 90, 150])
def test_sockets_have_short_paths(tmp_path, length, monkeypatch):
    folder = Path(tempfile.gettempdir()) / ("y" * length)
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with connection() as settings:
        assert settings["transport"] == "ipc"
        assert len(settings["ip"]) < 100
        assert Path(settings["ip"]).is_relative_to(folder) == (length < 70)
    folder.rmdir()


def test_where_no_folder_is_short_it_is_tcp(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "LONGEST", 1)
    with connection() as settings:
        assert "transport" not in settings


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python", "/bin/true"])
def test_a_kernel_that_does_not_start_is_one_line(folder, program, monkeypatch):
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(NotebookError, match=f"notebook a: the kernel of {program} does not start: ") as error:
        execute("a", folder / "out.ipynb", {})
    assert "\n" not in str(error.value)
