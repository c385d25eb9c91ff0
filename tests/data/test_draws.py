# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/draws.py: each value has its share, each volume its turn, and any draw is known without those before."""

from __future__ import annotations

import logging
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose

from bundle.data import CropDataset, PlainStore, PreparedVolume, repeat_unless_named
from bundle.data.draws import BalancedOrder, ShuffledOrder, balanced_order
from bundle.data.names import name_digest
from bundle.errors import UserError


def volume(number: int, modality: str = "CT", folder: str = "a", group: str = "", **columns: Any) -> PreparedVolume:
    return PreparedVolume(
        name=f"{folder}/{number}", store=PlainStore(Path()), key=f"{number}", modality=modality, size=(8, 8, 8),
        group=group or f"{number}", columns={"folder": folder, **columns},
    )  # fmt: skip


#: nine CT and one MR
NINE_AND_ONE = [volume(n, "MR" if n == 4 else "CT", folder="ab"[n % 2], slices=n // 5) for n in range(10)]


def shares(volumes: list[PreparedVolume], draws: int, **options: Any) -> Counter[str]:
    crops = CropDataset(data=volumes, transform=Compose([]), **options)
    return Counter(volumes[crops.find_volume(draw)].modality for draw in range(draws))


def test_without_balance_a_modality_is_drawn_as_often_as_it_has_volumes() -> None:
    assert shares(NINE_AND_ONE, 1000) == {"CT": 900, "MR": 100}


def test_a_balanced_column_has_equal_shares_in_every_cycle() -> None:
    assert shares(NINE_AND_ONE, 1000, balance="modality") == {"CT": 500, "MR": 500}
    assert shares(NINE_AND_ONE, 3000, balance="modality", seed=7) == {"CT": 1500, "MR": 1500}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"MR": 3}, {"CT": 250, "MR": 750}), ({"CT": 1, "MR": 2}, {"CT": 333, "MR": 667}), ({"MR": 0}, {"CT": 1000})],
    ids=["others weigh 1", "thirds", "never"],
)
def test_weights_give_shares(weights: dict[str, float], expected: dict[str, int]) -> None:
    assert shares(NINE_AND_ONE, 1000, balance="modality", balance_weights=weights) == expected


@pytest.mark.parametrize("column", ["folder", "group", "slices"])
def test_any_column_of_the_volumes_balances(column: str) -> None:
    order = balanced_order(NINE_AND_ONE[:-3], column, None, seed=0)
    found = Counter(order(draw) for draw in range(10 * order.cycle))
    by_value: Counter[Any] = Counter()
    for number, count in found.items():
        volume = NINE_AND_ONE[number]
        by_value[volume.group if column == "group" else volume.columns[column]] += count
    least, most = min(by_value.values()), max(by_value.values())
    assert most - least <= 10 and sum(by_value.values()) == 10 * order.cycle


def test_a_draw_is_known_without_those_before_it() -> None:
    forwards = balanced_order(NINE_AND_ONE, "modality", {"CT": 2}, seed=3)
    expected = [forwards(draw) for draw in range(5000)]
    anywhere = list(range(5000))
    random.Random(0).shuffle(anywhere)
    other = balanced_order(NINE_AND_ONE, "modality", {"CT": 2}, seed=3)
    assert {draw: other(draw) for draw in anywhere} == dict(enumerate(expected))
    assert balanced_order(NINE_AND_ONE, "modality", {"CT": 2}, seed=3)(10**15) in range(10)


def test_volumes_of_one_value_take_turns_across_cycles() -> None:
    order = balanced_order(NINE_AND_ONE, "modality", {"CT": 1, "MR": 2}, seed=0)
    ct = [number for draw in range(4000) if (number := order(draw)) != 4]
    rounds = [tuple(ct[start : start + 9]) for start in range(0, len(ct) - 9, 9)]
    assert all(sorted(one) == [0, 1, 2, 3, 5, 6, 7, 8, 9] for one in rounds)
    assert all(one != other for one, other in pairwise(rounds)) and len(set(rounds)) > 100


def test_values_come_mixed_and_in_another_order_for_another_seed_and_cycle() -> None:
    cycles = [
        [balanced_order(NINE_AND_ONE, "modality", None, seed)(start + draw) == 4 for draw in range(200)]
        for seed, start in ((0, 0), (0, 1000), (1, 0))
    ]
    assert len({tuple(one) for one in cycles}) == 3
    assert all(max(len(run) for run in "".join("x" if m else " " for m in one).split()) < 20 for one in cycles)


def test_a_rare_value_is_drawn_too() -> None:
    values = ["many"] * 3 + ["rare"]
    order = BalancedOrder(values, {"many": 0.9999, "rare": 0.0001}, seed=0)
    assert Counter(order(draw) == 3 for draw in range(order.cycle)) == {False: 19998, True: 2}


def test_the_order_without_balance_is_numpys_permutation_of_seed_and_round() -> None:
    """Runs of earlier versions go on with the draws they would have had."""
    order = ShuffledOrder(5, seed=11)
    expected = [*np.random.default_rng((11, 2, 0)).permutation(5), *np.random.default_rng((11, 2, 1)).permutation(5)]
    assert [order(draw) for draw in range(10)] == expected


@pytest.mark.parametrize(
    ("balance", "weights", "said"),
    [
        ("site", None, "--balance site is no column of these volumes: give one of folder, group, modality, slices"),
        ("modality", {"PET": 1}, "names PET, which is no modality of the volumes to train on: give weights of CT, MR"),
        ("modality", {"CT": -1}, "--balance_weights of CT is -1: give a number from 0"),
        ("modality", {"CT": "much"}, "--balance_weights of CT is much: give"),
        ("modality", {"CT": 0, "MR": 0}, "--balance_weights are all 0: give"),
        ("modality", {"CT": 1e-9}, "leave CT a share of 1e-09: give it more, or 0"),
        ("group", {"0": 1, "x": 1}, "names x, which is no group of the volumes to train on: leave it out"),
        (None, {"CT": 1}, "--balance_weights needs the column of their values: give --balance too"),
    ],
)
def test_what_cannot_work_is_one_line(balance: str | None, weights: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(UserError) as caught:
        CropDataset(data=NINE_AND_ONE, transform=Compose([]), balance=balance, balance_weights=weights)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_log_tells_the_shares_but_no_group(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="bundle")
    balanced_order(NINE_AND_ONE, "modality", {"MR": 3}, seed=0)
    assert "balance modality, shares of the crops: CT 25.0% (9 volumes), MR 75.0% (1 volume)" in caplog.text
    balanced_order([volume(n, group=f"digest{n}") for n in range(3)], "group", None, seed=0)
    assert "balance group: 3 groups" in caplog.text and "digest" not in caplog.text


def test_with_hashed_names_no_folder_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="bundle")
    volumes = [volume(n, folder=f"Doe^Jane {n}") for n in range(3)]
    weights = {"Doe^Jane 1": 2}
    CropDataset(data=volumes, transform=Compose([]), balance="folder", balance_weights=weights, hash_names=True)
    assert f"{name_digest('Doe^Jane 1')} 50.0% (1 volume)" in caplog.text
    with pytest.raises(UserError) as caught:
        CropDataset(data=volumes, transform=Compose([]), balance="folder", balance_weights={"x": 1}, hash_names=True)
    assert "Doe" not in caplog.text + str(caught.value)


def test_volumes_of_rare_kinds_are_there_several_times() -> None:
    volumes = [volume(n, folder=folder) for n, folder in enumerate(("head", "chest", "mr_brain", "knee"))]
    names = [one.name for one in repeat_unless_named(volumes, parts=["head", "mr_brain"], times=3)]
    assert names == ["head/0", "chest/1", "mr_brain/2", "knee/3", "chest/1", "knee/3", "chest/1", "knee/3"]
