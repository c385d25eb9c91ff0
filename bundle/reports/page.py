# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The frame of a page: head, table of contents, sections, and what its policy lets it load, which is nothing."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from collections.abc import Sequence
from importlib import resources

from bundle.reports.markup import text

__all__ = ["page_html", "viewer_bytes"]

_STATIC = resources.files("bundle.reports") / "static"
_NIIVUE = "niivue.umd.js.gz"


def page_html(title: str, lead: str, sections: Sequence[tuple[str, str, bool]], foot: str) -> str:
    """The whole page.

    Args:
        title: text.
        lead: text below it.
        sections: title (text), content (html) and whether it is folded.
        foot: html at the end.
    """
    script = _static("viewer.js").decode()
    links = "".join(f'<li><a href="#s{n}">{text(name)}</a></li>' for n, (name, _, _) in enumerate(sections, start=1))
    body = "".join(
        f'<section id="s{n}"><details{"" if folded else " open"}><summary><h2>{text(name)}</h2></summary>\n'
        f"{content}\n</details></section>\n"
        for n, (name, content, folded) in enumerate(sections, start=1)
    )
    has_viewer = 'class="viewer"' in body  # text cannot hold it: its quotes are escaped
    niivue = f'<script type="text/plain" id="niivue">{_niivue()[0]}</script>\n' if has_viewer else ""
    notice = f"<!--\n{_static('niivue_licenses.txt').decode()}-->\n" if has_viewer else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(script, has_viewer)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>
{_static("style.css").decode()}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
{f'<p class="lead">{text(lead)}</p>' if lead else ""}
</header>
<nav aria-label="Contents"><ol>{links}</ol></nav>
<main>
{body}</main>
<footer>{foot}</footer>
{notice}{niivue}<script>{script}</script>
</body>
</html>
"""


@functools.cache
def viewer_bytes() -> int:
    """What the viewer's code takes of a page."""
    return len(_niivue()[0]) + len(_static("niivue_licenses.txt"))


def _policy(script: str, has_viewer: bool) -> str:
    """Nothing may be loaded but what is in the page, and no script may run but these, known by their checksums."""
    scripts = [_checksum(script.encode()), *([_niivue()[1]] if has_viewer else [])]
    allowed = " ".join(f"'sha256-{one}'" for one in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _niivue() -> tuple[str, str]:
    """NiiVue as text of a page, and the checksum of its code as a policy gives it."""
    packed = _static(_NIIVUE)
    return base64.b64encode(packed).decode(), _checksum(gzip.decompress(packed))


def _checksum(code: bytes) -> str:
    return base64.b64encode(hashlib.sha256(code).digest()).decode()


def _static(name: str) -> bytes:
    return (_STATIC / name).read_bytes()
