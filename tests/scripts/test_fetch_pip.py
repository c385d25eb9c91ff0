# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/fetch_pip.py against a package index on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from scripts.fetch_pip import WHEEL, download, main, wheel_url

CONTENT = b"not really a wheel"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index that lists one file of pip, relative to its page as PyPI's mirrors do."""
    (tmp_path / "simple/pip").mkdir(parents=True)
    listing = {"files": [{"filename": "pip-1.0.tar.gz", "url": "x"}, {"filename": WHEEL, "url": f"../../{WHEEL}"}]}
    (tmp_path / "simple/pip/index.html").write_text(json.dumps(listing))
    (tmp_path / WHEEL).write_bytes(CONTENT)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


def test_wheel_is_found_in_the_index_and_downloaded(index: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    download(wheel_url(index, WHEEL), hashlib.sha256(CONTENT).hexdigest(), target)
    assert target.read_bytes() == CONTENT


def test_other_content_than_expected_is_refused(index: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sha256"):
        download(wheel_url(index, WHEEL), "0" * 64, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_index_without_the_wheel_is_said(index: str) -> None:
    with pytest.raises(LookupError, match=r"does not list pip-0\.0"):
        wheel_url(index, "pip-0.0-py3-none-any.whl")


@pytest.mark.parametrize("path", ["", "/elsewhere"])
def test_failure_is_one_line_and_a_status(
    index: str, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # "": the wheel there is not the one whose sha256 is known; "/elsewhere": no index is there
    monkeypatch.setenv("PIP_INDEX_URL", index + path)
    assert main() == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
