# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The pages: links lead somewhere, commands could run, code compiles, and what they name exists."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from bundle.errors import UserError
from tests.page_commands import BrokenCommand, check_command, commands
from tests.pages import PAGES, ROOT, blocks, links, names_in_code, relative, slugs
from tests.test_architecture import FLOORS

NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # the pages that speak of today's code
COMMANDS = [(page, line) for page in NOW for line in commands(page.read_text())]
PYTHON = [(page, code) for page in PAGES for code in blocks(page.read_text(), "python")]
YAML = [(page, code) for page in PAGES for code in blocks(page.read_text(), "yaml")]


def case_names(cases: list[tuple[Path, str]]) -> list[str]:
    return [f"{relative(page)}-{number}" for number, (page, _) in enumerate(cases)]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for target in links(page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and ROOT in file.parents, f"{relative(page)} links to {target}"
        if anchor:
            assert anchor in slugs(file.read_text()), f"{relative(page)} links to {target}"


def test_links_of_the_notebook_lead_to_a_file() -> None:
    notebook = ROOT / "docs/tutorials/tutorial.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert all((notebook.parent / target.partition("#")[0]).exists() for target in links(text)), links(text)


def test_every_page_is_reached_from_the_readme_or_the_guide_for_contributors() -> None:
    found: set[Path] = set()
    waiting = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md" or not page.is_file():
            continue
        found.add(page)
        waiting += [(page.parent / target.partition("#")[0]).resolve() for target in links(page.read_text())]
    pages = {page for page in PAGES if page.parents[0] != ROOT and page != ROOT / "docs/README.md"}
    lacking = {relative(page) for page in pages - found} - {"models/README.md"}
    assert not lacking


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:80] for _, line in COMMANDS])
def test_a_command_names_files_options_and_ids_that_exist(page: Path, line: str, tmp_path: Path) -> None:
    check_command(line, page.read_text(), tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "bash scripts/trains.sh",
        "bash scripts/train.sh --epoch 3",
        "bash scripts/train.sh --masking#ratios 3",
        "bash scripts/train.sh --encoders#init_filters 16",
        "bash scripts/setup_env.sh --develop",
        "python scripts/fetch_data.py --everything",
        "python scripts/cross_validate.py --config_file configs/finetune_segmentation.yaml --class 3",
        "python -m monai.bundle run training --config_file configs/trains.yaml",
        "python -m monai.bundle run trainings --config_file configs/train.yaml",
        "python -m monai.bundle run training --config_file \"['configs/train.yaml','configs/preset_large.yaml']\"",
        "python -m monai.bundle run training --config_file configs/train.yaml --decoder#widths 3",
        "python -m monai.bundle trains --config_file configs/train.yaml",
        "python -m pip install -c constraints.txt nonesuch",
        "NONESUCH=1 bash scripts/train.sh",
        "make nonesuch",
        "nonesuch --option",
    ],
)
def test_a_wrong_command_is_found(line: str, tmp_path: Path) -> None:
    with pytest.raises((BrokenCommand, UserError)):
        check_command(line, "", tmp_path)


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=case_names(PYTHON))
def test_python_compiles_and_its_imports_resolve(page: Path, code: str) -> None:
    tree = ast.parse(code, relative(page))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("bundle", "monai")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{relative(page)}: {node.module} has no {alias.name}"


@pytest.mark.parametrize(("page", "code"), YAML, ids=case_names(YAML))
def test_yaml_parses_and_its_components_exist(page: Path, code: str) -> None:
    assert isinstance(yaml.safe_load(code), dict)
    for target in re.findall(r"_target_: (bundle[\w.]+)", code):
        assert pkgutil.resolve_name(target)
    encoder = yaml.safe_load(code).get("encoder", {})  # what replaces train.yaml's must hand on what is in there
    assert encoder.get("_target_") != "bundle.networks.build_encoder" or encoder["init_from"] == "@init_from"


@pytest.mark.parametrize("page", NOW, ids=relative)
def test_files_and_names_of_the_package_in_the_text_exist(page: Path) -> None:
    for name in names_in_code(page.read_text()):
        if re.fullmatch(r"(bundle|configs|scripts|tests|docs)/[\w/.-]+", name):
            assert (ROOT / name).exists(), f"{relative(page)} names {name}"
        elif re.fullmatch(r"bundle(\.\w+)+", name):
            assert pkgutil.resolve_name(name), f"{relative(page)} names {name}"


def test_the_guide_for_contributors_has_every_room_on_its_floor() -> None:
    rows = re.findall(r"^\| (\d+) \| (`.*?`) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    shown = {int(floor): set(re.findall(r"`(\w+)/?`", rooms)) for floor, rooms in rows}
    assert shown == {number: set(rooms) for number, rooms in enumerate(FLOORS)}


def test_the_readme_is_short_and_has_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert "![" in text


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("## `model.json`", "modeljson"),
        ("## Health of the representation", "health-of-the-representation"),
        ("### **Bold**: a [link](x.md), and more", "bold-a-link-and-more"),
        ("# Fine-tuning: segmentation", "fine-tuning-segmentation"),
    ],
)
def test_a_heading_has_githubs_anchor(heading: str, slug: str) -> None:
    assert slugs(f"{heading}\n") == {slug}


def test_equal_headings_are_numbered_and_comments_in_code_are_none() -> None:
    assert slugs("# A\n\n# A\n\n```bash\n# B\n```\n") == {"a", "a-1"}
