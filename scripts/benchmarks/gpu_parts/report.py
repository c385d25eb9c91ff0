# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The results of all parts as JSON, and as a page to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.atomic import replace_file

__all__ = ["write_results"]

_LONGEST = 60  # rows that a table of the page shows


def write_results(results: Mapping[str, Any], output: Path) -> None:
    """Writes results.json and results.md."""
    for name, text in (("results.json", json.dumps(results, indent=1, default=str)), ("results.md", _page(results))):
        with replace_file(output / name) as part:
            part.write_text(text)


def _page(results: Mapping[str, Any]) -> str:
    lines = [
        "# The GPU, proven in one command",
        "",
        *(f"- {name}: {value}" for name, value in results["about"].items()),
    ]
    for letter, part in results["parts"].items():
        lines += ["", f"## {letter}: {part['title']}", "", f"{part['status']}, {part['seconds']:.0f} s", ""]
        lines += [f"- {note}" for note in part.get("notes", [])]
        for name, rows in part.get("tables", {}).items():
            lines += ["", f"### {name}", "", *_table(rows[:_LONGEST])]
        for name in ("traceback", "log"):
            if part.get(name):
                lines += ["", name, "", "```", part[name], "```"]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
