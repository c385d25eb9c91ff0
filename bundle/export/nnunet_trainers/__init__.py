# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Trainers for nnU-Net to find by the variable nnUNet_extTrainer; it, not this package, imports them."""
