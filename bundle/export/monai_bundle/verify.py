# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MONAI's own checks of a bundle: `verify_metadata`, `verify_net_in_out`, `ckpt_export`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

from bundle.errors import UserError
from bundle.export.monai_bundle.finished_run import FinishedRun
from bundle.export.source_paths import strip_torchscript

__all__ = ["Verified", "export_torchscript", "verify"]

logger = logging.getLogger(__name__)

#: of the largest output: how far TorchScript may be off
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verified:
    """What was checked.

    Attributes:
        metadata: whether metadata.json passed the schema; False where there was no schema to check it by.
        net_in_out: whether the network takes and gives what metadata.json says.
    """

    metadata: bool
    net_in_out: bool


def export_torchscript(folder: Path, run: FinishedRun) -> str:
    """Writes models/model.ts by MONAI's `ckpt_export`, and compares it with the network.

    Returns:
        "script" or "trace", whichever works first; "" if neither does: the file is left out then.
    """
    target = folder / "models/model.ts"
    shape = [1, run.in_channels, *run.content["crop_size"]]
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run.build_network()(image)
    ways: dict[str, dict[str, Any]] = {"script": {}, "trace": {"use_trace": True, "input_shape": shape}}
    for how, arguments in ways.items():
        if _is_like(expected, image, _attempt(folder, target, arguments)):
            return how
    target.unlink(missing_ok=True)
    return ""


def _attempt(folder: Path, target: Path, arguments: dict[str, Any]) -> torch.nn.Module | None:
    """The network as TorchScript, or None where it takes it not."""
    try:
        with _quiet():
            ckpt_export(**_ids(folder), filepath=str(target), ckpt_file=str(folder / "models/model.pt"), **arguments)
            strip_torchscript(target)
            network: torch.nn.Module = torch.jit.load(target).eval()
            return network
    except Exception as error:  # noqa: BLE001 - TorchScript raises anything at what it does not take
        logger.info("no TorchScript with %s: %s", arguments or "no arguments", type(error).__name__)
        return None


def _is_like(expected: torch.Tensor, image: torch.Tensor, network: torch.nn.Module | None) -> bool:
    if network is None:
        return False
    with torch.no_grad():
        difference = (network(image) - expected).abs().max()
    return bool(difference <= _TOLERANCE * expected.abs().max())


def verify(folder: Path, schema: Path | None) -> Verified:
    """Runs `verify_metadata` and `verify_net_in_out`.

    Args:
        folder: of the bundle.
        schema: of metadata.json; None leaves the first check out.

    Raises:
        UserError: if a check fails.
    """
    meta_file = str(folder / "configs/metadata.json")
    try:
        with _quiet():
            verify_net_in_out(**_ids(folder), device="cpu")
            checked = schema is not None and find_spec("jsonschema") is not None
            if checked:
                verify_metadata(meta_file=meta_file, filepath=str(schema))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"MONAI does not accept the bundle ({reason}): nothing is written, please report it") from error
    return Verified(metadata=checked, net_in_out=True)


def _ids(folder: Path) -> dict[str, Any]:
    configs = folder / "configs"
    return {
        "net_id": "network_def",
        "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.json"),
        "bundle_root": str(folder),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what MONAI's commands print, log and warn of."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
