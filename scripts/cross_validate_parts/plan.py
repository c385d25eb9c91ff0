# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a cross-validation is to do, and where it lies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from bundle.atomic import replace_file
from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.runs.checked_settings import check_settings, read_defaults
from bundle.runs.config_source import ConfigSource, read_words
from bundle.runs.lock import LOCK
from bundle.runs.overrides import PRESETS_WITH_OPTIONS, check_overrides, check_parents

__all__ = ["ROOT", "Plan", "check_same", "given_options"]

#: of the bundle
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Plan:
    """What is to be done, and where.

    Args:
        config_file: as MONAI takes it: a file, or a list of files in text.
        dataset_dir: of the config.
        folds: how many.
        output: the folder of it all.
        overrides: further options of the config, as they were given.
    """

    config_file: str
    dataset_dir: str
    folds: int
    output: Path
    overrides: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Path:
        """What the folder was begun with."""
        return self.output / "settings.json"

    def folder(self, fold: int) -> RunFolder:
        """The run of a fold."""
        return RunFolder(self.output / "folds" / f"fold_{fold}")

    def log(self, fold: int) -> Path:
        """What the fold's training says."""
        return self.output / "logs" / f"fold_{fold}.log"

    def mark(self, fold: int) -> Path:
        """Is there when the fold is done."""
        return self.output / "logs" / f"fold_{fold}.done"

    def is_done(self, fold: int) -> bool:
        """Whether the fold's training came to its end."""
        return self.mark(fold).is_file() and self.folder(fold).model.is_file()

    def command(self, fold: int) -> list[str]:
        """Trains a fold, or goes on with it."""
        given = {"dataset_dir": self.dataset_dir, "folds": self.folds, "fold": fold, "resume": True}
        given["output_dir"] = self.folder(fold).path
        if "bundle_root" not in given_options(self.overrides):
            given["bundle_root"] = ROOT  # from any folder
        options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        start = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", self.config_file]
        return [*start, *options, *self.overrides]

    @property
    def hashes_names(self) -> bool:
        """Whether names are digests, as the option hash_names says."""
        given = given_options(self.overrides).get("hash_names", self.config().get("hash_names"))
        return str(given).lower() == "true"

    def find_scans(self) -> list[FoundVolume]:
        """The labelled scans that can be dealt to folds, as the trainings find them.

        Raises:
            UserError: if there are none, or an option does not fit the config.
        """
        parser = self._merged()
        parser["dataset_dir"] = self.dataset_dir
        scans = parser.get_parsed_content("volumes#find")(self.dataset_dir)
        return [scan for scan in scans if scan.part != "test" and not scan.left_out[0]]

    def check_options(self) -> None:
        """Refuses an option that the config does not have, or cannot work, before the first fold; else each would.

        Raises:
            UserError: for the first one.
        """
        files = self._files()
        check_parents(files, given_options(self.overrides))
        merged = self._merged()
        check_overrides(ConfigSource(merged, tuple(files)), base_names=PRESETS_WITH_OPTIONS)
        check_settings(merged.get(), read_defaults(files))

    def _merged(self) -> ConfigParser:
        """The config with the overrides."""
        parser = self.config()
        try:
            for name, value in given_options(self.overrides).items():
                parser[name] = read_words(DefaultParseValue(value))  # as a fold's command line does
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"--{name} {value} does not fit the config: give an option that it has") from error
        return parser

    def _files(self) -> list[Path]:
        files = yaml.safe_load(self.config_file)
        return [Path(str(file)) for file in (files if isinstance(files, list) else [files])]

    def config(self) -> ConfigParser:
        """The config, without the overrides.

        Raises:
            UserError: if a file cannot be read.
        """
        parser = ConfigParser()
        try:
            parser.read_config([str(file) for file in self._files()])
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"--config_file {self.config_file} cannot be read ({type(error).__name__}): give a config of "
                "fine-tuning, such as configs/finetune_segmentation.yaml"
            ) from error
        if "transfer" not in parser or "folds" not in parser:
            raise UserError(
                f"--config_file {self.config_file} has no folds: give a config of fine-tuning, such as "
                "configs/finetune_segmentation.yaml"
            )
        return parser


def given_options(overrides: Sequence[str]) -> dict[str, str]:
    """The names and values of options of the config."""
    found: dict[str, str] = {}
    for number, word in enumerate(overrides):
        if not word.startswith("--"):
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        following = overrides[number + 1] if number + 1 < len(overrides) else "True"
        found[name] = value if equals else "True" if following.startswith("--") else following
    return found


def check_same(plan: Plan) -> None:
    """Begins the plan's folder, or sees that it was begun with the same plan.

    Raises:
        UserError: if it was begun with another one, or holds something else.
    """
    file = plan.settings
    now = {"config_file": plan.config_file, "dataset_dir": plan.dataset_dir, "folds": plan.folds,
           "options": given_options(plan.overrides)}  # fmt: skip
    if file.is_file():
        before = json.loads(file.read_text())
        for name, value in now.items():
            if before.get(name) != value:
                raise UserError(
                    f"{plan.output} was begun with {name} {before.get(name)}, and this command has {value}: give the "
                    "same to go on, or another --output_dir"
                )
        return
    if any(other.name != LOCK for other in plan.output.glob("*")):
        raise UserError(f"--output_dir {plan.output} holds something else: give a new folder")
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n")
