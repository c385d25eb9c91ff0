# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A model's files belong together: whoever reads one that `model.json` was not written for gets the same one line."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import export_model
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNetDS
from safetensors.torch import save_file

from bundle.errors import UserError, user_error_in
from bundle.export import plain_model
from bundle.networks import build_encoder
from bundle.runs import find_trained
from bundle.transfer import Transfer, load_decoder, load_encoder
from bundle.weights import ModelFiles, load_strictly, read_weights

ROOT = Path(__file__).parents[2]
ABOUT = json.loads((ROOT / "models/model.json").read_text())
SHIPPED = ["train.yaml", "preset_shipped.yaml"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped files in a bundle."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    return tmp_path / "models/model.pt"


def flip_a_bit(file: Path) -> None:
    """In the middle, which is inside a tensor."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def segresnet() -> SegResNetDS:
    arguments = {key: value for key, value in ABOUT["encoder"].items() if key != "name"}
    return SegResNetDS(out_channels=2, dsdepth=3, **arguments)


def into_a_segmentation_network(model: Path) -> None:
    load_encoder(segresnet(), model)


def into_its_decoder(model: Path) -> None:
    load_decoder(segresnet(), model)


def by_the_fine_tune_config(model: Path) -> None:
    Transfer(segresnet(), model, encoder=ABOUT["encoder"], pretrained_decoder=True)


def by_the_inference_config(model: Path) -> None:
    parser = ConfigParser()
    parser.read_config(ROOT / "configs/inference.yaml")
    parser.update({"weights": str(model), "device": "cpu"})
    parser.get_parsed_content("network")


def by_the_reconstruct_config(model: Path) -> None:
    _ = find_trained(configs=SHIPPED, bundle_root=model.parents[1]).network


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.pt", into_a_segmentation_network),
        ("model.pt", by_the_fine_tune_config),
        ("model.pt", by_the_inference_config),
        ("model.pt", by_the_reconstruct_config),
        ("model.pt", plain_model),
        ("model_decoder.pt", into_its_decoder),
        ("model_decoder.pt", by_the_fine_tune_config),
        ("model_decoder.pt", by_the_reconstruct_config),
    ],
)
def test_one_wrong_bit_is_the_same_line_for_every_reader(name: str, read: Callable[[Path], None], model: Path):
    read(model)  # as shipped
    flip_a_bit(model.with_name(name))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI's parser wraps it
        read(model)
    error = user_error_in(caught.value)
    assert str(error) == line(model.with_name(name))


def line(file: Path) -> str:
    return (
        f"{file} is not the file that model.json describes, it is damaged or of another model: copy both from one run "
        "folder, or download them again"
    )


def test_one_wrong_bit_is_that_line_for_the_command_too(model: Path, capsys: pytest.CaptureFixture[str]):
    flip_a_bit(model)
    assert export_model.main([str(model), "--formats", "safetensors"]) == 1
    assert capsys.readouterr().err == f"error: {line(model)}\n"


def test_a_decoder_that_the_json_does_not_name_is_another_models(model: Path):
    about = {key: value for key, value in ABOUT.items() if key != "decoder_sha256"}
    model.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=re.escape(line(model.with_name("model_decoder.pt")))):
        load_decoder(segresnet(), model)


def test_without_a_json_a_decoder_may_be_another_models(model: Path):
    model.with_suffix(".json").unlink()
    assert load_encoder(segresnet(), model).share == 1
    with pytest.raises(UserError, match=r"model\.json does not exist, so .*model_decoder\.pt may be another encoder's"):
        load_decoder(segresnet(), model)


def test_a_json_without_checksums_checks_nothing(model: Path):
    about = {key: value for key, value in ABOUT.items() if "sha256" not in key}
    model.with_suffix(".json").write_text(json.dumps(about))
    for file in (model, model.with_name("model_decoder.pt")):
        flip_a_bit(file)
    assert load_encoder(segresnet(), model).share == 1
    assert load_decoder(segresnet(), model) is not None


def test_an_export_to_safetensors_beside_the_json_is_not_compared_with_it(model: Path):
    save_file(torch.load(model, weights_only=True), model.with_suffix(".safetensors"))
    assert load_encoder(segresnet(), model.with_suffix(".safetensors")).share == 1


# ---- write and copy --------------------------------------------------------------------------------------------------


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 3), value), "b": torch.tensor(value)}


def test_what_is_written_is_read_back_with_settings_and_checksums(tmp_path: Path):
    files = ModelFiles(tmp_path / "run/model.pt")
    files.write(weights(1), {"spacing": [1, 1, 2], "where": tmp_path}, weights(2))
    assert torch.equal(files.read_weights()["a"], weights(1)["a"])
    assert torch.equal(files.read_decoder()["a"], weights(2)["a"])
    settings = files.read_settings()
    assert settings is not None and settings.spacing == [1, 1, 2]
    assert settings.content["where"] == str(tmp_path) and settings.content["versions"]["torch"] == torch.__version__
    assert settings.sha256 == hashlib.sha256(files.weights.read_bytes()).hexdigest()
    assert settings.decoder_sha256 == hashlib.sha256(files.decoder.read_bytes()).hexdigest()
    files.verify_weights()
    files.verify_decoder()


def test_a_write_that_fails_leaves_every_file_as_it_was(tmp_path: Path):
    files = ModelFiles(tmp_path / "model.pt")
    files.write(weights(1), {}, weights(2))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(AttributeError):
        files.write(weights(3), {}, {"a": "no tensor"})  # type: ignore[dict-item]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_decoder_never_stays_with_another_model(tmp_path: Path):
    files, other = ModelFiles(tmp_path / "model.pt"), ModelFiles(tmp_path / "other.pt")
    files.write(weights(1), {}, weights(2))
    other.write(weights(3), {})
    assert not other.decoder.exists()
    copies = other.copy_to(files.weights)
    assert not files.decoder.exists() and torch.equal(copies.read_weights()["a"], weights(3)["a"])
    copies.verify_decoder()
    files.write(weights(1), {}, weights(2))
    files.write(weights(4), {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.pt", "other.json", "other.pt"]


def test_a_copy_holds_what_the_original_does(tmp_path: Path):
    files = ModelFiles(tmp_path / "model.pt")
    files.write(weights(1), {"epochs": 3}, weights(2))
    copies = files.copy_to(tmp_path / "elsewhere/published.pt")
    for source, copy in ((files.weights, "published.pt"), (files.settings, "published.json")):
        assert (tmp_path / "elsewhere" / copy).read_bytes() == source.read_bytes()
    assert copies.decoder.name == "published_decoder.pt"
    copies.verify_weights()
    copies.verify_decoder()


def test_a_decoder_that_is_named_and_missing_is_an_error_of_one_line(tmp_path: Path):
    files = ModelFiles(tmp_path / "model.pt")
    files.write(weights(1), {}, weights(2))
    files.decoder.unlink()
    with pytest.raises(UserError, match=r"model_decoder\.pt is missing: copy it beside model\.pt"):
        files.verify_decoder()


def test_nothing_in_a_file_is_executed(tmp_path: Path):
    torch.save({"weights": csv.Dialect}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="more than tensors"):
        read_weights(tmp_path / "model.pt")


def test_a_plain_encoder_reads_what_was_written(tmp_path: Path):
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1))
    files = ModelFiles(tmp_path / "model.pt")
    files.write(encoder.network_state_dict(), {"encoder": encoder.settings})
    assert plain_model(files.weights).network.channels == [4, 8]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float):
    torch.save(weights(1) | {"bad.weight": torch.tensor([1.0, value])}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model.pt holds NaN or infinite values, in bad.weight: .*\.?") as caught:
        read_weights(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_training_libraries_put_before_every_name_is_left_out(tmp_path: Path, prefix: str):
    torch.save({f"{prefix}{name}": value for name, value in weights(1).items()}, tmp_path / "model.pt")
    assert read_weights(tmp_path / "model.pt").keys() == weights(1).keys()


@pytest.mark.parametrize("prefix", ["model.", "encoder.", "backbone.", "model.encoder."])
def test_a_whole_network_loads_from_below_a_wrapper(tmp_path: Path, prefix: str):
    network = segresnet()
    torch.save({f"{prefix}{name}": value + 1 for name, value in network.state_dict().items()}, tmp_path / "model.pt")
    loaded = load_strictly(segresnet(), tmp_path / "model.pt").state_dict()
    assert all(torch.equal(loaded[name], value + 1) for name, value in network.state_dict().items())


def test_the_same_weights_are_the_same_bytes_whenever_and_wherever_they_are_written(tmp_path: Path):
    for name in ("one", "two"):
        ModelFiles(tmp_path / name / "model.pt").write(weights(1), {})
    assert (tmp_path / "one/model.pt").read_bytes() == (tmp_path / "two/model.pt").read_bytes()
