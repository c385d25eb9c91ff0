# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Names where there is little room."""

from __future__ import annotations

__all__ = ["name_end"]


def name_end(name: str, longest: int) -> str:
    """The name or, where it has more characters than fit, its end: names of one folder begin alike.

    Example:
        >>> name_end("study/patient_017", 11)
        '…atient_017'
    """
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
