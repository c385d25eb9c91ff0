# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""docs/troubleshooting.md has an entry for each error a user can see, and none for one that no longer exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
VALUE = "\0"  # stands where a message has a value


def text_of(node: ast.expr) -> str:
    """The constant text of an expression, with `VALUE` where the rest is."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return VALUE


def messages() -> dict[str, str]:
    """Text of each `raise UserError(...)` and `raise VolumeError(...)` by where it is."""
    found = {}
    for file in sorted(path for folder in ("bundle", "scripts") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).rsplit(".", 1)[-1]
                if name in {"UserError", "VolumeError"}:
                    text = "; ".join(text_of(argument) for argument in node.exc.args)
                    found[f"{file.relative_to(ROOT)}:{node.lineno}"] = text
    return found


def entries() -> list[str]:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    first = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    return [entry for cell in first for entry in re.findall(r"`([^`]+)`", cell)]


def pattern(entry: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part.strip()) for part in entry.split("…")), re.DOTALL)


def test_every_message_has_an_entry():
    known, found = [pattern(entry) for entry in entries()], messages()
    assert len(found) > 100
    lacking = {where: text for where, text in found.items() if not any(entry.search(text) for entry in known)}
    assert not lacking, "\n".join(f"{where}  {text.replace(VALUE, '…')}" for where, text in lacking.items())


def test_every_entry_is_of_a_message():
    texts = list(messages().values())
    stale = [entry for entry in entries() if not any(pattern(entry).search(text) for text in texts)]
    assert not stale, stale


def test_every_row_says_cause_and_remedy():
    rows = [line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    assert all(len([cell for cell in row.strip("|").split(" | ") if cell.strip()]) == 3 for row in rows)
