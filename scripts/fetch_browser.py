# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sees to it that there is a Chromium for the tests that open a report, without root and without a window.

    python scripts/fetch_browser.py

Takes the one that the variable CHROME names, or one on PATH. Else it fetches a build for headless use into
.cache/browser, from npm's registry (NPM_CONFIG_REGISTRY, by default https://registry.npmjs.org), checked by its sha256:
@sparticuz/chromium, which brings the libraries and fonts that a plain Linux lacks. It is for x86_64; elsewhere, and
without a network, root's apt-get is asked for Debian's package.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from urllib.request import urlopen

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FOLDER = Path(__file__).parents[1] / ".cache/browser"
PACKAGE = "@sparticuz/chromium/-/chromium-147.0.0.tgz"
SHA256 = "18fe5404ce845594cd7d592fc07f37a19514079ba4d9c27192ad8b908743f16b"
#: starts the browser with the libraries and fonts beside it
START = """#!/bin/sh
here="$(dirname "$0")"
export LD_LIBRARY_PATH="$here/lib" FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/chromium" "$@"
"""
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/fonts-cache</cachedir></fontconfig>
"""


def find_browser(folder: Path = FOLDER) -> str | None:
    """The browser of the variable CHROME, else the first one on PATH, else the one fetched into `folder`."""
    if os.environ.get("CHROME"):
        return shutil.which(os.environ["CHROME"])
    return next((found for name in (*NAMES, str(folder / "start")) if (found := shutil.which(name))), None)


def unpack(package: bytes, folder: Path) -> None:
    """Unpacks the npm package: a program, and archives of what it needs, all compressed by Brotli."""
    import brotli  # noqa: PLC0415 - only who has no browser needs it

    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as temporary,
        tarfile.open(fileobj=io.BytesIO(package)) as outer,
    ):
        made = Path(temporary) / "made"
        made.mkdir()
        for name in ("chromium", "al2023.tar", "swiftshader.tar", "fonts.tar"):
            member = outer.extractfile(f"package/bin/{name}.br")
            assert member is not None
            content = brotli.decompress(member.read())
            if name == "chromium":
                (made / name).write_bytes(content)
            else:
                with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                    for entry in inner:  # the builder's user is nobody here
                        entry.uid, entry.gid, entry.uname, entry.gname = os.getuid(), os.getgid(), "", ""
                        inner.extract(entry, made)
        (made / "fonts.conf").write_text(FONTS.format(folder=folder))
        (made / "start").write_text(START)
        for name in ("chromium", "start"):
            (made / name).chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def fetch(folder: Path = FOLDER) -> None:
    """Downloads and unpacks the browser.

    Raises:
        OSError: if the registry is out of reach.
        ValueError: if the content is not the one expected, or is not for this machine.
    """
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        raise ValueError(f"it is not made for {platform.system()} on {platform.machine()}")
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    with urlopen(f"{registry}/{PACKAGE}", timeout=60) as reply:
        package = reply.read()
    if hashlib.sha256(package).hexdigest() != SHA256:
        raise ValueError("it does not have the expected sha256")
    unpack(package, folder)


def install() -> bool:
    """Asks apt-get for Chromium where this is root; returns whether there is one now."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]):
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return find_browser() is not None


def main() -> int:
    """Finds or fetches the browser; returns the exit status."""
    if find_browser() is not None:
        return 0
    print(f"fetching a browser for the tests of reports into {FOLDER} (once; 68 MB)", file=sys.stderr)
    try:
        fetch()
    except (OSError, ValueError) as error:
        if not install():
            print(
                f"error: no Chromium on PATH, and none could be fetched ({error}): "
                "apt-get install chromium, or name one with CHROME=/path/to/chrome",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
