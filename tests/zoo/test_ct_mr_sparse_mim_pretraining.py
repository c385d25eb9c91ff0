# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The unit test that the Model Zoo asks of a bundle, in its form: to be copied to its ci/unit_tests/ as it is.

There the bundle is models/ct_mr_sparse_mim_pretraining, here it is this repository.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets.segresnet_ds import SegResEncoder

ZOO = Path("models/ct_mr_sparse_mim_pretraining").resolve()
BUNDLE = ZOO if ZOO.is_dir() else Path(__file__).resolve().parents[2]
ENCODER = {"init_filters": 4, "blocks_down": [1, 1, 1, 1, 1], "norm": ["instance", {"affine": True}]}
SIZE = 40


class TestSparseMaskInMask(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        sys.path.insert(1, str(BUNDLE))
        cls.root = Path(tempfile.mkdtemp())
        generator = np.random.default_rng(0)
        ball = sum((np.indices((SIZE,) * 3) - SIZE / 2) ** 2) < (SIZE / 3) ** 2
        for number in range(10):
            for folder in ("volumes", "labelled/imagesTr", "labelled/labelsTr"):
                (cls.root / "data" / folder).mkdir(parents=True, exist_ok=True)
            image = np.where(ball, 40, -1000) + generator.normal(0, 30, ball.shape)
            volume = nibabel.Nifti1Image(image.astype(np.int16), np.diag([2, 2, 2, 1]))
            nibabel.save(volume, cls.root / f"data/volumes/ct_{number}.nii.gz")
            if number < 4:
                nibabel.save(volume, cls.root / f"data/labelled/imagesTr/ct_{number}.nii.gz")
                label = nibabel.Nifti1Image(ball.astype(np.uint8), np.diag([2, 2, 2, 1]))
                nibabel.save(label, cls.root / f"data/labelled/labelsTr/ct_{number}.nii.gz")
        (cls.root / "models").mkdir()
        torch.save(SegResEncoder(**ENCODER).state_dict(), cls.root / "models/model.pt")
        settings = {"encoder": {"name": "SegResEncoder", **ENCODER}, "crop_size": [32, 32, 32], "spacing": [2, 2, 2]}
        settings |= {"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}
        (cls.root / "models/model.json").write_text(json.dumps(settings))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.root)

    def _check(self, files, kind, **overrides):
        workflow = ConfigWorkflow(
            [os.fspath(BUNDLE / "configs" / file) for file in files],
            workflow_type=kind,
            logging_file=os.fspath(BUNDLE / "configs/logging.conf"),
            meta_file=os.fspath(BUNDLE / "configs/metadata.json"),
            bundle_root=os.fspath(self.root),
            **overrides,
        )
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()

    def test_train_and_evaluate(self):
        quick = {"epochs": 1, "steps_per_epoch": 1, "num_workers": 0, "modality": "CT", "crop_size": [32, 32, 32]}
        quick |= {"encoder#init_filters": 4, "encoder#blocks_down": [1, 1, 1, 1, 1]}
        self._check(["train.yaml"], "train", output_dir=os.fspath(self.root / "run"), **quick)
        assert (self.root / "run/model.pt").is_file()
        run = os.fspath(self.root / "run")
        self._check(["train.yaml", "evaluate.yaml"], "train", run_folder=run, **quick)
        assert (self.root / "run/evaluation.json").is_file()

    def test_finetune(self):
        quick = {"epochs": 1, "steps_per_epoch": 1, "num_workers": 0, "modality": "CT", "crop_size": [32, 32, 32]}
        output = os.fspath(self.root / "segmentation")
        self._check(
            ["finetune_segmentation.yaml"], "train", output_dir=output, classes={"ball": 1}, val_interval=1, **quick
        )
        assert (self.root / "segmentation/model.pt").is_file()

    def test_infer(self):
        quick = {"num_workers": 0, "modality": "CT", "crop_size": [32, 32, 32]}
        self._check(["inference.yaml"], "infer", **quick)
        assert len(list((self.root / "eval/embeddings").glob("*.npz"))) == 10


if __name__ == "__main__":
    unittest.main()
