"""`make badges`: writes each notebook's Colab badge and bootstrap cell, with the address that pyproject.toml gives."""

import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import nbformat

from echo.resume import write_text
from reproduction import REPOSITORY

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"

# pip is not told to be quiet: its reason for a conflict would go too.
BOOTSTRAP = """\
# Does nothing where echo is installed. Elsewhere, as on Colab: fetches it, and installs only what is missing.
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("echo") is None:

    def call(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:  # why, in one line
            said = done.stdout + done.stderr
            reasons = re.findall(r"^.* depends on .*|^.* user requested .*|^ERROR.*|^fatal.*", said, re.M)
            raise RuntimeError(" ".join("; ".join(reasons or [said]).split()))
        return done.stdout

    address = os.environ.get("ECHO_REPO", "ADDRESS")
    clone, constraints = Path("echo-from-noise").resolve(), Path("echo-from-noise.constraints.txt")
    if not clone.exists():
        call("git", "clone", "--depth=1", address, clone)
    constraints.write_text(call(sys.executable, "-m", "pip", "list", "--format=freeze"))  # what is there stays
    call(sys.executable, "-m", "pip", "install", "--constraint", constraints, "--editable", clone)
    sys.path.append(str(clone))  # for this kernel; those started later see the editable install
"""


def repository_address(root: Path = REPOSITORY) -> str:
    """The address of the repository in the folder `root`, from its pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def colab_link(address: str, name: str) -> str:
    """Where Colab opens notebook `name` (a stem) of the repository on GitHub at this address.

    Raises:
        ValueError: for an address that is not https://github.com/OWNER/REPOSITORY.
    """
    parts = urlsplit(address)
    path = parts.path.strip("/").removesuffix(".git")
    if parts.hostname != "github.com" or path.count("/") != 1:
        raise ValueError(f"pyproject.toml: Repository is {address!r}: Colab opens https://github.com/OWNER/REPOSITORY")
    return f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"


def add_badge(notebook: nbformat.NotebookNode, name: str, address: str) -> nbformat.NotebookNode:
    """Put the badge under the title in cell 0, and the bootstrap cell at 1; older ones are replaced.

    Raises:
        ValueError: for a notebook that does not begin with a title.
    """
    first = notebook.cells[0]
    title, *rest = first.source.split("\n")
    if first.cell_type != "markdown" or not title.startswith("# "):
        raise ValueError(f"{name}.ipynb: cell 0 is no title (# ...)")
    prose = "\n".join(line for line in rest if not line.startswith(BADGE)).strip("\n")
    first.source = f"{title}\n\n{BADGE}({colab_link(address, name)})\n\n{prose}".rstrip("\n")
    source = BOOTSTRAP.replace("ADDRESS", address).rstrip("\n")
    old = [c for c in notebook.cells if "bootstrap" in c.metadata.get("tags", [])]
    cell = old[0] if old else nbformat.v4.new_code_cell(id="bootstrap", metadata={"tags": ["bootstrap"]})
    cell.source = source
    cell.metadata["jupyter"] = {"source_hidden": True}  # JupyterLab shows it folded
    notebook.cells = [first, cell, *(c for c in notebook.cells[1:] if c not in old)]
    return notebook


def write_badges(folder: Path) -> list[Path]:
    """Badge and bootstrap cell in every notebook of a folder; returns those that changed. Outputs stay as they are."""
    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        text = nbformat.writes(add_badge(notebook, path.stem, repository_address())) + "\n"
        if text != path.read_text():
            write_text(path, text)
            changed.append(path)
    return changed


if __name__ == "__main__":
    for path in write_badges(REPOSITORY / "notebooks"):
        print(f"wrote {path.relative_to(REPOSITORY)}")
