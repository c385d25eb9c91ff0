# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Puts pip into the environment whose Python runs this, on machines whose Python comes without ensurepip.

    .venv/bin/python scripts/fetch_pip.py

Takes one wheel, checked by its sha256, from the package index (PIP_INDEX_URL, by default PyPI) and lets it install
itself. Needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import Request, urlopen

WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def wheel_url(index: str, wheel: str, project: str = "pip") -> str:
    """The address of a file of a project, as the index states it in the JSON form of the simple API (PEP 691).

    Raises:
        LookupError: the index does not list `wheel`.
    """
    page = f"{index.rstrip('/')}/{project}/"
    request = Request(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(request, timeout=30) as reply:
        files = json.load(reply)["files"]
    for file in files:
        if file["filename"] == wheel:
            return urljoin(page, file["url"])
    raise LookupError(f"{page} does not list {wheel}")


def download(url: str, sha256: str, target: Path) -> None:
    """Downloads `url` to `target`.

    Raises:
        ValueError: the content is not the one expected.
    """
    with urlopen(url, timeout=30) as reply:
        content = reply.read()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{url} does not have the expected sha256")
    target.write_bytes(content)


def main() -> int:
    """Downloads and installs pip; returns the exit status."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / WHEEL
        try:
            download(wheel_url(index, WHEEL), SHA256, wheel)
        except (OSError, ValueError, LookupError) as error:
            print(f"error: pip could not be fetched from {index}: {error}", file=sys.stderr)
            return 1
        # a wheel is a zip file, and Python runs packages out of zip files
        command = [sys.executable, str(wheel / "pip"), "install", "--quiet", "--no-index", str(wheel)]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
