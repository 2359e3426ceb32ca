"""The Colab badge and the bootstrap cell: in step with pyproject.toml, and at work in an environment like Colab's."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY

from tools.badges import BOOTSTRAP, add_badge, colab_link, repository_address, write_badges

NOTEBOOKS = REPOSITORY / "notebooks"
ADDRESS = "https://github.com/someone/echoes"
# Colab's versions. Its torch (2.11) brings gigabytes of CUDA libraries: the locked one stands in, as does this Python.
COLAB = {"numpy": "2.1.3", "pandas": "2.2.2", "diffusers": "0.39.0", "accelerate": "1.14.0", "ipywidgets": "7.7.1"}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_committed_notebooks_are_in_step(path, tmp_path):
    shutil.copy(path, tmp_path)
    assert not write_badges(tmp_path), f"{path.name} is out of step with tools/badges.py or pyproject.toml: make badges"
    badge, cell = (nbformat.read(path, as_version=4).cells[i].source for i in (0, 1))
    assert f"({colab_link(repository_address(), path.stem)})" in badge.splitlines()[2]
    assert f'"{repository_address()}"' in cell


def test_badges_are_written_once_and_replace_older_ones(tmp_path):
    path = tmp_path / "01_data_preparation.ipynb"
    shutil.copy(NOTEBOOKS / path.name, path)
    before = nbformat.read(path, as_version=4)
    write_badges(tmp_path)
    first = path.read_text()
    assert write_badges(tmp_path) == []
    older = add_badge(nbformat.read(path, as_version=4), "old_name", ADDRESS)
    older.cells.insert(5, older.cells.pop(1))  # somebody moved it
    assert "someone/echoes" in older.cells[0].source
    assert "someone/echoes" in older.cells[5].source
    nbformat.write(older, path)
    assert write_badges(tmp_path) == [path]
    assert path.read_text() == first
    after = nbformat.read(path, as_version=4)
    kept = [c for c in before.cells[1:] if "bootstrap" not in c.metadata.get("tags", [])]
    assert after.cells[2:] == kept  # outputs and counts with them
    assert after.metadata == before.metadata
    assert after.cells[0].source.split("\n\n")[-1] == before.cells[0].source.split("\n\n")[-1]


def test_what_cannot_have_a_badge_is_named():
    assert colab_link(ADDRESS + ".git", "a").endswith("/github/someone/echoes/blob/main/notebooks/a.ipynb")
    with pytest.raises(ValueError, match="Repository is 'https://example.org/a/b': Colab opens https://github.com/"):
        colab_link("https://example.org/a/b", "a")
    untitled = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    with pytest.raises(ValueError, match=r"07.ipynb: cell 0 is no title"):
        add_badge(untitled, "07", ADDRESS)


def test_the_bootstrap_cell_is_formatted_and_short():
    source = BOOTSTRAP.replace("ADDRESS", repository_address())
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", REPOSITORY / "pyproject.toml", "-"]
        subprocess.run(ruff, input=source, text=True, check=True, capture_output=True)
    assert len(source.splitlines()) <= 25


def bare_environment(folder: Path) -> tuple[Path, dict]:
    """The interpreter of a new virtual environment, and what to run it with: nothing of ours is importable."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ECHO_REPO", "JUPYTER_PATH")}
    return folder / "bin" / "python", kept


def bootstrap(python: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the bootstrap cell as a script in a folder."""
    folder.mkdir(exist_ok=True)
    command = [python, "-c", BOOTSTRAP.replace("ADDRESS", ADDRESS)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def installed(python: Path) -> dict[str, str]:
    """Distribution -> version."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    return {d["name"]: d["version"] for d in json.loads(listed)}


@pytest.fixture(scope="module")
def package_index():
    ask = [sys.executable, "-m", "pip", "index", "--retries", "0", "versions", "six"]
    if subprocess.run(ask, capture_output=True).returncode:
        pytest.skip("no package index can be reached")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """The working tree, committed to a repository of its own."""
    folder = tmp_path_factory.mktemp("origin")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    try:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"]
        names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in names:
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "working tree"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return f"file://{folder}"


def test_where_echo_is_installed_the_cell_does_nothing(tmp_path):
    done = bootstrap(Path(sys.executable), tmp_path, **os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_fetched_or_conflicts_is_told_in_one_line(tmp_path, address, package_index):
    python, environment = bare_environment(tmp_path / "env")
    done = bootstrap(python, tmp_path / "a", **environment, ECHO_REPO=f"file://{tmp_path}/nowhere")
    assert done.stderr.splitlines()[-1].startswith(f"RuntimeError: fatal: '{tmp_path}/nowhere' does not appear")

    (packages,) = tmp_path.glob("env/lib/python*/site-packages")
    (packages / "broken-1.0.dist-info").mkdir()  # as an interrupted installation leaves it
    numpy = packages / "numpy-1.26.4.dist-info" / "METADATA"
    numpy.parent.mkdir()
    numpy.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n")
    before = installed(python)
    assert before["numpy"] == "1.26.4"
    done = bootstrap(python, tmp_path / "b", **environment, ECHO_REPO=address)
    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        "RuntimeError: echo-from-noise 0.1.0 depends on numpy>=2.0; The user requested (constraint)"
    )
    assert "numpy==1.26.4; ERROR: Cannot install echo-from-noise" in message
    assert installed(python) == before


def test_a_bare_kernel_like_colabs_runs_the_notebooks(tmp_path, address, package_index):
    """Colab's library versions as far as they install here, a stand-in for its module, and a real kernel."""
    python, environment = bare_environment(tmp_path / "env")
    wanted = [*(f"{name}=={v}" for name, v in COLAB.items()), f"torch=={version('torch').split('+')[0]}", "matplotlib"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *wanted], env=environment, check=True)
    (packages,) = tmp_path.glob("env/lib/python*/site-packages")
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    before = installed(python)
    assert {name: before[name] for name in COLAB} == COLAB
    kernel = tmp_path / "jupyter" / "kernels" / "bare"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "bare", "language": "python"}))
    environment |= {"JUPYTER_PATH": str(kernel.parents[1]), "ECHO_REPO": address}

    def execute(stem: str, folder: Path) -> str:
        """Run a notebook in that folder; returns where its kernel found echo."""
        folder.mkdir()
        notebook = add_badge(nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4), stem, ADDRESS)
        notebook.cells.append(nbformat.v4.new_code_cell("import google.colab\nprint(echo.__file__)"))
        nbformat.write(notebook, folder / "in.ipynb")
        command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "-k", "bare", "--no-progress-bar"]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        cells = nbformat.read(folder / "out.ipynb", as_version=4).cells
        assert not cells[1].outputs
        return cells[-1].outputs[0].text.strip()

    clone = tmp_path / "first" / "echo-from-noise"
    assert execute("01_data_preparation", tmp_path / "first") == str(clone / "echo" / "__init__.py")
    assert execute("03_generation", tmp_path / "second") == str(clone / "echo" / "__init__.py")  # a fresh kernel
    assert {p.name for p in (tmp_path / "second").iterdir()} == {"in.ipynb", "out.ipynb"}
    after = installed(python)
    assert {name: after[name] for name in before} == before
    assert {"echo-from-noise", "monai"} <= set(after) - set(before)
