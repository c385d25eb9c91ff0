# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""CITATION.cff has what the Citation File Format 1.2.0 requires, and says what the metadata says."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_is_complete_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert all(citation[key] for key in ("message", "title"))
    assert citation["authors"] and all(set(author) == {"name"} for author in citation["authors"])  # entities
    assert citation["license"] == "Apache-2.0"
    assert citation["version"] == json.loads((ROOT / "configs/metadata.json").read_text())["version"]
