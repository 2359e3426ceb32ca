"""The committed notebooks: their fixed opening, a clean run from top to bottom, and links that lead somewhere."""

import ast
import re

import nbformat
import papermill
import pytest
from conftest import REPOSITORY

from echo import __version__, reproduce

PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PARAMETERS = {"profile": "laptop", "data": "phantom", "run": "", "seed": 0, "recompute": False}


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_every_stage_has_its_notebook():
    assert {name for _folder, name in reproduce.STAGES.values()} <= {p.stem for p in PATHS}
    readme = (REPOSITORY / "README.md").read_text()
    assert all(f"notebooks/{p.name}" in readme for p in PATHS)


def test_fixed_opening(notebook):
    title, setup = notebook.cells[0].source, notebook.cells[1].source
    assert re.match(r"# \d\d · ", title)
    assert "**Claim.**" in title
    assert setup.startswith("## Set-up")
    imports, parameters = code_cells(notebook)[:2]
    assert imports.source.splitlines()[-1] == 'print("echo", echo.__version__)'
    assert imports.outputs[0].text == f"echo {__version__}\n"
    assert parameters.metadata.tags == ["parameters"]
    assigned = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(parameters.source).body}
    assert assigned == PARAMETERS
    assert all("#" in line for line in parameters.source.splitlines())  # each knob is explained


def test_parameters_that_reproduce_gives_exist():
    for _folder, name in reproduce.STAGES.values():
        known = papermill.inspect_notebook(REPOSITORY / "notebooks" / f"{name}.ipynb")
        assert set(known) == set(PARAMETERS)


def test_committed_state_is_a_clean_run(notebook):
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for c in cells for output in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_cells_are_short_and_define_no_method(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 25
        assert not [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.ClassDef)]


def test_prose_leads_somewhere(notebook):
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert link.startswith("http") or (REPOSITORY / "notebooks" / link).exists(), link
    assert "**Change this and run again" in notebook.cells[-1].source
    assert len(re.findall(r"^\*\*Change", prose, re.M)) == 1
