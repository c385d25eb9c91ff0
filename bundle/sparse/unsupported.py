# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The errors for what a network asks of a sparse volume in vain: what it was, and which module called it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn
from torch.autograd import Function

from bundle.errors import UserError

__all__ = ["UnsupportedOperation", "calling_module", "refuse_lost_gradient", "unsupported"]


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
        f"no sparse rule for {name!r}, called by {calling_module()}: add one in bundle/sparse/rules/{file}"
    )


def refuse_lost_gradient(volume: object) -> None:
    """Ends the run where autograd would leave out a sparse volume without a word.

    To be called where features that need a gradient are read while none is recorded. That is as it should be under
    `torch.no_grad`. But ``Function.apply(volume)``, as reentrant checkpointing does it, looks for tensors among its
    arguments; a volume is none, and nothing before it would be trained.

    Raises:
        UserError: if the volume is an argument of a `torch.autograd.Function` that runs now.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller
    while frame is not None:
        if frame.f_code is _APPLY and any(_is(one, volume) for one in _arguments(frame)):
            raise UserError(
                f"{frame.f_locals['cls'].__name__}.apply of a sparse volume, called by {calling_module()}: autograd "
                "does not see the volume, and nothing before it would get a gradient; activation checkpointing must "
                "use use_reentrant=False, and another autograd.Function must take tensors"
            )
        frame = frame.f_back


_APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]  # a class method's


def _is(one: object, volume: object) -> bool:
    # with channels last, or padded, it is an attribute
    return one is volume or getattr(one, "volume", None) is volume


def _arguments(frame: FrameType) -> tuple[object, ...]:
    return (*frame.f_locals["args"], *frame.f_locals["kwargs"].values())


def calling_module() -> str:
    """The module that runs now: its path in the network, its class, and the network's class."""
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
