# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Uses an installed release from another folder, with nothing of this repository on Python's path.

    python use_release.py BUNDLE DATA OUTPUT

Checks properties, trains, fine-tunes, embeds, and takes part in a federated round; writes what came of it to
OUTPUT/report.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow, create_workflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

ROOT, DATA, OUTPUT = (Path(argument).resolve() for argument in sys.argv[1:4])
CONFIGS = ROOT / "configs"
COMMON = {"bundle_root": str(ROOT), "device": "cpu", "num_workers": 0}
TINY = {"encoder#init_filters": 4, "encoder#blocks_down": [1, 1, 1, 1, 1], "spacing": [4, 4, 4], "epochs": 1}
TRAIN = {
    **COMMON,
    **TINY,
    "steps_per_epoch": 2,
    "dataset_dir": str(DATA / "volumes"),
    "cache_dir": str(OUTPUT / "cache"),
}
INFER = {**COMMON, "dataset_dir": str(DATA / "volumes"), "output_dir": str(OUTPUT / "embeddings")}


def run(*files: str, **options: Any) -> None:
    """As `python -m monai.bundle run` does."""
    kind = "infer" if files[0].startswith("inference") else "train"
    workflow = create_workflow(config_file=[str(CONFIGS / file) for file in files], workflow_type=kind, **options)
    workflow.run()
    workflow.finalize()


def missing(file: str, kind: str, **options: Any) -> list[str] | None:
    """The properties that MONAI does not find."""
    workflow = ConfigWorkflow([str(CONFIGS / file)], workflow_type=kind, **options)
    workflow.initialize()
    return workflow.check_properties()


def federated_round() -> dict[str, Any]:
    """One round of a client: takes weights, trains, gives the difference, evaluates the new weights."""
    options = {**TRAIN, "output_dir": str(OUTPUT / "federated")}
    client = MonaiAlgo(
        str(ROOT),
        config_train_filename=["configs/train.json", "configs/preset_dev.yaml"],
        train_kwargs=dict(options),
        config_evaluate_filename=["configs/train.json", "configs/preset_dev.yaml", "configs/evaluate.json"],
        eval_kwargs={**options, "run_folder": False},
    )
    client.initialize()
    before = {name: tensor.clone() for name, tensor in client.trainer.network.state_dict().items()}
    client.train(ExchangeObject(weights=before))
    difference = client.get_weights().weights
    after = {name: before[name] + difference[name] for name in before}
    metrics = client.evaluate(ExchangeObject(weights=after)).metrics
    client.finalize()
    changed = sum(bool(tensor.any()) for tensor in difference.values())
    return {"tensors": len(before), "changed": changed, "metrics": metrics}


def main() -> None:
    """Does it all."""
    report: dict[str, Any] = {"seconds": {}}
    steps = {
        "missing_in_train": lambda: missing("train.yaml", "train", **TRAIN),
        "missing_in_inference": lambda: missing("inference.yaml", "infer", **INFER),
        "federated": federated_round,
        "train": lambda: run("train.json", "preset_dev.yaml", **TRAIN, output_dir=str(OUTPUT / "run")),
        "infer": lambda: run("inference.json", **INFER),
        "finetune": lambda: run(
            "finetune_segmentation.json",
            **COMMON,
            dataset_dir=str(DATA / "labelled"),
            cache_dir=str(OUTPUT / "cache"),
            output_dir=str(OUTPUT / "segmentation"),
            pretrained=str(OUTPUT / "run/model.pt"),
            classes=json.loads((DATA / "classes.json").read_text()),
            crop_size=[32, 32, 32],
            epochs=1,
            steps_per_epoch=2,
            val_interval=1,
            val_fraction=0.5,
        ),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        report[name] = step()
        report["seconds"][name] = round(time.perf_counter() - start, 1)
    import bundle  # noqa: PLC0415 - only now it is to be found

    report["code"] = bundle.__file__
    (OUTPUT / "report.json").write_text(json.dumps(report, default=str))


if __name__ == "__main__":
    main()
