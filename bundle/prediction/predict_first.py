# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Predicts the labelled scans of a data set with a fine-tuned model, before they are evaluated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.data import FoundVolume
from bundle.data.safe_names import name_results
from bundle.errors import UserError
from bundle.evaluation import EvaluationFolder
from bundle.prediction.fine_tuned import FineTuned
from bundle.runs import release_folders
from bundle.runs.checked_settings import check_settings, read_defaults

__all__ = ["labelled_scans", "predicted_folder", "seen_in_training", "told_by_model"]


def labelled_scans(
    dataset_dir: str | os.PathLike[str],
    *,
    find: Callable[..., list[FoundVolume]],
    part: str = "auto",
    hash_names: bool = False,
    files: Callable[[str], Iterable[Path]] = lambda _: (),
) -> list[FoundVolume]:
    """The scans that an evaluation compares, without their labels, under the names that predictions have.

    Args:
        dataset_dir: as for `find`.
        find: finds labelled scans.
        part: as for `find`.
        hash_names: a digest of the path instead of the path.
        files: what will be written under a name; none of it is a file that is read.
    """
    found = [replace(volume, annotations={}) for volume in find(dataset_dir, part=part)]
    return name_results(found, hash_names=hash_names, files=files)


def predicted_folder(
    *,
    predictions: str | os.PathLike[str] | None,
    model: Any,
    config: str | os.PathLike[str],
    find: Callable[..., list[FoundVolume]],
    dataset_dir: str | os.PathLike[str],
    output: EvaluationFolder,
    part: str = "auto",
    hash_names: bool = False,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str | os.PathLike[str] | None:
    """The folder of predictions to evaluate: as given, or that of a model, which predicts into the folder of results.

    Scans that are predicted already are not predicted again, unless by another model or with other settings, which
    `output` may overwrite.

    Args:
        predictions: a folder, or None.
        model: as for `bundle.prediction.FineTuned`, or None.
        config: file of the config that predicts.
        find: finds labelled scans.
        dataset_dir: as for `find`.
        output: of the evaluation.
        part: as for `find`.
        hash_names: whether scans have a digest for a name.
        settings: further values of that config, by id.
        options: likewise, as the user gives them.

    Raises:
        UserError: if both or neither are given, there is no such config, an option is unknown or cannot work, or the
            model cannot predict.
    """
    if (predictions is None) == (model is None):
        raise UserError("--predictions or --model: give one, the folder of predictions or a fine-tuned run")
    if model is None:
        return predictions
    if not Path(config).is_file():
        raise UserError(f"{config} does not exist, so nothing says how to predict: give --bundle_root, the folder of "
                        "the bundle")  # fmt: skip
    parser = ConfigParser(ConfigParser.load_config_file(config))
    function, arguments = (find.func, find.keywords) if isinstance(find, partial) else (find, {})
    target = f"{function.__module__}.{function.__qualname__}"
    scans = {
        "_target_": "bundle.prediction.labelled_scans",
        "dataset_dir": str(dataset_dir),
        "find": {"_target_": target, "_mode_": "callable", **arguments},
        "part": part,
        "hash_names": hash_names,
        "files": "$@output.files",
    }
    given = {"model": model, "output_dir": str(output.predictions), "hash_names": hash_names, "scans": scans,
             "overwrite": "others" if output.overwrite else False}  # fmt: skip
    if unknown := [name for name in options or {} if name not in parser or name in scans or name in given]:
        raise UserError(f"--prediction_options has {unknown[0]!r}, which {config} does not take: see that file")
    check_settings(dict(options or {}), read_defaults([Path(config)]))
    parser.update({**given, **(settings or {}), **(options or {})})
    try:
        parser.get_parsed_content("evaluator").run()
    finally:
        release_folders()
    return output.predictions


def told_by_model(given: Any, model: Any, *, task: str, key: str) -> Any:
    """What is given, or what the `model.json` of a model says if nothing is given.

    Args:
        given: a list or a mapping, which may be empty.
        model: as for `bundle.prediction.FineTuned`, or None.
        task: what the model is for.
        key: of `model.json`.
    """
    return given if given or model is None else FineTuned(model, task=task).content[key]


def seen_in_training(model: Any, *, task: str) -> dict[str, list[str]] | None:
    """What the `model.json` of each model says of the scans that it has seen, for `bundle.evaluation.seen_notes`.

    Args:
        model: as for `bundle.prediction.FineTuned`, or None.
        task: what the model is for.

    Returns:
        Fingerprints by part; empty if a model does not say; None without a model.
    """
    if model is None:
        return None
    told: list[Any] = []
    steps: list[Mapping[str, Any]] = []
    for files in FineTuned(model, task=task).members:
        about = files.read_settings()
        told.append(about.content.get("fingerprints") if about is not None else None)
        steps += about.content.get("origin", []) if about is not None else []
    known = [parts for parts in told if isinstance(parts, Mapping)]
    if len(known) < len(told):
        return {}
    # a fine-tuned model that a member began with has seen its scans with their labels
    earlier = [step["fingerprints"] for step in steps if isinstance(step.get("fingerprints"), Mapping)]
    known += [
        {"earlier": [one for part in ("training", "validation") for one in parts.get(part, ())]} for parts in earlier
    ]
    names = list(dict.fromkeys(name for parts in known for name in parts))
    return {name: sorted({one for parts in known for one in parts.get(name, ())}) for name in names}
