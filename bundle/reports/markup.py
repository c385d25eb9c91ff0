# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Text, lists and tables as html. Everything that comes in is taken for untrusted text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from bundle.data.printable import printable

__all__ = ["bullets", "facts", "preformatted", "prose", "table", "text"]


_SHORT = 30  # characters


def text(value: object) -> str:
    r"""A value as html text: markup is shown, not obeyed; what cannot be shown is escaped; NaN is a dash.

    Example:
        >>> text("<b>a & b</b>")
        '&lt;b&gt;a &amp; b&lt;/b&gt;'
        >>> text(0.123456), text(12)
        ('0.1235', '12')
    """
    if isinstance(value, float):
        value = "–" if math.isnan(value) else f"{value:.4g}"  # noqa: RUF001 - an en dash, as tables have it
    return html.escape(printable("" if value is None else str(value)))


def prose(sentence: object) -> str:
    """A sentence as html, with what is between two backticks as code.

    Example:
        >>> prose("see `a.csv`")
        'see <code>a.csv</code>'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(sentence))


def facts(entries: Mapping[str, object]) -> str:
    """Names with their values."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in entries.items())
    return f"<dl>{rows}</dl>"


def bullets(lines: Iterable[object]) -> str:
    """A list with a bullet for each line."""
    return f"<ul>{''.join(f'<li>{prose(line)}</li>' for line in lines)}</ul>"


def preformatted(lines: str) -> str:
    """Text as it is, such as a command; line breaks stay."""
    return f"<pre>{'<br>'.join(text(line) for line in lines.splitlines())}</pre>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """A table that scrolls sideways where the screen is narrow; columns of numbers are right-aligned."""
    rows = list(rows)
    classes = [_column_class([row[place] for row in rows]) for place in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(columns, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    content = f"{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{content}</table></div>'


def _column_class(cells: Sequence[object]) -> str:
    """Numbers are aligned right, and short texts are kept in one line."""
    if not cells or any(len(str(cell)) > _SHORT for cell in cells):
        return ""
    return ' class="number"' if all(map(_is_number, cells)) else ' class="short"'


def _is_number(cell: object) -> bool:
    return cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool))
