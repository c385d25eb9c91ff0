# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The mean teacher: a moving average of the network that is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bundle.errors import UserError
from bundle.runs.distributed import unwrap

__all__ = ["MeanTeacher"]


class MeanTeacher:
    """The average of a network's weights over the steps of its training (Tarvainen and Valpola, arXiv:1703.01780).

    After step ``t`` of the optimizer, counted from 1, the average ``a`` of the weights ``w`` is

        a = k a + (1 - k) w    with k = min(1 - 1 / t, decay)

    so that it is the plain mean at first, and forgets where training began. Before the first step it is the network
    itself, whatever happened to that after the teacher was made. Buffers, such as BatchNorm's statistics, are the
    network's. The average is in evaluation mode, and never trained.

    Args:
        network: the student, wrapped or not.
        optimizer: whose steps move the average.
        decay: share of the average that a step keeps, at most. None remembers a tenth of the training, and at most 100
            steps: 1 - 10 / `steps`, at most 0.99, the papers' value. In a short training that would lag far behind.
        steps: of the whole training, where the decay is None.

    Raises:
        UserError: if the decay is not from 0 to below 1.

    Attributes:
        network: the averaged network.
    """

    def __init__(
        self, *, network: nn.Module, optimizer: Optimizer, decay: float | None = 0.99, steps: float = 1000
    ) -> None:
        if decay is None:
            decay = max(0.0, min(0.99, 1 - 10 / steps))
        if not 0 <= decay < 1:
            raise UserError(f"--teacher_decay {decay} does not fit: give 0 to below 1, such as 0.99")
        self.decay, self._student = decay, unwrap(network)
        self._average = AveragedModel(self._student, multi_avg_fn=self._move)
        self._average.requires_grad_(False).eval()
        optimizer.register_step_post_hook(self._update)

    @property
    def network(self) -> nn.Module:
        """The averaged network."""
        return self._average.module

    @property
    def steps(self) -> int:
        """Steps of the optimizer that were averaged."""
        return int(self._average.n_averaged)

    def choose(self, product: str) -> nn.Module:
        """The network that is validated: "teacher", or "network", which is the student.

        Raises:
            UserError: for another word.
        """
        networks = {"teacher": self.network, "network": self._student}
        if product not in networks:
            raise UserError(f"--product {product!r} is not known: choose one of {', '.join(networks)}")
        return networks[product]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """The teacher's scores of the finest level, ``[B, classes, D, H, W]``."""
        if self.steps == 0:  # heads may have been fitted since the copy was made
            self.network.load_state_dict(self._student.state_dict())
        output = self.network.eval()(image)
        scores: Tensor = output[0] if isinstance(output, (list, tuple)) else output
        return scores

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, and how many steps there were: plain values, for a checkpoint."""
        return {"network": self.network.state_dict(), "steps": self.steps}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.network.load_state_dict(saved["network"])
        self._average.n_averaged.fill_(saved["steps"])

    def _update(self, *_: Any) -> None:
        self._average.update_parameters(self._student)

    def _move(self, averages: Any, weights: Any, averaged: Any) -> None:
        get_ema_multi_avg_fn(min(1 - 1 / (self.steps + 1), self.decay))(averages, weights, averaged)
