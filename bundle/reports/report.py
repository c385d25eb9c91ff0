# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One html file that holds all it shows, and asks no network for anything."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from bundle.atomic import replace_file
from bundle.figures.curves import draw_curves
from bundle.reports import markup
from bundle.reports.command import command_line
from bundle.reports.page import page_html, viewer_bytes
from bundle.reports.pictures import Picture, encodings
from bundle.reports.viewer import Case, PackedCase, pack_case, viewer_markup

__all__ = ["Report", "Section"]

#: bytes of a page that text and tables may take before tables are cut
_TEXT = 2_000_000
_LONGEST_TABLE = 1000  # rows
_SMALLEST_CASE = 50_000  # bytes: less is not worth a look


class Report:
    """A page in the making. Sections come in the order in which they are made.

    Names, remarks and all other text are taken for untrusted: markup in them is shown as text. What the page shows lies
    in it. Where pictures or volumes would make it larger than the limit, they are made smaller, then left out, and the
    page says so. The page says with which command it was made.

    Args:
        title: of the page.
        lead: one or two sentences below it: the result, first of all.
        max_megabytes: limit of the file's size.
        hide_values: as for `bundle.reports.command.command_line`: for pages that must not name a patient.

    Example:
        >>> import tempfile
        >>> from bundle.reports import Report
        >>> report = Report("Prediction", lead="2 scans, none skipped.")
        >>> section = report.section("Volumes")
        >>> _ = section.table(["scan", "class", "mL"], [["a", "spleen", 181.2], ["b", "spleen", 214.0]])
        >>> path = report.write(f"{tempfile.mkdtemp()}/report.html")
        >>> "spleen</td>" in path.read_text()
        True
    """

    def __init__(self, title: str, *, lead: str = "", max_megabytes: float = 15, hide_values: bool = False) -> None:
        self.title, self.lead, self.hide_values = title, lead, hide_values
        self.sections: list[Section] = []
        self._room = {"pictures": 0, "volumes": 0, "text": _TEXT}
        free = int(max_megabytes * 1e6) - _TEXT - viewer_bytes()
        self._room["pictures"] = self._room["volumes"] = max(0, free // 2)
        self._viewers = itertools.count()

    def section(self, title: str, *, folded: bool = False) -> Section:
        """Begins a section.

        Args:
            title: which the table of contents shows, too.
            folded: whether the page shows only the title until a reader opens it.
        """
        self.sections.append(Section(self, title, folded=folded))
        return self.sections[-1]

    def html(self) -> str:
        """The page."""
        made = datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
        command = command_line(hide_values=self.hide_values)
        foot = f"<p>Made on {markup.text(made)} with</p>{markup.preformatted(command)}"
        sections = [(section.title, section.html(), section.folded) for section in self.sections]
        return page_html(self.title, self.lead, sections, foot)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page: whole, or not at all.

        Returns:
            The path.
        """
        path = Path(path)
        with replace_file(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path

    def take(self, kind: str, size: int) -> bool:
        """Whether there is room for so many bytes of "pictures", "volumes" or "text"; if so, they are taken."""
        if size > self._room[kind]:
            return False
        self._room[kind] -= size
        return True

    def room(self, kind: str) -> int:
        """Bytes left for "pictures", "volumes" or "text"."""
        return self._room[kind]

    def next_viewer(self) -> int:
        """A number that no other viewer of the page has."""
        return next(self._viewers)


class Section:
    """A part of a page with a title. Each method adds something below the rest, and returns the section.

    `Report.section` makes it.
    """

    def __init__(self, report: Report, title: str, *, folded: bool) -> None:
        self.report, self.title, self.folded = report, title, folded
        self._parts: list[str] = []

    def html(self) -> str:
        """What is below the title."""
        return "\n".join(self._parts)

    def paragraph(self, text: str) -> Section:
        """A paragraph of text; what is between backticks is set as code."""
        return self._add(f"<p>{markup.prose(text)}</p>")

    def facts(self, entries: Mapping[str, object]) -> Section:
        """Names with their values."""
        return self._add(markup.facts(entries))

    def bullets(self, lines: Iterable[object]) -> Section:
        """A list with a bullet for each line."""
        return self._add(markup.bullets(lines))

    def code(self, text: str) -> Section:
        """Text as it is, such as a command."""
        return self._add(markup.preformatted(text))

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", file: str = ""
    ) -> Section:
        """A table.

        Args:
            columns: their titles.
            rows: of texts, numbers and None; columns of numbers are aligned right.
            caption: a line above it.
            file: where the whole table is, for the remark under one that is too long for the page.
        """
        rows = list(rows)
        shown = rows[:_LONGEST_TABLE]
        made = markup.table(columns, shown, caption=caption)
        while not self.report.take("text", len(made.encode())):
            shown = shown[: len(shown) // 2]
            made = markup.table(columns, shown, caption=caption)
            if not shown:
                break
        self._add(made)
        if len(shown) < len(rows):
            self.paragraph(f"The first {len(shown)} of {len(rows)} rows{f'; all are in {file}' if file else ''}.")
        return self

    def picture(self, picture: Picture, *, caption: str = "", alt: str = "") -> Section:
        """A picture.

        Args:
            picture: a PNG or JPEG file, pixels (uint8 [height, width, 3]), or a figure of matplotlib's.
            caption: a line below it.
            alt: what it shows, for readers who do not see it; None: the caption.

        Raises:
            UserError: if the file is no picture.
        """
        for address in encodings(picture):
            if self.report.take("pictures", len(address)):
                said = f"<figcaption>{markup.text(caption)}</figcaption>" if caption else ""
                source = f'<img src="{address}" alt="{markup.text(alt or caption or "picture")}">'
                return self._add(f"<figure>{source}{said}</figure>")
        where = f": {Path(picture).name}" if isinstance(picture, (str, os.PathLike)) else ""
        return self.paragraph(
            f"A picture is left out, because the page would be too large: {caption or 'picture'}{where}"
        )

    def curves(
        self, rows: Sequence[Mapping[str, float]], curves: Mapping[str, Mapping[str, str]], *, caption: str = ""
    ) -> Section:
        """Metrics over the epochs, as `bundle.figures.curves.draw_curves` draws them."""
        return self.picture(draw_curves(rows, curves), caption=caption, alt=f"curves: {', '.join(curves)}")

    def viewer(self, cases: Iterable[Case], *, classes: Mapping[str, int], count: int | None = None) -> Section:
        """A viewer that scrolls through scans and label maps in three planes; the reader chooses the case.

        Cases are read one at a time, until the page is full. Large scans are shown with fewer grey levels and larger
        voxels, which the page says.

        Args:
            cases: in the order in which they are offered.
            classes: value in the label maps by the name of each class.
            count: how many cases there are, where `cases` cannot tell; they share the room.
        """
        if count is None:
            cases = list(cases)
            count = len(cases)
        packed: list[PackedCase] = []
        left_out = 0
        share = max(self.report.room("volumes") // max(1, count), 1_000_000)
        for case in cases:
            room = self.report.room("volumes")
            one = pack_case(case, classes, min(share, room)) if room >= _SMALLEST_CASE else None
            if one is None or not self.report.take("volumes", len(one)):
                left_out = count - len(packed)
                break
            packed.append(one)
        if packed:
            self._add(viewer_markup(packed, classes, self.report.next_viewer()))
        if left_out:
            self.paragraph(f"{left_out} of {count} cases are not in the viewer, because the page would be too large.")
        return self

    def _add(self, part: str) -> Section:
        self._parts.append(part)
        return self
