# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pre-training that goes on from weights: one's own, or published ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Any

from torch import nn

from bundle.errors import UserError
from bundle.networks import PretrainingNetwork
from bundle.transfer.load import (
    describe_difference,
    enclosing_modules,
    find_prefix,
    first_names,
    match_encoder,
    refuse_foreign_network,
)
from bundle.transfer.report import TransferReport
from bundle.weights import ModelFiles, ModelSettings, checksum, require_fractions, turn_kernels, without_reconstruction

__all__ = ["load_start", "origin"]

logger = logging.getLogger(__name__)

_LICENCE, _DERIVED = "Apache-2.0", "that of the weights it began with: "


def load_start(
    network: PretrainingNetwork, init_from: str | os.PathLike[str] | None = None, *, axes: str = "RAS"
) -> PretrainingNetwork:
    """Loads the weights that pre-training goes on from into its network, in place.

    All of the encoder's tensors must fit. Only its first convolution may have another number of input channels: it is
    averaged over them, repeated and scaled, as `load_encoder` does it, so that the same image on every channel gives
    the same features. The decoder's tensors are taken where some lie beside the encoder's, or in the same file of
    published weights, and the network has that decoder; else it starts at random. Where only its last layer is
    another, that one starts at random. A teacher begins as a copy of the encoder.

    Args:
        network: of the pre-training.
        init_from: a run's folder, its `model.pt`, or published weights that `bundle.weights.CARDS` knows; None changes
            nothing.
        axes: of the volumes that the network will see; weights that were trained with others are turned.

    Returns:
        The same network.

    Raises:
        UserError: if the file cannot be read, or is another encoder's, which may have all of this one's tensors and
            more.
    """
    if init_from is None:
        return network
    files = ModelFiles(init_from)
    current = network.encoder.network.state_dict()
    given = files.read_encoder(axes)
    report, fitted = match_encoder(given, current)
    require_fractions(fitted, current, files.weights)
    needed = set(network.encoder.network_state_dict())
    lacking = sorted(needed - fitted.keys())
    if lacking:
        refuse_foreign_network(given, f"--init_from {init_from}")
        difference = describe_difference(report) if report.turned or not report.reshaped else ""
        raise UserError(
            f"--init_from {init_from} has not all of this encoder: {len(lacking)} of {len(needed)} tensors are missing "
            f"or have another shape, such as {lacking[0]}{_shape(report.reshaped, lacking[0])}; give `encoder` the "
            f"arguments that the weights were made with{difference}"
        )
    _refuse_left_over(report, network.encoder.network, needed, os.fspath(init_from))
    network.encoder.network.load_state_dict(current | fitted)
    logger.info("%s: all of the encoder's %d tensors are loaded", files.weights, len(needed))
    if report.adapted:
        name, change = next(iter(report.adapted.items()))
        logger.warning("%s has another number of images per scan: %s is adapted, %s", files.weights, name, change)
    _load_decoder(network, files, axes)
    network.restart_teacher()
    return network


def origin(init_from: str | os.PathLike[str] | None = None, *, licence: str | None = _LICENCE) -> dict[str, Any]:
    """What `model.json` says of where a training began.

    Args:
        init_from: as for `load_start`.
        licence: of weights that began with none; None where that is for the user to say, as after fine-tuning on
            labelled scans.

    Returns:
        `licence` of the new weights, and, where there is one, `origin`: the steps that led here, the first one first,
        each with the file's name and sha256, what it is and what it was trained on, and its licence.

    Raises:
        UserError: if there is no such file, or what describes it cannot be read.

    Example:
        >>> from bundle.transfer import origin
        >>> origin(None), origin(None, licence=None)
        ({'licence': 'Apache-2.0'}, {'licence': None})
        >>> origin("models/model.pt", licence=None)["licence"]
        'that of the weights it began with: Apache-2.0'
    """
    if init_from is None:
        return {"licence": licence}
    files = ModelFiles(init_from)
    if not files.weights.is_file():
        raise UserError(f"{files.weights} does not exist: give the path of a model.pt, or of a run's folder")
    about = files.describe() or ModelSettings()
    theirs = str(about.content.get("licence") or "not known")
    step = {"file": files.weights.name, "sha256": checksum(files.weights), "licence": theirs}
    known = {
        key: about.content[key]
        for key in ("card", "source", "trained_on", "version", "volumes", "epochs", "fingerprints")
        if about.content.get(key) is not None
    }
    derived = theirs if theirs == licence or theirs.startswith(_DERIVED) else f"{_DERIVED}{theirs}"
    return {"licence": derived, "origin": [*about.content.get("origin", []), {**step, **known}]}


def _load_decoder(network: PretrainingNetwork, files: ModelFiles, axes: str) -> None:
    if not files.decoder.is_file():
        _load_published_decoder(network, files, axes)
        return
    given, current = files.read_decoder(axes), network.decoder.state_dict()
    require_fractions(given, current, files.decoder)
    if {key: value.shape for key, value in given.items()} == {key: value.shape for key, value in current.items()}:
        network.decoder.load_state_dict(given)
        logger.info("%s: all of its %d tensors are loaded", files.decoder, len(given))
        return
    fitting = {key: given[key] for key, now in current.items() if key in given and given[key].shape == now.shape}
    body = without_reconstruction(current)
    if body and body.keys() <= fitting.keys() and without_reconstruction(given).keys() == body.keys():
        network.decoder.load_state_dict({**current, **fitting})
        logger.info("%s: %d of the decoder's %d tensors are loaded, its last layer starts at random",
                    files.decoder, len(fitting), len(current))  # fmt: skip
    else:
        logger.warning("%s is of another decoder than this configuration's, which starts at random", files.decoder)


def _load_published_decoder(network: PretrainingNetwork, files: ModelFiles, axes: str) -> None:
    """Takes the decoder of a whole network's file, but for what makes intensities of its features."""
    published = files.read_published()
    given = {} if published is None else turn_kernels(published.rest, "RAS", to=axes)
    current = network.decoder.state_dict()
    wanted = without_reconstruction(current)
    prefix = find_prefix(wanted, given) if given else ""
    found = {key: given[f"{prefix}{key}"] for key in wanted if f"{prefix}{key}" in given}
    fitting = {key for key, value in found.items() if value.shape == wanted[key].shape}
    if not fitting:
        logger.info("no %s, so the decoder starts at random", files.decoder)
    elif fitting < wanted.keys():
        logger.warning("the decoder in %s is another than this configuration's, which starts at random", files.weights)
    else:
        require_fractions(found, current, files.weights)
        network.decoder.load_state_dict({**current, **found})
        logger.info("%s: %d of the decoder's %d tensors are loaded, its last layer and mask tokens start at random",
                    files.weights, len(found), len(current))  # fmt: skip


def _refuse_left_over(report: TransferReport, network: nn.Module, needed: Collection[str], init_from: str) -> None:
    """Refuses a file whose encoder has more tensors: running statistics, further blocks or levels.

    A network that lacks them computes something else with those that it has. What lies beside the encoder's modules,
    such as a decoder or heads, is left.

    Raises:
        UserError: if it has.
    """
    depth, modules = enclosing_modules(first_names(network) & set(needed))
    left = [key for key in report.unexpected if tuple(f"{report.prefix}{key}".split(".")[:depth]) in modules]
    if left:
        norm = " (BatchNorm's)" if left[0].endswith(".running_mean") else ""
        raise UserError(
            f"--init_from {init_from} holds more of the encoder than this one has: {len(left)} further tensors, such "
            f"as {left[0]}{norm}; give `encoder` the arguments that the weights were made with"
        )


def _shape(reshaped: dict[str, str], name: str) -> str:
    return f" {reshaped[name]}" if name in reshaped else ""
