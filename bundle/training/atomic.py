# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The training part's name for `bundle.atomic`."""

from __future__ import annotations

from bundle.atomic import free_path, replace_file

__all__ = ["free_path", "replace_file"]
