# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's training from pre-trained weights: a warm-up, a lower rate, and a report of what was loaded.

    export nnUNet_extTrainer=/folder/of/this/file
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSparseMim -pretrained_weights model.nnunet.pth
    SPARSE_MIM_WEIGHTS=model.nnunet.pth nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSparseMim

It needs nnunetv2 2.8 or newer, and nothing else. nnUNetv2_predict needs the first line, too. With -pretrained_weights
nnU-Net's own loader takes the weights: all tensors must fit. With SPARSE_MIM_WEIGHTS this trainer does: the encoder
must fit, the decoder is taken where it fits, and the first convolution is repeated for more channels.

These variables change the training; without them it is as nnU-Net trains from nnssl's weights:

    SPARSE_MIM_LR             1e-3   the highest learning rate; nnU-Net's own is 1e-2
    SPARSE_MIM_WARMUP_EPOCHS  50     in which it rises, at most half of the epochs
    SPARSE_MIM_EPOCHS         1000
    SPARSE_MIM_STEPS          250    of an epoch
    SPARSE_MIM_THREADS               of a training on a CPU; nnU-Net takes all cores
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

_HEADS = ".seg_layers."  # which make the user's classes, and are never taken


class WarmUpPolyLR(PolyLRScheduler):
    """nnU-Net's course of the learning rate, after epochs in which it rises in equal steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, max_steps: int, warmup: int) -> None:
        self.warmup = warmup
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        """Sets the rate of an epoch, counted from 0."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        if current_step < self.warmup:
            factor = (current_step + 1) / self.warmup
        else:
            factor = (1 - (current_step - self.warmup) / (self.max_steps - self.warmup)) ** self.exponent
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class nnUNetTrainerSparseMim(nnUNetTrainer):  # noqa: N801 - nnU-Net finds a trainer by such a name
    """All of nnU-Net's own, but for the first weights, the learning rate, and the length where it is asked for."""

    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net keeps the signature's values
    ) -> None:
        self.continued = bool(plans.get("continue_training"))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = _number("SPARSE_MIM_LR", 1e-3)
        self.num_epochs = int(_number("SPARSE_MIM_EPOCHS", self.num_epochs))
        self.num_iterations_per_epoch = int(_number("SPARSE_MIM_STEPS", self.num_iterations_per_epoch))
        self.num_val_iterations_per_epoch = min(self.num_val_iterations_per_epoch, self.num_iterations_per_epoch)
        self.warmup_epochs = min(int(_number("SPARSE_MIM_WARMUP_EPOCHS", 50)), self.num_epochs // 2)
        self.at_random: dict[str, str] = {}
        if os.environ.get("SPARSE_MIM_THREADS"):
            torch.set_num_threads(int(_number("SPARSE_MIM_THREADS", 1)))

    def initialize(self) -> None:
        """Builds the network, and keeps what its first weights are."""
        super().initialize()
        self.at_random = {key: _checksum(value) for key, value in self._plain_network().state_dict().items()}

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """nnU-Net's optimizer, with the warm-up."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, WarmUpPolyLR(optimizer, self.initial_lr, self.num_epochs, self.warmup_epochs)

    def on_train_start(self) -> None:
        """Loads the weights where they are asked for, and reports what is in the network."""
        if not self.was_initialized:
            self.initialize()
        if not self.continued and self.current_epoch == 0:
            self._report(self.load_weights(file) if (file := os.environ.get("SPARSE_MIM_WEIGHTS")) else self._changed())
        super().on_train_start()

    def load_weights(self, file: str) -> dict[str, Any]:
        """Takes what fits of a file that `export_model.py --formats nnunet` or nnssl wrote.

        Args:
            file: with the tensors below `network_weights`.

        Returns:
            What was taken: the names of `loaded` and `repeated` tensors, of those `left` as nnU-Net begins them, and
            what the file says of itself.

        Raises:
            RuntimeError: if it has not all of the encoder.
        """
        content = torch.load(file, map_location="cpu", weights_only=True)
        given, network = content["network_weights"], self._plain_network()
        current, taken, repeated = network.state_dict(), dict[str, Tensor](), list[str]()
        for key, value in current.items():
            if _HEADS in key or key not in given:
                continue
            if given[key].shape == value.shape:
                taken[key] = given[key]
            elif _differs_in_channels(given[key], value):
                taken[key] = given[key].mean(1, keepdim=True).expand_as(value) * (given[key].shape[1] / value.shape[1])
                repeated.append(key)
        lacking = [key for key in current if key.startswith("encoder.") and key not in taken]
        if lacking:
            there = list(given[lacking[0]].shape) if lacking[0] in given else "nothing"
            raise RuntimeError(
                f"{file} has another encoder than this plan: {len(lacking)} tensors do not fit, such as {lacking[0]} "
                f"(file: {there}, plan: {list(current[lacking[0]].shape)}). Train with the plan that was written "
                "beside the weights, -p SparseMimPlans, or pre-train the network of your plan"
            )
        network.load_state_dict(current | taken)
        return {
            "file": str(file),
            "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(),
            "loaded": [key for key in taken if key not in repeated],
            "repeated": repeated,
            "left": [key for key in current if key not in taken],
            "about": {key: value for key, value in content.get("model.json", {}).items() if key in _FACTS},
        }

    def _changed(self) -> dict[str, Any]:
        """What `-pretrained_weights` has changed: nnU-Net does not say which file that was.

        A tensor that had the file's values before, such as a norm's bias of 0, counts as left.
        """
        current = self._plain_network().state_dict()
        loaded = [key for key, value in current.items() if _checksum(value) != self.at_random[key]]
        return {"loaded": loaded, "repeated": [], "left": [key for key in current if key not in loaded]}

    def _report(self, found: dict[str, Any]) -> None:
        """Writes what was loaded into the log and, whole, into loaded_weights.json."""
        if not found["loaded"]:
            self.print_to_log_file("sparse-mim: no weights were given, so all begins at random: -pretrained_weights "
                                   "FILE, or the variable SPARSE_MIM_WEIGHTS")  # fmt: skip
            return
        self.print_to_log_file(f"sparse-mim: weights of {found.get('file', 'the file of -pretrained_weights')}")
        for part in ("encoder", "decoder"):
            counts = {
                kind: sum(key.startswith(f"{part}.") and not key.startswith("decoder.encoder.") for key in found[kind])
                for kind in ("loaded", "repeated", "left")
            }
            self.print_to_log_file(
                f"sparse-mim: {part}: {counts['loaded']} tensors are the file's, {counts['repeated']} are the file's "
                f"repeated for more channels, {counts['left']} are as nnU-Net begins them"
            )
        self.print_to_log_file(
            f"sparse-mim: learning rate up to {self.initial_lr:g} in {self.warmup_epochs} epochs, then down to 0"
        )
        if self.local_rank == 0 and self.output_folder is not None:
            file = Path(self.output_folder, "loaded_weights.json")
            temporary = file.with_name(f".{file.name}.tmp")
            temporary.write_text(json.dumps(found, indent=1) + "\n")
            temporary.replace(file)  # a kill leaves no half of it

    def _plain_network(self) -> torch.nn.Module:
        """The network without what DDP and torch.compile put around it."""
        network: Any = self.network
        network = getattr(network, "module", network)
        plain: torch.nn.Module = getattr(network, "_orig_mod", network)
        return plain


#: what is told of the weights' origin
_FACTS = ("origin", "licence", "version", "volumes", "encoder", "spacing", "intensity_scheme")


def _differs_in_channels(given: Tensor, current: Tensor) -> bool:
    if given.ndim != 5 or current.ndim != 5 or max(given.shape[1], current.shape[1]) > 8:
        return False
    return given.shape[0] == current.shape[0] and given.shape[2:] == current.shape[2:]


def _checksum(value: Tensor) -> str:
    return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _number(name: str, usual: float) -> float:
    text = os.environ.get(name, "")
    try:
        found = float(text) if text else float(usual)
    except ValueError:
        found = -1.0
    if found <= 0 and not (found == 0 and name == "SPARSE_MIM_WARMUP_EPOCHS"):
        raise ValueError(f"the variable {name} is {text!r}: give a number above 0")
    return found
