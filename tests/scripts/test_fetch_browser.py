# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which browser opens the reports, and what a machine without one is told."""

from __future__ import annotations

import io
from pathlib import Path

import fetch_browser
import pytest
from fetch_browser import fetch, find_browser, main


def program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_named_browser_comes_before_that_on_path_and_that_before_the_fetched_one(tmp_path, monkeypatch):
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_browser(tmp_path / "fetched") is None
    fetched = program(tmp_path / "fetched/start")
    assert find_browser(tmp_path / "fetched") == fetched
    installed = program(tmp_path / "bin/google-chrome")
    assert find_browser(tmp_path / "fetched") == installed
    named = program(tmp_path / "my chrome")
    monkeypatch.setenv("CHROME", named)
    assert find_browser(tmp_path / "fetched") == named


def test_without_any_there_is_one_line_that_says_what_to_do(monkeypatch, capsys):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(fetch_browser, "find_browser", lambda: None)
    monkeypatch.setattr(fetch_browser, "urlopen", unreachable)
    monkeypatch.setattr(fetch_browser, "install", lambda: False)
    assert main() == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no Chromium on PATH") and "apt-get install chromium" in line


def test_another_file_in_its_place_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_browser, "urlopen", lambda *_, **__: io.BytesIO(b"other"))
    monkeypatch.setattr(fetch_browser.platform, "machine", lambda: "x86_64")
    with pytest.raises(ValueError, match="sha256"):
        fetch(tmp_path / "browser")
    assert not (tmp_path / "browser").exists()
