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
#: what these need, and the bundle does not (it brings blosc2); they are installed without what they need themselves
OTHERS = (
    "SimpleITK==2.5.7",
    "charset-normalizer==3.5.3",
    "cloudpickle==3.1.3",
    "connected-components-3d==4.1.1",
    "einops==0.8.2",
    "future==1.0.0",
    "graphviz==0.21",
    "idna==3.20",
    "imagecodecs==2026.3.6",
    "imageio==2.38.1",
    "joblib==1.6.0",
    "lazy-loader==0.6",
    "narwhals==2.29.0",
    "pandas==3.1.1",
    "pytz==2026.6",
    "requests==2.34.2",
    "scikit-image==0.26.0",
    "scikit-learn==1.9.1",
    "seaborn==0.13.2",
    "threadpoolctl==3.8.0",
    "tifffile==2026.3.3",
    "urllib3==2.8.0",
    "yacs==0.1.8",
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
        options = ["--quiet", "--quiet", "--no-deps", "--disable-pip-version-check", "--no-compile"]
        options += ["--target", str(made)]
        # some of these versions are for Python 3.11 and later only
        others = OTHERS if sys.version_info >= (3, 11) else [name.partition("==")[0] for name in OTHERS]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *PINNED, *others], check=True)
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
