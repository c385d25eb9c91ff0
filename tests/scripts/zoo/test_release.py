# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/zoo/release.py: what it builds and refuses, and that each of its checks finds what it is for."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import network_checks
import pytest
import release
import torch
import yaml
from checks import Release, Status, known_ids, run_checks
from config_twins import twin_text, write_twins
from monai.bundle import download_large_files
from release_files import write_zip

from bundle.errors import UserError
from tests.commands import run_command
from tests.zoo.release import NAME, ROOT, Released, run_release


@pytest.fixture
def repository(released: Released, tmp_path: Path) -> Path:
    """A repository to change."""
    return Path(shutil.copytree(released.repository, tmp_path / "repository", ignore=shutil.ignore_patterns("dist")))


def test_the_folder_holds_what_is_run_and_nothing_else(released: Released) -> None:
    files = {file.relative_to(released.folder).as_posix() for file in released.folder.rglob("*") if file.is_file()}
    assert {file.partition("/")[0] for file in files} == {
        *("LICENSE", "bundle", "configs", "constraints.txt", "docs", "models", "pyproject.toml", "requirements.txt"),
        "scripts",
    }
    assert {"models/model.pt", "models/model.json", "docs/README.md", "docs/data_license.txt"} <= files
    assert {"scripts/train.sh", "scripts/setup_env.sh", "scripts/fetch_pip.py", "scripts/fetch_data.py"} <= files
    own = [*(ROOT / "bundle").rglob("*.py"), *(ROOT / "bundle/reports/static").iterdir()]  # the viewer of a report, too
    code = {file.relative_to(ROOT).as_posix() for file in own}
    assert {file for file in files if file.startswith("bundle/")} <= code
    assert not [file for file in files if "test" in Path(file).name or "__pycache__" in file or "zoo_" in file]


def test_each_yaml_config_has_an_equal_json_twin(released: Released) -> None:
    configs = released.folder / "configs"
    sources = sorted(configs.glob("*.yaml"))
    assert {"train", "inference", "evaluate", "finetune_segmentation", "preset_dev"} <= {path.stem for path in sources}
    for source in sources:
        twin = source.with_suffix(".json").read_text()
        assert json.loads(twin) == yaml.safe_load(source.read_text())
        assert list(json.loads(twin)) == list(yaml.safe_load(source.read_text()))  # not sorted
        assert twin.endswith("}\n") and "\n    " in twin
    assert json.loads((configs / "train.json").read_text())["lr"] == 3.0e-4


def test_a_config_that_json_would_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("classes: {1: liver}\n")
    with pytest.raises(UserError, match=r"a\.yaml .*, 1: write keys as text"):
        twin_text(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="holds no YAML file"):
        write_twins(tmp_path / "nowhere")


def test_the_command_passes_its_own_checks_and_says_so_line_by_line(released: Released) -> None:
    assert released.code == 0, released.output
    lines = {line.split()[0]: line for line in released.output.splitlines()}
    assert set(known_ids()) <= set(lines)
    digest = hashlib.sha256(released.zip.read_bytes()).hexdigest()
    assert f"sha256 {digest}" in released.output
    assert "WRONG" not in released.output


def test_a_second_build_gives_the_same_bytes(repository: Path, released: Released, tmp_path: Path) -> None:
    for file in repository.rglob("*.py"):
        os.utime(file, (time.time() + 9, 0))
        file.chmod(0o600)
    folder = release.build(repository, tmp_path / "dist", weights=repository / "models/model.pt", allow_dirty=True)
    write_zip(folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == released.zip.read_bytes()


def test_the_zip_is_the_folder_in_one_order_with_plain_permissions(released: Released, tmp_path: Path) -> None:
    with zipfile.ZipFile(released.zip) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert all(name.startswith(f"{NAME}/") for name in names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o644, 0o755}
    installed = released.installed(tmp_path)
    for file in released.folder.rglob("*"):
        if file.is_file():
            relative = file.relative_to(released.folder)
            assert (installed / relative).read_bytes() == file.read_bytes()
            assert f"{NAME}/{relative.as_posix()}" in names


def test_uncommitted_changes_are_refused_unless_allowed(repository: Path, tmp_path: Path) -> None:
    (repository / "configs/train.yaml").open("a").write("# changed\n")
    with pytest.raises(UserError, match=r"configs/train\.yaml: commit them, or give --allow_dirty"):
        release.build(repository, tmp_path / "dist", weights=None)
    folder = release.build(repository, tmp_path / "dist", weights=None, allow_dirty=True)
    assert "# changed" in (folder / "configs/train.yaml").read_text()


def test_files_that_are_not_under_version_control_stay_out(repository: Path, tmp_path: Path) -> None:
    (repository / "bundle/notes.py").write_text("")
    folder = release.build(repository, tmp_path / "dist", weights=None)
    assert not (folder / "bundle/notes.py").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda models: (models / "model.pt").unlink(), "model.pt does not exist: train a model"),
        (lambda models: (models / "model.json").unlink(), "model.json does not exist"),
        (lambda models: (models / "model.pt").open("ab").write(b"x"), "not the file that model.json describes"),
    ],
)
def test_weights_that_lack_or_do_not_fit_are_refused_in_one_line(
    repository: Path, change: Callable[[Path], object], message: str
) -> None:
    change(repository / "models")
    with pytest.raises(UserError, match=message) as error:
        run_release(repository)
    assert "\n" not in str(error.value)
    assert not (repository / "dist" / NAME).exists()


def test_a_decoder_goes_with_the_encoder_that_names_it(repository: Path, tmp_path: Path) -> None:
    model = repository / "models/model.pt"
    decoder, about = model.with_name("model_decoder.pt"), model.with_suffix(".json")
    decoder.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"model_decoder\.pt is not the file that model\.json describes"):
        release.build(repository, tmp_path / "dist", weights=model, allow_dirty=True)
    digest = hashlib.sha256(b"weights").hexdigest()
    about.write_text(json.dumps({**json.loads(about.read_text()), "decoder_sha256": digest}))
    folder = release.build(repository, tmp_path / "dist", weights=model, allow_dirty=True)
    assert (folder / "models/model_decoder.pt").read_bytes() == b"weights"
    assert [result.status for result in run_checks(Release(folder, ROOT), ["F4"])] == [Status.OK]


def test_what_is_no_earlier_release_is_not_replaced(repository: Path) -> None:
    (repository / "dist" / NAME).mkdir(parents=True)
    (repository / "dist" / NAME / "thesis.txt").write_text("ten years")
    with pytest.raises(UserError, match="is not an earlier release"):
        release.build(repository, repository / "dist", weights=None)
    assert (repository / "dist" / NAME / "thesis.txt").exists()


def test_large_weights_go_by_an_address_which_monai_downloads(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = repository / "models/model.pt"
    monkeypatch.setattr(release, "LARGEST_FILE", 1000)
    with pytest.raises(UserError, match="--weights_url"):
        release.build(repository, tmp_path / "dist", weights=weights)

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments, directory=str(repository / "models"))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/model.pt"
        folder = release.build(repository, tmp_path / "dist", weights=weights, weights_url=url)
        assert not (folder / "models/model.pt").exists()
        assert {result.status for result in run_checks(Release(folder, ROOT), ["F4", "F5", "F7"])} == {Status.OK}
        download_large_files(str(folder))
    finally:
        server.shutdown()
        server.server_close()
    assert (folder / "models/model.pt").read_bytes() == weights.read_bytes()


def test_without_weights_what_needs_them_is_not_checked(repository: Path) -> None:
    folder = release.build(repository, repository / "dist", weights=None)
    assert not (folder / "models").exists()
    results = {
        result.id: result.status for result in run_checks(Release(folder, ROOT, with_weights=False), ["F4", "F1"])
    }
    assert results == {"F4": Status.NOT_CHECKED, "F1": Status.OK}
    assert run_checks(Release(folder, ROOT), ["F4"])[0].status is Status.WRONG


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """A change of one text in a file of the folder."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        (folder / file).write_text(text.replace(old, new))

    return change


def metadata(**values: object) -> Callable[[Path], None]:
    """A change of top-level keys of the metadata; None removes one."""

    def change(folder: Path) -> None:
        file = folder / "configs/metadata.json"
        content = {**json.loads(file.read_text()), **values}
        content = {key: value for key, value in content.items() if value is not None}
        file.write_text(json.dumps(content, indent=4) + "\n")

    return change


def nested_weights(folder: Path) -> None:
    content = torch.load(folder / "models/model.pt", weights_only=True)
    torch.save({"model": content}, folder / "models/model.pt")
    about = json.loads((folder / "models/model.json").read_text())
    about["sha256"] = hashlib.sha256((folder / "models/model.pt").read_bytes()).hexdigest()
    (folder / "models/model.json").write_text(json.dumps(about, indent=4) + "\n")


def published(*names: str) -> Callable[[Path], None]:
    return lambda folder: (folder.parent / "model_info.json").write_text(json.dumps({name: {} for name in names}))


def large_file(**entry: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))


VERSION = json.loads((ROOT / "configs/metadata.json").read_text())["version"]
PRED = '"channel_def": {\n                    "0": "feature"'
BREAKS: list[tuple[str, Callable[[Path], object]]] = [
    ("F1", lambda folder: (folder / "LICENSE").rename(folder / "LICENSE.txt")),
    ("F2", lambda folder: (folder / "configs/metadata.json").write_text("{")),
    ("F3", edit("configs/inference.json", '"sw_batch_size": 4', '"sw_batch_size": 5')),
    ("F4", lambda folder: (folder / "models/model.pt").unlink()),
    ("F4", nested_weights),
    ("F4", lambda folder: (folder / "models/model_decoder.pt").write_bytes(b"another model's")),
    ("F5", lambda folder: (folder / "models/model.pt").unlink()),
    ("F6", lambda folder: os.truncate(folder / "docs/figures/panel.png", 26_000_000)),
    ("F7", large_file(path="models/other.pt", url="https://example.org/other.pt", hash_val="0" * 32, hash_type="md4")),
    ("F7", large_file(path="models/other.pt", url="https://example.org/other.pt")),
    ("F8", edit("docs/README.md", "**Limitations**", "Good to know")),
    ("F9", lambda folder: (folder / "docs/data_license.txt").write_text("Take them.\n")),
    ("F10", edit("configs/logging.conf", "class=StreamHandler", "class=os.system")),
    ("F11", edit("configs/preset_dev.yaml", "epochs: 3", "epochs: 3\ncache_dir: /home/jane/cache")),
    ("F12", edit("docs/README.md", "TensorRT", "another")),
    ("N1", lambda folder: folder.rename(folder.with_name("sparse_mim"))),
    ("N2", lambda folder: folder.rename(folder.with_name("ct_mr_pretraining_v2"))),
    ("N3", published("ct_mr_sparse_mim_v0.1.0")),
    ("V1", metadata(version="0.9.9")),
    ("V2", published(f"{NAME}_v{VERSION}")),
    ("V3", metadata(monai_version="1.9.9")),
    ("V3", metadata(version="0.10.0", changelog={"0.10.0": ""})),
    ("M1", metadata(authors=None)),
    ("M2", edit("configs/metadata.json", '"num_channels": 64', '"num_channels": "64"')),
    ("M3", metadata(references="none")),
    ("M4", metadata(schema="https://example.org/meta_schema_20240725.json")),
    ("M5", metadata(required_packages_version={"nibabel": ">=5"})),
    ("M6", metadata(supported_apps={"vista": {}})),
    ("M7", edit("configs/metadata.json", '"pred": {', '"features": {')),
    ("M7", edit("configs/metadata.json", PRED, PRED.replace('"feature"', "0"))),
    ("M8", edit("configs/metadata.json", '"32*n"', '"n"')),
    ("C1", edit("configs/inference.yaml", "\noutput_dir:", "\nresults:")),
    ("C2", edit("configs/inference.yaml", "\nevaluator:", "\nengine:")),
    ("C3", edit("configs/train.yaml", "\noutput_dir:", "\nresults:")),
    ("C4", edit("configs/finetune_segmentation.yaml", "inferer: {_target_: monai.inferers.SimpleInferer}", "x: 1")),
    ("C5", edit("configs/train.yaml", 'interval: "@val_interval"', "interval: 1")),
    ("C5", edit("configs/evaluate.yaml", "validate#evaluator#network:", "validate#evaluator#inferer:")),
    ("C6", edit("configs/train.yaml", 'transform: "@train#preprocessing"', 'transform: "@prepare"')),
    ("C7", edit("configs/train.yaml", "{_target_: ValidationHandler,", "{_target_: monai.handlers.ValidationHandler,")),
    ("C8", edit("configs/inference.yaml", 'run: "%inference"', "")),
    ("B3", lambda folder: folder.rename(folder.with_name("another_name"))),
    ("S1", edit("bundle/errors.py", "import os\n", "import os, re\n")),
    ("S2", edit("configs/preset_dev.yaml", "epochs: 3\n", "epochs: 3 \n")),
    ("S2", lambda folder: (folder / "configs/preset_dev.json").write_text("{}")),
    ("S2", lambda folder: (folder / "docs/a.md").write_bytes(b"a\r\n")),
    ("R1", lambda folder: (folder / "eval").mkdir()),
    ("R1", lambda folder: (folder / "bundle/__pycache__").mkdir()),
    ("R2", lambda folder: (folder / "docs/reference/data_formats.md").unlink()),
    ("R3", edit("configs/train.yaml", "epochs: 100", "epochs: 101")),
    ("R4", edit("configs/inference.yaml", "init_filters", "init_filter")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), BREAKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BREAKS)])
def test_a_broken_assertion_is_found(released: Released, tmp_path: Path, name: str, change) -> None:
    folder = Path(shutil.copytree(released.folder, tmp_path / "zoo" / NAME))
    change(folder)
    (found,) = (path for path in folder.parent.iterdir() if path.is_dir())  # a change may give it another name
    listed = tmp_path / "zoo/model_info.json"
    (result,) = run_checks(Release(found, ROOT, listed if listed.exists() else None), [name])
    assert result.status is Status.WRONG and "\n" not in result.remark, result


def test_wrong_shapes_and_weights_are_found_by_monais_own_commands(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_checks, "subprocess", SimpleNamespace(run=run_command))
    folder = Path(shutil.copytree(released.folder, tmp_path / NAME))
    edit("configs/metadata.json", '"num_channels": 64', '"num_channels": 65')(folder)
    nested_weights(folder)
    shapes, export = run_checks(Release(folder, ROOT), ["B1", "B2"])
    assert shapes.status is export.status is Status.WRONG
    assert "65" in shapes.remark


def test_every_assertion_is_broken_by_a_test() -> None:
    elsewhere = {"B1", "B2"}
    assert {name for name, _ in BREAKS} | elsewhere == set(known_ids()) - {"S3"}  # which is about commits


def test_the_command_checks_a_folder_and_fails_in_one_line_each(released: Released, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released.folder, tmp_path / NAME))
    (folder / "runs").mkdir()
    line = [sys.executable, str(ROOT / "scripts/zoo/release.py"), "--check", str(folder)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "R1  WRONG" in done.stdout and "runs is not part of a release" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("wrong: R1")
    assert not (folder / "bundle/__pycache__").exists()
