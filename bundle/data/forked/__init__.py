# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a process loads, once, before others are forked from it.

Such a process searches for modules in this folder first. So their names must be those of no other module.
"""
