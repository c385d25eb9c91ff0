# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Imported before MONAI: it reads configs by libyaml, in a seventh of the time, as tests read thousands of them.

MONAI's own loader is a subclass of PyYAML's one in Python. That of libyaml gives the same values and the same kinds of
errors, and both come with PyYAML.
"""

from __future__ import annotations

import yaml

yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]
