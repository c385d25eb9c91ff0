# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The whole way to nnU-Net and back, with nnU-Net's own commands on a data set of yours, and what it proves.

    python scripts/fetch_nnunet.py
    python scripts/studies/nnunet_roundtrip.py --raw nnUNet_raw/Dataset004_Hippocampus --work_dir /large/disk

These are the six commands of docs/how-to/nnunet.md: plan and prepare, pre-train, export, train, predict; between the
last two and before them nnU-Net's own loader is asked for what it has loaded. The page's figures come from here.

--nnunet names the folder of nnUNetv2_train where it is another than the fetched one. Training is --epochs of --steps on
--device. --change_plan '{"batch_size": 2, "patch_size": [32, 32, 32]}' makes it fit a small machine. Written into
--work_dir: roundtrip.json, and nnU-Net's folders.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from bundle.atomic import replace_file
from bundle.errors import UserError, install_excepthook
from bundle.export import plain_model
from bundle.weights import without_reconstruction

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("configs/train.yaml", "configs/nnunet.yaml")
FETCHED = ROOT / ".cache/nnunet/bin"
PROBE = Path(__file__).resolve().parent / "nnunet_probe.py"
CONFIGURATION, TRAINER = "3d_fullres", "nnUNetTrainerSparseMim"
PLANS = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
}


class Way:
    """The folders of one way, and the commands in it.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, Path(options.work_dir).absolute()
        self.name, self.plans = Path(options.raw).name, PLANS[options.planner]
        self.number = str(int(self.name[7:10]))
        self.prepared = self.work / "preprocessed" / self.name
        self.plans_file = self.prepared / f"{self.plans}.json"
        self.run_folder, self.exported = self.work / "pretrained", self.work / "exported"
        self.file = self.exported / "model.nnunet.pth"
        self.seconds: dict[str, float] = {}

    def call(self, title: str, *words: Any, more: dict[str, str] | None = None) -> None:
        """Runs a command with nnU-Net's folders set.

        Raises:
            UserError: if it fails; with its last line.
        """
        commands = Path(self.options.nnunet)
        folders = {f"nnUNet_{part}": str(self.work / part) for part in ("raw", "preprocessed", "results")}
        # nnU-Net takes all cores of a machine without a GPU; where others work there, threads only wait for each other
        threads = dict.fromkeys(("OMP_NUM_THREADS", "SPARSE_MIM_THREADS"), str(self.options.threads))
        own = {
            "nnUNet_compile": "f",
            **threads,
            "nnUNet_extTrainer": str(self.exported / "nnunet_trainers"),
            **(more or {}),
        }
        fetched = (commands.parent / "nnunetv2").is_dir()
        paths = [str(commands.parent)] if fetched and "monai.bundle" not in words else []
        places = [*paths, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        start = time.monotonic()
        done = subprocess.run(
            [str(commands / words[0]) if str(words[0]).startswith("nnUNet") else sys.executable, *map(str, words[1:])],
            env={**os.environ, **folders, **own, "PYTHONPATH": os.pathsep.join(places)},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.seconds[title] = round(time.monotonic() - start, 1)
        self.work.joinpath(f"{title.replace(' ', '_')}.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            raise UserError(f"{title} failed, it says: {said[-1]}; all of it is in {self.work}")

    def plan(self) -> None:
        """nnUNetv2_plan_and_preprocess, and the changes of the plan that were asked for."""
        target = self.work / "raw" / self.name
        if not target.exists():
            shutil.copytree(self.options.raw, target)
        words = ["-d", self.number, "-pl", self.options.planner, "-npfp", 1, "-np", 1]
        one = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
        if not self.options.change_plan:
            self.call("plan and prepare", "nnUNetv2_plan_and_preprocess", *words, "-c", CONFIGURATION, more=one)
            return
        self.call("plan", "nnUNetv2_plan_and_preprocess", *words, "--no_pp", more=one)
        content = json.loads(self.plans_file.read_text())
        changed = content["configurations"][CONFIGURATION]
        network = changed["architecture"]["arch_kwargs"]
        for name, value in self.options.change_plan.items():
            (network if name in network else changed)[name] = value
        self.plans_file.write_text(json.dumps(content, indent=4))
        self.call("prepare", "nnUNetv2_preprocess", "-d", self.number, "-plans_name", self.plans, "-c", CONFIGURATION,
                  "-np", 1, more=one)  # fmt: skip

    def pretrain(self) -> None:
        """Our pre-training on what nnU-Net has prepared."""
        options = self.options
        self.call(
            "pre-train", "python", "-m", "monai.bundle", "run", "training", "--config_file", str(list(options.configs)),
            "--dataset_dir", self.prepared, "--nnunet_plans", self.plans_file,
            "--output_dir", self.run_folder, "--cache_dir", self.work / "cache", "--device", options.device,
            "--epochs", options.pretraining_epochs, "--steps_per_epoch", options.pretraining_steps,
            "--batch_size", 1, "--num_workers", 0, *options.pretraining_options,
        )  # fmt: skip

    def export(self) -> None:
        """export_model.py --formats nnunet."""
        self.call("export", "python", ROOT / "scripts/export_model.py", self.run_folder / "model.pt",
                  "--formats", "nnunet", "--output_dir", self.exported, "--replace")  # fmt: skip

    def probe(self) -> dict[str, Any]:
        """What nnU-Net's own loader puts into its network, and that network's features of a real patch."""
        said = self.work / "probe.pt"
        self.call("ask nnU-Net's loader", "python", PROBE, self.number, self.plans, self.file, said)
        found: dict[str, Any] = torch.load(said, weights_only=True)
        return found

    def train(self) -> None:
        """nnUNetv2_train -pretrained_weights."""
        lengths = {"SPARSE_MIM_EPOCHS": str(self.options.epochs), "SPARSE_MIM_STEPS": str(self.options.steps)}
        quick = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
        self.call("train", "nnUNetv2_train", self.number, CONFIGURATION, "all", "-p", self.plans, "-tr", TRAINER,
                  "-pretrained_weights", self.file, "-device", self.options.device, more=lengths | quick)  # fmt: skip

    def predict(self) -> list[str]:
        """nnUNetv2_predict on the scans without labels; the names of the label maps, each on its scan's grid.

        Raises:
            UserError: if one is not.
        """
        scans, output = self.work / "raw" / self.name / "imagesTs", self.work / "predicted"
        self.call("predict", "nnUNetv2_predict", "-d", self.number, "-i", scans, "-o", output, "-c", CONFIGURATION,
                  "-p", self.plans, "-f", "all", "-tr", TRAINER, "-device", self.options.device, "-npp", 1, "-nps", 1,
                  "--disable_tta")  # fmt: skip
        found = []
        for scan in sorted(scans.glob("*_0000.nii.gz")):
            made, image = nibabel.load(output / scan.name.replace("_0000", "")), nibabel.load(scan)
            if made.shape != image.shape or not np.allclose(made.affine, image.affine, atol=1e-4):
                raise UserError(f"{scan.name} was predicted on another grid: look into {output}")
            found.append(scan.name)
        return found

    def report(self) -> Path:
        """The file that trainer writes of what was loaded."""
        return (
            self.work / "results" / self.name / f"{TRAINER}__{self.plans}__{CONFIGURATION}/fold_all/loaded_weights.json"
        )


def compare(way: Way, probe: dict[str, Any]) -> dict[str, Any]:
    """What nnU-Net has loaded against what was pre-trained, and its features against those of the exported encoder."""
    model = plain_model(way.run_folder / "model.pt")
    loaded = probe["loaded"]
    decoder = {f"decoder.{key}": value for key, value in without_reconstruction(model.decoder).items()}
    pretrained = {**model.weights, **{key: value for key, value in decoder.items() if key in loaded}}
    unequal = [key for key, value in pretrained.items() if not torch.equal(loaded[key], value)]
    with torch.no_grad():
        ours = model.network(probe["patch"])
    shares = [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(probe["features"], ours, strict=True)
    ]  # fmt: skip
    return {
        "tensors": len(pretrained),
        "of_the_decoder": sum(key in loaded for key in decoder),
        "unequal": unequal,
        "same_by_the_trainers_own_loader": bool(probe["same"]),
        "patch": list(probe["patch"].shape),
        "largest_difference_of_features": max(shares),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if a step failed, or nnU-Net has other weights or features."""
    options = parse(arguments)
    try:
        if not (options.nnunet / "nnUNetv2_train").is_file():
            raise UserError(
                f"there is no nnU-Net in {options.nnunet}: run `python scripts/fetch_nnunet.py`, or give --nnunet the "
                "folder of nnUNetv2_train"
            )
        way = Way(options)
        way.plan()
        way.pretrain()
        way.export()
        found = compare(way, way.probe())
        way.train()
        found["predicted"] = way.predict()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found |= {"trainer_loaded": len(json.loads(way.report().read_text())["loaded"]), "seconds": way.seconds}
    with replace_file(way.work / "roundtrip.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    good = not found["unequal"] and found["same_by_the_trainers_own_loader"]
    return int(not good or found["largest_difference_of_features"] > 1e-6)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="From raw data to a fine-tuned nnU-Net and its label maps.")
    parser.add_argument("--raw", type=Path, required=True, help="nnU-Net's DatasetXXX_name, with imagesTs to predict")
    parser.add_argument("--work_dir", type=Path, required=True, help="a new folder")
    parser.add_argument("--nnunet", type=Path, default=FETCHED, help="folder of nnUNetv2_train")
    parser.add_argument("--planner", choices=PLANS, default="nnUNetPlannerResEncM")
    parser.add_argument("--change_plan", type=json.loads, default={}, help="json: what of the plan is to be another")
    parser.add_argument("--epochs", type=int, default=2, help="of nnU-Net's training")
    parser.add_argument("--steps", type=int, default=2, help="of each")
    parser.add_argument("--pretraining_epochs", type=int, default=1)
    parser.add_argument("--pretraining_steps", type=int, default=2)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="of the pre-training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each command")
    options, others = parser.parse_known_args(arguments)
    options.pretraining_options = others
    return options


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
