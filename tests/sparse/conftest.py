# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest

from tests.sparse.examples import EXECUTORS


@pytest.fixture(params=EXECUTORS)
def executor(request) -> str:
    """Each executor that is always there, in turn."""
    return request.param
