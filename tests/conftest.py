# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What tests of several packages share."""

from __future__ import annotations

import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import tests.libyaml  # noqa: F401 - before MONAI is imported

if TYPE_CHECKING:
    from tests.zoo.release import Released

settings.register_profile("tests", settings.default, deadline=None)  # beside other work an example takes long
settings.load_profile("tests")

#: files that take 15 seconds and more, the longest first: begun at the end, one would keep a single core busy
LONGEST = (
    "scripts/benchmarks/test_gpu.py",
    "export/test_formats.py",
    "test_finetune.py",
    "test_model_zoo.py",
    "scripts/zoo/test_release.py",
    "sparse/convolution/test_fused.py",
    "scripts/studies/test_nnunet_roundtrip.py",
    "test_multi_gpu.py",
    "scripts/studies/test_method.py",
    "test_resume.py",
    "test_workflow.py",
    "test_output_folder.py",
    "scripts/studies/test_transfer.py",
    "test_users_objective.py",
    "sparse/test_segres_encoder.py",
    "test_inference.py",
    "scripts/test_does_pretraining_help.py",
    "scripts/studies/test_people.py",
    "weights/test_cards.py",
    "scripts/test_cross_validate.py",
    "test_users_encoder.py",
    "test_evaluate.py",
    "scripts/studies/test_recipe.py",
    "networks/test_encoders.py",
    "processes/test_pool.py",
    "kernels/test_programs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files: pytest-xdist hands them out in this order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Starts the server of commands.py: so it has no test's environment, and is not one that the bundle starts."""
    if "tests.commands" in sys.modules:
        forkserver.ensure_running()


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
