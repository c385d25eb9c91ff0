# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Part e: fine-tuning in steps per second, and sliding-window prediction in volumes per minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from gpu_parts.context import Context
from gpu_parts.workflow import StepClock, finish, make_workflow
from monai.bundle import ConfigWorkflow

__all__ = ["run"]

WEIGHTS = Path(__file__).parents[3] / "models/model.pt"


def run(context: Context) -> None:
    """Fine-tunes the shipped weights to find the body, then predicts every crop."""
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
    finish(flow)
    losses, milliseconds = clock.loss(), clock.step_ms(1)
    row = {"pretrained": bool(given["pretrained"]), "steps": len(losses), "steps a second": 1000 / milliseconds}
    row |= {"ms a step": milliseconds, "share of the host waiting for data": clock.waiting(1)}
    context.table("fine-tuning", [row | {"first loss": losses[0], "last loss": losses[-1]}])
    context.say(f"{1000 / milliseconds:.1f} steps a second")
    context.table("sliding-window prediction", [_predict(context, flow)])


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
