# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Writes the bundle's folder, and has MONAI verify it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import UserError
from bundle.export.monai_bundle.finished_run import FinishedRun
from bundle.export.monai_bundle.inference_config import inference_config, needs_package
from bundle.export.monai_bundle.metadata import metadata
from bundle.export.monai_bundle.model_card import data_licence, model_card
from bundle.export.monai_bundle.verify import Verified, export_torchscript, verify
from bundle.export.private import without_private
from bundle.runs.writable import make_folder
from bundle.weights import ModelFiles

__all__ = ["Exported", "export_bundle"]

#: of `model.json`, what is of the run's files; `ModelFiles.write` has those of the bundle's
_OF_FILES = ("sha256", "decoder_sha256")


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        folder: where it is.
        components: "monai" or "bundle": what prepares the scans.
        torchscript: how model.ts was made, "script" or "trace"; "" if the network is none that TorchScript takes.
        verified: what MONAI's checks said.
    """

    folder: Path
    components: str
    torchscript: str
    verified: Verified


def export_bundle(
    run: FinishedRun,
    output: str | os.PathLike[str],
    *,
    licence_file: Path,
    schema: Path | None = None,
    logging_file: Path | None = None,
    title: str | None = None,
    components: str = "auto",
    licence: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a run as a MONAI bundle of its own. The folder appears whole, after MONAI's checks, or not at all.

    Args:
        run: to be handed on.
        output: the folder to make; its name is the bundle's.
        licence_file: the text that becomes its LICENSE.
        schema: of metadata.json; None leaves `verify_metadata` out.
        logging_file: that becomes its configs/logging.conf.
        title: what to call the model; None: the folder's name.
        components: "auto", "monai" or "bundle", as for `inference_config`; auto: MONAI's own where they can do it.
        licence: terms of the weights, in one line.
        overwrite: whether an earlier bundle may be replaced.

    Raises:
        UserError: if something is there, MONAI's own transforms cannot prepare the scans, or a check of MONAI's fails.
    """
    if components == "auto":
        components = "bundle" if needs_package(run) else "monai"
    target = Path(output)
    title = title or target.resolve().name.replace("_", " ")
    with _new_folder(target, overwrite) as folder:
        _write_text(folder / "LICENSE", licence_file.read_text())
        if logging_file is not None:
            _write_text(folder / "configs/logging.conf", logging_file.read_text())
        _write_json(folder / "configs/inference.json", inference_config(run, components=components))
        _write_json(folder / "configs/metadata.json", metadata(run, title=title, components=components))
        _write_model(folder / "models", run)
        torchscript = export_torchscript(folder, run)
        card = model_card(run, title=title, components=components, has_torchscript=bool(torchscript))
        _write_text(folder / "docs/README.md", card)
        _write_text(folder / "docs/data_license.txt", data_licence(run, licence))
        verified = verify(folder, schema)
    return Exported(target, components, torchscript, verified)


def _write_model(folder: Path, run: FinishedRun) -> None:
    settings = {key: value for key, value in without_private(run.content).items() if key not in _OF_FILES}
    if settings.get("pretrained"):
        settings["pretrained"] = Path(str(settings["pretrained"])).name  # without the folders above it
    weights = {key: value.detach().cpu() for key, value in run.weights.items()}
    ModelFiles(folder / "model.pt").write(weights, settings)


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    _write_text(file, json.dumps(content, indent=4) + "\n")


@contextmanager
def _new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `target` of the same name, which takes its place at the end.

    Raises:
        UserError: if something is there that may not be replaced.
    """
    earlier = target.is_dir() and any(target.iterdir())
    if target.is_file() or (earlier and not (target / "configs/metadata.json").is_file()):
        raise UserError(f'--output "{target}" is there and no exported bundle: give a folder that is not there yet')
    if earlier and not overwrite:
        raise UserError(f'--output "{target}" is there already: pass --overwrite to write it anew, or another folder')
    make_folder(target.parent, "--output: the folder")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        new = Path(temporary) / target.name
        new.mkdir()
        yield new
        if target.exists():
            target.rename(Path(temporary) / "earlier")
        shutil.move(new, target)
