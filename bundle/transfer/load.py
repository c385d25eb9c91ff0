# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Loads a flat encoder state dict into any network that contains that encoder.

MONAI's `CheckpointLoader(strict_shape=False)` takes a file of which nothing fits without a word; this one finds where
the keys belong, says what it did, and fails when too little fits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from bundle.errors import UserError
from bundle.transfer.heads import is_head
from bundle.transfer.report import TransferReport
from bundle.weights import (
    ModelFiles,
    list_wrappers,
    name_foreign_network,
    require_finite,
    require_fractions,
    turn_kernels,
    without_reconstruction,
)

__all__ = ["find_prefix", "load_decoder", "load_encoder"]

logger = logging.getLogger(__name__)


def load_encoder(
    network: nn.Module,
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    prefix: str | None = None,
    min_matched: float = 0.9,
    axes: str = "RAS",
) -> TransferReport:
    """Copies an encoder's weights into `network`, and logs a table of what went where.

    The file's keys are looked for at the top of the network and below each of its modules (`encoder.` in SegResNetDS
    and FlexibleUNet, `feature_extractor.body.` in a RetinaNet); the place where most of them fit is taken. Where the
    file's keys have a wrapper's name before them (`model.`, `encoder.`, `backbone.`, `_orig_mod.`, ...), and more of
    them fit without it, those below the wrapper are taken; the others, another part of that network, are left. A first
    convolution for another number of input channels is adapted: the weight is averaged over its inputs, repeated, and
    scaled so that the same image on every channel gives the same features.

    Published weights that `bundle.weights.CARDS` knows are recognised by their layout, where no `model.json` lies
    beside the file: their encoder alone is taken. Kernels of weights for other axes are turned. Where an axis is then
    mirrored, features are no longer exactly those of the original network, see `bundle.weights.turn_kernels`.

    Args:
        network: to be loaded into; its other tensors stay as they are.
        weights: a file that `read_weights` reads, or a state dict.
        prefix: what stands before the keys in the network; None finds it.
        min_matched: share of the file's tensors that must fit.
        axes: of the volumes that the network will see, one letter for each array axis; for a file alone.

    Raises:
        UserError: if the file cannot be read, is not the one that the `model.json` beside it describes, less than
            `min_matched` of it fits, or its kernels lie in another order of axes; the network is then untouched.

    Example:
        >>> from monai.networks.nets import SegResNetDS
        >>> from bundle.transfer import load_encoder
        >>> arguments = {"init_filters": 16, "blocks_down": [1, 2, 2, 1, 1], "norm": ("instance", {"affine": True})}
        >>> network = SegResNetDS(in_channels=2, out_channels=3, **arguments)
        >>> report = load_encoder(network, "models/model.pt")
        >>> report.prefix, report.share
        ('encoder.', 1.0)
        >>> report.adapted
        {'conv_init.weight': '1 -> 2 input channels'}
    """
    name = "the weights" if isinstance(weights, Mapping) else os.fspath(weights)
    given = dict(weights) if isinstance(weights, Mapping) else ModelFiles(weights).read_encoder(axes)
    require_finite(given, name)
    current = network.state_dict()
    report, fitted = match_encoder(given, current, prefix)
    require_fractions(fitted, current, name)
    if report.share < min_matched or report.turned:
        refuse_foreign_network(given, name)
        least = "" if report.turned else f", at least {min_matched:.0%} must"
        raise UserError(
            f"{name}: {report.share:.0%} of its {len(given)} tensors fit into {type(network).__name__}{least}: build "
            "the network with the encoder's own arguments (they are in the json beside the weights)"
            f"{describe_difference(report)}"
        )
    network.load_state_dict(current | fitted)
    logger.info("%s into %s:\n%s", name, type(network).__name__, report.table())
    _warn_of_part(name, report, network)
    return report


def refuse_foreign_network(given: Mapping[str, Tensor], name: str) -> None:
    """Refuses weights that do not fit, and are of a network that no encoder here can be, whatever its arguments.

    Args:
        given: the weights.
        name: what to call them.

    Raises:
        UserError: if they are.
    """
    if foreign := name_foreign_network(given):
        raise UserError(
            f"{name} is of {foreign}, which no encoder here is: take other weights, those that are known are in "
            "docs/how-to/start_from_published_weights.md"
        )


def _warn_of_part(name: str, report: TransferReport, network: nn.Module) -> None:
    """Names what stays as it was of the encoder: its first convolution, and what lies in modules that were loaded else.

    What is neither may be the decoder's, or a head's, which lie beside the encoder in some networks.
    """
    first = first_names(network)
    stem = next((key for key, _ in network.named_parameters() if key.startswith(report.prefix)), "")
    depth, loaded = enclosing_modules([key.removeprefix(report.prefix) for key in report.names if key in first])
    left = [key for key in (*report.missing, *(report.prefix + key for key in report.reshaped)) if key in first]
    old = ".num_batches_tracked"  # which old files do not have
    lacking = [
        key.removeprefix(report.prefix)
        for key in left
        if key == stem
        or (tuple(key.removeprefix(report.prefix).split(".")[:depth]) in loaded and not key.endswith(old))
    ]
    if lacking:
        logger.warning(
            "%s holds a part of the encoder: %d of its tensors stay as they were, such as %s",
            name,
            len(lacking),
            lacking[0],
        )


def first_names(network: nn.Module) -> set[str]:
    """The names of a network's tensors, one for each: of a module that has two names the first."""
    return {name for name, _ in (*network.named_parameters(), *network.named_buffers())}


def enclosing_modules(names: Collection[str]) -> tuple[int, set[tuple[str, ...]]]:
    """The outermost modules that tell tensors apart, by the first parts of their names, and how many parts these are.

    A module that encloses all of them is none: it may enclose more, such as a decoder.
    """
    depth = 1
    while len({tuple(name.split(".")[:depth]) for name in names}) == 1 < len(names):
        depth += 1
    return depth, {tuple(name.split(".")[:depth]) for name in names}


def load_decoder(
    network: nn.Module, model: str | os.PathLike[str], *, min_matched: float = 0.9, axes: str = "RAS"
) -> TransferReport | None:
    """Copies the decoder's weights, too, where some lie beside the encoder's and `network` has that decoder.

    Of published weights without a `model.json` the decoder in the same file is taken, if it was trained. The last
    layer, which made intensities of features, and the mask tokens are left out. Where there are no weights, or the
    network has another decoder, it stays untrained, and the log says so.

    Args:
        network: that the encoder's weights were loaded into.
        model: the encoder's file, `model.pt`; the decoder's is `model_decoder.pt` beside it.
        min_matched: share of the file's tensors that must fit.
        axes: as for `load_encoder`.

    Returns:
        What went where, or None.

    Raises:
        UserError: if the file is damaged, or is not the one that `model.json` describes.

    Example:
        >>> from monai.networks.nets import SegResNetDS
        >>> from bundle.transfer import load_decoder, load_encoder
        >>> arguments = {"init_filters": 16, "blocks_down": [1, 2, 2, 1, 1], "norm": ("instance", {"affine": True})}
        >>> network = SegResNetDS(out_channels=3, **arguments)
        >>> encoder, decoder = (load(network, "models/model.pt") for load in (load_encoder, load_decoder))
        >>> decoder.missing  # nothing but the new head
        ['up_layers.3.head.weight', 'up_layers.3.head.bias']
    """
    files = ModelFiles(model)
    about = files.read_settings()
    if not files.decoder.is_file():
        if about is not None and about.decoder_sha256:
            logger.warning(
                "%s is missing, so the decoder starts untrained: copy it beside %s", files.decoder, files.weights
            )
        return _load_published_decoder(network, files, axes)
    if about is None:
        raise UserError(
            f"{files.settings} does not exist, so {files.decoder} may be another encoder's: copy it from the run "
            "folder too, or give --pretrained_decoder False"
        )
    given = without_reconstruction(files.read_decoder(axes))
    current = network.state_dict()
    report, fitted = _match(given, current, find_prefix(given, current))
    require_fractions(fitted, current, files.decoder)
    if report.share < min_matched:
        logger.info("%s has another decoder than %s, so it starts untrained", type(network).__name__, files.decoder)
        return None
    parts = tuple({f"{report.prefix}{key.partition('.')[0]}." for key in given})
    report.missing[:] = [key for key in report.missing if key.startswith(parts)]
    network.load_state_dict(current | fitted)
    logger.info("%s into %s:\n%s", files.decoder, type(network).__name__, report.table())
    return report


def _load_published_decoder(network: nn.Module, files: ModelFiles, axes: str) -> TransferReport | None:
    """The decoder of a whole network in a file of published weights, if all of the network's is there."""
    published = files.read_published() if files.weights.is_file() else None
    if published is None or not published.rest:
        return None
    current = network.state_dict()
    inside = find_prefix(published.weights, current)
    encoder = {f"{inside}{key}" for key in published.weights}
    body = {key: value for key, value in current.items() if key not in encoder and not is_head(key)}
    rest = turn_kernels(published.rest, "RAS", to=axes)
    wrapper = find_prefix(body, rest)
    found = {key: rest[f"{wrapper}{key}"] for key in body if f"{wrapper}{key}" in rest}
    if not body or any(key not in found or found[key].shape != value.shape for key, value in body.items()):
        logger.info("%s has another decoder than %s, so it starts untrained", type(network).__name__, files.weights)
        return None
    require_fractions(found, current, files.weights)
    report = TransferReport("", loaded=list(found), missing=[key for key in current if is_head(key)])
    network.load_state_dict(current | found)
    logger.info("the decoder of %s into %s:\n%s", files.weights, type(network).__name__, report.table())
    return report


def match_encoder(
    given: dict[str, Tensor], current: Mapping[str, Tensor], prefix: str | None = None
) -> tuple[TransferReport, dict[str, Tensor]]:
    """What of an encoder's weights goes where in a network, and those tensors under the network's names.

    Args:
        given: an encoder's state dict, or one with it below a wrapper.
        current: the network's.
        prefix: as for `load_encoder`.
    """
    below, place = _unwrap(given, current, prefix)
    return _match(below, current, place)


def find_prefix(given: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> str:
    """What stands before the given keys in a network, such as "encoder.": the place where most of them fit.

    Args:
        given: an encoder's state dict.
        current: the network's.
    """
    parts = (key.split(".")[:-1] for key in current)
    places = {".".join([*part[:depth], ""]) for part in parts for depth in range(len(part) + 1)}
    # by name alone where no shape fits, so that a message compares the two tensors that are meant
    return max(
        sorted(places, key=len), key=lambda place: (_fitting(given, current, place), _named(given, current, place))
    )


def _unwrap(
    given: dict[str, Tensor], current: Mapping[str, Tensor], prefix: str | None
) -> tuple[dict[str, Tensor], str]:
    """The given tensors below the wrapper where most of them fit, and what stands before their keys in the network."""
    best: tuple[tuple[int, int, int], dict[str, Tensor], str] | None = None
    for wrapper in list_wrappers(given):
        below = {key.removeprefix(wrapper): value for key, value in given.items() if key.startswith(wrapper)}
        place = find_prefix(below, current) if prefix is None else prefix
        # where equally many fit, the fewest are left over
        fitting = (_fitting(below, current, place), _named(below, current, place), -len(below))
        if best is None or fitting > best[0]:
            best = fitting, below, place
    assert best is not None  # "" is a wrapper
    return best[1], best[2]


def _fitting(given: Mapping[str, Tensor], current: Mapping[str, Tensor], prefix: str) -> int:
    return sum(
        f"{prefix}{key}" in current and current[f"{prefix}{key}"].shape == value.shape for key, value in given.items()
    )


def _named(given: Mapping[str, Tensor], current: Mapping[str, Tensor], prefix: str) -> int:
    return sum(f"{prefix}{key}" in current for key in given)


def _match(
    given: Mapping[str, Tensor], current: Mapping[str, Tensor], prefix: str
) -> tuple[TransferReport, dict[str, Tensor]]:
    report, fitted = TransferReport(prefix), dict[str, Tensor]()
    for key, value in given.items():
        target = current.get(f"{prefix}{key}")
        if target is None:
            report.unexpected.append(key)
            continue
        if target.shape == value.shape:
            report.loaded.append(key)
            fitted[f"{prefix}{key}"] = value
        elif _differs_in_inputs(value, target):
            channels = target.shape[1]
            fitted[f"{prefix}{key}"] = value.mean(1, keepdim=True).expand_as(target) * (value.shape[1] / channels)
            report.adapted[key] = f"{value.shape[1]} -> {channels} input channels"
        else:
            report.reshaped[key] = f"{list(value.shape)} -> {list(target.shape)}"
    report.missing.extend(
        key for key in current if key.startswith(prefix) and key.removeprefix(prefix) not in given and key not in fitted
    )
    return report, fitted


def _differs_in_inputs(value: Tensor, target: Tensor) -> bool:
    """Whether these are a stem's weights that differ in the number of input channels only, one or few on each side."""
    few = value.ndim == target.ndim == 5 and max(value.shape[1], target.shape[1]) <= 8
    return few and value.shape[0] == target.shape[0] and value.shape[2:] == target.shape[2:]


def describe_difference(report: TransferReport) -> str:
    """Names the first tensor of a file that does not fit, with both shapes, for the end of a message."""
    if turned := report.turned:
        order = "their axes lie in another order: say which in a model.json beside the file"
        return f"; for example {turned[0]} {report.reshaped[turned[0]]}, {order}"
    if report.reshaped:
        key, shapes = next(iter(report.reshaped.items()))
        flat = [shape.count(",") + 1 for shape in shapes.split(" -> ")] == [4, 5]
        said = ", these are weights of a 2D network: take those of a 3D one" if flat else ""
        return f"; for example {key} {shapes}{said}"
    if report.unexpected:
        return f"; for example the network has no {report.prefix}{report.unexpected[0]}"
    return ""
