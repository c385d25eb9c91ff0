# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A downstream network with a pre-trained encoder in it, and which of its parameters are the encoder's."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bundle.errors import UserError
from bundle.networks import Encoder, build_encoder
from bundle.transfer.finetuned import heads_loaded, load_rest, read_meanings, say_what_was_taken, split_encoder
from bundle.transfer.load import find_prefix, load_decoder, load_encoder
from bundle.transfer.perturb import check_share, shrink_and_perturb
from bundle.transfer.report import TransferReport
from bundle.weights import ModelFiles

__all__ = ["SCHEDULES", "Transfer"]

logger = logging.getLogger(__name__)

SCHEDULES = ("full", "sawtooth", "frozen")

#: steps below which a training hardly leaves where it starts
SHORT = 50


class Transfer:
    """Loads an encoder's weights into `network`, and knows how deep in the encoder each parameter is.

    The weights may be a fine-tuned network's. Its decoder is then taken, too, where `network` has the same one, and its
    heads where they are of the same classes.

    Args:
        network: contains the encoder, such as a SegResNetDS.
        pretrained: the weights file; None leaves the network as it is, for training from scratch.
        encoder: name and arguments of the encoder, as for `build_encoder`.
        schedule: "full", "sawtooth" or "frozen". With the last the encoder's parameters get no gradient, and its
            BatchNorms keep their running statistics.
        min_matched: share of the file's tensors that must fit.
        pretrained_decoder: whether to load the decoder's weights as well, see `load_decoder`; None takes a fine-tuned
            network's only.
        classes: what the outputs of `network` mean, in their order.
        perturb: share of random weights mixed into those of a pre-training, see `shrink_and_perturb`; 0 takes them as
            they are. Not for a fine-tuned network's.

        axes: of the volumes that the network will see, one letter for each array axis.

    Attributes:
        network: the same network, loaded.
        report: what of the encoder went where, or None from scratch.
        decoder_report: the same of the decoder, or None where it starts untrained.
        heads_loaded: whether the heads are those of a network that was fine-tuned for the same classes.
        depths: of each of the encoder's tensors, by its name in the network: 0 for the finest level's.
        levels: of the encoder.
        total_stride: of the encoder, voxels per axis; a crop is a multiple of it.

    Raises:
        UserError: if too little fits, the network does not contain the encoder, or the schedule is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        encoder: Mapping[str, Any],
        schedule: str = "full",
        min_matched: float = 0.9,
        pretrained_decoder: bool | None = None,
        classes: Sequence[str] = (),
        perturb: float = 0.0,
        axes: str = "RAS",
    ) -> None:
        check_share(perturb)
        if schedule not in SCHEDULES:
            raise UserError(f"--schedule {schedule!r} is not known: choose one of {', '.join(SCHEDULES)}")
        self.network, self._axes = network, axes
        self.report: TransferReport | None = None
        self.decoder_report: TransferReport | None = None
        self.heads_loaded = False
        with torch.random.fork_rng(devices=[]):  # weights to be thrown away must not change those that follow
            plain = build_encoder(**encoder)
        weights = plain.network_state_dict()
        if pretrained is not None:
            self._load(str(pretrained), weights, min_matched, pretrained_decoder, list(classes), perturb)
        prefix = find_prefix(weights, network.state_dict()) if self.report is None else self.report.prefix
        self.levels, self.total_stride = len(plain.stages), plain.total_stride
        self.depths = {f"{prefix}{key}": depth for key, depth in _depths(plain).items()}
        self.depths = {key: depth for key, depth in self.depths.items() if key in network.state_dict()}
        if not self.depths:
            raise UserError(
                f"{type(network).__name__} does not contain the encoder {encoder.get('name')}: build it with the "
                "encoder's own arguments (docs/how-to/finetune_segmentation.md names the networks for each encoder)"
            )
        if different := _differences(plain, network, prefix):
            logger.warning(
                "the encoder inside %s differs from the pre-trained one, its features may fit less: %s",
                type(network).__name__,
                "; ".join(different[:3]) + (f"; and {len(different) - 3} more" if len(different) > 3 else ""),
            )
        if schedule == "frozen":
            self._freeze()

    def _load(
        self,
        file: str,
        encoder: Mapping[str, Tensor],
        min_matched: float,
        decoder: bool | None,
        classes: list[str],
        perturb: float,
    ) -> None:
        meanings = read_meanings(file)
        if meanings is None:
            fresh = {name: tensor.clone() for name, tensor in self.network.state_dict().items()} if perturb else {}
            self.report = load_encoder(self.network, file, min_matched=min_matched, axes=self._axes)
            _require_whole(file, self.report, self.network, encoder, min_matched)
            if decoder:
                self.decoder_report = load_decoder(self.network, file, min_matched=min_matched, axes=self._axes)
            if perturb:
                reports = [report for report in (self.report, self.decoder_report) if report is not None]
                loaded = [name for report in reports for name in report.names]
                shrink_and_perturb(self.network, fresh, loaded, perturb)
            return
        inside, rest = split_encoder(ModelFiles(file).read_encoder(self._axes), encoder)
        self.report = load_encoder(self.network, inside, min_matched=min_matched)
        _require_whole(file, self.report, self.network, encoder, min_matched)
        if decoder is not False:
            self.decoder_report = load_rest(
                self.network, rest, same_meaning=meanings == classes, min_matched=min_matched
            )
            say_what_was_taken(file, self.network, self.decoder_report, meanings, classes)
            self.heads_loaded = heads_loaded(self.network, self.decoder_report)

    def peak_lr(self, lr: float | None, steps: int = 0) -> float:
        """The learning rate at its peak: `lr`, or for None the one that suits a training of so many steps.

        That is 1e-3, but 3e-4 in fewer than 50 steps from a pre-trained encoder and decoder. Adam's first steps move
        every weight by about the rate, whatever the gradient. At 1e-3 that costs pre-trained weights more than ten
        steps bring (scripts/studies/transfer.md). In 100 steps 3e-4 is too slow (scripts/studies/recipe.md).

        Args:
            lr: the rate, or None.
            steps: of the optimizer in the whole training.
        """
        if lr is not None:
            return lr
        return 3e-4 if self.decoder_report is not None and steps < SHORT else 1e-3

    def _freeze(self) -> None:
        for name, parameter in self.network.named_parameters():
            if name in self.depths:
                parameter.requires_grad_(False)
        for path, module in self.network.named_modules():
            if isinstance(module, _BatchNorm) and f"{path}.running_mean" in self.depths:
                # the trainer calls train() on the whole network at every step
                module.register_forward_pre_hook(_evaluate)


def _require_whole(
    file: str, report: TransferReport, network: nn.Module, encoder: Mapping[str, Tensor], min_matched: float
) -> None:
    """Refuses a file with a part of the encoder alone, all of which fits.

    Raises:
        UserError: if less than `min_matched` of the encoder in the network was loaded.
    """
    inside = {f"{report.prefix}{key}" for key in encoder} & network.state_dict().keys()
    lacking = sorted(inside - {*report.names})
    if len(lacking) > (1 - min_matched) * len(inside):
        raise UserError(
            f"{file} has {len(inside) - len(lacking)} of the encoder's {len(inside)} tensors, it lacks {lacking[0]} "
            "and others: give a file with all of them, or correct `encoder` in the config"
        )


def _depths(encoder: Encoder) -> dict[str, int]:
    """Level of each of the encoder's tensors, by its name in the plain network."""
    levels: dict[int, int] = {}
    for depth, stage in enumerate(encoder.stages):
        for module in stage.modules:
            tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
            levels.update({id(tensor): depth for tensor in tensors})
    tensors_by_name = {
        **dict(encoder.network.named_parameters(remove_duplicate=False)),
        **dict(encoder.network.named_buffers(remove_duplicate=False)),
    }
    return {key: levels[id(tensor)] for key, tensor in tensors_by_name.items() if id(tensor) in levels}


def _differences(encoder: Encoder, network: nn.Module, prefix: str) -> list[str]:
    """Layers without parameters of their own, strides and the like, in which two encoders whose weights fit differ."""
    used = {id(module) for stage in encoder.stages for part in stage.modules for module in part.modules()}
    current, found = dict(network.named_modules(remove_duplicate=False)), []
    for name, module in encoder.network.named_modules(remove_duplicate=False):
        other = current.get(f"{prefix}{name}")
        if id(module) not in used or other is None or next(module.children(), None) is not None:
            continue
        # a stem may have other input channels: transfer adapts it
        here, there = (re.sub(r"^\d+, ", "", layer.extra_repr()) for layer in (module, other))
        if not isinstance(module, type(other)) or here != there:
            found.append(f"{name} is {other} instead of {module}")
    return found


def _evaluate(module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001 - the signature of a hook
    module.eval()
