# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Measures what a large archive costs on this machine: disk, memory, seconds.

    python scripts/benchmarks/archive.py                        every part at its full size
    python scripts/benchmarks/archive.py --parts index          one part
    python scripts/benchmarks/archive.py --scale 0.05           a twentieth of the files

Each part is a module of archive_parts/ with a function `run(context)` that returns its figures. A part may take options
of its own from `context.scale`. The figures are printed, and written to --output as json after every part.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # the bundle, which need not be installed

from archive_parts.context import Context

from bundle.atomic import replace_file
from bundle.errors import UserError, install_excepthook

#: what can be measured, by the name of its module in archive_parts/
PARTS = {
    "index": "index of 100,000 DICOM files in 1,000 series",
    "store": "prepared volumes: bytes, crops a second, bytes read, processes, memory",
}


def main() -> None:
    """Runs the command."""
    install_excepthook()
    options = _options()
    if not 0 < options.scale <= 1:
        raise UserError(f"--scale {options.scale} does not fit: give a share above 0, up to 1")
    about = {"python": platform.python_version(), "cores": os.cpu_count(), "scale": options.scale}
    results: dict[str, Any] = {"about": about, "parts": {}}
    for name in options.parts:
        print(f"{name}: {PARTS[name]}", flush=True)
        with tempfile.TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True) as work:
            start = time.monotonic()
            context = Context(work=Path(work), scale=options.scale, processes=options.processes)
            figures = importlib.import_module(f"archive_parts.{name}").run(context)
        results["parts"][name] = {**figures, "seconds in all": round(time.monotonic() - start, 1)}
        print(*(f"    {key}: {value}" for key, value in results["parts"][name].items()), sep="\n", flush=True)
        if options.output is not None:
            with replace_file(options.output) as temporary:
                temporary.write_text(json.dumps(results, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures what a large archive costs on this machine.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in the order in which to run")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--processes", type=int, default=2, help="that work at a time")
    parser.add_argument("--work", type=Path, help="folder for what is made on the way; default: the system's")
    parser.add_argument("--output", type=Path, help="json for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
