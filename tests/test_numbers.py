"""Numbers with decimals in the prose of README, docs/ and notebooks have a source: the tables of results/, the
notebook's own outputs, the settings, or what is quoted from others.

This finds typing errors and numbers of an earlier run. It does not find a number of another cell: of those below 10
with one decimal nearly all stand somewhere.
"""

import re
from functools import cache

import nbformat
import pandas as pd
import pytest
from conftest import REPOSITORY

from reproduction.evaluation import tables
from reproduction.runs.manifest import read_manifest

RUNS = [REPOSITORY / "results" / name for name in ("cpu-camus", "laptop-phantom")]
OTHERS = ("gpus", "speed")  # what other machines logged; results/bench, as tools/bench.py writes it
DOCS = [path for path in sorted((REPOSITORY / "docs").glob("*.md")) if path.stem not in OTHERS]
PAGES = [REPOSITORY / "README.md", *DOCS, *sorted((REPOSITORY / "notebooks").glob("*.ipynb"))]
QUOTED = [REPOSITORY / "data" / "paper_results.csv", REPOSITORY / "results" / "context.csv"]
CARD = REPOSITORY / "results" / "camus-weights" / "MODEL_CARD.md"
ELSEWHERE = {"98.7", "99.1"}  # Dice of validation labels cut at the sector (results/protocol.md)
ELSEWHERE |= {"652.2"}  # million parameters of the published network, which tests count
SETTINGS = [REPOSITORY / "echo" / "config.py", REPOSITORY / "echo" / "diffusion.py"]  # its lambda is the paper's
SETTINGS += [REPOSITORY / "reproduction" / "datasets" / "pixels.py"]
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
NO_RESULT = re.compile(  # code, formulas, addresses, numbers of figures and papers, licences and versions
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+|10\.\d{4}/\S+|\d{4}\.\d{5}|"
    r"Figure \d\.\d|SA 4\.0|Python \d\.\d+",
    re.S,
)


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def rounded(values) -> set[str]:
    """Each value as prose may give it, without its sign."""
    return {f"{abs(value):.{digits}f}" for value in values if value == value for digits in (1, 2, 3)}


@cache
def of_results() -> frozenset[str]:
    """What the tables of the committed runs say, as they print it; and what studies measured, rounded."""
    found = set()
    for run in RUNS:
        for path in [*run.glob("table_*.csv"), run / "differences.csv", run / "comparison.md"]:
            found |= numbers(path.read_text())
        for path in run.glob("*/*.csv"):
            if path.parent.name in ("image_quality", "label_editing", "sampler_study") and path.stem != "nearest":
                found |= rounded(pd.read_csv(path).select_dtypes("number").to_numpy().ravel())
        found |= rounded(facts["seconds"] / 60 for facts in read_manifest(run)["stages"].values())
        means = tables.mean_dice(pd.concat([pd.read_csv(p) for p in (run / "scores.csv", run / "grid" / "scores.csv")]))
        means = means.drop(columns="seeds").astype(float)
        for row in means.index:  # of the grid: a row, and what it adds to the one it is compared with
            found |= rounded(means.loc[row])
            others = {row.split(" + ")[0], "real", "synthetic" if row.startswith("synthetic") else row}
            for other in others & {*means.index}:
                found |= rounded(means.loc[row] - means.loc[other])
    return frozenset(found)


def outputs(notebook) -> str:
    cells = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cells)


def prose(path) -> tuple[str, str]:
    """The text of a page without what is no result, and what the page itself prints."""
    if path.suffix == ".md":
        return NO_RESULT.sub(" ", path.read_text()), ""
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return NO_RESULT.sub(" ", text), outputs(notebook)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_numbers_in_prose_have_a_source(path):
    text, printed = prose(path)
    sources = " ".join(source.read_text() for source in (*QUOTED, *SETTINGS, CARD))
    known = of_results() | ELSEWHERE | numbers(printed) | numbers(sources) | rounded(map(float, numbers(sources)))
    assert not sorted(numbers(text) - known)


def test_a_wrong_number_would_be_found():
    assert numbers("Dice is 92.7 ± 4.5 %, see 10.1007") == {"92.7", "4.5", "10.1007"}
    assert {"92.7", "95.2", "90.8"} <= of_results()
    assert not {"93.4", "97.3", "41.7"} <= of_results()
    assert len(of_results() & {f"{n / 10:.1f}" for n in range(600, 1000)}) < 300  # far from every number is there
