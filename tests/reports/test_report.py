# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page as a file: what is in it, that nothing in it acts, and how large it is."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL import Image

from bundle.errors import UserError
from bundle.reports import Case, Report
from bundle.reports.command import command_line
from bundle.reports.page import _STATIC

NASTY = "<script>alert('a')</script>\"&\u202e\udcff\x1b[31m --><img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def case(name="a", size=20, **more):
    scan = noise(size, size, size).astype(np.float32)
    return Case(name, scan, np.eye(4), {"prediction": np.indices(scan.shape)[0] // (size // 2)}, **more)


def test_names_cannot_add_an_element(tmp_path):
    def page(text):
        report = Report(text, lead=text)
        section = report.section(text).paragraph(text).facts({text: text}).bullets([text]).code(text)
        section.table([text], [[text]], caption=text).picture(noise(8, 8, 3), caption=text, alt=text)
        section.viewer([case(text, note=text)], classes={text: 1})
        return Elements(report.write(tmp_path / "report.html").read_text())

    plain, nasty = page("p" * len(NASTY)), page(NASTY)
    assert [tag for tag, _ in nasty.found] == [tag for tag, _ in plain.found]
    assert [sorted(attributes) for _, attributes in nasty.found] == [sorted(a) for _, a in plain.found]
    assert "<script>alert('a')</script>" in nasty.text, "it is shown as it is"
    assert "\\u202e" in nasty.text and "\\udcff" in nasty.text and "\\x1b" in nasty.text


def test_nothing_is_loaded_and_only_its_own_scripts_may_run(tmp_path):
    report = Report("a")
    report.section("b").picture(noise(8, 8, 3)).viewer([case()], classes={"x": 1})
    page = Elements(report.html())
    addresses = [value for _, a in page.found for name, value in a.items() if name in ("src", "href", "srcset", "data")]
    assert len(addresses) >= 3 and all(one.startswith(("data:", "#")) for one in addresses)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "http" not in policy and "unsafe-eval" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", report.html(), flags=re.DOTALL)
    code = gzip.decompress((_STATIC / "niivue.umd.js.gz").read_bytes())
    sums = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in (script.encode(), code)]
    assert [f"'sha256-{one}'" in policy for one in sums] == [True, True]


def test_the_viewer_is_the_file_of_the_package_that_is_named_with_its_licence():
    code = gzip.decompress((_STATIC / "niivue.umd.js.gz").read_bytes())
    about = (_STATIC / "niivue_licenses.txt").read_text()
    assert hashlib.sha256(code).hexdigest() in about
    assert "BSD 2-Clause License" in about and "Niivue" in about
    report = Report("a")
    report.section("b").viewer([case()], classes={"x": 1})
    assert about in report.html(), "a page with the code has the licence, too"


def test_a_page_without_a_viewer_does_not_carry_it():
    report = Report("a")
    report.section("b").paragraph('class="viewer"')
    assert len(report.html()) < 30_000


def test_contents_link_to_the_sections_and_folded_ones_are_closed():
    report = Report("Title")
    report.section("One")
    report.section("Two", folded=True)
    page = Elements(report.html())
    assert [a["href"] for a in page.all("a")] == ["#s1", "#s2"]
    assert [a["id"] for a in page.all("section")] == ["s1", "s2"]
    assert ["open" in a for a in page.all("details")] == [True, False]


def test_a_figure_is_a_drawing_without_a_date_and_a_file_is_only_its_pixels(tmp_path):
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    pixels = noise(30, 40, 3)
    imsave(tmp_path / "a.png", pixels, metadata={"Author": "Doe^John"})
    report = Report("a")
    report.section("b").picture(figure).picture(tmp_path / "a.png", caption="pixels")
    drawing, picture = (base64.b64decode(a["src"].partition(",")[2]) for a in Elements(report.html()).all("img"))
    assert b"<svg" in drawing and b"<dc:date>" not in drawing
    assert b"Doe" in (tmp_path / "a.png").read_bytes() and b"Doe" not in picture
    assert (np.asarray(Image.open(io.BytesIO(picture))) == pixels).all()


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"a\.png is no picture that can be shown: give"):
        Report("a").section("b").picture(tmp_path / "a.png")


def test_the_page_stays_below_its_limit_and_says_what_it_leaves_out(tmp_path):
    report = Report("a", max_megabytes=4)
    pictures, viewer = report.section("pictures"), report.section("viewer")
    for number in range(6):
        pictures.picture(noise(300, 400, 3), caption=f"number {number}")
    viewer.viewer((case(f"case {n}", 60) for n in range(5)), classes={"x": 1}, count=5)
    viewer.table(["a", "b"], [[n, "x" * 8000] for n in range(400)], file="all.csv")
    path = report.write(tmp_path / "report.html")
    assert 3_000_000 < path.stat().st_size <= 4_000_000
    text = Elements(path.read_text()).text
    assert "A picture is left out, because the page would be too large: number 5" in text
    assert re.search(r"[1-4] of 5 cases are not in the viewer", text)
    assert re.search(r"The first \d+ of 400 rows; all are in all\.csv\.", text)


def test_numbers_are_aligned_and_what_is_not_known_is_a_dash():
    report = Report("a")
    rows = [["x", 1.23456, "long " * 9], ["y", float("nan"), ""], ["z", None, ""]]
    report.section("b").table(["name", "mL", "remark"], rows)
    page = Elements(report.html())
    assert [a.get("class") for a in page.all("th")] == ["short", "number", None]
    assert "1.235" in page.text and "–" in page.text  # noqa: RUF001


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/home/ann/.venv/bin/python", "-m", "monai.bundle", "--a", "b c"], "python -m monai.bundle --a 'b c'"),
        (["/home/ann/.venv/bin/python3", "scripts/x.py", "/data"], "python scripts/x.py /data"),
        (["/home/ann/.venv/bin/python3", "/home/ann/.venv/bin/torchrun", "--standalone"], "torchrun --standalone"),
        (["python", "-m", "ipykernel_launcher", "-f", "/home/ann/kernel-1.json"], "(in a notebook)"),
    ],
)  # fmt: skip
def test_the_command_is_as_it_was_typed(arguments, shown):
    assert command_line(arguments, "/home/ann/.venv/bin/python3") == shown


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (
            ("python -m monai.bundle run training --config_file \"['configs/train.yaml','/x/preset_dev.yaml']\" "
            "--dataset_dir '/data/MUELLER HANS' --where \"name == 'HANS'\" --epochs 5 --spacing '[1, 1.5, 2e0]' "
            "--amp False --store HANS --encoder#init_filters=4 --ckpt=/data/HANS --overwrite"),
            ("python -m monai.bundle run training --config_file '[train.yaml, preset_dev.yaml]' --dataset_dir ... "
            "--where ... --epochs 5 --spacing '[1, 1.5, 2e0]' --amp False --store ... --encoder#init_filters=4 "
            "--ckpt=... --overwrite"),
        ),
        ("python -m monai.bundle run --dataset_dir 4711 --a#predictions 4711 --include '[4711]'",
         "python -m monai.bundle run --dataset_dir ... --a#predictions ... --include ..."),
        ("python /bin/torchrun --nproc_per_node 2 -m monai.bundle run --config_file configs/train.yaml --epochs None",
         "torchrun --nproc_per_node 2 -m monai.bundle run --config_file train.yaml --epochs None"),
        ("python /home/HANS/x.py HANS.csv --a HANS HANS 4", "python x.py ... --a ... ... 4"),
        ("python -c 'run(\"HANS\")' HANS", "python -c ... ..."),
    ],
)  # fmt: skip
def test_values_that_may_name_somebody_are_hidden_where_told(typed, shown):
    words = shlex.split(typed)
    assert command_line(words, "/bin/python", hide_values=True) == shown
    for by_option in ("--hash_names True", "--hash_names=true", "--hash_names"):
        assert "HANS" not in command_line([*words, *by_option.split()], "/bin/python")
    assert command_line([*words, "--hash_names", "False"], "/bin/python").endswith("--hash_names False")


def test_a_page_hides_what_its_command_was_given_where_told(monkeypatch):
    command = ["python", "-m", "monai.bundle", "run", "--dataset_dir", "/data/MUELLER_HANS", "--epochs", "5"]
    monkeypatch.setattr("sys.orig_argv", command)
    assert "MUELLER_HANS" in Report("a").html()
    page = Report("a", hide_values=True).html()
    assert "MUELLER_HANS" not in page and "run --dataset_dir ... --epochs 5" in page


def test_a_label_map_on_another_grid_is_refused():
    with pytest.raises(UserError, match="bring both to one grid"):
        Case("a", np.zeros((4, 4, 4)), np.eye(4), {"prediction": np.zeros((4, 4, 5))})
