# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import yaml
from ignite.engine import Engine
from monai.bundle import ConfigParser

from bundle.runs.folder import RunFolder
from bundle.training.record import RecordConfig


def start(tmp_path, **settings):
    config = {"_meta_": {"version": "0"}, "record": {"_target_": "bundle.training.RecordConfig"}, **settings}
    parser = ConfigParser(config)
    parser["record#run_folder"] = RunFolder(tmp_path)
    record: RecordConfig = parser.get_parsed_content("record")
    engine = Engine(lambda *_: None)
    record.attach(engine)
    engine.run([0])


def test_the_merged_config_is_kept_and_other_settings_get_a_file_of_their_own(tmp_path):
    start(tmp_path, epochs=3, lr="$1 / 3")
    start(tmp_path, epochs=3, lr="$1 / 3")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    start(tmp_path, epochs=3, lr="$1 / 3", resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"], "the same command with --resume"
    start(tmp_path, epochs=5, lr="$1 / 3")
    kept = [yaml.safe_load((tmp_path / name).read_text()) for name in ("config.yaml", "config_2.yaml")]
    assert [config["epochs"] for config in kept] == [3, 5]
    assert kept[0]["lr"] == "$1 / 3"
    assert "_meta_" not in kept[0]


def test_an_object_that_python_put_into_the_config_is_kept_as_text(tmp_path):
    start(tmp_path, where=tmp_path / "x")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["where"] == str(tmp_path / "x")
