# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Fine-tuned models as their folders hold them: one, or several that predict together."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.weights import ModelFiles, ModelSettings, checksum, load_strictly

__all__ = ["FineTuned"]

logger = logging.getLogger(__name__)

_TASKS = ("segmentation", "classification", "detection")
#: what tells the task of a model.json of version 0.1.0
_TOLD_BY = {"findings": "classification", "anchor_shapes": "detection", "outputs": "segmentation"}
#: what the members of an ensemble must have alike: the meaning of the outputs, and how scans are prepared
_ALIKE = (
    "task", "classes", "findings", "in_channels", "modality", "spacing", "orientation", "crop_size", "ct_window",
    "mr_percentiles", "mr_floor", "intensity_scheme", "input",
)  # fmt: skip
_FOLD = re.compile(r"fold_?\d+", re.IGNORECASE)


class FineTuned:
    """One fine-tuned model, or several that predict together as an ensemble.

    Each is a `model.pt` with its `model.json`, which says what the outputs mean and how scans are prepared. Files of
    version 0.1.0 lack `task`, `in_channels`, `modality` and `mirror_axes`: then the task is told by the other keys, and
    the rest is 1, "auto" and no axis.

    Args:
        model: folder of a run, a `model.pt`, a folder of folds, or a list of these. A command line's text
            "[run1, run2]" is a list, too. Of a folder the members are its subfolders `fold_0`, `fold_1` and so on, or
            where there are none, all of its subfolders with a `model.pt`.
        task: "segmentation", "classification" or "detection", which the models must be for.

    Attributes:
        members: the files of each model.
        task: what the models are for.
        content: the `model.json` of the first; in what `classes`, preparation and inputs say, all are alike.
        sha256: of each member's `model.pt`, in hexadecimal digits.

    Raises:
        UserError: if a model is not there or damaged, is for another task or not fine-tuned, the members differ, or
            the training of one that a folder holds has not come to its end.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from bundle.prediction import FineTuned
        >>> from bundle.weights import ModelFiles
        >>> folder = tempfile.TemporaryDirectory()
        >>> about = {"task": "segmentation", "classes": {"liver": 6}, "crop_size": [32, 32, 32], "mirror_axes": [0]}
        >>> about |= {"spacing": None, "ct_window": [-160, 240], "mr_percentiles": [0.5, 99.5]}
        >>> ModelFiles(Path(folder.name, "model.pt")).write({"weight": torch.zeros(1)}, about)
        >>> model = FineTuned(folder.name, task="segmentation")
        >>> model.content["classes"], model.mirror_axes, model.in_channels, len(model.members)
        ({'liver': 6}, [0], 1, 1)
    """

    def __init__(self, model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, task: str) -> None:
        found = [_find_members(path) for path in _listed(model)]
        self.members = [member for members, _ in found for member in members]
        if twice := [f for f, count in Counter(m.weights.resolve() for m in self.members).items() if count > 1]:
            raise UserError(f"--model names {twice[0]} more than once, and would count it so: name each model once")
        self._notes = [note for _, note in found if note]
        contents = [_complete(files) for files in self.members]
        for files, content in zip(self.members, contents, strict=True):
            _check_task(files, content, task)
        self.task, self.content = task, contents[0]
        self.mirror_axes = [a for a in self.content["mirror_axes"] if all(a in c["mirror_axes"] for c in contents)]
        self._contents = contents
        self._check_alike()
        self.sha256 = [str(c.get("sha256") or checksum(f.weights)) for f, c in zip(self.members, contents, strict=True)]

    def _check_alike(self) -> None:
        for (one, a), (other, b) in pairwise(zip(self.members, self._contents, strict=True)):
            for key in _ALIKE:
                if _comparable(a.get(key)) != _comparable(b.get(key)):
                    raise UserError(
                        f"--model: {one.settings} and {other.settings} differ in {key} ({a.get(key)} and {b.get(key)}) "
                        "and cannot predict together: name folds or seeds of one training"
                    )

    @property
    def classes(self) -> dict[str, int]:
        """The value in label maps, or the label of boxes, by the name of each class, in the order of the outputs."""
        classes: Mapping[str, int] | Sequence[str] = self._get("classes")  # a detector's may be a list of names
        return dict(classes if isinstance(classes, Mapping) else zip(classes, range(len(classes))))

    @property
    def findings(self) -> list[str]:
        """The names of a classifier's outputs, in their order."""
        return list(self._get("findings"))

    @property
    def in_channels(self) -> int:
        """Images per scan."""
        return int(self._get("in_channels"))

    @property
    def modality(self) -> str:
        """What scans are prepared as: "CT", "MR", or "auto", as their files say."""
        return str(self._get("modality"))

    @property
    def orientation(self) -> str:
        """The letters of the axes that scans are turned to, such as "RAS"."""
        return str(self._get("orientation"))

    @property
    def spacing(self) -> list[float | None] | None:
        """Mm per axis that scans are resampled to; None keeps each scan's spacing, None in it that axis's."""
        spacing = self._get("spacing")
        return None if spacing is None else list(spacing)

    @property
    def crop_size(self) -> list[int]:
        """Voxels per axis of a window."""
        return list(self._get("crop_size"))

    @property
    def ct_window(self) -> list[float] | None:
        """The HU that CT is cut off at, lowest and highest; None: an intensity scheme says it."""
        return _list_or_none(self._get("ct_window"))

    @property
    def mr_percentiles(self) -> list[float] | None:
        """The percentiles of the foreground that MR is cut off at, lowest and highest; None: a scheme says it."""
        return _list_or_none(self._get("mr_percentiles"))

    @property
    def mr_floor(self) -> float | None:
        """Deviations below the foreground's mean to which MR is kept; None: the lower percentile."""
        floor = self._get("mr_floor")
        return None if floor is None else float(floor)

    @property
    def intensity_scheme(self) -> Mapping[str, Any] | Sequence[Mapping[str, Any]] | None:
        """Of weights from elsewhere, as for `bundle.data.NormalizeBySchemed`; None for this project's own way."""
        scheme: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = self._get("intensity_scheme")
        return scheme

    @property
    def input(self) -> str:
        """What a classifier sees of a scan that is larger than the crop: "whole", shrunk, or "crop", crop by crop."""
        return str(self._get("input"))

    def _get(self, key: str) -> Any:
        """What `model.json` says under a key."""
        if key not in self.content:
            raise UserError(
                f"{self.members[0].settings} has no {key}, which says how to predict: copy the model.json of the run "
                "again, or fine-tune again"
            )
        return self.content[key]

    @property
    def trained_modalities(self) -> list[str]:
        """Of "CT" and "MR" those that a member was trained on; empty where a `model.json` does not say it."""
        counts = [(volumes or {}).get("training") for volumes in self.each("volumes")]
        if not all(isinstance(count, Mapping) for count in counts):
            return []
        return [name for name in ("CT", "MR") if any(count and count.get(name) for count in counts)]

    @property
    def trained_voxel_mm(self) -> tuple[list[float], list[float]] | None:
        """The smallest and the largest voxel of the members' training, mm on each axis; None where one does not say."""
        sizes = self.each("voxel_mm")
        if not all(isinstance(size, Mapping) for size in sizes):
            return None
        lowest, highest = ([size[end] for size in sizes] for end in ("lowest", "highest"))
        return [min(axis) for axis in zip(*lowest)], [max(axis) for axis in zip(*highest)]

    def each(self, key: str, default: Any = None) -> list[Any]:
        """What the `model.json` of each member says under a key."""
        return [content.get(key, default) for content in self._contents]

    def load(
        self, build: Callable[[Mapping[str, Any]], nn.Module], *, device: torch.device | str = "cpu"
    ) -> list[nn.Module]:
        """Builds the network of each member and loads its weights, compared with the sha256 in `model.json`.

        The log says which members there are.

        Args:
            build: makes the network from the content of `model.json`.
            device: where the networks shall run.

        Returns:
            The networks, in eval mode.

        Raises:
            UserError: if weights are damaged or do not fit.
        """
        self._log_members()
        pairs = zip(self.members, self._contents, strict=True)
        return [load_strictly(build(content), files.weights, device=device) for files, content in pairs]

    def _log_members(self) -> None:
        names = ", ".join(str(files.weights) for files in self.members)
        logger.info("%d model%s: %s", len(self.members), "s predict together" if len(self.members) > 1 else "", names)
        for note in self._notes:
            logger.warning("%s", note)
        for files in self.members:
            if _is_unfinished(files.weights.parent):
                logger.warning("%s: its training has not come to its end, and more may make it better", files.weights)


def _listed(model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The paths of `--model`."""
    if isinstance(model, str) and model.strip().startswith("[") and not Path(model).exists():
        parts = (part.strip().strip("'\"") for part in model.strip().strip("[]").split(","))
        model = [part for part in parts if part]
    paths = [model] if isinstance(model, (str, os.PathLike)) else model
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        raise UserError(
            f"--model {model!r} names no fine-tuned model: give the folder of a run, a model.pt, or a list of these"
        )
    return [Path(path) for path in paths]


def _find_members(path: Path) -> tuple[list[ModelFiles], str]:
    """The models of a path, its own or those of its subfolders, and what is to be said of the choice."""
    if path.is_file() and path.parent.name == "checkpoints":
        raise UserError(f'--model "{path}" is a checkpoint to resume from: give the run\'s folder, {path.parents[1]}')
    if path.is_file():
        return [ModelFiles(path)], ""
    if not path.is_dir():
        raise UserError(f'--model "{path}" does not exist: give the folder of a fine-tuned run, or a model.pt')
    if (path / "model.pt").is_file():
        return [ModelFiles(path / "model.pt")], ""
    folders = sorted((folder for folder in path.iterdir() if folder.is_dir()), key=_number)
    folds = [folder for folder in folders if _FOLD.fullmatch(folder.name)]
    with_model = [folder for folder in folders if (folder / "model.pt").is_file()]
    if not folds and not with_model:
        raise UserError(
            f'--model "{path}" holds no model.pt, nor does a folder in it: give the folder of a run whose first '
            "validation is done"
        )
    chosen = folds or with_model
    for folder in chosen:
        _require_whole(path, folder)
    left = [folder.name for folder in with_model if folder not in chosen]
    note = f"{path} has folds, so its other folders are left out: {', '.join(left)}" if left else ""
    if not folds and len(chosen) > 1:
        note = f"{path} has no folds, so all of its models predict together; list those that shall, if it is not all"
    return [ModelFiles(folder / "model.pt") for folder in chosen], note


def _require_whole(path: Path, folder: Path) -> None:
    """Refuses a member of a folder that has no model yet, or one of a training that goes on or was broken off."""
    problem = ""
    if not (folder / "model.pt").is_file():
        problem = f"has the fold {folder.name} without a model.pt"
    elif _is_unfinished(folder):
        problem = f"holds {folder.name}, whose training has not come to its end"
    if problem:
        raise UserError(
            f'--model "{path}" {problem}: train it to the end, or list the ones that are done, as "[run1, run2]"'
        )


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder is known to be of such a training; of a model that was copied nothing is known."""
    run = RunFolder(folder)
    return (run.holds_run() or run.summary.is_file()) and not run.has_ended()


def _number(folder: Path) -> tuple[str, int]:
    """fold_10 comes after fold_9."""
    digits = re.search(r"\d+$", folder.name)
    return folder.name[: digits.start()] if digits else folder.name, int(digits[0]) if digits else -1


def _complete(files: ModelFiles) -> dict[str, Any]:
    """The content of a model.json, with what version 0.1.0 did not write."""
    about = files.read_settings()
    if about is None:
        raise UserError(
            f"{files.settings} does not exist, so nothing tells what {files.weights.name} is: copy both from the run"
        )
    network = about.content.get("network")
    channels = network.get("in_channels", 1) if isinstance(network, Mapping) else 1
    told = next((task for key, task in _TOLD_BY.items() if key in about.content), "")
    missing: dict[str, Any] = {
        "task": told,
        "in_channels": channels,
        "modality": "auto",
        "mirror_axes": [],
        "mr_floor": 3.0,
        "intensity_scheme": None,
    }
    content = {**missing, "orientation": "RAS", **about.content}
    if content["task"] in _TASKS:
        ModelSettings.from_content(content).require(
            "crop_size", "spacing", "ct_window", "mr_percentiles", where=files.settings
        )
    return content


def _check_task(files: ModelFiles, content: Mapping[str, Any], task: str) -> None:
    found = content["task"]
    if found == task:
        return
    if found in _TASKS:
        raise UserError(f"{files.weights} is a model for {found}, not {task}: use configs/predict_{found}.yaml")
    raise UserError(
        f"{files.weights} is a pre-trained encoder, which has no classes: fine-tune it with "
        f"configs/finetune_{task}.yaml, and give the folder of that run as --model"
    )


def _list_or_none(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _comparable(value: Any) -> Any:
    """Mappings with their order, which is that of the outputs."""
    return list(value.items()) if isinstance(value, Mapping) else value
