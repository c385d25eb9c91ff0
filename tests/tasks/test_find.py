# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from bundle.data import find_volumes
from bundle.errors import UserError
from bundle.evaluation import read_table
from bundle.tasks.classification import find_findings
from bundle.tasks.detection import find_boxes
from bundle.tasks.segmentation import find_segmentations


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def write_list(folder: Path, **content) -> Path:
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def labels(volumes) -> dict[str, str]:
    return {volume.name: volume.annotations["label"] for volume in volumes}


@pytest.mark.parametrize(("images", "maps"), [("imagesTr", "labelsTr"), ("images", "labels")])
def test_a_volume_and_its_label_map_have_one_name_in_two_folders(tmp_path: Path, images: str, maps: str):
    touch(tmp_path, f"{images}/b.nii.gz", f"{images}/a.nrrd", f"{maps}/b.nii.gz", f"{maps}/a.nii.gz")
    touch(tmp_path, f"{images}/._b.nii.gz", "imagesTs/c.nii.gz")
    volumes = find_segmentations(tmp_path)
    assert [volume.name for volume in volumes] == ["a.nrrd", "b.nii.gz"]
    assert labels(volumes) == {n: str(tmp_path / maps / f"{n[0]}.nii.gz") for n in ("a.nrrd", "b.nii.gz")}
    assert [volume.files for volume in volumes] == [(str(tmp_path / images / n),) for n in ("a.nrrd", "b.nii.gz")]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a.nii.gz", "a_seg.nii.gz", "b.mha", "b-label.nrrd"], {"a.nii.gz": "a_seg.nii.gz", "b.mha": "b-label.nrrd"}),
        (["p/p_4d.nii.gz", "p/p_1.nii.gz", "p/p_1_gt.nii.gz"], {"p/p_1.nii.gz": "p/p_1_gt.nii.gz"}),
        (["1/ct.nii.gz", "1/mask.nii.gz", "2/mr.nii.gz", "2/mask.nii.gz"],
         {"1/ct.nii.gz": "1/mask.nii.gz", "2/mr.nii.gz": "2/mask.nii.gz"}),
        (["a-0.nii.gz", "a-0-seg.nii.gz", "a.nii.gz", "a-seg.nii.gz"],
         {"a-0.nii.gz": "a-0-seg.nii.gz", "a.nii.gz": "a-seg.nii.gz"}),
    ],
)  # fmt: skip
def test_label_maps_may_lie_beside_their_volumes(tmp_path: Path, files: list[str], found: dict[str, str]):
    touch(tmp_path, *files)
    volumes = find_segmentations(tmp_path)
    assert labels(volumes) == {name: str(tmp_path / label) for name, label in found.items()}
    assert all(volume.channels == () for volume in volumes)


def test_images_beside_one_label_map_are_its_channels_as_in_brats(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="bundle")
    names = ("BraTS-1", "BraTS-12")
    touch(tmp_path, *(f"{name}/{name}-{kind}.nii.gz" for name in names for kind in ("t2w", "seg", "t1c")))
    touch(tmp_path, "more/x_seg.nii.gz", "more/other.nii.gz")
    first, second = find_segmentations(tmp_path)
    assert (first.name, second.name) == ("BraTS-1/BraTS-1-t1c.nii.gz", "BraTS-12/BraTS-12-t1c.nii.gz")
    assert second.channels == ((str(tmp_path / "BraTS-12/BraTS-12-t2w.nii.gz"),),)
    assert second.annotations["label"] == str(tmp_path / "BraTS-12/BraTS-12-seg.nii.gz")
    assert "channels, in this order: -t1c, -t2w" in caplog.text
    assert "1 label maps have no image beside them" in caplog.text and "1 volumes have no label map" in caplog.text
    (tmp_path / "BraTS-12/BraTS-12-t2w.nii.gz").rename(tmp_path / "BraTS-12/BraTS-12-t2f.nii.gz")
    with pytest.raises(UserError, match=r"has the images -t1c, -t2w beside it, and .* has -t1c, -t2f: give each case"):
        find_segmentations(tmp_path)


def test_two_label_maps_beside_one_volume_are_refused(tmp_path: Path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "a_mask.nii.gz")
    with pytest.raises(UserError, match=r"a_mask\.nii\.gz and a_seg\.nii\.gz, two label maps of one scan: keep one"):
        find_segmentations(tmp_path)


def test_one_name_in_two_subfolders_is_two_volumes(tmp_path: Path):
    touch(tmp_path, *(f"{kind}/{who}/scan.nii.gz" for kind in ("imagesTr", "labelsTr") for who in ("p1", "p2")))
    found = labels(find_segmentations(tmp_path))
    assert found == {f"{who}/scan.nii.gz": str(tmp_path / f"labelsTr/{who}/scan.nii.gz") for who in ("p1", "p2")}


def test_the_numbers_of_nnunet_are_channels_of_one_volume(tmp_path: Path):
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTr/scan_2019.nii.gz", "labelsTr/scan_2019.nii.gz")
    write_list(tmp_path, channel_names={"0": "CT", "1": "CT"}, labels={"background": 0}, numTraining=2)
    first, second = find_segmentations(tmp_path)
    assert first.files == (str(tmp_path / "imagesTr/a_0000.nii.gz"),)
    assert first.channels == ((str(tmp_path / "imagesTr/a_0001.nii.gz"),),)
    assert first.annotations["label"] == str(tmp_path / "labelsTr/a.nii.gz") and first.modality == "CT"
    assert second.name == "scan_2019.nii.gz" and second.channels == ()


def test_a_label_map_that_is_not_there_is_found_missing_later(tmp_path: Path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/b.nii.gz")
    assert labels(find_segmentations(tmp_path)) == {"a.nii.gz": str(tmp_path / "labelsTr/a.nii.gz")}


@pytest.mark.parametrize("word", ["_seg", "-label", ".seg", "_Mask", "_labels"])
def test_a_word_may_stand_behind_the_name_of_a_label_map(tmp_path: Path, word: str):
    touch(tmp_path, "imagesTr/a.nii.gz", f"labelsTr/a{word}.nrrd", "imagesTr/b_0000.nii.gz", f"labelsTr/b{word}.nrrd")
    found = labels(find_segmentations(tmp_path))
    assert found == {
        "a.nii.gz": str(tmp_path / f"labelsTr/a{word}.nrrd"),
        "b_0000.nii.gz": str(tmp_path / f"labelsTr/b{word}.nrrd"),
    }


def test_the_label_map_of_the_very_name_counts_and_others_are_said(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels/a_seg.nii.gz", "labels/c.nii.gz")
    touch(tmp_path, "images/b.nii.gz", "labels/b_seg.nii.gz", "labels/b_mask.nii.gz")  # which of the two?
    for _ in range(2):
        found = labels(find_segmentations(tmp_path))
    assert found == {name: str(tmp_path / "labels" / name) for name in ("a.nii.gz", "b.nii.gz")}
    assert [record.message for record in caplog.records] == [
        "4 label maps in labels have no image of their name: they are not used"
    ]


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_two_files_of_one_name_are_refused_and_not_the_last_taken(tmp_path: Path, folder: str):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", f"{folder}/a.nrrd")
    with pytest.raises(UserError, match=f"{folder} holds a.nii.gz and a.nrrd, which have one name: keep one"):
        find_segmentations(tmp_path)


def test_two_masks_of_one_name_are_refused(tmp_path: Path):
    touch(tmp_path, "s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s1/segmentations/liver.nrrd")
    with pytest.raises(UserError, match=r"segmentations holds liver\.nii\.gz and liver\.nrrd, which have one name"):
        find_segmentations(tmp_path)


def test_totalsegmentators_layout_is_a_mask_of_each_structure(tmp_path: Path):
    masks = [f"{case}/segmentations/{name}.nii.gz" for case in ("s1", "s2") for name in ("liver", "heart_atrium")]
    touch(tmp_path, "s1/ct.nii.gz", "s2/mri.nii.gz", "meta.csv", *masks)
    one, two = find_segmentations(tmp_path)
    assert (one.name, one.files, one.modality) == ("s1/ct.nii.gz", (str(tmp_path / "s1/ct.nii.gz"),), "CT")
    assert (two.name, two.modality) == ("s2/mri.nii.gz", "MR")
    folder = tmp_path / "s2/segmentations"
    assert two.annotations["label"] == {n: str(folder / f"{n}.nii.gz") for n in ("liver", "heart_atrium")}


@pytest.mark.parametrize("images", [(), ("a.nii.gz", "b.nii.gz")])
def test_a_case_without_one_volume_is_one_line(tmp_path: Path, images: tuple[str, ...]):
    touch(tmp_path, "s1/segmentations/liver.nii.gz", *(f"s1/{image}" for image in images))
    with pytest.raises(UserError, match=f"s1 holds {len(images)} volumes beside segmentations/"):
        find_segmentations(tmp_path)


def test_a_list_may_name_a_mask_of_each_structure_or_their_folder(tmp_path: Path):
    touch(tmp_path, "m/liver.nii.gz", "m/spleen.nii.gz")
    training = [
        {"image": "a.nii.gz", "label": {"liver": "m/liver.nii.gz", "spleen": "m/spleen.nii.gz"}},
        {"image": "b.nii.gz", "label": "m"},
        {"image": "c.nii.gz", "label": ["l/c.nii.gz"]},
    ]
    found = labels(find_segmentations(write_list(tmp_path, training=training)))
    masks = {name: str(tmp_path / f"m/{name}.nii.gz") for name in ("liver", "spleen")}
    assert found == {"a.nii.gz": masks, "b.nii.gz": masks, "c.nii.gz": str(tmp_path / "l/c.nii.gz")}


def test_several_label_maps_for_one_volume_are_refused_and_not_the_first_taken(tmp_path: Path):
    listed = write_list(tmp_path, training=[{"image": "a.nii.gz", "label": ["l/one.nii.gz", "l/two.nii.gz"]}])
    with pytest.raises(UserError, match=r"lists 2 label maps for one volume, the first 'l/one\.nii\.gz'"):
        find_segmentations(listed)


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_list_names_volumes_parts_modalities_groups_and_channels(tmp_path: Path, as_folder: bool):
    training = [
        {"image": "./i/a.nii.gz", "label": "./l/a.nii.gz", "group": 7, "modality": "CT"},
        {"image": ["i/b0.nii.gz", "i/b1.nii.gz"], "label": "l/b.nii.gz"},
    ]
    listed = write_list(
        tmp_path, modality={"0": "MRI"}, training=training, validation=[{"image": "i/c.nrrd", "label": "l/c.nrrd"}]
    )
    a, b, c = find_segmentations(tmp_path if as_folder else listed)
    assert (a.group, a.modality, a.part) == ("7", "CT", "training")
    assert (b.modality, b.channels) == ("MR", ((str(tmp_path / "i/b1.nii.gz"),),))
    assert (c.part, c.modality, c.annotations) == ("validation", "MR", {"label": str(tmp_path / "l/c.nrrd")})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": [{"image": "a.nii.gz"}]}, "give objects with image, label"),
        ({"training": [{"image": "a.nii.gz", "label": 3}]}, "where a path belongs"),
        ({"training": [{"image": [], "label": "b"}]}, "where a path belongs"),
        ({"training": [{"image": "a", "label": "b"}], "validation": 1}, "'validation' that is no list"),
        ({"training": [{"image": "a", "label": {}}]}, "give one file for each class"),
        ({"training": [{"image": "a", "label": {"liver": 1}}]}, "where a path belongs"),
        ({"training": {}}, "has no list 'training'"),
        ({"training": []}, "holds no labelled volumes"),
        ({}, "holds no labelled volumes"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_line(tmp_path: Path, content: dict, said: str):
    write_list(tmp_path, **content)
    with pytest.raises(UserError, match=said):
        find_segmentations(tmp_path)


def test_a_damaged_list_is_one_line(tmp_path: Path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="is no readable json"):
        find_segmentations(tmp_path)


def write_table(folder: Path, *lines: str) -> None:
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def test_findings_are_read_with_what_is_not_known(tmp_path: Path):
    write_table(tmp_path, "image,edema,nodule,part,group,modality", "b.nii,1,,validation,p2,CT", "a.nii,0,1.0,,p1,")
    a, b = find_findings(tmp_path, ["nodule", "edema"])
    assert a.annotations["label"] == [1.0, 0.0] and a.part == "training" and (a.group, a.modality) == ("p1", "")
    assert math.isnan(b.annotations["label"][0]) and b.annotations["label"][1] == 1.0
    assert (b.part, b.group, b.modality) == ("validation", "p2", "CT")
    assert a.files == (str(tmp_path / "a.nii"),)


@pytest.mark.parametrize(
    "lines",
    [
        ("image\tedema\tnodule", "a.nii\t1\t0"),
        ("sep=;", "image;edema;nodule", "a.nii;1;0"),
        ("\ufeffimage, edema, nodule", " a.nii , 1, 0 ", " , , "),
    ],
)
def test_tables_as_spreadsheets_write_them_are_read(tmp_path: Path, lines: tuple[str, ...]):
    write_table(tmp_path, *lines)
    (volume,) = find_findings(tmp_path, ["nodule", "edema"])
    assert (volume.name, volume.annotations["label"]) == ("a.nii", [0.0, 1.0])
    assert read_table(tmp_path / "labels.csv", ["nodule"])[0]["edema"].strip() == "1"


def test_a_table_with_semicolons_is_read_too(tmp_path: Path):
    write_table(tmp_path, "image;ödem;größe", "a, b.nii;1;0")
    (volume,) = find_findings(tmp_path, ["größe", "ödem"])
    assert volume.annotations["label"] == [0.0, 1.0] and volume.files == (str(tmp_path / "a, b.nii"),)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("image,edema", "a.nii,2"), "line 2, column edema holds '2'"),
        (("image,edema", "a.nii,yes"), "line 2, column edema holds 'yes'"),
        (("image,nodule", "a.nii,1"), "has no column edema: its columns are image, nodule; one must be"),
        (("image,edema,part", "a.nii,1,testing"), "line 2: part 'testing'"),
        (("image,edema,edema", "a.nii,1,0"), "has two columns edema: remove one"),
        (("image,nodule",), "has no column edema: its columns are image, nodule; one must be"),
        (("image,edema", ","), "has no rows: add some"),
        (("image,edema,part", "a.nii,1,test"), "has no other rows than of its test part: add some"),
        (("image,edema,note", 'a.nii,1,"two', 'lines"', "b.nii,2,"), "line 4, column edema holds '2'"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path, lines: tuple[str, ...], said: str):
    write_table(tmp_path, *lines)
    with pytest.raises(UserError, match=said):
        find_findings(tmp_path, ["edema"])


def test_a_table_of_another_encoding_is_one_line(tmp_path: Path):
    (tmp_path / "labels.csv").write_bytes("image,edema\nJérôme.nii,1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.csv is no readable table .* UTF-8"):
        find_findings(tmp_path, ["edema"])


def test_a_path_that_no_file_can_have_is_a_volume_that_cannot_be_read_later(tmp_path: Path):
    for name in ("x" * 5000, "a\0b"):
        (volume,) = find_segmentations(write_list(tmp_path, training=[{"image": name, "label": name}]))
        assert volume.files == (str(tmp_path / name),)


def test_an_error_quotes_no_more_of_a_list_than_a_line(tmp_path: Path):
    with pytest.raises(UserError) as raised:
        find_segmentations(write_list(tmp_path, training=[{"image": "x" * 5000}]))
    assert len(str(raised.value)) < 500


def test_boxes_and_their_labels_are_read_and_checked(tmp_path: Path):
    box = [1, 2, 3, 4, 5, 6]
    write_list(
        tmp_path,
        training=[{"image": "b.nii", "box": [box], "label": [0]}],
        validation=[{"image": "a.nii", "box": [], "label": []}],
    )
    a, b = find_boxes(tmp_path)
    assert b.annotations == {"box": [box], "label": [0]} and a.annotations == {"box": [], "label": []}
    assert (a.part, b.part) == ("validation", "training")
    no_boxes = ([1, 2, 3, 4, 5, 0], [1, 2, 3], 7, None, [1, 2, 3, 4, 5, "6"], [1, 2, 3, 4, 5, float("nan")], "boxbox")
    for wrong, said in (
        ([box, box], "not one label for each box"),
        *(([one], "a box that is not") for one in no_boxes),
    ):
        write_list(tmp_path, training=[{"image": "b.nii", "box": wrong, "label": [0]}])
        with pytest.raises(UserError, match=said):
            find_boxes(tmp_path)


def names(volumes) -> list[tuple[str, str]]:
    return [(volume.name, volume.part) for volume in volumes]


def test_what_a_list_has_for_testing_is_seen_by_who_asks_for_it_only(tmp_path: Path):
    entry = {"label": "l.nii", "box": []}
    parts = {"training": [{"image": "a.nii", **entry}], "test": [{"image": "t.nii", **entry}]}
    file = write_list(tmp_path, **parts)
    assert names(find_segmentations(file)) == [("a.nii", "")]
    assert names(find_segmentations(file, "training")) == [("a.nii", "")]
    for part in ("test", "auto"):
        assert names(find_segmentations(file, part)) == [("t.nii", "test")]
    assert names(find_segmentations(file, "all")) == [("a.nii", ""), ("t.nii", "test")]
    assert names(find_volumes(file)) == [("a.nii", "")] and names(find_volumes(file, "auto")) == [("t.nii", "test")]
    with pytest.raises(UserError, match="no list 'validation'"):
        find_segmentations(file, "validation")
    with pytest.raises(UserError, match="--part 'testing' is not known"):
        find_segmentations(file, "testing")


def test_boxes_have_a_test_part(tmp_path: Path):
    file = write_list(tmp_path, training=[], test=[{"image": "t.nii", "box": [], "label": []}])
    assert names(find_boxes(file, "auto")) == [("t.nii", "test")]


def test_images_without_labels_as_the_test_of_the_msd_are_no_labelled_test_part(tmp_path: Path):
    file = write_list(tmp_path, training=[{"image": "a.nii", "label": "b.nii"}], test=["./imagesTs/t.nii"])
    for part in ("", "auto", "all"):
        assert names(find_segmentations(file, part)) == [("a.nii", "")]
    with pytest.raises(UserError, match="'test': give objects with image, label"):
        find_segmentations(file, "test")
    assert names(find_volumes(file, "auto")) == [("./imagesTs/t.nii", "test")]


def test_the_test_part_of_nnunets_folders_has_label_maps(tmp_path: Path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz", "imagesTs/c_0000.nii.gz")
    assert names(find_segmentations(tmp_path, "auto")) == [("a.nii.gz", "")]
    with pytest.raises(UserError, match="has no part 'test' with label maps"):
        find_segmentations(tmp_path, "test")
    touch(tmp_path, "labelsTs/b.nii.gz")
    assert names(find_segmentations(tmp_path)) == [("a.nii.gz", "")]
    assert names(find_segmentations(tmp_path, "auto")) == [("b_0000.nii.gz", "test")]
    assert names(find_segmentations(tmp_path, "all")) == [("a.nii.gz", ""), ("b_0000.nii.gz", "test")]


def test_rows_of_the_test_part_are_no_training_and_no_split(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("image,f,part\na.nii,1,\nb.nii,0,test\n")
    assert names(find_findings(tmp_path, ["f"])) == [("a.nii", "")]
    assert names(find_findings(tmp_path, ["f"], "auto")) == [("b.nii", "test")]
    assert names(find_findings(tmp_path, ["f"], "all")) == [("a.nii", ""), ("b.nii", "test")]
    with pytest.raises(UserError, match="no row of the part 'validation'"):
        find_findings(tmp_path, ["f"], "validation")


def test_a_folder_of_scans_has_no_parts(tmp_path: Path):
    touch(tmp_path, "a.nii")
    assert names(find_volumes(tmp_path, "auto")) == [("a.nii", "")]
    with pytest.raises(UserError, match="--part test needs a json"):
        find_volumes(tmp_path, "test")
