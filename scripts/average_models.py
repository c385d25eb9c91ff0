# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Averages the weights of two models: of a pre-training and of the one that it went on from.

    python scripts/average_models.py runs/first runs/second --share 0.7 --output_dir runs/average

The share is of the second. Encoder, decoder and model.json lie in the output folder then, for fine-tuning with
--pretrained runs/average/model.pt. Why: docs/how-to/own_data.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundle.errors import UserError, install_excepthook
from bundle.runs.writable import make_folder
from bundle.transfer import average_models
from bundle.weights import ModelFiles


def main() -> None:
    """Runs the command."""
    install_excepthook()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="a run's folder, or its model.pt")
    parser.add_argument("second", type=Path, help="the run that went on from it")
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder without a model")
    options = parser.parse_args()
    target = ModelFiles(options.output_dir / "model.pt")
    if target.exist():
        raise UserError(f"--output_dir {options.output_dir} holds a model: give another folder")
    made = average_models(options.first, options.second, share=options.share)
    make_folder(options.output_dir, "--output_dir")
    target.write(made.weights, made.settings, made.decoder)
    print(f"{target.weights}: {1 - options.share:g} of {options.first} and {options.share:g} of {options.second}")


if __name__ == "__main__":
    main()
