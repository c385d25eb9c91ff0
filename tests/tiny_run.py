# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A run of a few steps on real volumes, for tests of what is done with a trained run."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).parents[1]
TRAIN, DEV = str(ROOT / "configs/train.yaml"), str(ROOT / "configs/preset_dev.yaml")
VOLUMES = ("ct_spine_tptbox.nii.gz", "ct_body_totalseg.nii.gz", "mr_body_totalseg.nii.gz", "mr_spine_tptbox.nii.gz")
TINY = {
    "device": "cpu",
    "encoder#init_filters": 4,
    "encoder#blocks_down": [1, 1, 1, 1, 1],
    "spacing": [4, 4, 4],
    "steps_per_epoch": 2,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "validate#dataloader#crops_per_volume": 1,
}


class SignalOneProcess:
    """Sends this process SIGUSR1 in the middle of a step, as a scheduler may, if its rank is `rank`."""

    def __init__(self, *, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED(once=self.step), self)

    def __call__(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        if dist.get_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGUSR1)


#: volumes that one test has prepared are ready for the others of this process
_PREPARED = tempfile.TemporaryDirectory()


def bundle_root(folder: Path, data_dir: Path, *, own_cache: bool = False) -> Path:
    """A bundle root of its own, with links to two small CT and two small MR volumes."""
    (folder / "data/volumes").mkdir(parents=True)
    if not own_cache:
        (folder / ".cache").symlink_to(_PREPARED.name)
    for name in VOLUMES:
        (folder / "data/volumes" / name).symlink_to(data_dir / "volumes" / name)
    return folder


def train(root: Path, **overrides) -> Path:
    """Trains for two epochs of two steps on 32^3 crops; returns the run's folder."""
    flow = ConfigWorkflow(
        [TRAIN, DEV], workflow_type="train", run_id="training", bundle_root=str(root), **{**TINY, **overrides}
    )
    flow.initialize()
    flow.run()
    flow.finalize()
    path: Path = flow.parser.get_parsed_content("run_folder").path
    return path
