# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes scripts/locked/*.txt: every package that a set-up fetches, at one version, with the sha256 of its files.

    python -m pip install uv==0.13.9 && python scripts/zoo/lock_packages.py

To be run after a change of constraints.txt or of the requirements. torch is not in the files, nor what only its CUDA
build needs: their hashes differ by the index that they come from.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: from another index, or from torch's own
_LEFT_OUT = re.compile(r"(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==")
#: installed without what they need in turn, which is nnU-Net's plans and not its networks
_ALONE = ("dynamic-network-architectures", "einops")
_OPTIONS = (
    *("--universal", "--generate-hashes", "--python-version", "3.10", "--only-binary", ":all:", "--quiet"),
    *("--no-annotate", "--no-header", "--constraint", "constraints.txt", "--default-index", "https://pypi.org/simple"),
)
_HEADER = """\
# Every package that scripts/setup_env.sh{option} fetches, with the sha256 of each of its files; torch is not in here.
# Written by scripts/zoo/lock_packages.py: run it again after a change of constraints.txt or of the requirements.
"""


def compiled(*arguments: str, given: str | None = None) -> str:
    """What uv resolves for requirement files, or for the requirements `given` as a text."""
    command = [sys.executable, "-m", "uv", "pip", "compile", *_OPTIONS, *arguments, *(["-"] if given else [])]
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=True).stdout


def without_torch(text: str, *, kept: str = "") -> str:
    """The packages that come from pip's own index.

    Args:
        text: of a requirements file with hashes: a package begins at the start of a line.
        kept: a package that is named by the requirements.
    """
    packages = re.findall(r"^[^\s#].*\n(?:[ \t].*\n)*", text, flags=re.MULTILINE)
    return "".join(p for p in packages if not _LEFT_OUT.match(p) or (kept and p.startswith(f"{kept}==")))


def main() -> None:
    """Writes both files."""
    folder = ROOT / "scripts/locked"
    folder.mkdir(exist_ok=True)
    run = without_torch(compiled("requirements.txt"))
    dev = without_torch(compiled("requirements.txt", "requirements-dev.txt"), kept="triton")
    alone = compiled("--no-deps", given="\n".join(_ALONE))
    (folder / "requirements.txt").write_text(_HEADER.format(option="") + run)
    (folder / "requirements-dev.txt").write_text(_HEADER.format(option=" --dev") + dev + alone)


if __name__ == "__main__":
    main()
