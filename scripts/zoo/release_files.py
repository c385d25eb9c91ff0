# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which files a release holds, and how they are packed."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from pathlib import Path

from bundle.errors import UserError

#: folders taken whole, and files, by their paths in the repository
_FOLDERS = ("bundle", "configs", "docs", "scripts")
_FILES = ("LICENSE", "constraints.txt", "pyproject.toml", "requirements.txt")
#: of these folders, what needs the tests or the repository's history
_DEVELOPMENT = (
    "docs/how-to/release_to_the_model_zoo.md",
    "scripts/check.sh",
    "scripts/fetch_browser.py",
    "scripts/zoo/release.py",
    "scripts/zoo/release_files.py",
    "scripts/test.sh",
    "scripts/zoo/checks.py",
    "scripts/zoo/config_checks.py",
    "scripts/zoo/file_checks.py",
    "scripts/zoo/metadata_checks.py",
    "scripts/zoo/network_checks.py",
)
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def bundle_name(root: Path) -> str:
    """The bundle's name, from pyproject.toml."""
    found = re.search(r'^name = "([^"]+)"', (root / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert found is not None
    return found[1]


def bundle_version(root: Path) -> str:
    """The bundle's version, from configs/metadata.json."""
    return str(json.loads((root / "configs/metadata.json").read_text())["version"])


def released_files(root: Path) -> list[str]:
    """The files under version control that a user of the bundle needs, by their paths in the repository."""
    tracked = _git(root, "ls-files", "-z").split("\0")
    wanted = (file for file in tracked if file in _FILES or file.partition("/")[0] in _FOLDERS)
    return [file for file in wanted if not _is_development(file)]


def _is_development(file: str) -> bool:
    drawn_of = re.fullmatch(r"docs/figures/.*\.json", file)  # the numbers behind a figure
    return file in _DEVELOPMENT or drawn_of is not None


def require_clean(root: Path) -> None:
    """Refuses files that differ from the last commit.

    Raises:
        UserError: if there are any; it names the first.
    """
    changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        raise UserError(
            f"{len(changed)} files differ from the last commit, such as {changed[0][3:]}: commit them, or give "
            "--allow_dirty for a trial"
        )


def write_zip(folder: Path, path: Path) -> None:
    """Packs a folder so that its content alone decides the bytes: no dates, no owners, one order.

    Files are stored, not compressed: weights hardly shrink, and what deflate makes depends on the version of zlib.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", _TIME)
            entry.create_system = 3  # Unix: what the permissions below are written for
            entry.external_attr = (0o755 if file.suffix == ".sh" else 0o644) << 16
            archive.writestr(entry, file.read_bytes())


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise UserError(f"git cannot list the files of {root} ({reason.strip()}): build from a clone") from error
