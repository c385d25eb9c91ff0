# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes docs/reference/configs.md from the configs: each id that a user may change, its default and its remark.

    python scripts/zoo/config_reference.py

The source is the first part of each YAML file: all above the line "You need not read below this line", or above the
section "set-up", "the run" or "the model" where a file has no such line. A remark stands behind the value, or in
indented comment lines right below it. An id whose meaning is the same in every config may do without.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bundle.atomic import replace_file
from bundle.errors import UserError, install_excepthook

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("docs/reference/configs.md")

#: the configs that a command starts from, in the order of the page, and what each is for
_MAIN = {
    "train.yaml": "Pre-training",
    "index.yaml": "Index of an archive",
    "prepare.yaml": "Preparation apart from a training",
    "finetune_segmentation.yaml": "Fine-tuning: segmentation",
    "finetune_classification.yaml": "Fine-tuning: classification",
    "finetune_detection.yaml": "Fine-tuning: detection",
    "predict_segmentation.yaml": "Prediction: segmentation",
    "predict_classification.yaml": "Prediction: classification",
    "predict_detection.yaml": "Prediction: detection",
    "inference.yaml": "Embeddings and feature maps",
    "reconstruct.yaml": "Reconstruction",
    "evaluate.yaml": "Evaluation of a run",
    "evaluate_segmentation.yaml": "Evaluation of label maps",
    "evaluate_classification.yaml": "Evaluation of findings",
    "evaluate_detection.yaml": "Evaluation of boxes",
}
#: ids that mean the same wherever they stand without a remark
_COMMON = {
    "bundle_root": "the folder that `models`, `runs` and `.cache` lie in",
    "dataset_dir": "the volumes: a folder or a json",
    "output_dir": "where results go",
    "cache_dir": "where prepared volumes are kept; it may be deleted",
    "weights": "the `model.pt` to use, with `model.json` beside it",
    "device": "auto, cpu, cuda, cuda:1",
    "seed": "of everything that is drawn; on a CPU the same seed gives the same weights",
    "epochs": "how many; the learning rate's course stretches over all of them",
    "crop_size": "voxels per axis; a multiple of the encoder's total stride",
    "lr": "learning rate at its peak",
    "num_workers": "processes that read volumes and cut crops",
    "encoder": "the network, and its arguments",
    "modality": "auto, or CT or MR for all volumes",
    "mr_percentiles": "of the body, lowest and highest; null: as in pre-training",
    "warmup_epochs": "in which the learning rate rises, at most half of `epochs`",
    "weight_decay": "of weights, not of norms and biases",
    "max_gradient_norm": "longer gradients are scaled down",
    "dropout": "share of the pooled features that is set to 0 in training",
    "resume": "true continues a run",
}
_ENDS = (re.compile(r"^# you need not read below", re.IGNORECASE), re.compile(r"^# -+ (set-up|the run|the model)\b"))
_TITLE = re.compile(r"^# -+ (.*?) -+$")
_ID = re.compile(r"^([A-Za-z_]\w*(?:[#:]+\w+)*):(?:\s|$)")
_REMARK = re.compile(r"(?:^|\s)# (.*)$")
_INTRODUCTION = """\
# Configs

`scripts/zoo/config_reference.py` makes this page from the comments of the YAML files. Do not edit it by hand.

Any value can be set on the command line as `--name value`, one inside another as `--name#inner value`. What stands
further below in a YAML file, and is not in this list, is reached in the same way. `null` is written `None` on the
command line. The files in a list of `--config_file` are merged from left to right.
"""


@dataclass(frozen=True)
class Option:
    """An id that a user may change.

    Args:
        section: the title above it, empty without one.
        id: its name.
        default: its value in the file, as YAML text.
        remark: what it means.
    """

    section: str
    id: str
    default: str
    remark: str


def first_part(text: str) -> list[str]:
    """The lines of a config that a user may change.

    Args:
        text: of a YAML file.

    Returns:
        All lines above the line that ends the first part; all lines if there is none.
    """
    lines = text.splitlines()
    for end in _ENDS:
        for number, line in enumerate(lines):
            if end.match(line):
                return lines[:number]
    return lines


def options(text: str) -> list[Option]:
    """Each top-level id in the first part of a config, in its order."""
    lines = first_part(text)
    values: dict[str, Any] = yaml.safe_load("\n".join(lines)) or {}
    found: list[Option] = []
    section = ""
    for number, line in enumerate(lines):
        title, name = _TITLE.match(line), _ID.match(line)
        if title:
            section = title[1]
        elif name:
            remark = " ".join(_remarks(lines, number)) or _COMMON.get(name[1], "")
            found.append(Option(section, name[1], _as_text(values[name[1]]), remark))
    return found


def _remarks(lines: list[str], number: int) -> Iterator[str]:
    """The comment behind a line, and those of the comment lines right below it that are indented."""
    text = lines[number]
    behind = _REMARK.search(re.sub(r"\"[^\"]*\"|'[^']*'", lambda quoted: "x" * len(quoted[0]), text))
    if behind:
        yield text[behind.start(1) :]
    for line in lines[number + 1 :]:
        below = re.match(r"^\s+# (.*)$", line)
        if not below:
            return
        yield below[1]


def _as_text(value: Any) -> str:
    """A value on one line; a path below `bundle_root` without it."""
    if isinstance(value, str) and value.startswith("$@bundle_root + '"):
        return value.removeprefix("$@bundle_root + '/").removesuffix("'")
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if not key.startswith("_")}
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.1e}".replace("e-0", "e-") if 0 < value < 0.01 else str(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("...").strip()


def opening(text: str) -> str:
    """What a config is for: the first sentence of its opening comment."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return re.split(r"(?<=[.:])\s", " ".join(lines) + " ")[0].rstrip(".:")


def page(configs: Path) -> str:
    """The text of the page.

    Args:
        configs: the folder of the configs.

    Raises:
        UserError: if a config that a command starts from is missing.
    """
    parts = [_INTRODUCTION]
    for name, title in _MAIN.items():
        if not (configs / name).is_file():
            raise UserError(f"{configs / name} does not exist: give the repository's folder of configs")
        text = (configs / name).read_text()
        parts.append(f"## {title}\n\n`configs/{name}`. {opening(text)}.\n")
        section = None
        for option in options(text):
            if option.section != section:
                section = option.section
                heading = f"**{section[:1].upper()}{section[1:]}**\n\n" if section else ""
                parts.append(f"{heading}| id | default | |\n|---|---|---|")
            parts.append(f"| `{option.id}` | `{_cell(option.default)}` | {_cell(option.remark)} |")
        parts.append("")
    parts.append("## Files to put behind one of these\n\n| file | |\n|---|---|")
    others = (file for file in sorted(configs.glob("*.yaml")) if file.name not in _MAIN)
    parts += [f"| `configs/{file.name}` | {_cell(opening(file.read_text()))} |" for file in others]
    text = "\n".join(parts) + "\n"
    # a table that begins right below a row of another one needs a blank line
    return re.sub(r"(\|)\n(\*\*|\| id)", r"\1\n\n\2", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Writes docs/reference/configs.md from the comments of the configs.")
    parser.parse_args(arguments)
    with replace_file(root / PAGE) as temporary:
        temporary.write_text(page(root / "configs"))
    print(root / PAGE)
    return 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
