"""The order of the rooms (docs/architecture.md), and the size of what is in them."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

ROOMS = ("echo", "datasets", "evaluation", "synthesis", "plots", "studies", "runs", "cli")  # each may use those before
FILES = sorted(path for room in ("echo", "reproduction", "tools") for path in (REPOSITORY / room).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}
DOOR = ("echo.__main__", "reproduction.cli")  # the one way from the method to the apparatus


def imports(name: str) -> set[str]:
    """The project's modules that a module imports anywhere in it, packages themselves left out."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {other for other in found if other in MODULES and MODULES[other].name != "__init__.py"} - {name}


def room(name: str) -> str:
    """echo, a folder of reproduction, cli, or tools."""
    first, *rest = name.split(".")
    return rest[0] if first == "reproduction" and rest else first


@pytest.mark.parametrize("name", MODULES)
def test_a_room_uses_those_before_it(name):
    for other in imports(name):
        if (name, other) == DOOR or room(name) == "tools":
            continue
        assert room(other) in ROOMS[: ROOMS.index(room(name)) + 1], f"{name} imports {other}"
        assert {room(name), room(other)} != {"synthesis", "plots"}, f"{name} imports {other}"


def test_no_circle():
    left = {name: imports(name) - {DOOR[1]} if name == DOOR[0] else imports(name) for name in MODULES}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_modules_and_functions_are_short(path: Path):
    source = path.read_text()
    assert source.count("\n") <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_imports_are_found():
    assert {"echo.unet", "echo.fast", "echo.labels"} <= imports("echo.sampler")
