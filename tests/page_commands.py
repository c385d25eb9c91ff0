# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Checks a command of the documentation without running it: files, options and ids that it names exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from torch.distributed.run import get_args_parser

from bundle.runs.config_source import ConfigSource
from bundle.runs.overrides import PRESETS_WITH_OPTIONS, check_overrides
from tests.pages import ROOT, blocks

#: arguments of MONAI's `run`; all else that it is given is an override
_RUN = {"config_file", "meta_file", "logging_file", "tracking", "args_file", "workflow_name"}


class BrokenCommand(Exception):
    """A command names what does not exist."""


def commands(page: str) -> list[str]:
    """The commands in the page's blocks of bash, one a line."""
    lines = [line.strip() for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def shown_configs(page: str) -> dict[str, str]:
    """The configs that a page shows in full, by the name in their first line or in the line above the block."""
    named = {found[1]: block for block in blocks(page, "yaml") if (found := re.match(r"# (\w+\.yaml)\n", block))}
    above = re.findall(r"`(\w+\.yaml)`[^\n]*:\n\n```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return {**dict(above), **named}


def check_command(line: str, page: str, folder: Path) -> None:
    """Raises `BrokenCommand` if the command names a file, an option or an id that does not exist.

    Args:
        line: the command.
        page: the text of the page, which may show configs.
        folder: an empty one, for those.
    """
    words = shlex.split(re.sub(r"\s+# .*$", "", line))  # a # inside a word belongs to an id
    while words and re.match(r"[A-Z_]+=", words[0]):
        _check_variable(words.pop(0).partition("=")[0])
    for word in words:
        if word.startswith(("data/", "docs/", "tests/", "models/model.pt")):
            _must_exist(word)
    match words:
        case [".", ".venv/bin/activate"]:
            pass
        case ["bash", script, *rest]:
            _check_shell_script(script, rest, page, folder)
        case ["python", *rest]:
            _check_python(rest, page, folder)
        case ["torchrun", *rest] if "-m" in rest:
            launcher = rest[: rest.index("-m")]
            _require(
                get_args_parser().parse_known_args([*launcher, "script"])[1] == [], f"torchrun knows no {launcher}"
            )
            _check_python(rest[len(launcher) :], page, folder)
        case ["make", target]:
            _require(f"\n{target}:" in (ROOT / "Makefile").read_text(), f"no {target} in the Makefile")
        case _:
            raise BrokenCommand(f"no test knows how to check: {line}")


def _check_python(words: Sequence[str], page: str, folder: Path) -> None:
    match words:
        case ["-m", "monai.bundle", command, *rest]:
            _check_bundle(command, rest, page, folder)
        case ["-m", "pip", "install", "-c", file, *packages]:
            pins = _must_exist(file).read_text()
            for package in packages:
                _require(f"{package}==" in pins, f"{file} has no {package}")
        case [script, *rest]:
            known = _script_options(_must_exist(script))
            unknown = {word: value for word, value in pairwise([*rest, ""]) if word[:2] == "--" and word not in known}
            if unknown and "parse_known_args" in (ROOT / script).read_text():  # it hands them on to a config
                files = [value for word, value in pairwise(rest) if word == "--config_file"]
                overrides = {word[2:]: DefaultParseValue(value) for word, value in unknown.items()}
                _check_overrides(files or ["configs/finetune_segmentation.yaml"], overrides, page, folder)
            else:
                _require(not unknown, f"{script} has no {', '.join(unknown)}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BrokenCommand(message)


def _must_exist(name: str) -> Path:
    _require((ROOT / name).exists(), f"{name} does not exist")
    return ROOT / name


def _check_variable(name: str) -> None:
    files = [*(ROOT / "scripts").glob("*.sh"), *(ROOT / "scripts").rglob("*.py"), ROOT / "bundle/errors.py"]
    _require(any(name in file.read_text() for file in files), f"nothing reads {name}")


def _script_options(script: Path) -> set[str]:
    """The options of a script's argparse."""
    calls = (node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call))
    added = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")
    return {str(argument.value) for call in added for argument in call.args if isinstance(argument, ast.Constant)}


def _check_shell_script(script: str, rest: Sequence[str], page: str, folder: Path) -> None:
    text = _must_exist(script).read_text()
    if script == "scripts/train.sh":
        given = _options(rest)
        preset = given.pop("preset", "small")
        files = ["configs/train.yaml", f"configs/preset_{preset}.yaml"]
        files += ["configs/objective_reconstruction.yaml"] if preset == "small" else []
        _check_overrides(files, given, page, folder)
    elif script != "scripts/test.sh":  # whose options are pytest's
        for word in rest:
            _require(word in text, f"{script} has no {word}")


def _check_bundle(command: str, rest: Sequence[str], page: str, folder: Path) -> None:
    function = getattr(monai.bundle, command, None)
    _require(callable(function), f"MONAI has no command {command}")
    arguments = _RUN if command == "run" else set(inspect.signature(function).parameters)
    run_id = "run"
    if command == "run" and rest and not rest[0].startswith("--"):
        run_id, *rest = rest
    given = _options(rest)
    files = given.pop("config_file", None)
    _require(files is not None or command == "verify_metadata", "no --config_file")
    if files is None:
        return
    overrides = {name: value for name, value in given.items() if name not in arguments}
    parser = _check_overrides([files] if isinstance(files, str) else files, overrides, page, folder)
    _require(command != "run" or run_id in parser, f"no {run_id} in {files}")


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`--name value` pairs as fire reads them; a name without a value is True."""
    given: dict[str, Any] = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            following = words[number + 1] if number + 1 < len(words) else "--"
            is_flag = not equals and following.startswith("--")
            given[name] = True if is_flag else DefaultParseValue(value if equals else following)
        elif number == 0 or not words[number - 1].startswith("--"):
            raise BrokenCommand(f"{word} belongs to no option")
    return given


def _check_overrides(files: Sequence[str], overrides: dict[str, Any], page: str, folder: Path) -> ConfigParser:
    """The merged config, if all files exist and all ids are known."""
    shown, paths = shown_configs(page), []
    for name in files:
        if name in shown:
            (folder / name).write_text(shown[name])
        paths.append(folder / name if name in shown else _must_exist(name))
    parser = ConfigParser()
    parser.read_config([str(path) for path in paths])
    try:
        parser.update(overrides)
    except (KeyError, IndexError, ValueError) as error:
        raise BrokenCommand(f"no id for one of {', '.join(overrides)}: {error}") from error
    check_overrides(ConfigSource(parser, tuple(paths)), base_names=("evaluate.yaml", *PRESETS_WITH_OPTIONS))
    return parser
