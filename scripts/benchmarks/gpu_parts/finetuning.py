# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part e: fine-tuning in steps per second, and prediction in volumes per minute: the network's part, and all of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nibabel
import torch
from gpu_parts.context import Context
from gpu_parts.data import IMAGES
from gpu_parts.workflow import CONFIGS, StepClock, finish, make_workflow, take_stored_bodies
from monai.bundle import ConfigWorkflow

__all__ = ["run"]

WEIGHTS = Path(__file__).parents[3] / "models/model.pt"


def run(context: Context) -> None:
    """Fine-tunes the shipped weights to find the body, then predicts the crops as training does, and as a user does."""
    assert context.data is not None
    given: dict[str, Any] = {"pretrained": str(WEIGHTS) if WEIGHTS.exists() else None, **context.settings.finetune}
    flow = make_workflow(
        context,
        ["finetune_segmentation.yaml"],
        dataset_dir=str(context.data),
        cache_dir=str(context.work / "labelled"),
        output_dir=str(context.work / "finetuned"),
        classes={"body": 1},
        spacing="own",
        epochs=1,
        steps_per_epoch=context.settings.finetune_steps,
        warmup_epochs=0.1,
        val_interval=1,
        **given,
    )
    clock = StepClock(context)
    clock.attach(flow.parser.get_parsed_content("train#trainer"))
    folder = finish(flow)
    losses, milliseconds = clock.loss(), clock.step_ms(1)
    row = {"pretrained": bool(given["pretrained"]), "steps": len(losses), "steps a second": 1000 / milliseconds}
    row |= {"ms a step": milliseconds, "share of the host waiting for data": clock.waiting(1)}
    context.table("fine-tuning", [row | {"first loss": losses[0], "last loss": losses[-1]}])
    context.say(f"{1000 / milliseconds:.1f} steps a second")
    context.table("sliding-window prediction", [_predict(context, flow)])
    context.table("configs/predict_segmentation.yaml, with reading and writing", [_predict_files(context, folder)])


def _predict_files(context: Context, model: Path) -> dict[str, Any]:
    """Predicts the crops' files by the command of a user; compares the label maps with the bodies."""
    assert context.data is not None
    output = context.work / "predicted"
    flow = ConfigWorkflow(
        str(CONFIGS / "predict_segmentation.yaml"),
        workflow_type="infer",
        bundle_root=str(context.work),
        model=str(model),
        dataset_dir=str(context.data / IMAGES),
        output_dir=str(output),
        device=context.device.type,
        report_scans=0,
        **context.settings.predict,
    )
    take_stored_bodies(flow, "preprocessing#transforms", context.data)
    flow.initialize()
    begin = time.perf_counter()
    flow.run()
    seconds = time.perf_counter() - begin
    flow.finalize()
    maps = sorted((output / "label_maps").glob("*.nii.gz"))
    same = [nibabel.load(file).shape == nibabel.load(context.data / IMAGES / file.name).shape for file in maps]
    row: dict[str, Any] = {"volumes": len(maps), "volumes a minute": 60 * len(maps) / seconds}
    return row | {"seconds in all": seconds, "on the files' own grids": all(same) and bool(same)}


def _predict(context: Context, flow: ConfigWorkflow) -> dict[str, Any]:
    network = flow.parser.get_parsed_content("validate#evaluator").network.eval()
    inferer = flow.parser.get_parsed_content("validate#inferer")
    dataset = flow.parser.get_parsed_content("validate#dataset")
    images = [dataset[i]["image"][None] for i in range(len(dataset))]

    def predict(image: torch.Tensor) -> None:
        with torch.no_grad(), torch.autocast(context.device.type, torch.bfloat16, enabled=not context.dry):
            inferer(image.to(context.device), network)
        context.synchronize()

    predict(images[0])
    begin, count = time.perf_counter(), 0
    while count == 0 or (
        count < 20 and time.perf_counter() - begin < min(context.settings.predict_seconds, context.remaining())
    ):
        predict(images[count % len(images)])
        count += 1
    seconds = (time.perf_counter() - begin) / count
    row = {"volumes a minute": 60 / seconds, "seconds a volume": seconds, "window": str(list(inferer.roi_size))}
    return row | {"voxels of the first": images[0].numel(), "volumes": count}
