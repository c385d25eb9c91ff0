# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Cross-validation: each scan as the fold segments it that was not trained on it, and what that is worth."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cross_validate_parts.plan import Plan
from cross_validate_parts.same_scans import recorded_parts
from monai.bundle import ConfigWorkflow

from bundle.atomic import replace_file
from bundle.data import FoundVolume
from bundle.data.fingerprints import fingerprint
from bundle.data.safe_names import result_names
from bundle.errors import UserError
from bundle.evaluation import EvaluationFolder, case_name
from bundle.tasks.segmentation.evaluate import SegmentationEvaluation

__all__ = ["evaluate_out_of_fold", "find_validated", "predict_out_of_fold"]


def find_validated(plan: Plan, done: Sequence[int]) -> dict[int, list[FoundVolume]]:
    """The scans that finished folds validated, as each of them recorded it, as they lie on the disk.

    Each has the name of its case, unlike all others. Of copies of one scan, all that there are, each fold validated
    some, and all are the first fold's.

    Raises:
        UserError: if a fold recorded none.
    """
    listed = plan.find_scans()
    cases = result_names(listed, files=lambda _: ())
    if plan.hashes_names:
        cases = [case_name(scan, hashed=True) for scan in listed]
    scans = {case: (replace(scan, name=case), fingerprint(scan.files)) for case, scan in zip(cases, listed)}
    found: dict[int, list[FoundVolume]] = {}
    for fold in done:
        recorded = recorded_parts(plan, fold)["validation"]
        if not recorded:
            raise UserError(
                f"{plan.folder(fold).model_files.settings} does not say which scans were validated: keep fingerprints "
                f"in model_settings of the config, and remove {plan.folder(fold).path} to train that fold again"
            )
        names = [name for name, (_, digest) in scans.items() if digest in recorded]
        if names:
            found[fold] = [scans.pop(name)[0] for name in names]
    return found


def predict_out_of_fold(
    config: str | os.PathLike[str],
    model: str | os.PathLike[str],
    scans: Sequence[FoundVolume],
    output: Path,
    *,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Segments scans on their own grids; what is done already is not done again, unless the fold has other weights now.

    Args:
        config: configs/predict_segmentation.yaml.
        model: folder of the fold's run.
        scans: that the fold was not trained on, as `find_validated` names them.
        output: folder of the predictions.
        options: further ones of the config, such as `device`.

    Returns:
        The label maps by the name of the case; a scan that could not be read has none.
    """
    images = [replace(scan, annotations={}) for scan in scans]
    given = {"model": str(model), "output_dir": str(output), "scans": images, **(options or {})}
    given["output#overwrite"] = "others"  # a fold that was trained again
    flow = ConfigWorkflow(str(config), workflow_type="infer", logging_file=False, **given)
    flow.initialize()
    flow.run()
    flow.finalize()
    files = {scan.name: output / "label_maps" / f"{scan.name}.nii.gz" for scan in images}
    return {name: file for name, file in files.items() if file.is_file()}


def evaluate_out_of_fold(
    label_maps: Mapping[str, Path],
    dataset_dir: str | os.PathLike[str],
    output: Path,
    *,
    classes: Mapping[str, int],
    hashed: bool = False,
) -> None:
    """Copies the label maps of all folds into one folder, and evaluates them on the files' grids.

    Args:
        label_maps: of all folds, by the name of the case.
        dataset_dir: as for `find_segmentations`; its test part is not evaluated.
        output: gets `label_maps/`, `cases.csv`, `results.json` and pictures.
        classes: value in the label maps by the name of each class.
        hashed: whether cases have digests for names.
    """
    folder = output / "label_maps"
    for name, file in label_maps.items():
        with replace_file(folder / f"{name}.nii.gz") as temporary:
            shutil.copyfile(file, temporary)
    SegmentationEvaluation(
        predictions=folder,
        dataset_dir=dataset_dir,
        output=EvaluationFolder(output, overwrite=True),
        classes=classes,
        part="",
        hash_names=hashed,
    ).run()
