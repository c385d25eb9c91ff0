# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Text of a user's files, such as their names, made fit to be shown."""

from __future__ import annotations

import unicodedata

__all__ = ["counted", "printable", "shortened"]


def printable(text: str) -> str:
    r"""The text with escapes in place of what cannot be shown: line breaks, control codes, bytes of another encoding.

    A file's name can forge a line of a log, or recolour a terminal.

    Example:
        >>> printable("scan\nerror: none")
        'scan\\x0aerror: none'
    """
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def shortened(value: object, longest: int = 200) -> str:
    """The value as it would be written in Python, cut where it is long: for an error of one line."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "volume"), counted(2, "volume")
        ('1 volume', '2 volumes')
    """
    return f"{number} {noun}{'s' * (number != 1)}"
