# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a user writes to pre-train a network of their own, as docs/how-to/bring_your_encoder.md shows it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/how-to/bring_your_encoder.md"
FILE, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
PRETRAIN, FINETUNE = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def write_encoder_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "my_encoder", text: str = FILE
) -> str:
    """Writes the user's file where Python finds it; gives the name of its module."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name
