# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a part is given, and where it puts what it finds."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from gpu_parts.settings import Settings

from bundle.atomic import replace_file

__all__ = ["Context"]

#: where batches pass from processes that load, and the bytes that two dozen of them need at 128^3
SHARED, LEAST_SHARED = Path("/dev/shm"), 2_000_000_000  # noqa: S108 - only its size is asked for


@dataclass
class Context:
    """A part's surroundings. Everything found is written at once, so that a part that is cut off keeps what it has.

    Attributes:
        part: its letter.
        settings: sizes.
        dry: whether this is a dry run on a CPU.
        data: folder of crops with bodies, as `--make_data` writes it; None without one.
        work: folder for what nobody needs afterwards.
        output: folder of the results.
        ends: time.monotonic() when the part should be done.
        found: tables by name, notes, and how the part ended.
    """

    part: str
    settings: Settings
    dry: bool
    data: Path | None
    work: Path
    output: Path
    ends: float
    found: dict[str, Any] = field(default_factory=lambda: {"tables": {}, "notes": []})
    terminal: TextIO | None = None

    @property
    def device(self) -> torch.device:
        """The GPU, or the CPU in a dry run."""
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def file(self) -> Path:
        """Where what was found is written."""
        return self.work / f"{self.part}.json"

    @property
    def workers(self) -> int:
        """Processes that load; none where a container has too little shared memory for their batches."""
        if self.settings.workers is not None:
            return self.settings.workers
        if SHARED.is_dir() and shutil.disk_usage(SHARED).free < LEAST_SHARED:
            text = f"loading without processes: {SHARED} has less than {LEAST_SHARED / 1e9:.0f} GB free"
            if text not in self.found["notes"]:
                self.note(text)
            return 0
        return min(os.cpu_count() or 1, 12)

    def remaining(self) -> float:
        """Seconds until the part should be done."""
        return self.ends - time.monotonic()

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Replaces the table of that name."""
        self.found["tables"][name] = rows
        self._write()

    def keep(self, name: str, value: Any) -> None:
        """Keeps what is for results.json only."""
        self.found[name] = value
        self._write()

    def note(self, text: str) -> None:
        """Adds a sentence for the reader, and says it."""
        self.found["notes"].append(text)
        self._write()
        self.say(text)

    def end(self, **how: str) -> None:
        """Says how the part ended: nothing follows."""
        self.found |= how
        self._write()

    def read(self) -> dict[str, Any]:
        """What the part's process has written."""
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def say(self, text: str) -> None:
        """Writes a line to the terminal, with the time left."""
        print(f"  {self.part} {self.remaining():4.0f} s left: {text}", file=self.terminal, flush=True)

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _write(self) -> None:
        with replace_file(self.file) as part:
            part.write_text(json.dumps(self.found, default=str))
