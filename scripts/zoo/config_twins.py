# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes each YAML config of a folder as JSON beside it: the form that some of MONAI's tools look for by name.

    python scripts/zoo/config_twins.py dist/ct_mr_sparse_mim_pretraining/configs

`monai.bundle.load` and `MonaiAlgo` read `<name>.json` only. The YAML file is the source: it holds the comments, and
whoever edits it writes the twins anew. In the repository there are none, so that none can be out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.atomic import replace_file
from bundle.errors import UserError, install_excepthook


def twin_text(config: Path) -> str:
    """The content of a YAML config as JSON: 4 spaces, in the config's order, with a final newline.

    Raises:
        UserError: if it holds what JSON cannot say.
    """
    content = ConfigParser.load_config_file(config)
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
    if json.loads(text) != content:
        keys = ", ".join(_keys_that_change(content)) or "a value"
        raise UserError(f"{config} holds what JSON would change, {keys}: write keys as text, and text in quotes")
    return text


def write_twins(configs: Path) -> list[Path]:
    """Writes the twin of each YAML file in a folder, over the one that is there; returns their paths.

    Raises:
        UserError: if there is no YAML file, or one holds what JSON cannot say.
    """
    files = sorted(configs.glob("*.yaml"))
    if not files:
        raise UserError(f"{configs} holds no YAML file: give the folder of the configs")
    texts = {file.with_suffix(".json"): twin_text(file) for file in files}
    for path, text in texts.items():
        with replace_file(path) as temporary:
            temporary.write_text(text)
    return list(texts)


def _keys_that_change(content: Any) -> Iterator[str]:
    """Keys that are no text."""
    if isinstance(content, dict):
        yield from (repr(key) for key in content if not isinstance(key, str))
    for item in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _keys_that_change(item)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Writes each YAML config of a folder as JSON beside it.")
    parser.add_argument("configs", type=Path, help="the folder")
    for path in write_twins(parser.parse_args(arguments).configs):
        print(path)
    return 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
