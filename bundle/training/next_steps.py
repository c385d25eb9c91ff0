# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What to do with a run that has ended, as commands to copy."""

from __future__ import annotations

import shlex

from bundle.runs import RunFolder

__all__ = ["next_steps"]

_RUN = "python -m monai.bundle run"
_TASKS = ("segmentation", "classification", "detection")


def next_steps(folder: RunFolder, task: str | None) -> dict[str, str]:
    """Commands by what they do; a user replaces the paths that begin with `/path/to`.

    Args:
        folder: of a run that has written its weights.
        task: that it was fine-tuned for; None: it is a pre-training, any other text than the three tasks gives nothing.

    Example:
        >>> from pathlib import Path
        >>> next_steps(RunFolder(Path("runs/my run")), "detection")["predict"]
        "python -m monai.bundle run --config_file configs/predict_detection.yaml --model 'runs/my run' --dataset_dir /path/to/scans --output_dir predicted"
    """  # noqa: E501 - a command is one line
    run = shlex.quote(str(folder.path))
    if task is None:
        return {
            "fine-tune": f"{_RUN} training --config_file configs/finetune_segmentation.yaml "
            f'--pretrained {shlex.quote(str(folder.model))} --dataset_dir /path/to/labelled --classes "{{liver: 1}}"',
            "see what it reconstructs": f"{_RUN} --config_file configs/reconstruct.yaml --run_folder {run} "
            "--dataset_dir /path/to/volumes",
        }
    if task not in _TASKS:
        return {}
    steps = {
        "predict": f"{_RUN} --config_file configs/predict_{task}.yaml --model {run} --dataset_dir /path/to/scans "
        "--output_dir predicted",
        "evaluate on other labelled scans": f"{_RUN} --config_file configs/evaluate_{task}.yaml --model {run} "
        "--dataset_dir /path/to/others --output_dir evaluated",
    }
    if task == "segmentation":
        steps["hand it on as a MONAI bundle"] = f"python scripts/export_bundle.py --run {run} --output my_model"
    return steps
