# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The floors of the house: what a room may import, how many arrows there are between rooms, and how large a room is."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "bundle").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
TASKS = {folder.name for folder in (ROOT / "bundle/tasks").iterdir() if (folder / "__init__.py").is_file()}

#: the floors of the house, the ground floor first; a room may import those below it, never one above or beside it
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "atomic", "cells", "ranks"),
    ("weights", "kernels", "stores", "processes"),
    ("data", "masking", "sparse", "figures", "probing"),
    ("networks", "runs", "reports"),
    ("losses", "transfer", "evaluation"),
    ("training", "export", "inference"),
    ("prediction",),
    ("tasks", "reconstruction", "archive"),
)
MAY_IMPORT = {
    room: {below for floor in FLOORS[:number] for below in floor}
    for number, rooms in enumerate(FLOORS)
    for room in rooms
}
# applying a model is not training one
for room in ("inference", "reconstruction"):
    MAY_IMPORT[room].discard("training")
MAY_IMPORT["weights"] = {"errors", "atomic"}
MAY_IMPORT["kernels"] = {"cells"}
MAY_IMPORT["stores"] = {"errors", "atomic"}
MAY_IMPORT["processes"] = {"errors"}
MAY_IMPORT["figures"] = {"errors"}
MAY_IMPORT["probing"] = {"errors"}
MAY_IMPORT["transfer"].discard("data")
MAY_IMPORT["__init__"] = set()  # importing `bundle` must stay cheap: configs name the components one by one


def part_of(file: Path) -> str:
    """The sub-package or module right below `bundle` that `file` belongs to."""
    return file.relative_to(ROOT / "bundle").parts[0].removesuffix(".py")


def imported_parts(source: str, package: str) -> Iterator[tuple[str, int]]:
    """Each part of `bundle` that `source`, a module of `package`, imports, at any depth, and the line number."""
    parents = package.split(".")
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "bundle" else [module]
        for name in names:
            if name.startswith("bundle."):
                yield name.split(".")[1], node.lineno


def imported_tasks(source: str) -> Iterator[tuple[str, int]]:
    """Each downstream task that `source` imports, and the line number."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("bundle.tasks.") and name.split(".")[2] in TASKS:
                yield name.split(".")[2], node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file_imports_only_what_comes_before_it(file: Path) -> None:
    part = part_of(file)
    assert part in MAY_IMPORT, f"bundle/{part} is new: give it its place in PIPELINE"
    package = ".".join(file.relative_to(ROOT).parent.parts)
    for imported, line in imported_parts(file.read_text(), package):
        assert imported == part or imported in MAY_IMPORT[part], f"{file}:{line}: {part} imports {imported}"


@pytest.mark.parametrize(
    "source",
    [
        "import bundle.losses.alignment",
        "from bundle.losses import Alignment",
        "from bundle import losses",
        "from ..losses import Alignment",
        "from ..losses.alignment import Alignment",
        "from .. import losses",
        "def late():\n    from bundle.losses import Alignment",
        "if TYPE_CHECKING:\n    from bundle.losses import Alignment",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    assert [part for part, _ in imported_parts(source, "bundle.sparse")] == ["losses"]


def test_import_of_a_sibling_module_stays_inside_its_part() -> None:
    assert [part for part, _ in imported_parts("from .layout import CellLayout", "bundle.sparse")] == ["sparse"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_imports_a_single_task_but_the_task_itself(file: Path) -> None:
    parts = file.relative_to(ROOT / "bundle").parts
    task = parts[1] if parts[0] == "tasks" else ""
    for imported, line in imported_tasks(file.read_text()):
        assert imported == task, f"{file}:{line}: imports the task {imported}"


@pytest.mark.parametrize(
    "source",
    [
        "from bundle.tasks.detection import Detector",
        "import bundle.tasks.detection.boxes",
        "from bundle.tasks import detection",
    ],
)
def test_every_way_to_import_a_task_is_seen(source: str) -> None:
    assert {task for task, _ in imported_tasks(source)} == {"detection"}


def room_of(file: Path) -> str:
    """A sub-package or module of `bundle`, or a drawer of `scripts`: nobody reads a drawer to understand another."""
    return part_of(file) if file in FILES else "/".join(file.relative_to(ROOT).parent.parts[:2])


def arrows(files: Iterable[Path]) -> dict[str, set[str]]:
    """For each room the rooms of `bundle` that it imports."""
    found: dict[str, set[str]] = {}
    for file in files:
        room, package = room_of(file), ".".join(file.relative_to(ROOT).parent.parts)
        imported = {part for part, _ in imported_parts(file.read_text(), package)} - {room}
        found.setdefault(room, set()).update(imported)
    return {room: imported for room, imported in found.items() if room != "__init__"}


@pytest.mark.parametrize("files", [FILES, [*FILES, *SCRIPTS]], ids=["bundle", "bundle and scripts"])
def test_at_most_35_percent_of_the_possible_pairs_of_rooms_are_tied(files: list[Path]) -> None:
    found = arrows(files)
    pairs = len(found) * (len(found) - 1) / 2
    assert sum(map(len, found.values())) <= 0.35 * pairs, found


def test_no_room_holds_more_than_15_percent_of_the_lines() -> None:
    lines: dict[str, int] = {}
    for file in [*FILES, *SCRIPTS]:
        lines[room_of(file)] = lines.get(room_of(file), 0) + len(file.read_text().splitlines())
    assert max(lines.values()) <= 0.15 * sum(lines.values()), lines
