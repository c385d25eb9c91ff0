# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Takes out of exported files where the source code lay: a path tells names of users, projects and machines."""

from __future__ import annotations

import os
import zipfile

import torch

from bundle.atomic import replace_file

__all__ = ["forget_sources", "strip_torchscript"]


def strip_torchscript(path: str | os.PathLike[str]) -> None:
    """Writes a TorchScript file anew, without the map from its code to the source files.

    Messages of errors then show TorchScript's own code alone.

    Args:
        path: of the file.
    """
    with replace_file(path) as temporary, zipfile.ZipFile(path) as old, zipfile.ZipFile(temporary, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(_plain(entry), old.read(entry))


def _plain(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The entry without the padding that torch adds."""
    plain = zipfile.ZipInfo(entry.filename)
    plain.compress_type = entry.compress_type
    return plain


def forget_sources(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Takes the stack traces from all nodes of an exported program, which is changed and returned."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program
