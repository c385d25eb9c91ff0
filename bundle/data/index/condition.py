# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Chooses volumes by a condition that a user gives, such as "modality == 'CT' and slices > 60"."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection

from bundle.data.index.database import COLUMNS
from bundle.data.printable import shortened
from bundle.errors import UserError

__all__ = ["chosen"]

_FUNCTIONS = ("abs", "coalesce", "glob", "ifnull", "instr", "length", "like", "lower", "max", "min", "replace", "round",
              "substr", "trim", "upper")  # fmt: skip
#: steps of SQLite's machine, in thousands, that a condition may take of each volume
_STEPS = 100
_EXAMPLE = "such as \"modality == 'CT' and slices > 60\""


def chosen(connection: sqlite3.Connection, where: str, among: Collection[int]) -> set[int]:
    """The numbers of the volumes that a condition fits.

    SQLite itself reads the condition. It may name the columns of volumes and a few functions of numbers and texts;
    everything else, such as another table, is refused by SQLite's authorizer.

    Args:
        connection: to an index, for reading.
        where: an expression of SQL; texts in single quotes.
        among: the numbers of the volumes to choose from.

    Raises:
        UserError: if it is none, names another column, or fits no volume.
    """
    if '"' in where or "`" in where or ";" in where:
        raise UserError(f"--where {shortened(where)} does not fit: write texts in single quotes, {_EXAMPLE}")
    connection.set_authorizer(_authorize)
    try:
        rows = connection.execute(f"SELECT id FROM volumes WHERE (\n{where}\n)").fetchall()  # noqa: S608 - see above
    except (sqlite3.DatabaseError, sqlite3.ProgrammingError) as error:
        raise UserError(f"--where {shortened(where)} does not fit: {_explained(str(error))}") from None
    finally:
        connection.set_authorizer(None)
    found = {number for (number,) in rows}.intersection(among)
    if not found:
        raise UserError(f"--where {shortened(where)} fits none of {len(among)} volumes: {_values(connection, where)}")
    return found


def _authorize(action: int, one: str | None, other: str | None, *_: str | None) -> int:
    """What the statement of `chosen` may do."""
    allowed = (
        action == sqlite3.SQLITE_SELECT
        or (action == sqlite3.SQLITE_READ and one == "volumes" and other in (*COLUMNS, "id", ""))
        or (action == sqlite3.SQLITE_FUNCTION and other in _FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _explained(error: str) -> str:
    if unknown := re.search(r"no such column: (.+)|access to volumes\.(\w+) is prohibited", error):
        return f"there is no column {unknown[1] or unknown[2]}; the columns are {', '.join(COLUMNS)}"
    return f"{error}; give a condition of SQL, {_EXAMPLE}"


def _values(connection: sqlite3.Connection, where: str) -> str:
    """What a text column that the condition names does hold."""
    for name in ("modality", "format", "site"):
        if re.search(rf"\b{name}\b", where):
            distinct = f"SELECT DISTINCT {name} FROM volumes WHERE name != '' LIMIT 10"  # noqa: S608 - see above
            found = connection.execute(distinct).fetchall()
            return f"{name} is one of {', '.join(repr(value) for (value,) in found)}"
    return f"the columns are {', '.join(COLUMNS)}"
