# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Builds the folder that goes into MONAI's Model Zoo, checks it, and packs it.

    python scripts/zoo/release.py                                         dist/<name>/ and dist/<name>_v<version>.zip
    python scripts/zoo/release.py --weights_url https://host/model.pt     weights by large_files.yml instead
    python scripts/zoo/release.py --check dist/<name>                     checks a folder, changes nothing

The folder holds the files under version control that are needed to run, JSON twins of the configs, and the weights; no
tests, caches or notes. The same commit and weights give the same zip, byte for byte. What is checked:
docs/how-to/release_to_the_model_zoo.md.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from checks import Release, Status, run_checks
from config_twins import write_twins
from release_files import bundle_name, bundle_version, released_files, require_clean, write_zip

from bundle.atomic import replace_file
from bundle.errors import UserError, install_excepthook
from bundle.weights import ModelFiles, checksum

ROOT = Path(__file__).resolve().parents[2]
LARGEST_FILE = 25 * 10**6  # bytes, the zoo's rule


def build(
    root: Path, dist: Path, *, weights: Path | None, weights_url: str | None = None, allow_dirty: bool = False
) -> Path:
    """Writes the zoo folder; returns its path. An earlier one of the same name is replaced.

    Args:
        root: the repository.
        dist: where to.
        weights: a model.pt with its model.json, and its model_decoder.pt if that names one, beside it; None leaves them
            out.
        weights_url: where the weights can be downloaded; then they are named in large_files.yml, with their sha256.
        allow_dirty: takes the files as they are even if they differ from the last commit.

    Raises:
        UserError: if there are uncommitted changes, the weights lack or do not fit their json, they are too large, or
            something else stands in the folder's place.
    """
    if not allow_dirty:
        require_clean(root)
    large = _check_weights(weights, weights_url)
    folder = dist / bundle_name(root)
    if folder.exists() and not (folder / "configs/metadata.json").is_file():
        raise UserError(f"{folder} is not an earlier release: move it away, or give another --dist_dir")
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dist, prefix=".release.") as temporary:
        new = Path(temporary) / folder.name
        for file in released_files(root):
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, new / file)
        write_twins(new / "configs")
        if weights is not None:
            copies = ModelFiles(weights).copy_to(new / "models/model.pt")
            if large:
                copies.weights.unlink()
        if large:
            text = yaml.safe_dump({"large_files": [large]}, sort_keys=False)
            (new / "large_files.yml").write_text(text)
        if folder.exists():
            folder.rename(Path(temporary) / "earlier")
        new.rename(folder)
    return folder


def _check_weights(weights: Path | None, url: str | None) -> dict[str, str]:
    """What large_files.yml says of the weights; empty if they go into the folder.

    Raises:
        UserError: if the weights lack, do not fit their json, or are too large.
    """
    if weights is None:
        return {}
    files = ModelFiles(weights)
    for file in (files.weights, files.settings):
        if not file.is_file():
            raise UserError(
                f"{file} does not exist: train a model, name another with --weights, or build --without_weights"
            )
    files.verify_weights()
    files.verify_decoder()
    if url is not None:
        return {"path": "models/model.pt", "url": url, "hash_val": checksum(weights), "hash_type": "sha256"}
    if weights.stat().st_size > LARGEST_FILE:
        raise UserError(
            f"{weights} has {weights.stat().st_size / 1e6:.0f} MB, the zoo takes files up to 25 MB: upload it and give "
            "its address as --weights_url"
        )
    return {}


def report(folder: Path, repository: Path, model_info: Path | None = None, *, with_weights: bool = True) -> bool:
    """Prints a line for each assertion; returns whether none is broken."""
    results = run_checks(Release(folder.resolve(), repository, model_info, with_weights))
    for result in results:
        print(f"{result.id:<3} {result.status.value:<11} {result.title}{result.remark and ': ' + result.remark}")
    wrong = [result.id for result in results if result.status is Status.WRONG]
    unchecked = [result.id for result in results if result.status is Status.NOT_CHECKED]
    print(f"{folder}: {len(results) - len(wrong) - len(unchecked)} assertions hold", end="")
    print(f", {len(unchecked)} not checked", end="" if wrong else "\n")
    if wrong:
        print(f", wrong: {' '.join(wrong)}")
    return not wrong


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command; returns its exit code: 1 if an assertion is broken."""
    parser = argparse.ArgumentParser(description="Builds, checks and packs the bundle for MONAI's Model Zoo.")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="check this folder only")
    parser.add_argument("--dist_dir", type=Path, default=root / "dist", help="default: dist/")
    parser.add_argument("--weights", type=Path, default=root / "models/model.pt", help="default: models/model.pt")
    parser.add_argument("--weights_url", help="public address of the weights: they go into large_files.yml")
    parser.add_argument("--without_weights", action="store_true", help="leave the weights out, to try things")
    parser.add_argument("--allow_dirty", action="store_true", help="build in spite of uncommitted changes")
    parser.add_argument("--model_info", type=Path, help="the zoo's models/model_info.json, for N3 and V2")
    options = parser.parse_args(arguments)
    if options.check is not None:
        if not options.check.is_dir():
            raise UserError(f"--check {options.check} is not a folder: give one that this command has built")
        return int(not report(options.check, root, options.model_info))
    if options.without_weights and options.weights_url:
        raise UserError("--without_weights and --weights_url exclude each other: give one of them")

    folder = build(
        root,
        options.dist_dir,
        weights=None if options.without_weights else options.weights,
        weights_url=options.weights_url,
        allow_dirty=options.allow_dirty,
    )
    if not report(folder, root, options.model_info, with_weights=not options.without_weights):
        print("no zip is written", file=sys.stderr)
        return 1
    path = options.dist_dir / f"{folder.name}_v{bundle_version(root)}.zip"
    with replace_file(path) as temporary:
        write_zip(folder, temporary)
    content = path.read_bytes()
    print(f"{path}: {len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    install_excepthook()
    sys.exit(main())
