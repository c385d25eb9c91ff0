# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
r"""Makes a MONAI bundle of its own from a fine-tuned segmentation run, to be handed on.

    python scripts/export_bundle.py --run runs/segmentation/<date> --output my_model
    python -m monai.bundle run --bundle_root my_model --config_file my_model/configs/inference.json \
        --dataset_dir /path/to/scans --output_dir results

MONAI's own checks run before the folder appears. docs/how-to/hand_on_a_model.md explains what is in it, and how MONAI
Label and MONAI Deploy take it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bundle.errors import UserError, install_excepthook
from bundle.export.monai_bundle import Exported, FinishedRun, export_bundle, needs_package

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "tests/schema/meta_schema_20240725.json"


def report(done: Exported, run: FinishedRun) -> str:
    """What was written and checked, and how to use it."""
    made = {"script": "scripted", "trace": "traced for windows of the crop's size"}.get(done.torchscript)
    reason = needs_package(run)
    package = f"MONAI and this package ({reason or 'as --components asks for'})"
    needs = "MONAI alone" if done.components == "monai" else package
    checks = ["verify_net_in_out"] + ["verify_metadata"] * done.verified.metadata + ["ckpt_export"] * bool(made)
    lines = [
        f"{done.folder}: {run.content['network']['name']}, classes {', '.join(run.classes)}",
        f"needs {needs}",
        f"model.ts: {made or 'left out, TorchScript does not take this network'}",
        f"passed MONAI's {', '.join(checks)}",
    ]
    if not done.verified.metadata:
        lines.append("not checked: metadata.json by its schema (pip install jsonschema, and run from the repository)")
    folder = str(done.folder)
    lines.append(
        f'segment a folder: python -m monai.bundle run --bundle_root "{folder}" --config_file '
        f'"{folder}/configs/inference.json" --dataset_dir /path/to/scans --output_dir results'
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Makes a MONAI bundle of its own from a fine-tuned segmentation run.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, such as runs/segmentation/<date>")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; its name is the bundle's")
    parser.add_argument("--title", help="what to call the model; default: the folder's name")
    parser.add_argument("--licence", help='terms of the weights, such as "CC BY 4.0"; default: not stated')
    parser.add_argument(
        "--components",
        choices=("auto", "monai", "bundle"),
        default="auto",
        help="what prepares the scans: MONAI's own transforms, or this package's; default: MONAI's where they can",
    )
    parser.add_argument("--overwrite", action="store_true", help="write a bundle anew that is there already")
    options = parser.parse_args(arguments)
    try:
        run = FinishedRun.read(options.run)
        done = export_bundle(
            run,
            options.output,
            licence_file=ROOT / "LICENSE",
            schema=SCHEMA if SCHEMA.is_file() else None,
            logging_file=ROOT / "configs/logging.conf",
            title=options.title,
            components=options.components,
            licence=options.licence,
            overwrite=options.overwrite,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(done, run))
    return 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
