# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A small network, loss and loader that keep the contracts of the real ones, and MONAI's engines around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

CELL = 4
SIZE = 8


class ToyCrops(Dataset):
    """Crop `draw` is made from the number of its draw alone."""

    def __getitem__(self, draw: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(draw)
        image = torch.randn(1, SIZE, SIZE, SIZE, generator=generator)
        return {
            "image": image,
            "valid": torch.ones_like(image, dtype=torch.bool),
            "foreground": image > 0,
            "draw": torch.tensor(draw),
            "volume": torch.tensor(draw % 3),
            "spacing": torch.tensor([1.0, 1.0, 2.0]),
        }


class ToySampler(Sampler):
    """Epoch e has the draws [e * length, (e + 1) * length)."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


def toy_loader(draws: int = 8, batch_size: int = 2) -> DataLoader:
    return DataLoader(ToyCrops(), batch_size=batch_size, sampler=ToySampler(draws))


class ToyNetwork(nn.Module):
    """Draws from the global generator (dropout), so that a resume must restore it."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv3d(1, channels, 3, padding=1), nn.BatchNorm3d(channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
        self.head = nn.Conv3d(channels, 1, 1)

    def forward(self, image: Tensor, visible: Tensor, hidden: Tensor) -> dict[str, Any]:
        seen = nn.Upsample(scale_factor=CELL)(visible.float())
        features = nn.functional.dropout(self.encoder(image * seen), 0.3, self.training) + self.mask_token
        return {"reconstruction": self.head(features), "visible": visible, "hidden": hidden, "terms": {}}

    def products(self, images: Sequence[Tensor] = ()) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: ARG002
        return self.encoder.state_dict(), {}


class ToyLoss(nn.Module):
    def forward(self, output: dict[str, Any], target: dict[str, Tensor]) -> Tensor:
        loss = (output["reconstruction"] - target["image"]).square().mean()
        zero = target["image"].square().mean()
        output["terms"].update(
            reconstruction=loss.detach(), loss=loss.detach(), zero_predictor=zero, mean_predictor=zero
        )
        return loss

    def restore(self, output: dict[str, Any], target: dict[str, Tensor]) -> Tensor:
        return 10 * output["reconstruction"] + 0 * target["image"]


def prepare(batch: dict[str, Tensor], device: Any, non_blocking: bool, **to: Any) -> tuple[Any, ...]:
    cells = (len(batch["draw"]), 1, *[SIZE // CELL] * 3)
    visible = torch.zeros(cells, dtype=torch.bool)
    visible[..., 0] = True  # the lower half of the third axis
    return batch["image"], dict(batch), (), {"visible": visible, "hidden": ~visible}


def toy_trainer(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    epochs: int,
    handlers: list[Any],
    **more: Any,
) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=ToyLoss(),
        prepare_batch=prepare,
        train_handlers=handlers,
        decollate=False,
        **more,
    )


class _Inferer:
    """MONAI's evaluator has no loss: the terms are written where the network is called."""

    def __call__(self, image: Tensor, network: nn.Module, **masks: Tensor) -> dict[str, Any]:
        output = network(image, **masks)
        ToyLoss()(output, {"image": image})
        return output


def toy_evaluator(network: nn.Module, handlers: list[Any], loader: DataLoader | None = None) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=toy_loader(6) if loader is None else loader,
        network=network,
        prepare_batch=prepare,
        inferer=_Inferer(),
        val_handlers=handlers,
        decollate=False,
    )
