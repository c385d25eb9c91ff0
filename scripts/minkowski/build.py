# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Builds and installs MinkowskiEngine 0.5.4 for the Python and the torch that run this.

    python scripts/minkowski/build.py            build, or take the wheel built before, install it and check it
    python scripts/minkowski/build.py --check    only check what is installed

The release is source only and its last one is from 2021, so it is patched (patches/, each says why) and
compiled here, which takes minutes once: the wheel is kept in .cache/minkowski and installed from there in seconds as
long as torch, Python and the patches stay the same. Needs a C++ compiler, and no root: matrix products run in torch, so
no BLAS library is asked for. Where torch has CUDA and its toolkit is installed, the GPU code is built too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils import cpp_extension

from bundle.errors import UserError, install_excepthook

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from fetch_pip import download, wheel_url  # noqa: E402 - `scripts` is no package

PATCHES = ROOT / "scripts" / "minkowski" / "patches"
VERSION = "0.5.4"
SDIST = f"MinkowskiEngine-{VERSION}.tar.gz"
SHA256 = "b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94"
# Installed beside the build, not into the environment; older pips cannot pass options to a release's setup.py.
BUILD_TOOLS = ROOT / "scripts/locked/minkowski.txt"
GIB_PER_JOB = {"cpu": 3, "cuda": 6}  # what one compiler process may need
NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\] ")
PIP = (sys.executable, "-m", "pip")
COMMAND = "python scripts/minkowski/build.py"


def say(message: str) -> None:
    """Prints a line of progress at once, also into a pipe."""
    print(message, flush=True)


def cuda_home() -> Path | None:
    """The CUDA toolkit to compile with: complete and of torch's CUDA version, otherwise None."""
    home = cpp_extension.CUDA_HOME  # None for a torch without CUDA
    if torch.version.cuda is None or home is None:
        return None
    if not all((Path(home) / part).is_file() for part in ("bin/nvcc", "include/cusparse.h", "include/cublas_v2.h")):
        return None
    printed = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", printed)
    return Path(home) if release and release.group(1) == torch.version.cuda.split(".")[0] else None


def choose_target(wanted: str, toolkit: Path | None) -> str:
    """What to build, "cpu" or "cuda", from the option `--target` and the toolkit that `cuda_home` found.

    Raises:
        UserError: CUDA is asked for and cannot be compiled.
    """
    if wanted == "cuda" and toolkit is None:
        raise UserError(
            f"--target cuda: needs a torch with CUDA (this one: {torch.__version__}) and the CUDA toolkit of the same "
            "major version with cuSPARSE and cuBLAS; install both, and set CUDA_HOME to the toolkit"
        )
    if wanted == "auto":
        return "cpu" if toolkit is None else "cuda"
    return wanted


def gpu_architectures() -> str:
    """The GPU architectures that torch's build tools will compile for, as a part of a file name."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if not listed:
        devices = range(torch.cuda.device_count())
        listed = "-".join(sorted({"{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices}))
    return re.sub(r"[^0-9A-Za-z.+]+", "-", listed) or "all"


def patches_for(target: str, folder: Path = PATCHES) -> list[Path]:
    """The patches in the order to apply them; `*.cuda.patch` touches nothing that a build for the CPU compiles."""
    return [patch for patch in sorted(folder.glob("*.patch")) if target == "cuda" or ".cuda." not in patch.name]


def cache_key(target: str, patches: Sequence[Path]) -> str:
    """A folder name that says all that a wheel depends on, so that a wheel found under it can be used."""
    digest = hashlib.sha256(SHA256.encode())
    for patch in patches:
        digest.update(patch.name.encode() + b"\0" + patch.read_bytes())
    built_for = target if target == "cpu" else f"cuda-{gpu_architectures()}"
    python = sys.implementation.cache_tag
    return f"{built_for}-torch{torch.__version__}-{python}-{sysconfig.get_platform()}-{digest.hexdigest()[:12]}"


def compile_jobs(target: str, cpus: int, memory_bytes: int) -> int:
    """How many files to compile at a time: one per CPU, as far as memory lasts."""
    return max(1, min(cpus, memory_bytes // (GIB_PER_JOB[target] << 30)))


def require_compiler() -> None:
    """Looks for what no pip package brings.

    Raises:
        UserError: no C++ compiler, or Python came without its header files.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        raise UserError(
            f"no C++ compiler: {compiler!r} (the one that CXX names, else c++) is not on PATH; install one (apt-get "
            "install g++, or without root: conda install -c conda-forge cxx-compiler), then run the same command again"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise UserError(
            f"no Python header files: {header} is missing; install them (apt-get install python3-dev), or make the "
            "environment with a Python that has them, then run the same command again"
        )


def run(command: Sequence[str], env: Mapping[str, str], purpose: str) -> None:
    """Runs a command silently.

    Raises:
        UserError: it fails; with the last line that it printed.
    """
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if line.lower().startswith("error")), lines[-1])
        raise UserError(f"could not {purpose}: {reason.strip()}; put that right, then run {COMMAND} again")


def build_environment(work: Path, target: str) -> dict[str, str]:
    """Installs the build tools into `work` and returns the environment variables that make programs use them."""
    tools = work / "tools"
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    hashed = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={BUILD_TOOLS}"]
    run([*PIP, "install", f"--target={tools}", *hashed], env, "fetch the build tools with pip")
    # The released setup.py runs `pip uninstall MinkowskiEngine` whenever it is read.
    (tools / "bin" / "pip").write_text("#!/bin/sh\nexit 0\n")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tools), env.get("PYTHONPATH")]))
    env["PATH"] = os.pathsep.join([str(tools / "bin"), env.get("PATH", os.defpath)])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    env.setdefault("MAX_JOBS", str(compile_jobs(target, os.cpu_count() or 1, memory)))
    return env


def fetch_release(work: Path, cache: Path) -> Path:
    """The released source archive: from the cache if it is there and whole, otherwise from the package index.

    It is not fetched with pip, which would run its setup.py for the metadata before the sha256 is compared.

    Raises:
        UserError: it cannot be fetched, or is another one.
    """
    kept = cache / SDIST
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == SHA256:
        return kept
    say(f"fetching {SDIST}")
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    try:
        download(wheel_url(index, SDIST, "minkowskiengine"), SHA256, work / SDIST)
    except (OSError, ValueError, LookupError) as error:
        raise UserError(
            f"could not fetch {SDIST} from {index} ({error}): put it into {cache} yourself, then run {COMMAND} again"
        ) from error
    (work / SDIST).replace(kept)
    return kept


def patched_source(sdist: Path, work: Path, patches: Sequence[Path], env: Mapping[str, str]) -> Path:
    """Unpacks the release into `work` and applies the patches."""
    shutil.unpack_archive(sdist, work)
    source = work / SDIST.removesuffix(".tar.gz")
    for patch in patches:
        apply = [sys.executable, "-m", "patch_ng", "--quiet", "--strip=1", f"--directory={source}", str(patch)]
        run(apply, env, f"apply {patch.name}")
    return source


def first_error(log: str) -> str:
    """The line of a build's output that says why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror: ", line)), (lines or ["no message"])[-1])


def compile_wheel(source: Path, work: Path, target: str, env: Mapping[str, str], log: Path) -> Path:
    """Compiles the patched source to a wheel in `work`, telling how far it is; the compilers' output goes to `log`.

    Raises:
        UserError: it does not compile.
    """
    flag = {"cpu": "--cpu_only", "cuda": "--force_cuda"}[target]
    options = ["--no-deps", "--no-build-isolation", f"--config-settings=--global-option={flag}", f"--wheel-dir={work}"]
    command = [*PIP, "wheel", "--verbose", *options, str(source)]
    say(f"compiling MinkowskiEngine {VERSION} for {target}, {env['MAX_JOBS']} files at a time (minutes, once)")
    start = time.monotonic()
    with (
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        log.open("w") as file,
    ):
        for line in process.stdout or ():
            file.write(line)
            if step := NINJA_STEP.match(line):
                say(f"compiled {step.group(1)} of {step.group(2)} files, {time.monotonic() - start:.0f} s")
    if process.returncode:
        raise UserError(f"MinkowskiEngine did not compile: {first_error(log.read_text())} (everything: {log})")
    return next(work.glob("*.whl"))


def cached_wheel(cache: Path, target: str) -> Path:
    """The wheel for this Python and torch, built if it is not in the cache yet."""
    patches = patches_for(target)
    folder = cache / cache_key(target, patches)
    for wheel in folder.glob("*.whl"):
        return wheel
    require_compiler()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as name:
        work = Path(name)
        env = build_environment(work, target)
        source = patched_source(fetch_release(work, cache), work, patches, env)
        built = compile_wheel(source, work, target, env, cache / f"{folder.name}.log")
        folder.mkdir(exist_ok=True)
        wheel = folder / built.name
        built.replace(wheel)  # only a whole wheel ever stands in the cache
    return wheel


def install(wheel: Path) -> None:
    """Installs the wheel with pip, unless it is what is installed: another process may just be importing it."""
    try:
        origin = importlib.metadata.distribution("MinkowskiEngine").read_text("direct_url.json") or ""
    except importlib.metadata.PackageNotFoundError:
        origin = ""
    if f'"{wheel.as_uri()}"' in origin:
        return
    say(f"installing {wheel}")
    run([*PIP, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel)], os.environ, "install the wheel")


def convolve(image: torch.Tensor, visible: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """MinkowskiEngine's submanifold 3x3x3 convolution, on dense tensors.

    Args:
        image: [B, C, D, H, W].
        visible: bool [B, D, H, W], the sites that exist.
        kernel: [27, C, O], in MinkowskiEngine's order: the spatial axes run in reverse against `torch.nn.Conv3d`'s.

    Returns:
        [B, O, D, H, W], zero where nothing is visible.
    """
    import MinkowskiEngine as minkowski  # noqa: N813, PLC0415 - the rest of this file runs without it

    features = image.movedim(1, -1)[visible].contiguous()
    layer = minkowski.MinkowskiConvolution(image.shape[1], kernel.shape[2], kernel_size=3, dimension=3)
    del layer.kernel  # so that the gradient flows to the kernel given
    layer.kernel = kernel
    output = layer(minkowski.SparseTensor(features, visible.nonzero().int().contiguous()))
    sites = output.C.long().unbind(1)
    return image.new_zeros(*visible.shape, kernel.shape[2]).index_put(sites, output.F).movedim(-1, 1)


def check_convolution(device: str) -> None:
    """Compares MinkowskiEngine's convolution and its gradients, in float64, with `conv3d` on the masked image.

    Raises:
        UserError: they differ.
    """
    random = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 5, 6, 7, dtype=torch.float64, generator=random).to(device).requires_grad_()
    kernel = torch.randn(27, 3, 4, dtype=torch.float64, generator=random).to(device).requires_grad_()
    some = torch.rand(2, 5, 6, 7, generator=random).to(device) < 0.6
    for visible in (torch.ones_like(some), some):
        mask = visible[:, None].double()
        weight = kernel.reshape(3, 3, 3, 3, 4).permute(4, 3, 2, 1, 0)
        expected = torch.nn.functional.conv3d(image * mask, weight, padding=1) * mask
        actual = convolve(image, visible, kernel)
        output_gradient = torch.randn(expected.shape, dtype=torch.float64, generator=random).to(device)
        gradients = [torch.autograd.grad(y, (image, kernel), output_gradient) for y in (actual, expected)]
        for ours, reference in zip((actual, *gradients[0]), (expected, *gradients[1]), strict=True):
            if not torch.allclose(ours, reference, rtol=1e-12, atol=1e-12):
                raise UserError(
                    f"MinkowskiEngine convolves wrongly on {device}; remove .cache/minkowski and run {COMMAND}"
                )


def check() -> str:
    """Checks that MinkowskiEngine can be imported, is right, and leaves torch's number of threads alone.

    Returns:
        What works, in a few words.

    Raises:
        UserError: what does not.
    """
    threads = torch.get_num_threads()
    importlib.invalidate_caches()  # it may just have been installed
    try:
        import MinkowskiEngine as minkowski  # noqa: N813, PLC0415 - the rest of this file runs without it
    except ImportError as error:
        raise UserError(f"MinkowskiEngine cannot be imported ({error}); build it: {COMMAND}") from error
    devices = ["cpu", "cuda"] if minkowski.is_cuda_available() and torch.cuda.is_available() else ["cpu"]
    for device in devices:
        check_convolution(device)
    if torch.get_num_threads() != threads:
        raise UserError(f"MinkowskiEngine changes torch's number of threads: it is not the patched one; run {COMMAND}")
    return f"MinkowskiEngine {minkowski.__version__} works on {' and '.join(devices)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="build nothing, only check what is installed")
    parser.add_argument("--target", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if possible")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "minkowski", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.check:
        target = choose_target(options.target, cuda_home())
        if target == "cpu" and options.target == "auto" and torch.version.cuda:
            say(f"no complete CUDA {torch.version.cuda} toolkit (CUDA_HOME) was found: building for the CPU only")
        install(cached_wheel(options.cache.resolve(), target))
    say(check())


if __name__ == "__main__":
    install_excepthook()
    main()
