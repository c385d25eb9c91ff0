# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Evaluates a run under its own settings: they take the place of those of the base config before anything is made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundle.errors import install_excepthook
from bundle.runs.checked_settings import check_settings, read_defaults
from bundle.runs.config_source import ConfigSource, calling_config
from bundle.runs.overrides import PRESETS_WITH_OPTIONS, check_overrides
from bundle.runs.trained_run import TrainedRun

__all__ = ["use_run_settings"]


def use_run_settings(
    *,
    bundle_root: str | os.PathLike[str] = ".",
    run_folder: str | os.PathLike[str] | bool | None = None,
    checkpoint: str = "last",
    config_names: Sequence[str] = ("train.yaml", "evaluate.yaml"),
) -> None:
    """Merges anew: the run's recorded config, on it the evaluation's file and those after it, on these the options.

    It must come before all else of ours in `initialize`. So a run is evaluated with its own crop size, spacing,
    network, masks and split, whatever presets and options it was trained with; presets named before the evaluation's
    file, as they may have been in training, make no difference. Where the volumes are other ones than the run's, none
    of them was trained on, and all are evaluated.

    Args:
        bundle_root: where `runs/` is.
        run_folder: as for `TrainedRun`; False leaves the config as it is.
        checkpoint: as for `TrainedRun`.
        config_names: names of the files that were merged, the base first, for when MONAI does not tell.

    Raises:
        UserError: for an unknown option, or if there is no such run.
    """
    install_excepthook()
    source = calling_config(config_names)
    if source is None:
        return
    source.restore_words()
    check_overrides(source, base_names=(*config_names[1:], *PRESETS_WITH_OPTIONS))
    check_settings(source.parser.get(), read_defaults(source.files))
    if run_folder is False or not source.files:
        return
    assert run_folder is not True
    run = TrainedRun(bundle_root=bundle_root, run_folder=run_folder, checkpoint=checkpoint)
    given = _given(source)
    merged = ConfigParser()
    first = next((i for i, file in enumerate(source.files) if file.name in config_names[1:]), len(source.files))
    merged.read_config([str(run.config), *map(str, source.files[first:])])
    trained_on = _dataset(merged, given)
    merged.update(given)
    # the later start_run must not look for another run than the one whose settings these are
    merged["run_folder"] = str(run.folder.path)
    if "val_fraction" not in given and not _same_place(_dataset(merged, given), trained_on):
        merged["val_fraction"] = 0
    meta = source.parser.get(ConfigParser.meta_key, {})
    source.parser.set({**merged.get(), ConfigParser.meta_key: meta})
    source.parser.parse(reset=True)


def _dataset(settings: ConfigParser, given: Mapping[str, Any]) -> Any:
    """Where the volumes of some settings are, which may be an expression of where the bundle is."""
    roots = {"bundle_root": given.get("bundle_root", settings.get("bundle_root"))}
    found = settings.get("dataset_dir")
    try:
        return ConfigParser({**roots, "dataset_dir": found}).get_parsed_content("dataset_dir")
    except Exception:  # noqa: BLE001 - an expression of other settings can raise anything; it is compared as it is
        return found


def _same_place(one: Any, other: Any) -> bool:
    """Whether two options name one folder or file, however they spell it."""
    return one == other or Path(str(one)).resolve() == Path(str(other)).resolve()


def _given(source: ConfigSource) -> dict[str, Any]:
    """The options given beside the files; where MONAI does not tell, the values that differ from the files'."""
    if source.overrides is not None:
        return dict(source.overrides)
    files = ConfigParser()
    files.read_config([str(file) for file in source.files])
    files.resolve_macro_and_relative_ids()
    files.config.pop(ConfigParser.meta_key, None)
    return dict(_differing(files.get(), source.parser.get()))


def _differing(base: Any, merged: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in merged.items():
        name = f"{prefix}{key}"
        old = base.get(key) if isinstance(base, Mapping) else None
        if name == ConfigParser.meta_key or (isinstance(base, Mapping) and key in base and old == value):
            continue
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            yield from _differing(old, value, f"{name}#")
        else:
            yield name, value
