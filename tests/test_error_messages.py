# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Every error that a user can see says what is wrong and, behind a colon or a semicolon, what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VALUE = "\0"  # stands where a message has a value
FILES = sorted(path for folder in ("bundle", "scripts") for path in (ROOT / folder).rglob("*.py"))


def text_of(node: ast.expr) -> str:
    """The constant text of an expression, with `VALUE` where the rest is."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return VALUE


def messages(source: str, error: str) -> Iterator[tuple[int, str]]:
    """Line and text of each error of that name that is raised."""
    for node in ast.walk(ast.parse(source)):
        call = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func).rsplit(".", 1)[-1] == error:
            yield call.lineno, "; ".join(text_of(argument) for argument in call.args)


def has_remedy(text: str) -> bool:
    """Whether something follows a colon or a semicolon: words, or a value that is made of some."""
    cause, found, remedy = re.sub(r"[;:] ", "\1", text).partition("\1")
    return bool(found and cause.strip() and re.search(rf"[a-z]{{2}}|{VALUE}", remedy))


def found(error: str) -> dict[str, str]:
    return {
        f"{file.relative_to(ROOT)}:{line}": text for file in FILES for line, text in messages(file.read_text(), error)
    }


def test_every_error_of_a_user_keeps_its_remedy():
    raised = found("UserError")
    assert len(raised) > 100
    lacking = {where: text for where, text in raised.items() if text != VALUE and not has_remedy(text)}
    assert not lacking, "\n".join(f"{where}  {text.replace(VALUE, '…')}" for where, text in lacking.items())


def test_every_reason_to_skip_a_volume_is_one_line_of_words():
    # a volume that was left out is refused by the reason that was written when it was found
    reasons = {where: text for where, text in found("VolumeError").items() if set(text) - {VALUE, ";", " "}}
    assert len(reasons) > 15
    assert all(re.search(r"[a-z]{3}", text) and "\n" not in text for text in reasons.values())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise UserError(f'--lr {lr} does not fit: give a number above 0')", True),
        ("raise errors.UserError('no volume; ' + hint) from error", True),
        ("raise UserError('--lr does not fit')", False),
        ("raise UserError(f'{file}: ')", False),
        ("raise UserError(f'{file} is damaged:12')", False),
    ],
)
def test_a_message_without_a_remedy_is_found(source: str, expected: bool):
    ((_, text),) = messages(source, "UserError")
    assert has_remedy(text) is expected
