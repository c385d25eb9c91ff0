# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A network from a user's file is an encoder like MONAI's, or one line says what is wrong with it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import build_encoder, build_feature_map, total_stride
from bundle.sparse import CellLayout, SparseVolume
from tests.users_encoder import FILE, write_encoder_file


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return write_encoder_file(tmp_path, monkeypatch)


def test_its_levels_weights_and_settings_are_the_users(module: str):
    encoder = build_encoder(f"{module}.residual", width=4, depth=3)
    assert [(level.channels, level.stride) for level in encoder.levels] == [
        (4, (1, 1, 1)), (8, (2, 2, 2)), (16, (4, 4, 4)),
    ]  # fmt: skip
    assert encoder.settings == {"name": f"{module}.residual", "width": 4, "depth": 3}
    network = importlib.import_module(module).ResidualNetwork(4, 3)
    network.load_state_dict(encoder.network_state_dict(), strict=True)
    image = torch.randn(1, 1, 16, 8, 8)
    for given, expected in zip(encoder(image), network(image), strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)


@pytest.mark.parametrize("executor", ["cells", "masked"])
def test_it_runs_sparsely_and_sees_nothing_of_the_hidden_cells(module: str, executor: str):
    encoder = build_encoder(f"{module}.residual", width=4, depth=3).eval()
    visible = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    visible[..., 1:3, :2, 2:] = True
    image = torch.randn(1, 1, 16, 16, 16)
    other = torch.where(visible.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4), image, 9.0)
    with torch.no_grad():
        levels = [
            [level.to_dense() for level in encoder(SparseVolume.from_dense(x, CellLayout(visible), executor))]
            for x in (image, other)
        ]
    for given, expected in zip(*levels, strict=True):
        assert given.std() > 0 and torch.equal(given, expected)


def test_building_it_draws_no_random_numbers_but_its_weights(module: str):
    torch.manual_seed(0)
    importlib.import_module(module).residual()
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_encoder(f"{module}.residual")
    assert torch.equal(torch.rand(1), expected)


def test_inference_builds_it_as_a_feature_map(module: str):
    arguments = {"name": f"{module}.residual", "width": 4, "depth": 3}
    encoder, network = build_encoder(**arguments).eval(), build_feature_map(arguments).eval()
    network.load_state_dict(encoder.network_state_dict(), strict=True)
    image = torch.randn(1, 1, 8, 8, 12)
    torch.testing.assert_close(network(image), encoder(image)[-1], rtol=0, atol=0)


def test_its_total_stride_is_known_without_memory(module: str):
    assert total_stride({"name": f"{module}.residual", "depth": 5}) == (16, 16, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_file.residual", "there is no module 'no_such_file' to import: start from the folder that holds it"),
        ("my_encoder.nothing", "my_encoder.py has no function 'nothing'"),
        ("my_encoder.part.residual", "there is no module 'my_encoder.part'"),
        ("my_encoder.F", "has no function 'F'"),
        ("my_encoder.Block", "does not take its arguments"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(name: str, message: str, module: str):
    with pytest.raises(UserError) as error:
        build_encoder(name)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("import torch.nn.functional as F", "import no_such_library", "imports no_such_library, which is not inst"),
        ("class Block(nn.Module):", "class Block(nn.Module:", "broken cannot be imported (SyntaxError"),
        ("return Encoder(network, stages)", "return network", "returns ResidualNetwork: let it return"),
        ("return Encoder(network, stages)", "return Encoder(network, [])", "has no stages: give one"),
        ("(2, 2, 2)) for i", "(4, 2, 2)) for i", "level 1 gives [1, 16, 64, 8, 8] of [1, 1, 128, 16, 16], its stages"),
        ("Stage((level,), width * 2**i", "Stage((level,), width", "level 1 gives [1, 16, 8, 8, 8] of [1, 1, 16"),
        ("Stage((network.stem, network.levels[0])", "Stage((network.levels[0],)", "do not run one after the other"),
        ("Stage((network.stem,", "Stage((nn.Conv3d(1, width, 1),", "stage 0 runs a module that is no part of the"),
        ("    return features", "    return features[0]", None),
    ],
)
def test_a_file_that_gives_no_levels_is_one_line(
    before: str, after: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert before in FILE
    name = write_encoder_file(tmp_path, monkeypatch, "broken", FILE.replace(before, after))
    if message is None:  # the network's own forward is not used
        build_encoder(f"{name}.residual")
        return
    with pytest.raises(UserError) as error:
        build_encoder(f"{name}.residual")
    assert message in str(error.value) and "\n" not in str(error.value)
