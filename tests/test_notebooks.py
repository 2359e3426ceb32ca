"""The committed notebooks: their fixed opening, a clean run from top to bottom, and links that lead somewhere."""

import ast
import copy
import itertools
import re
import subprocess
import sys

import nbclient
import nbformat
import papermill
import pytest
import torch
from conftest import REPOSITORY

from echo import __version__
from reproduction.runs.notebooks import check_parameters
from reproduction.runs.table import STAGES

PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PARAMETERS = {"profile": "laptop", "data": "phantom", "run": "", "seed": 0, "recompute": False}
OWN_PARAMETERS = {
    "03_generation": {"checkpoint": ""},
    "10_another_modality": {"profile": "cpu", "data": "sunnybrook"},
}


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_every_stage_has_its_notebook():
    assert {stage.notebook for stage in STAGES.values()} <= {p.stem for p in PATHS}
    readme = (REPOSITORY / "README.md").read_text()
    assert all(f"notebooks/{p.name}" in readme for p in PATHS)


def test_fixed_opening(notebook, request):
    title, bootstrap, setup = (notebook.cells[k].source for k in range(3))
    assert re.match(r"# \d\d · ", title)
    assert "**Claim.**" in title
    picture = re.search(r"!\[.{20,}\]\(\.\./figures/\w[\w-]*\.png\)\n\n\*[^\n]+\*\n", title)
    assert picture, "no picture, with its alternative text and a line of what it shows, before the set-up"
    assert 'find_spec("echo")' in bootstrap  # its text is tests/test_badges.py's subject
    assert setup.startswith("## Set-up")
    imports, parameters = code_cells(notebook)[1:3]
    assert imports.source.splitlines()[-1] == 'print("echo", echo.__version__)'
    assert imports.outputs[0].text == f"echo {__version__}\n"
    assert parameters.metadata.tags == ["parameters"]
    assigned = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(parameters.source).body}
    assert assigned == PARAMETERS | OWN_PARAMETERS.get(request.node.callspec.id, {})
    assert all("#" in line for line in parameters.source.splitlines())  # each knob is explained


def test_parameters_that_reproduce_gives_exist():
    for stage in STAGES.values():
        known = papermill.inspect_notebook(REPOSITORY / "notebooks" / f"{stage.notebook}.ipynb")
        assert set(PARAMETERS) <= set(known)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_papermills_parameters_are_checked(path):
    good = PARAMETERS | OWN_PARAMETERS.get(path.stem, {})
    check_parameters(path, good)
    check_parameters(path, {"profile": "gpu", "seed": -1, "data": 'a "b"\nc'})
    with pytest.raises(ValueError, match="unknown parameter 'profil': this notebook has profile, data, run, seed, rec"):
        check_parameters(path, {"profile": "gpu", "profil": "gpu"})
    for name, wrong in {"profile": 1, "run": None, "seed": "1", "recompute": 1, "data": ["a"]}.items():
        with pytest.raises(ValueError, match=f"parameter {name} is .*: it must be {type(good[name]).__name__}"):
            check_parameters(path, {name: wrong})


def test_a_notebook_by_itself_in_any_folder(tmp_path):
    """An earlier stage that is missing is named."""
    notebook = REPOSITORY / "notebooks" / "05_dice_tables.ipynb"
    command = [sys.executable, "-m", "papermill", notebook, "out.ipynb", "-k", "python3", "--no-progress-bar"]
    words = ["-p", "profile", "smoke", "-p", "recompute", "True", "-p", "run", "run"]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "finished; run notebook 04_segmentation" in done.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {"out.ipynb", "run"}


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


LOOPS = {
    "02_diffusion_training": ("echo.diffusion.q_sample", "echo.spade.SpadeGroupNorm", "echo.training.batch_loss"),
    "03_generation": ("SemanticDiffusionPipeline",),
    "04_segmentation": ("echo.segmenter.train_segmenter",),
    "05_dice_tables": ("echo.dice.frame_dice",),
}


@pytest.mark.parametrize("stem", LOOPS)
def test_the_loops_on_the_page_equal_the_packages(stem):
    """Each check printed its difference, and that was zero to the digits shown."""
    cells = code_cells(nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4))
    said = "".join(o.text for c in cells for o in c.outputs if o.get("name") == "stdout")
    for name in LOOPS[stem]:
        (line,) = [line for line in said.splitlines() if name in line]
        assert "difference to" in line
        assert float(line.split(": ")[-1].split(" ")[-1]) == 0


def test_what_is_found_is_a_number_or_a_picture(notebook):
    """No cell reports a bare yes or no, or names a folder of the run."""
    for cell in code_cells(notebook):
        assert "bool(" not in cell.source
        assert not re.search(r"experiment\.(folder|root) / \"(?!manifest)", cell.source)


def test_prose_leads_somewhere(notebook):
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert link.startswith("http") or (REPOSITORY / "notebooks" / link).exists(), link
    assert ".ipynb)" in notebook.cells[-1].source  # where to go next


def test_every_figure_has_a_caption(notebook, request):
    """Numbered in order, of two sentences at least: what is drawn, and what to notice."""
    number = int(request.node.callspec.id[:2])
    captions = [
        after.source
        for cell, after in itertools.pairwise(notebook.cells)
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    for k, caption in enumerate(captions, 1):
        start = re.match(r"\*\*Figure (\d+\.\d+)\.\*\* [^\n]+?\. Notice ", caption)
        assert start and start[1] == f"{number}.{k}", caption
    assert len(captions) == "".join(c.source for c in notebook.cells).count("**Figure ")


def suggestions(notebook) -> list[tuple[str, str]]:
    """What the last cell tells a reader to change: (before, after) of some code."""
    return re.findall(r"^- `(.+?)` → `(.+?)`: ", notebook.cells[-1].source, re.M)


def changed(notebook, before: str, after: str):
    """The notebook with that change, made in each code cell that holds the code."""
    notebook = copy.deepcopy(notebook)
    for cell in code_cells(notebook):
        cell.source = cell.source.replace(before, after)
    return notebook


def test_suggested_changes_can_be_made(notebook):
    found = suggestions(notebook)
    assert len(found) == 3
    assert "**Change this and run again:**" in notebook.cells[-1].source
    for before, after in found:
        new = changed(notebook, before, after)
        edited = [n.source for n, c in zip(new.cells, notebook.cells, strict=True) if n.source != c.source]
        assert len(edited) == 1, f"{before!r} stands in {len(edited)} cells"
        ast.parse(edited[0])


@pytest.mark.slow
@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_suggested_changes_work(path, k, tmp_path):
    """The notebook runs to its end with the change, and shows something else."""
    notebook = nbformat.read(path, as_version=4)
    new = changed(notebook, *suggestions(notebook)[k])
    nbclient.execute(new, cwd=tmp_path, timeout=600)

    def shown(cells) -> list:
        return [
            [o.get("data", {}).get("image/png") or o.get("text") or o.get("data") for o in c.outputs] for c in cells
        ]

    assert shown(code_cells(new)) != shown(code_cells(notebook))


def test_a_released_checkpoint_paints_in_notebook_03(tmp_path):
    from golden import to_released

    from echo.unet import SemanticUNet

    torch.manual_seed(0)
    tiny = SemanticUNet(
        image_size=256, model_channels=64, channel_mult=(1, 1, 1, 1), num_res_blocks=1, attention_resolutions=()
    )
    torch.save(to_released(tiny), tmp_path / "ema_0.9999_050000_test.pt")
    output = tmp_path / "out.ipynb"
    parameters = {"checkpoint": str(tmp_path / "ema_0.9999_050000_test.pt")}
    papermill.execute_notebook(
        REPOSITORY / "notebooks" / "03_generation.ipynb", output, parameters, kernel_name="python3",
        cwd=REPOSITORY / "notebooks", progress_bar=False,
    )  # fmt: skip
    (cell,) = [c for c in nbformat.read(output, as_version=4).cells if "paint_released" in c.source]
    assert any("image/png" in o.get("data", {}) for o in cell.outputs)
