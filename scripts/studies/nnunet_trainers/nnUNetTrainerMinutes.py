# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's trainer for so many minutes of processor time; scripts/studies/nnunet_peer.py runs it.

nnU-Net finds it by the variable nnUNet_extTrainer, which is this folder. It needs nnunetv2 2.8 or newer.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerMinutes(nnUNetTrainer):  # noqa: N801 - nnU-Net finds a trainer by such a name
    """All of nnU-Net's own, but the length: PEER_MINUTES of this process' time, augmentation among it.

    The learning rate goes down with the time used as it else goes down with the epochs. There is no validation.
    """

    def run_training(self) -> None:
        """Trains, and saves checkpoint_final.pth."""
        torch.set_num_threads(1)  # nnU-Net takes all cores of a machine without a GPU
        self.on_train_start()
        self.network.train()
        budget, begin, steps = 60 * float(os.environ["PEER_MINUTES"]), time.process_time(), 0
        while (used := time.process_time() - begin) < budget:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - used / budget) ** 0.9
            self.train_step(next(self.dataloader_train))
            steps += 1
        self.print_to_log_file(f"peer: {steps} steps in {time.process_time() - begin:.0f} s")
        self.current_epoch = self.num_epochs - 1  # nnU-Net's last
        self.on_train_end()

    def perform_actual_validation(self, *arguments: Any, **more: Any) -> None:
        """Nothing: the test people are measured by the study."""
