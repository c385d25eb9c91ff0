# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sees to it that there is an nnU-Net for the tests that hand a pre-trained network over to it.

    .venv/bin/python scripts/fetch_nnunet.py

It is put into a folder of its own, .cache/nnunet, without PyTorch and what else this Python has: about 500 MB. Nothing
in the environment changes. Its commands run with that folder on PYTHONPATH:

    PYTHONPATH=.cache/nnunet .cache/nnunet/bin/nnUNetv2_train --help

nnU-Net's Primus networks are left out: they alone need torchvision. Whoever uses nnU-Net has it already and does not
need this.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".cache/nnunet"
#: nnU-Net and DKFZ's own packages, of one time; nnunetv2 2.8 is the first to find trainers in a folder of one's own
PINNED = (
    "nnunetv2==2.8.1",
    "batchgenerators==0.25.5",
    "batchgeneratorsv2==0.3.6",
    "acvl-utils==0.2.6",
    "dynamic-network-architectures==0.4.4",
)
#: what these need, and the bundle does not; the newest that this Python can have
OTHERS = (
    "SimpleITK",
    "blosc2",
    "charset-normalizer",
    "cloudpickle",
    "connected-components-3d",
    "einops",
    "future",
    "graphviz",
    "idna",
    "imagecodecs",
    "imageio",
    "joblib",
    "lazy-loader",
    "msgpack",
    "narwhals",
    "ndindex",
    "numexpr",
    "pandas",
    "pytz",
    "requests",
    "scikit-image",
    "scikit-learn",
    "seaborn",
    "threadpoolctl",
    "tifffile",
    "urllib3",
    "yacs",
)


def find_nnunet(folder: Path = FOLDER) -> Path | None:
    """The folder of nnU-Net's commands, or None where it was not fetched."""
    commands = folder / "bin"
    return commands if (commands / "nnUNetv2_train").is_file() else None


def fetch(folder: Path = FOLDER) -> None:
    """Installs nnU-Net into a folder.

    Raises:
        subprocess.CalledProcessError: if pip fails; it has said why.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        options = ["--quiet", "--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(made)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *PINNED, *OTHERS], check=True)
        shutil.rmtree(made / "nnunetv2/training/nnUNetTrainer/primus", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def main() -> int:
    """Finds or fetches nnU-Net; returns the exit status."""
    if find_nnunet() is not None:
        return 0
    print(f"fetching nnU-Net for the tests of the way to it into {FOLDER} (once; 500 MB)", file=sys.stderr)
    try:
        fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: nnU-Net could not be fetched ({error}): see what pip says above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
