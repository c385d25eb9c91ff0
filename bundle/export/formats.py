# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The file formats that an encoder is exported to: how each is written, and verified without the code it came from.

Every file also holds the settings of `model.json`, as text under that name.
"""

# onnx and onnxruntime are optional, and torch.export takes seconds to import: each is imported where it is used
# ruff: noqa: PLC0415

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bundle.errors import UserError
from bundle.export.exportable import exportable
from bundle.export.nnunet import NNUNET_ENCODERS, verify_nnunet, write_nnunet
from bundle.export.plain import PlainModel, plain_network
from bundle.export.source_paths import forget_sources, strip_torchscript
from bundle.export.verify import Readable, Verifier, compare_features, example_image, settings_text

__all__ = ["FORMATS", "SETTINGS", "Format", "get_format"]

#: name of the settings inside a file
SETTINGS = "model.json"


@dataclass(frozen=True)
class Format:
    """A file format.

    `FORMATS` holds those there are. A file of one's own adds another, for `export_model` to use:

        FORMATS["npz"] = Format(".npz", write_npz, verify_npz)

    Attributes:
        suffix: of the file.
        write: writes a model to a path, and says how in a word or two.
        verify: compares a written file with its model. `compare_features` makes one for a file that gives the features
            of every level. A file for another program's loader brings its check. It raises a `UserError` of one line
            where the two differ.
        packages: that it needs on top of the bundle's own.
        encoders: the names of those that it can hold; none: any.
    """

    suffix: str
    write: Callable[[PlainModel, Path], str]
    verify: Verifier
    packages: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()


def get_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: if there is none, or a package it needs is not installed.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r} in --formats: choose among {', '.join(FORMATS)}")
    lacking = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if lacking:
        raise UserError(
            f"format {name} needs {', '.join(lacking)}: "
            f'run "python -m pip install -c constraints.txt {" ".join(lacking).replace("_", "-")}"'
        )
    return FORMATS[name]


def _write_safetensors(model: PlainModel, path: Path) -> str:
    # copies: the format refuses tensors that share memory, as where DynUNet holds a module under two names
    weights = {key: value.detach().clone().contiguous() for key, value in model.weights.items()}
    save_file(weights, path, metadata={"format": "pt", SETTINGS: settings_text(model)})
    return "MONAI's keys"


def _read_safetensors(path: Path) -> Readable:
    with safe_open(path, framework="pt") as file:
        settings: str = file.metadata()[SETTINGS]
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    return plain_network(json.loads(settings), weights, name=path.name), settings


def _write_torchscript(model: PlainModel, path: Path) -> str:
    network, how = exportable(model.network), "scripted"
    with _quiet():
        try:
            script = torch.jit.script(network)
        except Exception:  # noqa: BLE001 - of any kind, where TorchScript does not know the language of a module
            script, how = torch.jit.trace(network, example_image(model), check_trace=False), "traced"
        torch.jit.save(script, path, _extra_files={SETTINGS: settings_text(model)})
    strip_torchscript(path)
    return how


def _read_torchscript(path: Path) -> Readable:
    extra = {SETTINGS: ""}
    with _quiet():
        network = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    settings: Any = extra[SETTINGS]
    return network, settings.decode() if isinstance(settings, bytes) else settings


def _write_torch_export(model: PlainModel, path: Path) -> str:
    with _quiet():
        torch.export.save(_program(model), path, extra_files={SETTINGS: settings_text(model)})
    return "any batch and size"


def _read_torch_export(path: Path) -> Readable:
    extra = {SETTINGS: ""}
    with _quiet():
        program = torch.export.load(path, extra_files=extra)
    return program.module(), extra[SETTINGS]


def _write_onnx(model: PlainModel, path: Path) -> str:
    names = [f"features_{level}" for level in range(len(model.network.channels))]
    with _quiet():
        program = torch.onnx.export(
            _program(model), (), dynamo=True, verbose=False, input_names=["image"], output_names=names
        )
        assert program is not None  # without a file to write to, it is returned
        program.model.metadata_props[SETTINGS] = settings_text(model)
        program.save(path, external_data=False)
    return f"opset {program.model.opset_imports['']}"


def _read_onnx(path: Path) -> Readable:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    settings: str = session.get_modelmeta().custom_metadata_map[SETTINGS]

    def network(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {"image": image.numpy()})]

    return network, settings


def _program(model: PlainModel) -> torch.export.ExportedProgram:
    """The network as a graph, for any batch and any multiple of the total stride on each axis."""
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    for axis, (name, step) in enumerate(zip(("depth", "height", "width"), model.network.strides[-1]), start=2):
        dims[axis] = step * torch.export.Dim(f"{name}_cells")
    program = torch.export.export(exportable(model.network), (example_image(model),), dynamic_shapes=(dims,))
    return forget_sources(program)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on what of it is old, and which other packages it could have used."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


#: by the name that --formats takes. ONNX Runtime sums a norm's statistics in float32, so that its error grows with the
#: volume: 2e-5 of a level's largest feature on 96^3 voxels and 2e-4 on 128^3, where PyTorch's is 4e-6
FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", _write_safetensors, compare_features(_read_safetensors)),
    "torchscript": Format(".ts", _write_torchscript, compare_features(_read_torchscript)),
    "onnx": Format(
        ".onnx", _write_onnx, compare_features(_read_onnx, allowed=1e-3), ("onnx", "onnxscript", "onnxruntime")
    ),
    "torch_export": Format(".pt2", _write_torch_export, compare_features(_read_torch_export)),
    "nnunet": Format(
        ".nnunet.pth", write_nnunet, verify_nnunet, ("dynamic_network_architectures",), encoders=NNUNET_ENCODERS
    ),
}
