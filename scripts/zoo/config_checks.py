# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Model Zoo's assertions C: ids of the configs. Read as text, nothing is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checks import Release, check
from monai.bundle import ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties

#: what is merged onto train.yaml, and must keep its ids
_OVERRIDES = ("evaluate.yaml", "prepare.yaml", "multi_gpu_train.yaml")
_HANDLERS = ("train#handlers", "validate#handlers")


@check("C1")
def inference_ids(release: Release) -> Iterator[str]:
    """Inference: bundle_root, device, network_def, inferer, output_dir."""
    config = _inference(release)
    yield from _lacking("inference.yaml", config, ["bundle_root", "device", "network_def", "inferer", "output_dir"])


@check("C2")
def inference_properties(release: Release) -> Iterator[str]:
    """Inference: what InferProperties requires."""
    yield from _lacking("inference.yaml", _inference(release), _required(InferProperties))


@check("C3")
def train_ids(release: Release) -> Iterator[str]:
    """Train: bundle_root, device, dataset_dir, output_dir, trainer, max_epochs, dataset, data, handlers."""
    wanted = ["bundle_root", "device", "dataset_dir", "output_dir", "train#trainer", "train#trainer#max_epochs"]
    wanted += ["train#dataset", "train#dataset#data", "train#handlers"]
    for name, config in _training(release):
        yield from _lacking(name, config, wanted)


@check("C4")
def train_properties(release: Release) -> Iterator[str]:
    """Train: what TrainProperties requires."""
    for name, config in _training(release):
        yield from _lacking(name, config, _required(TrainProperties))


@check("C5")
def validation_ids(release: Release) -> Iterator[str]:
    """Validation: evaluator, handlers, dataset, data, by these names; its interval is @val_interval."""
    wanted = ["validate#evaluator", "validate#handlers", "validate#dataset", "validate#dataset#data", "val_interval"]
    parts = {"val_data_loader": "dataloader", "inferer": "inferer", "postprocessing": "postprocessing"}
    parts |= {"key_val_metric": "key_metric", "val_handlers": "handlers"}
    for name, config in _training(release):
        yield from _lacking(name, config, wanted)
        for argument, part in parts.items():
            given = config.parser.get(f"validate#evaluator#{argument}")
            if given not in (None, f"@validate::{part}"):  # as the parser writes it
                yield f"{name}: validate#evaluator#{argument} is not @validate#{part}"
        for handler in config.parser["train#handlers"]:
            if handler["_target_"].endswith("ValidationHandler") and handler["interval"] != "@val_interval":
                yield f"{name}: the interval of ValidationHandler is not @val_interval"


@check("C6")
def optional_properties(release: Release) -> Iterator[str]:
    """Optional properties are referred to by their own ids."""
    for properties, configs in (
        (TrainProperties, _training(release)),
        (InferProperties, [("inference.yaml", _inference(release))]),
    ):
        for name, config in configs:
            for key, one in properties.items():
                if not one.get("required") and not config._check_optional_id(key, one):  # noqa: SLF001 - MONAI's rule
                    yield f"{name}: {key} is not referred to as @{one['id']}"


@check("C7")
def handlers(release: Release) -> Iterator[str]:
    """Handlers are mappings with _target_; ValidationHandler goes by its bare name."""
    for name, config in _training(release):
        for id_ in _HANDLERS:
            for index, handler in enumerate(config.parser[id_]):
                if not isinstance(handler, dict) or "_target_" not in handler:
                    yield f"{name}: {id_}#{index} is no mapping with _target_"
                elif handler["_target_"].endswith(".ValidationHandler"):
                    yield f"{name}: {id_}#{index} names ValidationHandler by its path"


@check("C8")
def all_required(release: Release) -> Iterator[str]:
    """No required id lacks anywhere: MONAI would end in a traceback."""
    yield from inference_properties(release)
    yield from train_properties(release)
    for name, config in [*_training(release), ("inference.yaml", _inference(release))]:
        yield from _lacking(name, config, ["run"])


def _inference(release: Release) -> ConfigWorkflow:
    return _workflow([release.path / "configs/inference.yaml"], "infer")


def _training(release: Release) -> list[tuple[str, ConfigWorkflow]]:
    """Every config that trains, and train.yaml with what is merged onto it."""
    configs = release.path / "configs"
    train = configs / "train.yaml"
    merged = [[train], *([train, configs / name] for name in _OVERRIDES if (configs / name).is_file())]
    merged += [[file] for file in sorted(configs.glob("finetune_*.yaml")) if "\ntrain:" in file.read_text()]
    return [(" + ".join(file.name for file in files), _workflow(files, "train")) for files in merged]


def _workflow(files: list[Path], kind: str) -> ConfigWorkflow:
    logging.getLogger(ConfigWorkflow.__module__).setLevel(logging.ERROR)  # it would remark on the next line
    config = ConfigWorkflow([str(file) for file in files], workflow_type=kind, logging_file=False)
    config.parser.parse()  # writes ids as the properties do
    return config


def _required(properties: dict[str, Any]) -> list[str]:
    return [one["id"].replace("::", "#") for one in properties.values() if one["required"]]


def _lacking(name: str, config: ConfigWorkflow, ids: list[str]) -> Iterator[str]:
    for id_ in ids:
        if id_ not in config.parser:
            yield f"{name} has no {id_}"
