# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A report as its reader sees it: in a real browser, without a window."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from bundle.reports import Case, Report
from tests.browser import Browser

#: oblique, anisotropic, and from the front, the head and the left
TILTED = np.array([[0.2, 0.1, -1.9, 40], [-1.2, 0.1, -0.2, 30], [0.1, -1.4, 0.1, 20], [0, 0, 0, 1]])
NASTY = '</script><script>hacked = 1</script><img src="https://example.org/a.png" onerror="hacked = 1">'
CLASSES = {"spleen": 3, NASTY: 7}
CENTRE = (13, 21, 9)  # voxel in the middle of the first class
BLUE = np.array([0x1F, 0x77, 0xB4])  # its colour


def ball(shape, centre, radius):
    return sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre)) <= radius**2


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    shape = (30, 34, 24)
    rng = np.random.default_rng(0)
    scan = 100 * np.indices(shape)[0] / shape[0] + rng.normal(0, 2, shape)
    reference = np.where(ball(shape, CENTRE, 5), 3, 0)
    prediction = np.where(ball(shape, CENTRE, 4), 3, 0)
    large = np.kron(scan, np.ones((2, 2, 2))) + rng.normal(0, 1, (60, 68, 48))
    wide = np.tile(np.linspace(0, 255, 1500).astype(np.uint8)[None, :, None], (300, 1, 3))
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    report = Report("Prediction", lead="Two scans.", max_megabytes=3.4)
    report.section("Measurements").table(["scan", *"abcdefghij"], [[NASTY, *[1.5] * 10]] * 3)
    report.section("Pictures").picture(figure).picture(wide, caption=NASTY)
    report.section("Viewer").viewer(
        [Case(NASTY, scan, TILTED, {"reference": reference, "prediction": prediction}, note=NASTY),
         Case("large", large, np.diag([1.0, 1, 1, 1]), {"prediction": (np.indices(large.shape)[0] > 45) * 7})],
        classes=CLASSES,
    )  # fmt: skip
    report.section("Skipped", folded=True).bullets(["one"])
    return report.write(tmp_path_factory.mktemp("report with a space, & é") / "report.html")


@pytest.fixture(scope="module")
def browser(page):
    with Browser(width=700, height=800) as browser:
        browser.open(page)
        yield browser


def viewer(expression):
    return f"document.querySelector('.viewer'){expression}"


def blue(browser):
    """How many pixels of the viewer have the first class's hue."""
    pixels = browser.screenshot(".stage").astype(float)
    return int((((pixels[..., 2] - pixels[..., 0]) > 40) & (pixels[..., 2] > pixels[..., 1] + 15)).sum())


def press(browser, selector, number=0):
    browser.run(f"document.querySelectorAll('{selector}')[{number}].click()")


def test_reader_scrolls_and_sees_pictures_and_the_viewer_and_nothing_leaves_the_file(browser):
    browser.run("document.querySelectorAll('img').forEach((one) => one.scrollIntoView())")
    browser.wait("[...document.images].every((one) => one.complete)")
    assert all(width > 0 for width in browser.run("[...document.images].map((one) => one.naturalWidth)"))

    # the viewer starts when it comes into sight
    assert browser.run(viewer(".dataset.state ?? 'none'")) == "none"
    browser.run(viewer(".scrollIntoView()"))
    browser.wait(viewer(".dataset.state == 'ready'"))
    pixels = browser.screenshot(".stage")
    assert pixels.std() > 20 and blue(browser) > 200

    # it looks at the label, and says what is there in the scan's own millimetres
    said = browser.run(viewer(".querySelector('.where').textContent"))
    place = np.array([float(one) for one in re.findall(r"-?\d+\.\d", said.partition(" mm")[0])])
    assert np.linalg.norm(place - (TILTED @ [*CENTRE, 1])[:3]) < 1.5
    assert "prediction: spleen" in said and "reference: spleen" in said
    intensity = float(re.search(r"intensity (\S+);", said)[1])
    assert intensity == pytest.approx(100 * CENTRE[0] / 30, abs=8)

    # the wheel scrolls: in one plane, whose middle is that of the canvas
    browser.run(
        "(() => { const one = document.querySelectorAll('.viewer select')[1]; one.value = 'axial'; one.onchange(); })()"
    )
    browser.run("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    pixels = browser.screenshot(".stage")
    middle = browser.run("(({x, y, width, height}) => [x + width / 2, y + height / 2])"
                         "(document.querySelector('canvas').getBoundingClientRect())")  # fmt: skip
    browser.mouse("mouseMoved", *middle)
    browser.mouse("mouseWheel", *middle, deltaX=0, deltaY=120)
    browser.wait(viewer(f".querySelector('.where').textContent != {said!r}"))
    assert (browser.screenshot(".stage") != pixels).any()

    # so do the sliders: an end of the scan is outside the ball
    browser.run(
        "(() => { const one = document.querySelectorAll('.viewer input[title]')[1]; one.value = 0; one.oninput(); })()"
    )
    assert "prediction: none" in browser.run(viewer(".querySelector('.where').textContent"))

    # the class can be hidden
    browser.run("(() => { const one = document.querySelectorAll('.viewer input[title]')[1]; one.value = one.max / 2; "
                "one.oninput(); })()")  # fmt: skip
    seen = blue(browser)
    press(browser, ".legend input")
    assert seen > 200 and blue(browser) == 0

    # another case, which is compressed as pictures
    browser.run("(() => { const one = document.querySelector('.viewer select'); one.value = 1; one.onchange(); })()")
    browser.wait(viewer(".dataset.state == 'ready' && " + viewer(".textContent.includes('compressed with loss')")))
    assert browser.screenshot(".stage").std() > 20

    assert browser.run("typeof hacked") == "undefined"
    assert browser.complaints == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data", "blob"}
    assert sum(address.startswith("file:") for address in browser.requests) == 1


def test_planes_are_seen_as_in_the_pictures_right_and_front_on_the_left(tmp_path):
    """A box that lies to the right, in front and at the head."""
    places = np.indices((40, 40, 40))
    report = Report("Prediction", lead="One scan.")
    report.section("Viewer").viewer(
        [Case("one", places[0] + 0.0, np.eye(4), {"prediction": 3 * (places > 25).all(axis=0)})], classes={"spleen": 3}
    )
    with Browser(width=700, height=800) as browser:
        browser.open(report.write(tmp_path / "report.html"))
        browser.run(viewer(".scrollIntoView()"))
        browser.wait(viewer(".dataset.state == 'ready'"))
        for name in ("axial", "coronal", "sagittal"):
            browser.run("(() => { const one = document.querySelectorAll('.viewer select')[1]; "
                        f"one.value = '{name}'; one.onchange(); }})()")  # fmt: skip
            pixels = browser.screenshot(".stage").astype(float)
            box = ((pixels[..., 2] - pixels[..., 0]) > 40) & (pixels[..., 2] > pixels[..., 1] + 15)
            up, across = np.argwhere(box).mean(axis=0) / box.shape
            assert box.any() and up < 0.4 and across < 0.45, name


def test_a_wide_table_uses_the_window_and_what_is_cut_off_is_shaded(page):
    table = "document.querySelector('.scroll')"
    with Browser(width=1500, height=500) as browser:
        browser.open(page)
        browser.run(f"{table}.firstChild.style.width = '1100px'")
        assert browser.run(f"{table}.clientWidth") > 1024 and browser.run(f"{table}.scrollWidth == {table}.clientWidth")
        browser.run(f"{table}.firstChild.style.width = '2000px'")
        assert browser.run("document.documentElement.scrollWidth") == 1500
        assert browser.run(f"{table}.scrollWidth > {table}.clientWidth")
        pixels = browser.screenshot(".scroll").astype(int).mean(axis=(0, 2))
        browser.run(f"{table}.scrollLeft = 9999")
        scrolled = browser.screenshot(".scroll").astype(int).mean(axis=(0, 2))
    assert pixels[-3:].mean() < scrolled[-3:].mean() - 10 and scrolled[:3].mean() < pixels[:3].mean() - 10


def test_a_click_shows_a_picture_in_full_size(browser):
    width = "document.images[1].getBoundingClientRect().width"
    small = browser.run(width)
    press(browser, "figure img", 1)
    assert small < 700 and browser.run(width) == 1500 + 2  # and the border
    press(browser, "figure img", 1)
    assert browser.run(width) == small


def test_a_link_opens_a_folded_section(browser):
    opened = "document.querySelector('#s4 details').open"
    assert browser.run(opened) is False
    press(browser, "nav a", 3)
    browser.wait(opened)


def test_the_page_fits_a_telephone_and_a_dark_room(browser):
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=2, mobile=True)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.wait("innerWidth == 360 || document.documentElement.scrollWidth > 360")
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"


def test_the_page_may_not_load_or_run_anything_else(browser):
    assert browser.run("fetch('https://example.org').then(() => 'loaded', () => 'refused')") == "refused"
    browser.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked = 2'}))")
    assert browser.run("typeof hacked") == "undefined"


def test_without_webgl_the_page_says_so_and_the_rest_stays(page):
    with Browser(width=700, height=800, webgl=False) as browser:
        browser.open(page)
        browser.run(viewer(".scrollIntoView()"))
        browser.wait(viewer(".dataset.state == 'failed'"))
        assert "The viewer needs WebGL 2" in browser.run(viewer(".textContent"))
        assert browser.run("document.images[0].naturalWidth") > 0
        assert browser.complaints == []
