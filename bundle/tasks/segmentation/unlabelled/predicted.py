# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Self-training: scans without labels are trained on with the label maps that a first network has made of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bundle.data import FoundVolume, VolumeSet
from bundle.data.safe_names import name_results
from bundle.errors import UserError
from bundle.prediction import FineTuned, seen_in_training
from bundle.prediction.folder import Predictions
from bundle.prediction.scans import find_scans_to_predict
from bundle.tasks.segmentation.unlabelled.volumes import UnlabelledVolumes

__all__ = ["PredictedLabels"]

logger = logging.getLogger(__name__)


class PredictedLabels:
    """Finds scans with the label maps that a network has predicted, for `UnlabelledVolumes`.

    A scan whose label map was removed is left out, so that who has looked at them can leave out what is wrong. A label
    map may be corrected, too.

    Args:
        predictions: a folder that configs/predict_segmentation.yaml has written.
        predicted_by: the model that has written it, as for `bundle.prediction.FineTuned`.
        classes: value in the label maps by the name of each class, which must be the model's.
        volumes: the labelled ones, split. The model must not have been trained on those that are held out: its label
            maps would hand on what it knows of them.

    Raises:
        UserError: if an option is not given, the folder was written by another model, the model has other classes, or
            it was trained on what is held out.
    """

    def __init__(
        self,
        *,
        predictions: str | os.PathLike[str] | None,
        predicted_by: str | os.PathLike[str] | Sequence[str] | None,
        classes: Mapping[str, int],
        volumes: VolumeSet,
    ) -> None:
        if not predictions:
            raise UserError("--predictions is not given: name a folder that configs/predict_segmentation.yaml has "
                            "written of the scans in --unlabelled_dir")  # fmt: skip
        if not predicted_by:
            raise UserError("--predicted_by is not given: name the run whose model has written --predictions")
        self._folder = Predictions(predictions)
        self._settings = self._folder.read_settings()
        model = FineTuned(predicted_by, task="segmentation")
        self.sha256 = model.sha256
        if self._settings.get("models") != self.sha256:
            raise UserError(f"--predictions {predictions} was written by other models than --predicted_by "
                            f"{predicted_by}: give the model that the prediction was made with")  # fmt: skip
        if model.classes != dict(classes):
            raise UserError(
                f"--predicted_by {predicted_by} knows the classes {model.classes}, and this training has "
                f"{dict(classes)}: give --classes as there"
            )
        self._seen = seen_in_training(predicted_by, task="segmentation") or {}
        self._check_held_out(volumes)

    def _check_held_out(self, volumes: VolumeSet) -> None:
        if not volumes.held_out:
            return
        if not self._seen:
            logger.warning("the model that has predicted does not say which scans it was trained on: make sure that "
                           "none of the validation volumes are among them")  # fmt: skip
        seen = [v for v in volumes.validation if v.fingerprint and v.fingerprint in self._seen.get("training", ())]
        if seen:
            raise UserError(
                f"--predicted_by was trained on {len(seen)} of the {len(volumes.validation)} volumes that this "
                f"training validates on, such as {seen[0].name}: give both trainings the same volumes, seed and "
                "val_fraction or fold, or list the parts in a json"
            )

    def __call__(self, unlabelled_dir: str | os.PathLike[str], *, channels: int = 1) -> list[FoundVolume]:
        """The scans, each with its label map as the annotation `label`, or left out.

        Args:
            unlabelled_dir: as for `find_scans_to_predict`.
            channels: as for `find_scans_to_predict`.

        Raises:
            UserError: if nothing is found.
        """
        found = find_scans_to_predict(unlabelled_dir, channels=channels)
        hashed = bool(self._settings.get("hash_names"))
        named = name_results(found, hash_names=hashed, files=self._folder.files)
        return [scan if scan.left_out[0] else self._labelled(scan, result) for scan, result in zip(found, named)]

    def _labelled(self, scan: FoundVolume, result: FoundVolume) -> FoundVolume:
        same, file = self._folder.is_of(result), self._folder.label_map(result.name)
        if same and file.is_file():
            return replace(scan, annotations={**scan.annotations, "label": str(file)})
        if same is False:
            return replace(scan, left_out=("its prediction is of files that were others or have changed",
                                           "predict it again to train on it"))  # fmt: skip
        return replace(scan, left_out=("no label map in --predictions", "predict it to train on it"))

    def facts(self, unlabelled: UnlabelledVolumes) -> dict[str, str]:
        """For the run's summary."""
        models = ", ".join(digest[:12] for digest in self.sha256)
        return {**unlabelled.facts, "labels of these": f"predicted by a model with the sha256 {models}"}

    def fingerprints(self, unlabelled: UnlabelledVolumes, volumes: VolumeSet) -> dict[str, list[str]]:
        """By part, as `UnlabelledVolumes.fingerprints`, with what the model that predicted was trained on."""
        told: dict[str, Any] = unlabelled.fingerprints(volumes)
        before = {one for part in ("training", "earlier") for one in self._seen.get(part, ())}
        earlier = sorted(before - {one for part in told.values() for one in part})
        return {**told, "earlier": earlier} if earlier else told
