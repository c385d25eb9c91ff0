# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Proves on a GPU, in one command, that everything works there and how fast it is.

Beforehand, on any machine where the bundle is installed and the volumes lie (the whole bundle's packages, ITK too):

    python scripts/benchmarks/gpu.py --make_data gpu_data          about 11 MB of real crops, 160^3 voxels at most

On the machine with the GPU, which needs this repository (41 MB of files that git knows; no git), gpu_data, and no
network, compiler, ITK or pydicom:

    python -m pip install --no-index --no-deps wheels/*.whl
    python scripts/benchmarks/gpu.py --minutes 8 --data gpu_data --output results
    python scripts/benchmarks/gpu.py --minutes 3 --parts a b --output results          some parts only

Python 3.10 to 3.12, torch 2.11 to 2.13 with CUDA, and these packages, in the versions of constraints.txt where they are
there. Usually to be carried as wheels, 13 MB in all (`pip download --no-deps`, for the GPU machine's Python):

    monai 1.7 MB, pytorch-ignite 0.4 MB, nibabel 3.3 MB        without these no part runs
    blosc2 6.5 MB, ndindex 0.6 MB, numexpr 0.5 MB              without these part d keeps volumes uncompressed
    dynamic-network-architectures 0.1 MB                       without it there is no nnU-Net in parts a and g

Usually there already where torch is: numpy, scipy, matplotlib, tensorboard, PyYAML, safetensors, tqdm, packaging;
msgpack and threadpoolctl for blosc2; einops for dynamic-network-architectures.

Triton, which comes with torch's builds for CUDA, needs a C compiler to start its programs. Without one the method fused
is left out with a note, and the compiled decoder has an error for a time. numpy may be newer than in constraints.txt:
the dry run was done with 2.5.2, too, on Python 3.12.

Parts, the most worth first; each runs in a process of its own, within its share of the minutes:

    a  parity on the device, leaks, every encoder      d  pre-training with configs/preset_prod.yaml, resume, loading
    b  time and memory beside the alternatives         g  b and c for nnU-Net's ResEnc-L
    c  where the time goes, method by method           e  fine-tuning; prediction, the network's and a user's
    h  Triton's method fused, auto, both encoders      i  the decoder in CUDA graphs and compiled
                                                       f  weights by the recipe of the day, with the time that is left

results/ gets results.json and results.md after every part, and at last model.pt with its model.json. A part that fails
is reported with its traceback, one that outlasts its time with what it had found, and the next one runs. Parts d, e and
f need --data. `--dry_run` does all of it on a CPU at tiny sizes, in two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# a process that has asked the driver cannot fork others that use the GPU: torch asks NVML instead
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))  # the bundle, which need not be installed

import torch
from gpu_parts.context import Context
from gpu_parts.report import write_results
from gpu_parts.settings import DRY, FULL

from bundle.errors import UserError, install_excepthook


@dataclass(frozen=True)
class Part:
    """A part of the proof.

    Attributes:
        title: for the reader.
        module: in gpu_parts/, has `run`.
        share: of the minutes; the last one takes what is left.
        needs_data: whether it reads crops.
    """

    title: str
    module: str
    share: float
    needs_data: bool = False


PARTS = {
    "a": Part("parity on the device", "parity", 0.12),
    "b": Part("time and memory", "timing", 0.2),
    "c": Part("where the time goes", "profiling", 0.06),
    "h": Part("the method fused, and auto, which tries it", "kernels", 0.13),
    "d": Part("pre-training with preset_prod.yaml", "training", 0.17, needs_data=True),
    "g": Part("nnU-Net's ResEnc-L: time, memory and where it goes", "resenc", 0.09),
    "e": Part("fine-tuning and prediction", "finetuning", 0.08, needs_data=True),
    "i": Part("the decoder in CUDA graphs and compiled", "decoder", 0.1),
    "f": Part("weights by the recipe of the day", "pretraining", 0.05, needs_data=True),
}
#: seconds that a part may take beyond its time before it is ended
GRACE = 15


def main() -> None:
    """Runs the command."""
    install_excepthook()
    options = _options()
    if options.make_data is not None:
        from gpu_parts.data import make_data  # noqa: PLC0415 - needs ITK, where there may be none

        print(*make_data(options.volumes, options.make_data, options.edge, options.limit_mb), sep="\n")
        return
    if options.data is not None and not options.data.is_dir():
        raise UserError(f"--data {options.data} is no folder: make it with --make_data")
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"about": {"minutes": options.minutes, "dry run": options.dry_run}, "parts": {}}
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        begin = time.monotonic()
        _import_parts(options.parts)
        results["about"] |= _look(options, Path(work))
        results["about"]["seconds before the first part"] = round(time.monotonic() - begin, 1)
        print(*(f"{name}: {value}" for name, value in results["about"].items()), sep="\n", flush=True)
        for place, letter in enumerate(options.parts):
            print(f"{letter} {PARTS[letter].title}", flush=True)
            result = _run(letter, options, Path(work), _seconds(options, place, ends), results["about"]["start"])
            results["parts"][letter] = {"title": PARTS[letter].title, **result}
            write_results(results, options.output)
            print(f"{letter} {result['status']}, {result['seconds']:.0f} s", flush=True)
    print(f"{options.output}/results.md has it all")
    failed = [letter for letter, part in results["parts"].items() if part["status"] == "failed"]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; {options.output}/results.md says why")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Proves on a GPU that everything works there and how fast it is.")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in the order in which to run")
    parser.add_argument("--data", type=Path, help="folder that --make_data has written")
    parser.add_argument("--output", type=Path, default=Path("gpu_results"), help="folder for the results")
    parser.add_argument("--dry_run", action="store_true", help="all of it on a CPU at tiny sizes")
    parser.add_argument("--make_data", type=Path, metavar="FOLDER", help="write crops there, and do nothing else")
    parser.add_argument("--volumes", type=Path, default=Path("data/volumes"), help="to make crops from")
    parser.add_argument("--edge", type=int, default=160, help="voxels per axis of a crop, at most")
    parser.add_argument("--limit_mb", type=float, default=11, help="MB of all crops together")
    return parser.parse_args()


def _seconds(options: argparse.Namespace, place: int, ends: float) -> float:
    """The time for a part: its share of what is left for it and those after it."""
    following = options.parts[place:]
    left = max(ends - time.monotonic() - GRACE, 1.0)
    return left * PARTS[following[0]].share / sum(PARTS[letter].share for letter in following)


def _import_parts(letters: Sequence[str]) -> None:
    """Imports what the parts need, so that each process has it when it is forked. Nothing here asks the GPU."""
    for module in (*(f"gpu_parts.{PARTS[letter].module}" for letter in letters), "torch._dynamo"):  # optimizers need it
        with contextlib.suppress(Exception):  # whatever it is, the part itself says so
            importlib.import_module(module)


def _look(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The machine, without its name, and how processes that use the GPU can be started here."""
    about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if options.dry_run:
        return {**about, "device": "CPU", "start": "fork"}
    for start, patience in (("fork", 60), ("spawn", 120)):
        file = work / f"{start}.txt"
        process = multiprocessing.get_context(start).Process(target=_name_gpu, args=(str(file),))  # type: ignore[attr-defined]
        process.start()
        process.join(patience)
        _end(process)
        if file.exists():
            return {**about, "device": file.read_text(), "start": start}
    raise UserError("torch finds no GPU here: run on a machine with one, or give --dry_run")


def _name_gpu(file: str) -> None:
    about = torch.cuda.get_device_properties(0)
    torch.ones(1, device="cuda").sum().item()
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # whose kernels differ a lot
    part = Path(f"{file}.part")
    part.write_text(f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {versions}")
    part.rename(file)


def _run(letter: str, options: argparse.Namespace, work: Path, seconds: float, start: str) -> dict[str, Any]:
    """What a part has found, how it ended, and how long it took."""
    if PARTS[letter].needs_data and options.data is None:
        return {"status": "left out: it needs --data", "seconds": 0.0}
    folder = work / letter
    folder.mkdir()
    log, begin = work / f"{letter}.log", time.monotonic()
    context = Context(
        part=letter,
        settings=DRY if options.dry_run else FULL,
        dry=options.dry_run,
        data=None if options.data is None else options.data.absolute(),
        work=folder,
        output=options.output.absolute(),
        ends=begin + seconds,
    )
    process = multiprocessing.get_context(start).Process(target=_work, args=(context, str(log)))  # type: ignore[attr-defined]
    process.start()
    process.join(seconds + GRACE)
    late = process.is_alive()
    _end(process)
    found = context.read()
    if "status" not in found:  # it did not come to its end
        found |= {"status": "stopped at its time" if late else "failed", "log": log.read_text()[-4000:]}
    return {**found, "seconds": time.monotonic() - begin}


def _end(process: BaseProcess) -> None:
    """Ends a process, if it still runs, and the loaders that it leaves behind."""
    if process.is_alive():
        process.terminate()
        process.join(5)
    if process.is_alive():
        process.kill()
        process.join(5)
    assert process.pid is not None  # it was started
    with contextlib.suppress(ProcessLookupError):  # nothing is left of its group
        os.killpg(process.pid, signal.SIGKILL)


def _work(context: Context, log: str) -> None:
    """A part's process: what libraries print goes to a file, what the part says to the terminal."""
    os.setsid()
    gc.freeze()  # parts look for what they may free, which none of what was imported is
    context.terminal = os.fdopen(os.dup(1), "w")
    with Path(log).open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        importlib.import_module(f"gpu_parts.{PARTS[context.part].module}").run(context)
        context.end(status="done")
    except Exception:  # noqa: BLE001 - whatever it is, the next part runs
        context.end(status="failed", traceback=traceback.format_exc()[-6000:])
    sys.stdout.flush()
    context.terminal.flush()
    os._exit(0)  # no waiting for loaders


if __name__ == "__main__":
    main()
