# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/metadata.json passes MONAI's schema and says the same as the files that it repeats."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NAME = "ct_mr_sparse_mim_pretraining"
METADATA: dict[str, Any] = json.loads((ROOT / "configs/metadata.json").read_text())
SCHEMA: dict[str, Any] = json.loads((ROOT / "tests/schema/meta_schema_20240725.json").read_text())
TENSORS = [tensor for side in ("inputs", "outputs") for tensor in METADATA["network_data_format"][side].values()]


def content_lines(file: str) -> list[str]:
    """The lines of a requirements file without remarks and blanks."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in lines if line]


def pins() -> dict[str, str]:
    """Package name -> exact version, from constraints.txt."""
    requirements = [Requirement(line) for line in content_lines("constraints.txt")]
    return {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in requirements}


def without(metadata: dict[str, Any], *path: str) -> dict[str, Any]:
    """A copy of `metadata` that lacks the key at `path`."""
    changed = copy.deepcopy(metadata)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def test_metadata_passes_the_schema() -> None:
    jsonschema.Draft201909Validator.check_schema(SCHEMA)
    jsonschema.Draft201909Validator(SCHEMA).validate(METADATA)
    assert METADATA["schema"].endswith("/meta_schema_20240725.json")


@pytest.mark.parametrize(
    "path",
    [
        *[(key,) for key in ("schema", "version", "monai_version", "pytorch_version", "numpy_version")],
        *[(key,) for key in ("required_packages_version", "task", "description", "authors", "copyright")],
        ("network_data_format",),
        ("network_data_format", "inputs"),
        ("network_data_format", "outputs"),
        *[
            ("network_data_format", "inputs", "image", key)
            for key in ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
        ],
    ],
    ids="#".join,
)
def test_schema_refuses_metadata_that_lacks_a_required_key(path: tuple[str, ...]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft201909Validator(SCHEMA).validate(without(METADATA, *path))


def test_versions_are_the_ones_in_the_constraints() -> None:
    pinned = pins()
    assert METADATA["monai_version"] == pinned["monai"]
    assert METADATA["pytorch_version"] == pinned["torch"]
    assert METADATA["numpy_version"] == pinned["numpy"]
    others = set(content_lines("requirements.txt")) - {"monai", "torch", "numpy"}
    assert METADATA["required_packages_version"] == {name: pinned[name] for name in others}


def test_version_is_the_packages_own() -> None:
    assert METADATA["version"] == importlib.metadata.version(NAME)


def test_version_heads_both_changelogs() -> None:
    headings = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == METADATA["version"]
    assert list(METADATA["changelog"]) == headings


def test_each_part_of_the_version_is_one_digit() -> None:
    # MONAI finds the latest version of a bundle by sorting text
    assert re.fullmatch(r"\d\.\d\.\d", METADATA["version"])


def test_bundle_name_survives_monais_and_the_zoos_tools() -> None:
    # MONAI cuts a name at "_v<digit>", the catalogue lower-cases it
    assert re.fullmatch(r"[a-z][a-z0-9_]*", NAME)
    assert "_v" not in NAME


def test_network_takes_image_and_returns_pred() -> None:
    # the names that `python -m monai.bundle verify_net_in_out` looks up
    assert list(METADATA["network_data_format"]["inputs"]) == ["image"]
    assert list(METADATA["network_data_format"]["outputs"]) == ["pred"]


@pytest.mark.parametrize(("tensor", "voxels"), zip(TENSORS, (16, 1)), ids=["image", "pred"])
def test_smallest_shape_has_two_cells_per_axis(tensor: dict[str, Any], voxels: int) -> None:
    for size in tensor["spatial_shape"]:
        match = re.fullmatch(r"(\d+)\*n", size)  # the zoo's check puts n = 1
        assert match is not None
        assert int(match[1]) == 2 * voxels
