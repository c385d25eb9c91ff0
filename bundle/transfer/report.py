# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a transfer did, tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

__all__ = ["TransferReport"]


@dataclass(frozen=True)
class TransferReport:
    """Where the tensors of a weights file went.

    Attributes:
        prefix: what stands before the file's keys in the network, such as "encoder.".
        loaded: keys of the file that were taken as they are.
        adapted: keys of the file whose tensor was fitted to another number of input channels, and how.
        reshaped: keys of the file whose tensor has another shape in the network, and both shapes; left out.
        unexpected: keys of the file that the network has not.
        missing: keys of the network, below the prefix, that the file has not: its decoder, its head.
    """

    prefix: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The names in the network of what was loaded or adapted."""
        return [f"{self.prefix}{key}" for key in (*self.loaded, *self.adapted)]

    @property
    def share(self) -> float:
        """Share of the file's tensors that are in the network now."""
        used = len(self.loaded) + len(self.adapted)
        return used / max(1, used + len(self.reshaped) + len(self.unexpected))

    @property
    def turned(self) -> list[str]:
        """Keys of the file whose kernel is the network's but for the order of its axes."""
        return [key for key, how in self.reshaped.items() if _is_turned(*map(json.loads, how.split(" -> ")))]

    def table(self, most: int = 8) -> str:
        """The report as Markdown, with up to `most` keys of each kind."""
        where = f"below {self.prefix!r}" if self.prefix else "at the top"
        lines = [f"| tensors | number | which ({where}) |", "|---|---|---|"]
        rows: list[tuple[str, list[str]]] = [
            ("loaded", self.loaded),
            ("adapted", [f"{key} {how}" for key, how in self.adapted.items()]),
            ("other shape, left out", [f"{key} {how}" for key, how in self.reshaped.items()]),
            ("not in the network", self.unexpected),
            ("not in the file", self.missing),
        ]
        for kind, keys in rows:
            more = f", and {len(keys) - most} more" if len(keys) > most else ""
            lines.append(f"| {kind} | {len(keys)} | {', '.join(keys[:most])}{more} |")
        return "\n".join(lines)


def _is_turned(there: list[int], here: list[int]) -> bool:
    return len(there) == len(here) == 5 and there[:2] == here[:2] and sorted(there[2:]) == sorted(here[2:])
