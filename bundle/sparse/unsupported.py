# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The error for an operation without a sparse rule: which operation, called by which module, and where to add one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

__all__ = ["UnsupportedOperation", "unsupported"]


class UnsupportedOperation(NotImplementedError):
    """A network asked of a sparse volume what no rule or executor can do."""


def unsupported(function: Callable[..., Any], file: str = "pointwise.py") -> UnsupportedOperation:
    """The error for `function`, with the path of the module that called it, read off the running frames.

    Args:
        function: of torch.
        file: of `bundle/sparse/rules/`, where its rule would go.
    """
    name = getattr(function, "__name__", str(function))
    if name == "__get__":  # a property of Tensor arrives as its getter
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return UnsupportedOperation(
        f"no sparse rule for {name!r}, called by {_calling_module()}: add one in bundle/sparse/rules/{file}"
    )


def _calling_module() -> str:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller
    modules: list[nn.Module] = []
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and (not modules or modules[-1] is not owner):
            modules.append(owner)
        frame = frame.f_back
    if not modules:
        return "code outside any module"
    inner, outer = modules[0], modules[-1]
    path = next((path for path, module in outer.named_modules() if module is inner), "")
    return f"{path or 'the network itself'} ({type(inner).__name__}) of {type(outer).__name__}"
