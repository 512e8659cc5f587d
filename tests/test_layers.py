"""The order of the rooms: a lower room never imports a higher one, not even inside a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewright

PACKAGE = Path(rewright.__file__).parent
FLOORS = (
    ("model",),
    ("shapes",),
    ("ops", "pattern"),
    ("passes", "quant"),
    ("registry", "verify"),
    ("report",),
    ("reproducer",),
    ("run",),
    ("api", "bisection", "calibration", "measure"),
    ("tuning",),
    ("testing",),
    ("integrations", "cli"),
)
SIDEWAYS = {("quant", "passes"), ("cli", "integrations")}
"""On one floor only these doors are open: quantization passes are passes, and the command line reads model directories."""
FACADE = {"__init__", "__main__"}
UNTELLING = {"utils", "util", "helpers", "helper", "common", "misc"}

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms that a module imports anywhere in it, with the line."""
    package = ("rewright", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "rewright" and len(parts) > 1:
                yield parts[1], node.lineno


def test_every_room_has_its_floor() -> None:
    found = {room(path) for path in modules()} - FACADE
    assert found <= FLOOR.keys(), f"say in tests/test_layers.py where {sorted(found - FLOOR.keys())} belongs"


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_a_room_imports_only_lower_rooms(name: str) -> None:
    wrong = []
    for path in modules():
        if room(path) != name:
            continue
        for target, line in imported(path):
            is_lower = target in FLOOR and FLOOR[target] < FLOOR[name]
            if target in FLOOR and target != name and not is_lower and (name, target) not in SIDEWAYS:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports rewright.{target}")
    assert not wrong


def test_the_scan_sees_imports_in_functions_and_relative_ones(tmp_path: Path) -> None:
    seen = {target for path in modules() if room(path) == "model" for target, _ in imported(path)}
    assert seen == {"model"}
    carrier = PACKAGE / "model" / "carrier.py"  # imports save inside a method
    in_functions = [
        node
        for function in ast.walk(ast.parse(carrier.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom)
    ]
    lines = {line for _, line in imported(carrier)}
    assert in_functions
    assert all(node.lineno in lines for node in in_functions)


def test_no_module_is_named_after_nothing() -> None:
    named = {path.relative_to(PACKAGE) for path in modules() for part in path.with_suffix("").parts if part in UNTELLING}
    assert not named


def test_modules_stay_small() -> None:
    long = {str(path.relative_to(PACKAGE)): lines for path in modules() if (lines := len(path.read_text().splitlines())) >= 400}
    assert not long
