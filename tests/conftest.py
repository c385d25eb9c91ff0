# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What tests of several packages share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.zoo.release import Released


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real volumes, labels and DICOM series that the test command fetches."""
    folder = Path(__file__).parents[1] / "data"
    lacking = [name for name in ("volumes", "labels", "dicom") if not (folder / name).is_dir()]
    assert not lacking, f"no {', '.join(lacking)} in {folder}: run `python scripts/fetch_data.py --all` first"
    return folder


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """The release command's work, done once: do not change it."""
    from tests.zoo.release import make_release  # noqa: PLC0415 - it needs MONAI, which takes seconds to import

    return make_release(tmp_path_factory.mktemp("release"))
