# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Runs where nnU-Net is, for nnunet_roundtrip.py: what its loader has loaded, and its features of a prepared case.

python scripts/studies/nnunet_probe.py 4 nnUNetPlans model.nnunet.pth probe.pt
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import get_trainer_from_args

CONFIGURATION, TRAINER = "3d_fullres", "nnUNetTrainerSparseMim"


def first_patch(trainer: Any) -> torch.Tensor:
    """The middle of the first prepared case, ``[1, C, D, H, W]``, padded with 0 to the plan's patch."""
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder)
    image = torch.from_numpy(dataset.load_case(min(dataset.identifiers))[0][:].copy())
    size = trainer.configuration_manager.patch_size
    patch = torch.zeros(1, len(image), *size)
    here, there = [slice(None)], [slice(None)]
    for given, wanted in zip(image.shape[1:], size):
        length, start = min(given, wanted), max(0, (given - wanted) // 2)
        here.append(slice(start, start + length))
        there.append(slice(0, length))
    patch[0][tuple(there)] = image[tuple(here)]
    return patch


def main(number: str, plans: str, file: str, output: str) -> None:
    """Loads by both ways, and writes the tensors, the patch and the encoder's features."""
    trainer = get_trainer_from_args(number, CONFIGURATION, "all", TRAINER, plans, device=torch.device("cpu"))
    trainer.initialize()
    trainer.load_weights(file)
    by_trainer = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    load_pretrained_weights(trainer.network, file)
    loaded = trainer.network.state_dict()
    same = all(torch.equal(by_trainer[key], value) for key, value in loaded.items())
    patch = first_patch(trainer)
    with torch.no_grad():
        features = trainer.network.eval().encoder(patch)
    torch.save({"loaded": dict(loaded), "same": same, "patch": patch, "features": list(features)}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
