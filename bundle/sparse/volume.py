# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""`SparseVolume`: stands where a dense tensor would, and runs unmodified networks on its visible part only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bundle.cells import Triple
from bundle.errors import UserError
from bundle.sparse.layout import CellLayout
from bundle.sparse.operators import Operators, as_torch_takes
from bundle.sparse.unsupported import refuse_lost_gradient, unsupported
from bundle.sparse.windows import Window

__all__ = ["RULES", "SparseVolume", "require_two_sites", "rule"]

#: what runs in place of a torch function when one of its arguments is a `SparseVolume`
RULES: dict[Callable[..., Any], Callable[..., Any]] = {}

#: executors that need another library: module and class, imported when first asked for
_ON_DEMAND = {"minkowski": ("bundle.sparse.executors.minkowski", "MinkowskiVolume")}


def rule(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function as the sparse form of `functions`; it takes the same arguments as they do."""

    def register(sparse: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            RULES[function] = sparse
        return sparse

    return register


class SparseVolume(Operators, ABC):
    """Features ``[B, C, D, H, W]`` of which only the sites in visible cells exist.

    Every site whose cell is masked is absent: convolutions read it as zero and never write it (submanifold
    convolution, Graham & van der Maaten 2017, arXiv:1706.01307), norms take their statistics over visible sites only,
    and a bias or shift leaves it absent. A strided convolution's output site is visible if and only if its cell is.

    `torch.nn` layers and functions given a `SparseVolume` run the rule registered for them in `RULES`, so a network
    needs no change: ``features = encoder(SparseVolume.from_dense(image, visible))``. How the features are stored and
    the heavy operations run is up to the executor, a subclass.

    Attributes:
        layout: which cells are visible; the same object at every level of a network.
        cell_shape: sites per cell on each axis at this level.
        features: what the executor stores.

    Example:
        >>> visible = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
        >>> visible[..., 0, 0] = True
        >>> volume = SparseVolume.from_dense(torch.randn(1, 1, 8, 8, 8), visible)
        >>> volume
        CellsVolume([1, 1, 8, 8, 8], 25% visible, torch.float32, cpu)
        >>> features = torch.nn.Conv3d(1, 16, kernel_size=3, stride=2, padding=1)(volume)
        >>> features.shape, features.cell_shape
        (torch.Size([1, 16, 4, 4, 4]), (2, 2, 2))
        >>> dense = features.to_dense()
        >>> bool(dense[..., 0, 0].any()), bool(dense[..., 2:, :].any())  # a visible site, and all of some masked cells
        (True, False)
    """

    executors: ClassVar[dict[str, type[SparseVolume]]] = {}  # those that are always there
    name: ClassVar[str]

    def __init_subclass__(cls, *, executor: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = executor
        if executor not in _ON_DEMAND:
            SparseVolume.executors[executor] = cls

    def __init__(self, features: Tensor, layout: CellLayout, cell_shape: Triple) -> None:
        self._features = features
        self.layout = layout
        self.cell_shape = cell_shape

    @property
    def features(self) -> Tensor:
        if self._features.requires_grad and not torch.is_grad_enabled():
            refuse_lost_gradient(self)
        return self._features

    @features.setter
    def features(self, features: Tensor) -> None:
        self._features = features

    # ---- in and out -------------------------------------------------------------------------------------------------

    @staticmethod
    def from_dense(image: Tensor, visible: Tensor | CellLayout, executor: str = "cells") -> SparseVolume:
        """Keeps the visible part of a dense batch.

        Args:
            image: ``[B, C, D, H, W]``.
            visible: bool ``[B, 1, gd, gh, gw]`` on cells, there or on the CPU, or the layout made from it. Each axis of
                `image` must be a whole multiple of the grid's.
            executor: one of `SparseVolume.known_executors()`.

        Raises:
            UserError: no executor has this name, or the library that it needs is not installed.
            ValueError: `image` does not divide into the cells of `visible`.
        """
        kind = SparseVolume.executor_class(executor)
        layout = visible if isinstance(visible, CellLayout) else CellLayout(visible, image.device)
        size, grid = tuple(image.shape[2:]), layout.grid
        if image.ndim != 5 or image.shape[0] != layout.batch or any(s % g for s, g in zip(size, grid)):
            raise ValueError(
                f"a batch {list(image.shape)} does not divide into {list(grid)} cells of {layout.batch} samples: "
                "each axis must be a whole multiple of the encoder's total stride"
            )
        cell_shape = (size[0] // grid[0], size[1] // grid[1], size[2] // grid[2])
        image = image.as_subclass(Tensor)  # a MetaTensor would wrap every result anew, as a view
        return kind._from_dense(image, layout, cell_shape)  # noqa: SLF001 - of a subclass

    @staticmethod
    def known_executors() -> list[str]:
        """The names of all executors, also of those that need a library which may not be installed."""
        return [*SparseVolume.executors, *_ON_DEMAND]

    @staticmethod
    def executor_class(name: str) -> type[SparseVolume]:
        """The executor of that name; one that needs another library is imported now.

        Raises:
            UserError: there is none of that name, or its library is not installed.
        """
        if name in _ON_DEMAND:
            module, volume = _ON_DEMAND[name]
            return getattr(import_module(module), volume)
        if name not in SparseVolume.executors:
            raise UserError(f"unknown executor {name!r}: choose one of {', '.join(SparseVolume.known_executors())}")
        return SparseVolume.executors[name]

    @classmethod
    @abstractmethod
    def _from_dense(cls, image: Tensor, layout: CellLayout, cell_shape: Triple) -> SparseVolume: ...

    @abstractmethod
    def to_dense(self, fill: Tensor | None = None) -> Tensor:
        """``[B, C, D, H, W]`` with absent sites zero, or the channel's value of `fill`, ``[C]``."""

    @abstractmethod
    def at(self, sites: Tensor) -> Tensor:
        """Features ``[M, C]`` at visible sites, int64 ``[M, 4]``: sample, and the place on each axis of this level."""

    # ---- what an executor must be able to do --------------------------------------------------------------------

    @abstractmethod
    def pointwise(self, function: Callable[..., Tensor], *others: SparseVolume) -> SparseVolume:
        """`function` of the stored features (and those of `others`, of the same level), site by site.

        Every executor stores channels on axis 1 and as many axes as the next executor's, so `function` may also
        change the channels.
        """

    @abstractmethod
    def convolve(self, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> SparseVolume:
        """Submanifold convolution with the dense layer's weight ``[C_out, C_in / groups, k, k, k]``.

        `window` has the zeros before the first site as its padding; after the last one come as many as
        ``sites / stride`` outputs read, which for an unevenly padded map may be another number.

        Raises:
            UnsupportedOperation: if the stride does not divide the cell.
        """

    @abstractmethod
    def normalize_batch(
        self,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        use_batch: bool,
        momentum: float,
        eps: float,
    ) -> SparseVolume:
        """BatchNorm over the visible sites of the whole batch (or with running statistics)."""

    @abstractmethod
    def normalize_sample(
        self, groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> SparseVolume:
        """InstanceNorm (`groups` None) or GroupNorm over the visible sites of each sample."""

    @abstractmethod
    def pool(self, kind: Literal["max", "sum", "mean"], window: Window) -> SparseVolume:
        """Maximum, sum or mean of the visible sites of each window; the padding is as in `convolve`.

        A mean is asked for only over windows that lie side by side: each is inside a single cell, so all its sites are
        visible or none is.
        """

    @abstractmethod
    def sample_sum(self) -> Tensor:
        """``[B, C]``, the sum over each sample's visible sites, zero if it has none; at least in float32."""

    @abstractmethod
    def sample_max(self) -> Tensor:
        """``[B, C]``, the maximum over each sample's visible sites, zero if it has none."""

    @abstractmethod
    def spread(self, samples: Tensor) -> Tensor:
        """``[B or 1, C or 1, 1, 1, 1]``, values per sample, in the shape that broadcasts with the stored features."""

    # ---- the part of a tensor's face that networks look at ------------------------------------------------------

    @property
    @abstractmethod
    def channels(self) -> int: ...

    @property
    def shape(self) -> torch.Size:
        return torch.Size(
            (self.layout.batch, self.channels, *(g * b for g, b in zip(self.layout.grid, self.cell_shape)))
        )

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.layout.batch

    def dim(self) -> int:
        return 5

    ndim = property(dim)
    dtype = property(lambda self: self.features.dtype)
    device = property(lambda self: self.features.device)
    requires_grad = property(lambda self: self.features.requires_grad)
    data = property(lambda self: self.detach())

    def __repr__(self) -> str:
        seen = len(self.layout) / self.layout.visible.numel()
        return f"{type(self).__name__}({list(self.shape)}, {seen:.0%} visible, {self.dtype}, {self.device})"

    # ---- dispatch -----------------------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        sparse = RULES.get(function)
        if sparse is None:
            raise unsupported(function)
        args, kwargs = as_torch_takes(function, args, kwargs or {})
        return sparse(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        function = getattr(Tensor, name)
        if function not in RULES:
            raise unsupported(function)
        return lambda *args, **kwargs: self.__torch_function__(function, (), (self, *args), kwargs)

    def _like(self, features: Tensor, cell_shape: Triple | None = None) -> SparseVolume:
        return type(self)(features, self.layout, self.cell_shape if cell_shape is None else cell_shape)


def require_two_sites(volume: SparseVolume) -> None:
    """Refuses a norm over the batch where a single site is visible: its variance would be 0 / 0.

    Raises:
        ValueError: as torch says it of a dense tensor, so that what a user reads is the same (`bundle.errors`).
    """
    if volume.layout.count_sites(volume.cell_shape) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got {volume!r}")
