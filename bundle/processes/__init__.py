# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Work in other processes, on one task of which nothing else depends."""

from bundle.processes.pool import Lost, NoProcessesError, run_in_processes

__all__ = ["Lost", "NoProcessesError", "run_in_processes"]
