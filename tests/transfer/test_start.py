# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A pre-training goes on from weights, or says in one line why not; the new weights say where they come from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import Decoder, EncoderDepthPairs, PretrainingNetwork, SegResDecoder, build_encoder
from bundle.transfer import load_encoder, load_start, origin
from bundle.weights import ModelFiles, checksum, name_foreign_network
from tests.networks.encoder_cases import CASES

SEGRES = {"name": "SegResEncoder", "init_filters": 4, "blocks_down": [1, 1, 1], "norm": "instance"}


def network(seed: int, *, segres: bool = True, teacher: bool = False, **encoder) -> PretrainingNetwork:
    torch.manual_seed(seed)
    made = build_encoder(**{**SEGRES, **encoder})
    decoder = SegResDecoder(encoder=made) if segres else Decoder(levels=made.levels, width=8)
    heads = EncoderDepthPairs(levels=made.levels, dim=8) if teacher else None
    return PretrainingNetwork(encoder=made, decoder=decoder, alignment=heads, teacher_momentum=0.9 if teacher else None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that pre-trained encoder and decoder."""
    trained = network(1)
    ModelFiles(tmp_path / "run/model.pt").write(
        trained.encoder_state_dict(),
        {"encoder": SEGRES, "licence": "Apache-2.0", "version": "0.2.0", "volumes": {"training": {"CT": 3}}},
        trained.decoder_state_dict(),
    )
    return tmp_path / "run"


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_encoder_and_decoder_of_a_run_are_loaded(run: Path):
    trained, started = network(1), load_start(network(2), run)
    assert same(started.encoder, trained.encoder) and same(started.decoder, trained.decoder)


def test_the_file_may_be_named_instead_of_the_folder(run: Path):
    assert same(load_start(network(2), run / "model.pt").encoder, network(1).encoder)


def test_without_weights_nothing_changes():
    assert same(load_start(network(2), None), network(2))


def test_another_decoder_starts_at_random_and_that_is_said(run: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        started = load_start(network(2, segres=False), run)
    assert same(started.encoder, network(1).encoder) and same(started.decoder, network(2, segres=False).decoder)
    assert "is of another decoder" in caplog.text


def test_the_teacher_begins_as_a_copy_of_what_was_loaded(run: Path):
    started = load_start(network(2, teacher=True), run)
    assert started.teacher is not None
    assert same(started.teacher._averaged["encoder"], network(1).encoder)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"init_filters": 8}, r"missing or have another shape, such as .* -> "),
        ({"blocks_down": [1, 1, 2]}, "6 of 27 tensors are missing or have another shape, such as layers.2.blocks.1"),
        ({"in_channels": 2, "init_filters": 8}, r"21 of 21 tensors .* such as conv_init.weight \[4, 1, 3, 3, 3\] -> "),
    ],
)
def test_another_encoder_is_one_line_and_the_network_is_untouched(encoder, message, run: Path):
    other = network(2, **encoder)
    with pytest.raises(UserError, match=message):
        load_start(other, run)
    assert same(other, network(2, **encoder))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("module.backbone.swinViT.patch_embed.proj.weight", "a Swin transformer"),
        ("module.layers1.0.blocks.0.attn.qkv.weight", "a Swin transformer"),
        ("encoder.layers1.0.0.blocks.0.attn.qkv.weight", "a Swin transformer"),
        ("vit.blocks.0.attn.qkv.weight", "a vision transformer"),
        ("module.down_tr64.ops.0.conv1.weight", "the UNet3D of Models Genesis"),
        ("conv_blocks_context.0.0.conv1.weight", "STU-Net or an nnU-Net of version 1"),
    ],
)
def test_a_network_that_no_encoder_here_is_is_named(key: str, said: str, tmp_path: Path):
    torch.save({key: torch.ones(4, 1, 3, 3, 3), "out.bias": torch.ones(1)}, tmp_path / "theirs.pt")
    for load in (lambda: load_start(network(2), tmp_path / "theirs.pt"),
                 lambda: load_encoder(network(2).encoder.network, tmp_path / "theirs.pt")):  # fmt: skip
        with pytest.raises(UserError, match=rf"theirs.pt is of {said}.*, which no encoder here is: take other"):
            load()


def test_no_encoder_here_is_taken_for_a_network_of_others() -> None:
    for name, case in CASES.items():
        assert not name_foreign_network(build_encoder(case.name, **case.arguments).network_state_dict()), name


def test_a_users_network_gets_the_weights_of_its_kind_whatever_it_is(tmp_path: Path):
    theirs = torch.nn.ModuleDict({"swinViT": torch.nn.Conv3d(1, 2, 1)})
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert load_encoder(theirs, tmp_path / "theirs.pt").share == 1


@pytest.mark.parametrize(
    ("trained", "configured", "example"),
    [
        ({"norm": "batch"}, {"norm": ["instance", {"affine": True}]}, r"layers.0.blocks.0.norm1.running_mean"),
        ({"blocks_down": [1, 2, 1]}, {}, "layers.1.blocks.1"),
        ({"blocks_down": [1, 1, 1, 1]}, {}, "layers.2.downsample"),
    ],
    ids=["running statistics", "blocks", "levels"],
)
def test_an_encoder_with_more_than_this_one_has_is_one_line(trained, configured, example, tmp_path: Path):
    torch.save(network(1, **trained).encoder_state_dict(), tmp_path / "theirs.pt")
    other = network(2, **configured)
    with pytest.raises(UserError, match=rf"holds more of the encoder than this one has: .* such as {example}.*; give"):
        load_start(other, tmp_path / "theirs.pt")
    assert same(other, network(2, **configured))


@pytest.mark.parametrize("wrapper", ["", "model.", "module.encoder."])
def test_a_decoder_and_heads_in_the_file_are_left(wrapper: str, tmp_path: Path):
    """A further block of the decoder is no further block of the encoder."""
    trained = network(1, segres=False, name="SegResNet", blocks_up=[1, 1])
    whole = {**trained.encoder.network.state_dict(), "class_head.weight": torch.ones(2)}
    whole["up_layers.0.1.conv1.conv.weight"] = torch.ones(8, 8, 3, 3, 3)
    torch.save({f"{wrapper}{key}": value for key, value in whole.items()}, tmp_path / "theirs.pt")
    started = load_start(network(2, segres=False, name="SegResNet", blocks_up=[1, 1]), tmp_path / "theirs.pt")
    assert same(started.encoder, trained.encoder)


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1), (2, 4)])
def test_another_number_of_images_per_scan_gives_the_same_features_of_the_same_image(
    given: int, wanted: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trained = network(1, in_channels=given)
    stem = trained.encoder.network.get_parameter("conv_init.weight")
    stem.data = stem.data.mean(1, keepdim=True).repeat(1, given, 1, 1, 1)  # all images count alike
    ModelFiles(tmp_path / "model.pt").write(trained.encoder_state_dict(), {"encoder": {**SEGRES, "in_channels": given}})
    started = load_start(network(2, in_channels=wanted), tmp_path)
    image = torch.rand(1, 1, 8, 8, 8)
    same_image = [image.repeat(1, count, 1, 1, 1) for count in (given, wanted)]
    for before, after in zip(trained.encoder(same_image[0]), started.encoder(same_image[1]), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert f"conv_init.weight is adapted, {given} -> {wanted} input channels" in caplog.text


def test_a_decoder_that_differs_in_its_last_layer_alone_is_taken_but_for_that(run: Path):
    other = network(2)
    last = other.decoder.up_layers[-1]["head"] = torch.nn.Conv3d(4, 3, kernel_size=1)
    fresh = last.weight.clone()
    started, trained = load_start(other, run).decoder.state_dict(), network(1).decoder.state_dict()
    assert torch.equal(last.weight, fresh)
    assert all(torch.equal(started[key], trained[key]) for key in started if ".head." not in key)


def test_the_encoder_of_the_weights_is_built_whatever_the_config_says(run: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        made = build_encoder("SegResEncoder", init_from=run, init_filters=16)
    assert made.settings == SEGRES
    assert "the encoder is that of --init_from" in caplog.text


@pytest.mark.parametrize(("wanted", "count"), [({}, 1), ({"in_channels": 2}, 2)])
def test_the_number_of_images_is_the_configurations(tmp_path: Path, wanted: dict[str, int], count: int):
    of_four = network(1, in_channels=4)
    ModelFiles(tmp_path / "model.pt").write(of_four.encoder_state_dict(), {"encoder": {**SEGRES, "in_channels": 4}})
    made = build_encoder("SegResEncoder", init_from=tmp_path, init_filters=16, **wanted)
    assert made.settings == {**SEGRES, "in_channels": count}
    assert made.network.conv_init.weight.shape[:2] == (4, count)


def test_from_scratch_the_licence_is_ours_and_there_is_no_origin():
    assert origin(None) == {"licence": "Apache-2.0"}


def test_the_chain_of_origin_grows_by_a_step_each_time(run: Path, tmp_path: Path):
    first = origin(run)
    assert first["licence"] == "Apache-2.0"
    assert [step["sha256"] for step in first["origin"]] == [checksum(run / "model.pt")]
    assert first["origin"][0]["volumes"] == {"training": {"CT": 3}}
    second = tmp_path / "second/model.pt"
    ModelFiles(second).write(network(3).encoder_state_dict(), {"encoder": SEGRES, **first})
    chain = origin(second)["origin"]
    assert [step["sha256"] for step in chain] == [checksum(run / "model.pt"), checksum(second)]


def test_a_step_says_which_scans_it_has_seen(run: Path, tmp_path: Path):
    seen = {"training": ["1"], "validation": ["2"]}
    file = tmp_path / "tuned/model.pt"
    ModelFiles(file).write(network(3).encoder_state_dict(), {"encoder": SEGRES, "fingerprints": seen, **origin(run)})
    first, second = origin(file)["origin"]
    assert "fingerprints" not in first and second["fingerprints"] == seen


def test_another_licence_stays_with_what_is_made_of_it(run: Path, tmp_path: Path):
    file = tmp_path / "theirs/model.pt"
    ModelFiles(file).write(network(3).encoder_state_dict(), {"encoder": SEGRES, "licence": "CC BY-SA 4.0"})
    made = origin(file)
    assert made["licence"] == "that of the weights it began with: CC BY-SA 4.0"
    assert made["origin"][0]["licence"] == "CC BY-SA 4.0"
    second = tmp_path / "second/model.pt"
    ModelFiles(second).write(network(4).encoder_state_dict(), {"encoder": SEGRES, **made})
    assert origin(second)["licence"] == made["licence"]  # said once, however long the chain


def test_a_fine_tuned_model_names_the_licence_of_what_it_began_with_and_claims_none_of_its_own(run: Path, tmp_path):
    assert origin(None, licence=None) == {"licence": None}
    made = origin(run, licence=None)
    assert made["licence"] == "that of the weights it began with: Apache-2.0"
    assert [step["licence"] for step in made["origin"]] == ["Apache-2.0"]
    second = tmp_path / "second/model.pt"  # fine-tuned from scratch
    ModelFiles(second).write(network(4).encoder_state_dict(), {"encoder": SEGRES, **origin(None, licence=None)})
    assert origin(second, licence=None)["licence"] == "that of the weights it began with: not known"
    with pytest.raises(UserError, match="does not exist"):
        origin(tmp_path / "nothing.pt")


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        load_start(network(2), tmp_path / "nothing.pt")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_quantised_weights_are_one_line_and_no_start(part: str, run: Path):
    files = ModelFiles(run)
    encoder, decoder = files.read_encoder(), files.read_decoder()
    whole = {key: (100 * value).to(torch.int8) for key, value in (encoder if part == "encoder" else decoder).items()}
    about = files.read_settings()
    assert about is not None
    files.write(whole if part == "encoder" else encoder, about.content, whole if part == "decoder" else decoder)
    with pytest.raises(UserError, match=r"holds int8 values in .*, where the network has float32"):
        load_start(network(1), run)
