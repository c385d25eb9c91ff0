# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/minkowski/build.py: what it decides and refuses, and that the MinkowskiEngine it installed is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import build as build_minkowski
import pytest
import torch

from bundle.errors import UserError

GIB = 1 << 30


def make_toolkit(folder: Path, release: str) -> Path:
    """A CUDA toolkit as far as `cuda_home` looks at it."""
    for part in ("bin/nvcc", "include/cusparse.h", "include/cublas_v2.h"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    (folder / "bin/nvcc").chmod(0o755)
    return folder


def shifted(convolve: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda image, visible, kernel: convolve(image, visible, kernel.flip(0))


def test_installed_minkowski_engine_convolves_as_torch_does() -> None:
    assert build_minkowski.check().startswith("MinkowskiEngine 0.5.4 works on cpu")


def test_installed_minkowski_engine_leaves_the_number_of_threads_alone() -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import MinkowskiEngine as me\n"
        "me.SparseTensor(torch.ones(1, 1), torch.zeros(1, 4, dtype=torch.int32))\n"
        "print(torch.get_num_threads())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_check_finds_a_kernel_whose_axes_run_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_minkowski, "convolve", shifted(build_minkowski.convolve))
    with pytest.raises(UserError, match="convolves wrongly on cpu"):
        build_minkowski.check()


def test_check_says_how_to_build_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(UserError, match=r"cannot be imported.*python scripts/minkowski/build\.py"):
        build_minkowski.check()


@pytest.mark.parametrize(
    ("target", "cpus", "memory", "jobs"),
    [("cpu", 2, 24 * GIB, 2), ("cpu", 64, 24 * GIB, 8), ("cuda", 64, 24 * GIB, 4), ("cuda", 8, GIB, 1)],
)
def test_jobs_are_limited_by_cpus_and_by_memory(target: str, cpus: int, memory: int, jobs: int) -> None:
    assert build_minkowski.compile_jobs(target, cpus, memory) == jobs


def test_target_follows_the_toolkit_unless_named() -> None:
    toolkit = Path("/cuda")
    assert build_minkowski.choose_target("auto", toolkit) == "cuda"
    assert build_minkowski.choose_target("auto", None) == "cpu"
    assert build_minkowski.choose_target("cpu", toolkit) == "cpu"
    with pytest.raises(UserError, match="--target cuda: needs a torch with CUDA"):
        build_minkowski.choose_target("cuda", None)


@pytest.mark.parametrize(("release", "found"), [("13.2", True), ("12.8", False)])
def test_toolkit_must_be_of_torch_s_cuda_major_version(
    release: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit = make_toolkit(tmp_path, release)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(toolkit))
    assert build_minkowski.cuda_home() == (toolkit if found else None)


def test_toolkit_without_cusparse_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = make_toolkit(tmp_path, "13.0")
    (toolkit / "include/cusparse.h").unlink()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(toolkit))
    assert build_minkowski.cuda_home() is None


def test_cache_key_changes_with_everything_the_wheel_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = tmp_path / "0001-a.patch"
    patch.write_text("one")
    keys = [build_minkowski.cache_key("cpu", [patch])]
    assert build_minkowski.cache_key("cpu", [patch]) == keys[0]
    keys.append(build_minkowski.cache_key("cuda", [patch]))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;10.0+PTX")
    keys.append(build_minkowski.cache_key("cuda", [patch]))
    patch.write_text("two")
    keys.append(build_minkowski.cache_key("cpu", [patch]))
    patch = patch.rename(tmp_path / "0002-a.patch")
    keys.append(build_minkowski.cache_key("cpu", [patch]))
    monkeypatch.setattr(torch, "__version__", "2.14.0")
    keys.append(build_minkowski.cache_key("cpu", [patch]))
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-312")
    keys.append(build_minkowski.cache_key("cpu", [patch]))
    assert len(set(keys)) == len(keys)
    assert all(Path(key).name == key for key in keys)  # each is one folder


def test_cuda_patches_are_left_out_of_a_build_for_the_cpu(tmp_path: Path) -> None:
    both, cuda = tmp_path / "0002-b.patch", tmp_path / "0001-a.cuda.patch"
    for patch in (both, cuda):
        patch.touch()
    assert build_minkowski.patches_for("cpu", tmp_path) == [both]
    assert build_minkowski.patches_for("cuda", tmp_path) == [cuda, both]


def test_wheel_in_the_cache_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    wheel = (
        tmp_path / build_minkowski.cache_key("cpu", build_minkowski.patches_for("cpu")) / "MinkowskiEngine-0.5.4.whl"
    )
    wheel.parent.mkdir()
    wheel.touch()
    assert build_minkowski.cached_wheel(tmp_path, "cpu") == wheel


def test_missing_compiler_is_one_line_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no C\+\+ compiler: 'no-such-compiler'.*apt-get install g\+\+") as caught:
        build_minkowski.cached_wheel(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_python_headers_are_one_line_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match=r"Python\.h is missing; install them \(apt-get install python3-dev\)"):
        build_minkowski.require_compiler()


def test_damaged_release_in_the_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    kept = tmp_path / build_minkowski.SDIST
    kept.write_bytes(b"half of it")
    asked = []
    monkeypatch.setattr(build_minkowski, "wheel_url", lambda *names: asked.append(names) or "url")
    monkeypatch.setattr(build_minkowski, "download", lambda *_args: _args[2].write_bytes(b"from the index"))
    monkeypatch.setattr(build_minkowski, "run", lambda *_args: pytest.fail("pip would run its setup.py"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    assert build_minkowski.fetch_release(work, tmp_path) == kept
    assert kept.read_bytes() == b"from the index"
    assert asked == [("https://mirror/simple", build_minkowski.SDIST, "minkowskiengine")]


def test_another_release_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile.tar.gz").write_bytes(b"another one")
    monkeypatch.setattr(build_minkowski, "wheel_url", lambda *_names: (tmp_path / "hostile.tar.gz").as_uri())
    with pytest.raises(UserError, match=r"could not fetch MinkowskiEngine.*sha256\): put it into .* yourself"):
        build_minkowski.fetch_release(tmp_path, tmp_path)
    assert not (tmp_path / build_minkowski.SDIST).exists()


def test_build_tools_are_hashed_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def note(command: Sequence[str], *_more: object) -> None:
        commands.append(command)
        (tmp_path / "tools/bin").mkdir(parents=True)

    monkeypatch.setattr(build_minkowski, "run", note)
    build_minkowski.build_environment(tmp_path, "cpu")
    assert {"--require-hashes", "--only-binary=:all:", f"--requirement={build_minkowski.BUILD_TOOLS}"} <= set(
        commands[0]
    )


def test_failed_command_shows_its_error_in_one_line() -> None:
    command = [sys.executable, "-c", "print('ERROR: No matching distribution'); print('[hint]'); raise SystemExit(1)"]
    with pytest.raises(UserError, match=r"^could not fetch it: ERROR: No matching distribution; put that right"):
        build_minkowski.run(command, os.environ, "fetch it")


def test_failed_build_names_the_first_compiler_error_and_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    steps = "[1/13] c++ -Werror -o a.o\n[2/13] c++ b.cpp\nb.cpp:7:1: error: no such type\nb.cpp:9:1: error: and so on"
    (source / "setup.py").write_text(f"print({steps!r}, flush=True)\nraise SystemExit(1)\n")
    log = tmp_path / "build.log"
    with pytest.raises(UserError, match=r"did not compile: b\.cpp:7:1: error: no such type \(everything: .*build\.log"):
        build_minkowski.compile_wheel(source, tmp_path, "cpu", {**os.environ, "MAX_JOBS": "1"}, log)
    assert "compiled 2 of 13 files" in capsys.readouterr().out
    assert "and so on" in log.read_text()


@pytest.mark.parametrize("same", [True, False])
def test_wheel_is_installed_only_if_it_is_not_the_installed_one(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "new" / "MinkowskiEngine-0.5.4.whl"
    installed = wheel if same else tmp_path / "old" / wheel.name
    record = tmp_path / "MinkowskiEngine-0.5.4.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: MinkowskiEngine\nVersion: 0.5.4\n")
    (record / "direct_url.json").write_text(json.dumps({"url": installed.as_uri(), "archive_info": {}}))
    monkeypatch.syspath_prepend(tmp_path)
    commands: list[list[str]] = []
    monkeypatch.setattr(build_minkowski, "run", lambda command, *_rest: commands.append(command))
    build_minkowski.install(wheel)
    assert [command[-1] for command in commands] == ([] if same else [str(wheel)])


@pytest.mark.parametrize("patch", sorted(build_minkowski.PATCHES.glob("*.patch")), ids=lambda patch: patch.stem)
def test_patch_says_why(patch: Path) -> None:
    reason = patch.read_text().partition("\n--- a/")[0]
    assert len(reason.split()) > 20
