# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Model Zoo's assertions N, V and M: the bundle's name, its version, and configs/metadata.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from checks import NotChecked, Release, check
from packaging.requirements import Requirement
from packaging.version import Version

_SCHEMA = "tests/schema/meta_schema_20240725.json"
_SCHEMA_URLS = (
    "https://project-monai.github.io/schema/meta_schema_20240725.json",
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
)
_REQUIRED = "schema version monai_version pytorch_version numpy_version required_packages_version task description"
_REQUIRED += " authors copyright network_data_format"
_TENSOR = {"type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list}
_TEXTS = ("data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use")
_OBJECTS = ("eval_metrics", "supported_apps", "changelog")


@check("N1")
def telling_name(release: Release) -> Iterator[str]:
    """The name says task, modality and data."""
    words = release.name.split("_")
    if not {"ct", "mr", "pretraining"} <= set(words):
        yield f"{release.name} lacks ct, mr or pretraining"


@check("N2")
def plain_name(release: Release) -> Iterator[str]:
    """The name survives MONAI's and the zoo's tools."""
    if not re.fullmatch(r"[a-z]\w*", release.name) or release.name != release.name.lower() or "_v" in release.name:
        yield f"{release.name}: lower-case letters, digits and _ only, no _v"


@check("N3")
def distinct_name(release: Release) -> Iterator[str]:
    """The name neither contains another bundle's nor is contained in it."""
    for other in sorted({entry.partition("_v")[0] for entry in release.published()} - {release.name}):
        if other in release.name or release.name in other:
            yield f"the zoo has {other}"


@check("V1")
def version(release: Release) -> Iterator[str]:
    """The version is one of the changelog's."""
    if release.metadata["version"] not in release.metadata["changelog"]:
        yield f"{release.metadata['version']} is not in the changelog"


@check("V2")
def new_version(release: Release) -> Iterator[str]:
    """The version is not published yet."""
    if f"{release.name}_v{release.metadata['version']}" in release.published():
        yield f"the zoo has {release.metadata['version']}: raise it"


@check("V3")
def monai_requirement(release: Release) -> Iterator[str]:
    """The requirement that the zoo's CI derives from monai_version holds for it; versions sort as text."""
    given = release.metadata["monai_version"]
    parts = [int(part) for part in given.split(".")]
    # as the zoo's get_bundle_requirements.py does, strip included
    below = ".".join(map(str, [*parts[:-1], parts[-1] + 1])).rstrip(".0")
    if not Requirement(f"monai>={given}rc1,<{below}").specifier.contains(Version(given)):
        yield f"monai>={given}rc1,<{below} excludes {given}"
    if not re.fullmatch(r"\d\.\d\.\d", release.metadata["version"]):
        yield f"{release.metadata['version']}: three parts below 10, since tools sort versions as text"


@check("M1")
def schema(release: Release) -> Iterator[str]:
    """The metadata have the required keys and pass the schema."""
    for key in _REQUIRED.split():
        if key not in release.metadata:
            yield f"no {key}"
    content = json.loads((release.repository / _SCHEMA).read_text())
    for error in jsonschema.Draft201909Validator(content).iter_errors(release.metadata):
        yield f"{'#'.join(map(str, error.absolute_path))}: {error.message}"


@check("M2")
def tensors(release: Release) -> Iterator[str]:
    """Each tensor is described in full."""
    for name, tensor in _tensors(release):
        for key, kind in _TENSOR.items():
            if not isinstance(tensor.get(key), kind):
                yield f"{name}#{key} is no {kind.__name__}"
        if not all(isinstance(size, int | str) for size in tensor["spatial_shape"]):
            yield f"{name}#spatial_shape holds neither ints nor texts"
        if not all(isinstance(value, int | float) for value in tensor["value_range"]):
            yield f"{name}#value_range holds no numbers"


@check("M3")
def types(release: Release) -> Iterator[str]:
    """The optional keys have the types of the schema."""
    for names, kind in ((_TEXTS, str), (_OBJECTS, dict), (("references",), list)):
        for name in names:
            if not isinstance(release.metadata.get(name, kind()), kind):
                yield f"{name} is no {kind.__name__}"
    if not all(isinstance(entry, str) for entry in release.metadata.get("references", [])):
        yield "references holds what is no text"


@check("M4")
def schema_url(release: Release) -> Iterator[str]:
    """The schema's address is one of the lasting ones."""
    if release.metadata["schema"] not in _SCHEMA_URLS:
        yield f"{release.metadata['schema']} is not"


@check("M5")
def pins(release: Release) -> Iterator[str]:
    """Packages are pinned exactly, under required_packages_version only."""
    if "optional_packages_version" in release.metadata:
        yield "optional_packages_version is the old name"
    for name, value in release.metadata["required_packages_version"].items():
        if not re.fullmatch(r"\d+(\.\d+)+", value):
            yield f"{name}: {value} is no plain version"


@check("M6")
def apps(release: Release) -> Iterator[str]:
    """There are no supported_apps: no app asks for properties of its own."""
    if release.metadata.get("supported_apps") != {}:
        yield "it is not"


@check("M7")
def tensor_names(release: Release) -> Iterator[str]:
    """The network takes image and gives pred, and names channels by texts."""
    network = release.metadata["network_data_format"]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        if next(iter(network[side])) != name:
            yield f"the first of {side} is not {name}"
    for name, tensor in _tensors(release):
        if not all(isinstance(text, str) for text in tensor.get("channel_def", {}).values()):
            yield f"{name}#channel_def holds what is no text"


@check("M8")
def shapes(release: Release) -> Iterator[str]:
    """Spatial shapes are legal where p = n = 1, as CI puts them."""
    for name, tensor in _tensors(release):
        for size in tensor["spatial_shape"]:
            if isinstance(size, str) and size != "*" and not re.fullmatch(r"[\dpn+\-*/() ]+", size):
                yield f"{name}: {size!r} is no expression in p and n"
    for size in release.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]:
        if isinstance(size, str) and not re.fullmatch(r"\d+ *\* *n", size):
            yield f"image: {size!r} is not a multiple of n"
        elif int(str(size).partition("*")[0]) % 16:
            yield f"image: {size!r} is, at n = 1, not a multiple of the encoder's stride"


def _tensors(release: Release) -> list[tuple[str, dict[str, Any]]]:
    formats = [key for key in release.metadata if key.endswith("_data_format")]
    if not formats:
        raise NotChecked("metadata.json describes no network, see M1")
    return [
        (f"{key}#{side}#{name}", tensor)
        for key in formats
        for side in ("inputs", "outputs")
        for name, tensor in release.metadata[key][side].items()
    ]
