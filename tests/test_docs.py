"""The pages of docs/: their Python blocks print what stands below them, and their links lead to files."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
BLOCKS = [
    (path.stem, code, expected)
    for path in PAGES
    for code, expected in re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", path.read_text(), re.S)
]


def test_there_are_blocks_to_run():
    assert BLOCKS


@pytest.mark.parametrize(("page", "code", "expected"), BLOCKS, ids=[page for page, _, _ in BLOCKS])
def test_a_block_prints_what_stands_below_it(page, code, expected):
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == expected


@pytest.mark.parametrize("path", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=lambda p: p.stem)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert link.startswith("http") or (path.parent / link).exists(), link


def test_the_architecture_names_what_there_is():
    """Every path in its prose is a file or a room of the repository, bare or inside one of the packages."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`([a-z_]+/[a-z_/]+(?:\.(?:py|md))?)`", text):
        assert (REPOSITORY / name).exists() or (REPOSITORY / "reproduction" / name).exists(), name
