# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The pages of the documentation, and what of Markdown the tests need: links, headings, blocks of code."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "models").glob("*.md"),
        *(ROOT / "scripts").rglob("*.md"),
    ]
)
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code of one language."""
    return [block for _, named, block in _BLOCK.findall(text) if named == language]


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return _BLOCK.sub("", text)


def links(text: str) -> list[str]:
    """The targets of the links and pictures, but for those with a scheme."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("*", "").replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return anchors


def names_in_code(text: str) -> set[str]:
    """What stands between backticks in the text."""
    return set(re.findall(r"`([^`\n]+)`", prose(text)))
