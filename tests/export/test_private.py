# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import copy
from typing import Any

import pytest

from bundle.export import without_private

SEEN = {"training": ["1f"], "validation": ["2e"]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"classes": {"liver": 1}}, {"classes": {"liver": 1}}),
        ({"epoch": 3, "fingerprints": SEEN}, {"epoch": 3}),
        ({"origin": None}, {"origin": None}),
        (
            {"fingerprints": SEEN, "origin": [{"file": "a.pt"}, {"file": "b.pt", "fingerprints": SEEN}]},
            {"origin": [{"file": "a.pt"}, {"file": "b.pt"}]},
        ),
    ],
)
def test_fingerprints_of_the_model_and_of_what_it_began_with_are_left_out(content: dict[str, Any], told: Any):
    before = copy.deepcopy(content)
    assert without_private(content) == told and content == before
