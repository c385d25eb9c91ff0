# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Model Zoo's assertions F and S, about files and code, and R, our own about a release."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from checks import NotChecked, Release, check
from monai.bundle.workflows import _reject_executable_logging_config as reject_executable

from bundle.errors import UserError
from bundle.weights import ModelFiles

_LARGEST_FILE = 25 * 10**6  # bytes
_HASH_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
_LARGE_FILE_KEYS = {"path", "url", "hash_val", "hash_type"}  # the zoo hands any other to download_url
_CARD: tuple[str, ...] = (
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Preprocessing",
    "Performance",
    "System Configuration",
)
_CARD += ("Limitations", "References")
_TOP = {"LICENSE", "bundle", "configs", "constraints.txt", "docs", "large_files.yml", "models", "pyproject.toml"}
_TOP |= {"requirements.txt", "scripts"}


@check("F1")
def licence(release: Release) -> Iterator[str]:
    """LICENSE at the root, an open licence."""
    if "Apache License\n" not in release.texts["LICENSE"]:
        yield "LICENSE is not the Apache License"


@check("F2")
def metadata(release: Release) -> Iterator[str]:
    """The file configs/metadata.json is JSON."""
    content: object = release.metadata
    if not isinstance(content, dict):
        yield "it holds no mapping"


@check("F3")
def inference(release: Release) -> Iterator[str]:
    """Of configs/inference, the YAML that CI reads and the JSON that Label reads are equal."""
    content = yaml.safe_load(release.texts["configs/inference.yaml"])
    if json.loads(release.texts["configs/inference.json"]) != content:
        yield "they differ: python scripts/zoo/config_twins.py configs"
    if (release.path / "configs/inference.yml").exists():
        yield "inference.yml is a third"


@check("F4")
def weights(release: Release) -> Iterator[str]:
    """There are models/model.json and models/model.pt, or its address in large_files.yml."""
    if not release.with_weights:
        raise NotChecked("built without weights")
    about = json.loads(release.texts["models/model.json"])
    large = {entry["path"]: entry for entry in _large_files(release)}
    files = ModelFiles(release.path / "models/model.pt")
    try:
        files.verify_decoder()
        files.verify_weights()
    except UserError as error:
        yield str(error)
    if "models/model.pt" in large:
        if large["models/model.pt"].get("hash_val") != about["sha256"]:
            yield "large_files.yml and model.json name different files"
        return
    content = torch.load(files.weights, weights_only=True, map_location="cpu")
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        yield "model.pt is no flat state dict"


@check("F5")
def exemption(release: Release) -> Iterator[str]:
    """No exemption from F4 is asked for."""
    yield from weights(release)  # an exempt bundle has no weights


@check("F6")
def sizes(release: Release) -> Iterator[str]:
    """No file above 25 MB."""
    for file in release.files:
        if file.stat().st_size > _LARGEST_FILE:
            yield f"{release.relative(file)} has {file.stat().st_size / 1e6:.0f} MB"


@check("F7")
def large_files(release: Release) -> Iterator[str]:
    """If there is a large_files.yml, it gives path, url and sha256."""
    for entry in _large_files(release):
        if {"path", "url", "hash_val", "hash_type"} - set(entry) or set(entry) - _LARGE_FILE_KEYS:
            yield f"an entry has the keys {', '.join(entry)}, not {', '.join(sorted(_LARGE_FILE_KEYS))}"
        elif len(entry["hash_val"]) != _HASH_LENGTHS.get(entry["hash_type"], -1):
            yield f"{entry['path']}: hash_val is no {entry['hash_type']}"
        elif not re.match(r"https?://", entry["url"]):
            yield f"{entry['path']}: {entry['url']} is no address that anyone can open"
        elif (release.path / entry["path"]).exists():
            yield f"{entry['path']} is in the folder as well"
    if others := [name for name in ("large_files.yaml", "large_files.json") if (release.path / name).exists()]:
        yield f"a second list, {others[0]}"


@check("F8")
def card(release: Release) -> Iterator[str]:
    """The model card docs/README.md has the sections of the zoo's template."""
    text = release.texts["docs/README.md"]
    headings = re.findall(r"^#+ \**(.+?)\**$", text, flags=re.MULTILINE)
    lacking = [name for name in _CARD if name not in headings]
    if not any("Citation" in heading for heading in headings):
        lacking.append("Citation")
    if lacking:
        yield f"no section {', '.join(lacking)}"


@check("F9")
def data_licence(release: Release) -> Iterator[str]:
    """The file docs/data_license.txt says under which terms the training data is."""
    if not re.search(r"licen[cs]e", release.texts["docs/data_license.txt"], flags=re.IGNORECASE):
        yield "it names no licence"


@check("F10")
def logging_file(release: Release) -> Iterator[str]:
    """The file configs/logging.conf is one that MONAI accepts."""
    reject_executable(str(release.path / "configs/logging.conf"))  # raises ValueError
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(release.texts["configs/logging.conf"])
    if not {"loggers", "handlers", "formatters"} <= set(parser.sections()):
        yield "it lacks loggers, handlers or formatters"


@check("F11")
def personal_paths(release: Release) -> Iterator[str]:
    """No personal path in the configs; bundle_root is the folder one stands in."""
    for name, text in release.texts.items():
        if not name.startswith("configs/"):
            continue
        rest = re.sub(r"bundle_root \+ '/[\w./]+'|/path/to/\w+", "", text)
        if found := re.search(r"(?<![\w.@/])/(home|root|mnt|tmp|data|Users)/\S*", rest):
            yield f"{name} names {found[0]}"
        if name.endswith(".yaml") and yaml.safe_load(text).get("bundle_root", ".") != ".":
            yield f"{name}: bundle_root is not ."


@check("F12")
def exports(release: Release) -> Iterator[str]:
    """The model card says what cannot be exported to TorchScript and TensorRT."""
    text = release.texts["docs/README.md"].partition("Limitations")[2]
    for word in ("TorchScript", "TensorRT"):
        if word not in text:
            yield f"no word on {word} under Limitations"


@check("S1")
def code_format(release: Release) -> Iterator[str]:
    """Code format: ruff with the zoo's line length and rules."""
    settings = release.repository / "pyproject.toml"
    for command in (["format", "--check"], ["check"]):
        line = [sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", f"--config={settings}", "."]
        done = subprocess.run(line, cwd=release.path, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"ruff {command[0]}: {' '.join((done.stdout + done.stderr).split())[:300]}"


@check("S2")
def text_files(release: Release) -> Iterator[str]:
    """JSON with 4 spaces, one newline at each file's end, no trailing spaces, LF."""
    for name, text in release.texts.items():
        if "\r" in text:
            yield f"{name} has carriage returns"
        if name.endswith(".patch"):
            continue  # an empty line of context is a space
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            yield f"{name} does not end in one newline"
        if re.search(r"[ \t]$", text, flags=re.MULTILINE):
            yield f"{name} has trailing spaces"
        if name.endswith(".json"):
            content = json.loads(text)
            forms = (json.dumps(content, indent=4, ensure_ascii=plain) + "\n" for plain in (True, False))
            if text not in forms:
                yield f"{name} is not indented by 4"


@check("S3")
def signed_off(_release: Release) -> Iterator[str]:
    """Commits are signed off (DCO)."""
    raise NotChecked("is about commits, not files: git commit -s")


@check("R1")
def nothing_else(release: Release) -> Iterator[str]:
    """Nothing in the folder that is not meant to be published."""
    for entry in sorted(release.path.iterdir()):
        if entry.name not in _TOP:
            yield f"{entry.name} is not part of a release"
    for entry in sorted(release.path.rglob("*")):
        if entry.is_symlink():
            yield f"{release.relative(entry)} is a link"
        if entry.name == "__pycache__" or entry.name.startswith((".", "test_")):
            yield f"{release.relative(entry)} is a cache, hidden or a test"


@check("R2")
def links(release: Release) -> Iterator[str]:
    """Every file that a page links to is there."""
    for name, text in release.texts.items():
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            path = (release.path / name).parent / target.partition("#")[0]
            if not re.match(r"[a-z]+:|#", target) and not _inside(path, release.path):
                yield f"{name} links to {target}"


@check("R3")
def twins(release: Release) -> Iterator[str]:
    """Each YAML config has a JSON twin that says the same."""
    configs = release.path / "configs"
    for file in sorted(configs.glob("*.yaml")):
        twin = file.with_suffix(".json")
        if not twin.is_file() or json.loads(twin.read_text()) != yaml.safe_load(file.read_text()):
            yield f"{file.name} has no equal twin: python scripts/zoo/config_twins.py configs"
    for file in sorted(configs.glob("*.json")):
        if file.name != "metadata.json" and not file.with_suffix(".yaml").is_file():
            yield f"{file.name} is the twin of nothing"


@check("R4")
def defaults(release: Release) -> Iterator[str]:
    """Where no model.json is found, inference.yaml builds the network of these weights."""
    if not release.with_weights:
        raise NotChecked("built without weights")
    about = json.loads(release.texts["models/model.json"])
    given = yaml.safe_load(release.texts["configs/inference.yaml"])["settings"]["defaults"]
    for key, value in given.items():
        if about[key] != value:
            yield f"settings#defaults#{key} is {value}, model.json says {about[key]}"


def _inside(path: Path, folder: Path) -> bool:
    return path.exists() and folder in path.resolve().parents


def _large_files(release: Release) -> list[dict[str, str]]:
    content = yaml.safe_load(release.texts.get("large_files.yml", "large_files: []"))
    entries: list[dict[str, str]] = content["large_files"]
    return entries
