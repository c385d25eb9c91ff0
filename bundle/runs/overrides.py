# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Refuses options that the config does not define: MONAI would add them without a word, and nothing would read them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, merge_kv
from monai.utils import optional_import

from bundle.errors import UserError
from bundle.runs.config_source import ConfigSource

__all__ = ["PRESETS_WITH_OPTIONS", "check_overrides", "check_parents"]

#: files of the bundle's that are merged onto a config and add options of their own
PRESETS_WITH_OPTIONS = (
    "finetune_self_training.yaml", "finetune_unlabelled.yaml", "levels_wide.yaml", "nnunet.yaml", "prepare.yaml",
)  # fmt: skip
# ids that MONAI itself adds: the metadata, and what `--tracking mlflow` sets
_ADDED_BY_MONAI = {ConfigParser.meta_key, *DEFAULT_MLFLOW_SETTINGS["configs"]}


def check_overrides(source: ConfigSource, base_names: Sequence[str] = ()) -> None:
    """Compares the merged config with its base: the first of its files, and those named in `base_names`.

    An id is known if the base file defines it, or if it is an argument that the component (`_target_`) it belongs to
    accepts. Lists may grow, and so may a mapping of components by name, such as `objectives`. A value may be replaced
    by anything, and an empty mapping may be filled with anything.

    Args:
        source: the config.
        base_names: names of further files of the bundle's that define ids.

    Raises:
        UserError: for the first unknown id, with the nearest known one, or the first component given as text, which is
            what the command line makes of a mapping that lacks quotes.
    """
    if not source.files:
        return
    base = _load(_base_files(source, base_names))
    merged = {key: value for key, value in source.parser.get().items() if key in base or key not in _ADDED_BY_MONAI}
    if text := next(_texts_for_components(base, merged), None):
        raise UserError(
            f"--{text} is a component, and was given as text: write a mapping with quotes around all text in it, such "
            "as \"{'_target_': 'my.Class', 'size': 3}\", or put it into a YAML file behind the others"
        )
    unknown, siblings = next(_unknown_ids(base, merged), ("", []))
    if not unknown:
        return
    if preset := _preset_with(unknown, source.files[0].parent, base_names):
        raise UserError(f"option --{unknown} belongs to {preset}: add that file to --config_file, after the others")
    near = _nearest(unknown, siblings, list(_ids(base)))
    file = _file_with(unknown, source.files[1:])
    dashes = "--" if file is None else ""
    if near == unknown:
        hint = "the component chosen in its place does not take it; give files that choose components last"
    else:
        hint = f"see {source.files[0]} for all options" if near is None else f"did you mean {dashes}{near}?"
    raise UserError(f"unknown option {dashes}{unknown}{'' if file is None else f' in {file}'}: {hint}")


def check_parents(files: Sequence[Path], options: Iterable[str]) -> None:
    """Refuses a nested option whose parent is unknown, such as ``--loss#reconstructon#target``.

    MONAI looks up the parent while it merges the options, before any component of a config exists, and ends in a
    traceback. So this must be called before MONAI merges.

    Args:
        files: the config files in the order of merging.
        options: the ids given beside the files.

    Raises:
        UserError: for the first option without its parent, with the nearest known id.
    """
    parser = ConfigParser({})
    for file in files:
        for key, value in ConfigParser.load_config_file(file).items():
            _check_parent(parser, key.lstrip("+"), f" in {file}", files)
            merge_kv(parser, key, value)
    for option in options:
        _check_parent(parser, option, "", files)


def _check_parent(parser: ConfigParser, option: str, where: str, files: Sequence[Path]) -> None:
    *parents, last = ReferenceResolver.split_id(option)
    node: Any = parser.get()
    corrected: list[str] = []
    for parent in parents:
        found = _nearest_key(node, parent)
        if found is None:
            corrected = []
            break
        corrected.append(found)
        node = node[int(found)] if isinstance(node, list) else node[found]
    if corrected == parents and (not parents or isinstance(node, (dict, list))):
        return
    unknown, dashes = "#".join([*parents, last]), "" if where else "--"
    if corrected and (name := _nearest_argument(node, last)) is not None:
        near: str | None = "#".join([*corrected, name])
    else:
        near = _nearest(unknown, [], list(_ids(parser.get()))) or "#".join(corrected) or None
    hint = f"see {files[0]} for all options" if near is None else f"did you mean {dashes}{near}?"
    raise UserError(f"unknown option {dashes}{unknown}{where}: {hint}")


def _nearest_key(node: Any, key: str) -> str | None:
    """The key or index itself if the node has it, else the one of a mapping that is spelt alike."""
    if isinstance(node, list):
        return key if key.isdecimal() and int(key) < len(node) else None
    if not isinstance(node, Mapping):
        return None
    return key if key in node else next(iter(difflib.get_close_matches(key, map(str, node), n=1, cutoff=0.7)), None)


def _nearest_argument(node: Any, name: str) -> str | None:
    """What a mapping has, or the component that it makes accepts, and is spelt like `name`."""
    known = {*node, *(_argument_names(node) or ())} if isinstance(node, Mapping) else set()
    names = sorted(one for one in known if not one.startswith("_"))
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.7)), None)


def _load(files: Sequence[Path]) -> dict[str, Any]:
    """The files merged as MONAI merges them; a single one as it is."""
    if len(files) == 1:
        return dict(ConfigParser.load_config_file(files[0]))
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return {key: value for key, value in parser.get().items() if key != ConfigParser.meta_key}


def _unknown_ids(base: Any, merged: Any, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yields each id of `merged` that is unknown, with the known ids beside it."""
    if isinstance(merged, list):
        old = base if isinstance(base, list) else []
        for index, item in enumerate(merged):
            known_item = old[index] if index < len(old) and _same_component(old[index], item) else None
            yield from _unknown_ids(known_item, item, f"{prefix}{index}#")
    elif isinstance(merged, Mapping):
        known = base if isinstance(base, Mapping) and _same_component(base, merged) else {}
        yield from _unknown_keys(known, merged, prefix)


def _unknown_keys(known: Mapping[str, Any], merged: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, list[str]]]:
    """As `_unknown_ids`, of a mapping whose ids are `known`; none are if the component is a new one."""
    arguments = _argument_names(merged)
    anything = arguments is None or (not known and "_target_" not in merged)
    accepted = {*known, *(arguments or ())}
    named = bool(known) and all(value is None or _is_component(value) for value in known.values())
    for key, value in merged.items():
        if anything or key in accepted or (named and _is_component(value)):
            yield from _unknown_ids(known.get(key), value, f"{prefix}{key}#")
        else:
            yield f"{prefix}{key}", [f"{prefix}{name}" for name in sorted(accepted) if not name.startswith("_")]


def _texts_for_components(base: Any, merged: Any, prefix: str = "") -> Iterator[str]:
    """Yields each id that is a component in `base` and text in `merged`, but no reference, expression or macro."""
    pairs: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(base, Mapping) and isinstance(merged, Mapping):
        pairs = ((key, value, merged.get(key)) for key, value in base.items())
    elif isinstance(base, list) and isinstance(merged, list):
        pairs = ((index, *pair) for index, pair in enumerate(zip(base, merged)))
    for key, value, new in pairs:
        if _is_component(value) and isinstance(new, str) and not new.startswith(("@", "$", "%")):
            yield f"{prefix}{key}"
        yield from _texts_for_components(value, new, f"{prefix}{key}#")


def _is_component(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _same_component(one: Any, other: Any) -> bool:
    """Whether both are mappings that make the same component, or that both make none."""
    return isinstance(one, Mapping) and isinstance(other, Mapping) and one.get("_target_") == other.get("_target_")


def _argument_names(config: Mapping[str, Any]) -> set[str] | None:
    """The argument names that the component accepts; none if `config` makes no component, None if any name goes."""
    if "_target_" not in config:
        return set()
    target = ConfigComponent(config, locator=_LOCATOR).resolve_module_name()
    if not isinstance(target, str) or target.startswith("$"):
        return None
    module, _, name = target.rpartition(".")
    component, found = optional_import(module, name=name)
    if not found:  # MONAI says so when it makes the component
        return None
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters} | ConfigComponent.non_arg_keys


_LOCATOR = ComponentLocator()


def _ids(config: Any, prefix: str = "") -> Iterator[str]:
    """Every id of a config, such as "network#encoder#init_filters"."""
    items: Any = ()
    if isinstance(config, Mapping):
        items = config.items()
    elif isinstance(config, list):
        items = enumerate(config)
    for key, value in items:
        if not str(key).startswith("_"):
            yield f"{prefix}{key}"
            yield from _ids(value, f"{prefix}{key}#")


def _nearest(unknown: str, siblings: list[str], ids: list[str]) -> str | None:
    """The known id that `unknown` is nearest to.

    That is one elsewhere with the same last part, else the one beside it, else the one elsewhere, that is spelt alike.
    """
    last_part = unknown.rpartition("#")[2]
    elsewhere = _by_last_part(ids)
    if last_part in elsewhere:
        return elsewhere[last_part]
    for known in (_by_last_part(siblings), elsewhere):
        alike = difflib.get_close_matches(last_part, known, n=1, cutoff=0.7)
        if alike:
            return known[alike[0]]
    return None


def _by_last_part(ids: list[str]) -> dict[str, str]:
    return {known.rpartition("#")[2]: known for known in reversed(ids)}  # of equal ones, the first id


def _base_files(source: ConfigSource, names: Sequence[str]) -> list[Path]:
    """The first file, those with these names, and a preset that adds options and is merged though no file tells.

    MONAI names files on the command line only, and the recorded config of a run that is evaluated has no names.
    """
    first, *others = source.files
    files = [first, *(file for file in others if file.name in names)]
    for name in PRESETS_WITH_OPTIONS:
        file = first.parent / name
        if name in names and file not in files and file.is_file():
            own = [key for key in ConfigParser.load_config_file(file) if "#" not in key]
            files += [file] if all(key in source.parser.get() for key in own) else []
    return files


def _preset_with(unknown: str, folder: Path, names: Sequence[str]) -> Path | None:
    """The file in a folder of configs that adds an option, if it is one of these."""
    files = [folder / name for name in names if name in PRESETS_WITH_OPTIONS and (folder / name).is_file()]
    return next((file for file in files if unknown in set(_ids(ConfigParser.load_config_file(file)))), None)


def _file_with(unknown: str, files: tuple[Path, ...]) -> Path | None:
    """The first of the files that sets `unknown`; None if the command line (or Python) does."""
    for file in files:
        for key, value in ConfigParser.load_config_file(file).items():
            top = key.lstrip("+").replace("::", "#")
            if unknown in {top, *_ids(value, f"{top}#")}:
                return file
    return None
