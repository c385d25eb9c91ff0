# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The command that started this process, as its user typed it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["command_line"]

_LONGEST = 2000  # characters: a program given with -c may be long


#: values that tell no name: a number, a switch, nothing, or a list of numbers
_NUMBER = r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?"
_PLAIN = re.compile(rf"{_NUMBER}|[Tt]rue|[Ff]alse|[Nn]one|null|\[\s*({_NUMBER}\s*(,\s*{_NUMBER}\s*)*)?\]")
#: options of which even a number may be somebody's
_PLACES = re.compile(r"(^|[#:])(dataset_dir|predictions|include|where|model|\w+_(dir|file|root))$")
_CONFIGS = re.compile(r"(^|[#:])(config|meta)_file$")


def command_line(
    arguments: Sequence[str] | None = None, executable: str | None = None, *, hide_values: bool = False
) -> str:
    """The command, with quotes where a shell needs them.

    Python's own path is left out, and that of a command installed beside it: the user typed a name. So no path is shown
    but those that the user gave.

    Args:
        arguments: of the process, Python first; None: of this one.
        executable: Python's path; None: of this process.
        hide_values: whether three points stand for what may name a patient, as a path or a condition. The options'
            names stay, and values that are numbers, lists of numbers, True, False or None, and the names of configs.
            So it is, too, if the command itself has `--hash_names True`.

    Example:
        >>> command_line(["/home/ann/.venv/bin/python3", "-m", "monai.bundle", "run", "--epochs", "5"])
        'python -m monai.bundle run --epochs 5'
    """
    _, *rest = sys.orig_argv if arguments is None else arguments
    beside = Path(sys.executable if executable is None else executable).parent
    words = ["python", *rest]
    if rest and Path(rest[0]).is_absolute() and Path(rest[0]).parent == beside:
        words = [Path(rest[0]).name, *rest[1:]]
    elif any("ipykernel" in word for word in rest):
        words = ["(in", "a", "notebook)"]  # its arguments are files of the machine's, which nobody typed
        return " ".join(words)
    line = _without_values(words) if hide_values or _hashes_names(rest) else shlex.join(words)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _hashes_names(words: Sequence[str]) -> bool:
    pairs = [f"{word}={after}" for word, after in zip(words, [*words[1:], ""])]
    return any(re.match(r"--hash_names=(true\b|1\b|--|$)", pair, re.IGNORECASE) for pair in pairs)


def _without_values(words: Sequence[str]) -> str:
    """The command with three points for values that may be names."""
    shown, option, before = [], "", ""
    for word in words:
        if word.startswith("--"):
            option, given, value = word[2:].partition("=")
            called = option if re.fullmatch(r"[\w#:-]*", option) else "..."
            shown.append(f"--{called}{f'={_shown(option, value)}' if given else ''}")
            option = "" if given else option
        elif option and not re.fullmatch(r"-[a-z]", word):
            shown.append(_shown(option, word))
        else:
            option = ""
            shown.append(_positional(word, before, shown))
        before = word
    return " ".join(shown)


def _shown(option: str, value: str) -> str:
    if _CONFIGS.search(option):
        files = [Path(file).name for file in re.findall(r"[^\s'\",\[\]]+\.(?:ya?ml|json)", value)]
        return shlex.quote(files[0] if len(files) == 1 else f"[{', '.join(files)}]")
    is_plain = _PLAIN.fullmatch(value) and not _PLACES.search(option)
    return shlex.quote(value) if is_plain else "..."


def _positional(word: str, before: str, shown: Sequence[str]) -> str:
    """Of the words that belong to no option: the program, the module or the script, and what the module runs."""
    if not shown or before == "-m" or re.fullmatch(r"-[a-z]", word):
        return shlex.quote(word)
    if word.endswith(".py"):
        return shlex.quote(Path(word).name)
    return word if "monai.bundle" in shown and word.isidentifier() else "..."
