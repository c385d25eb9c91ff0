# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the text headers of NRRD and MetaImage files say, and ITK does not read: units, and what is not said.

ITK does not compare the checksum of compressed voxels either, so damaged ones would be read.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from bundle.data.cut_off import check_length, ends_as_gzip
from bundle.errors import VolumeError

__all__ = ["TextHeader", "read_text_header"]

#: mm per unit
_MILLIMETRES = {
    **dict.fromkeys(("", "?", "mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
}
#: spaces of NRRD that tell left from right, by the first letters of their words
_ANATOMICAL = ("RAS", "LAS", "LPS", "RAST", "LAST", "LPST")
#: a longer header is none, and most are this short
_LONGEST, _USUAL = 2**20, 2**12
_END = re.compile(rb"\r?\n\r?\n|ElementDataFile[^\n]*\n")
_LIST = re.compile(rb"(?im)^(?:data ?file|ElementDataFile)\s*[:=]\s*LIST\b.*\n")
#: a volume has fewer files of slices
_MOST_FILES = 100_000
#: file names with a number in them: the first one, the last one, the step
_NUMBERED = re.compile(r"([^%]*%0?\d?d[^%]*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)")
#: the voxels lie in several files
_SEVERAL = re.compile(r"LIST\b|.*%")
_CHUNK = 2**20


@dataclass(frozen=True)
class TextHeader:
    """The fields of a header, by their names in small letters, and where the voxels begin in the file.

    `listed` are the lines after a field of the value LIST: the names of the files of the voxels.
    """

    file: Path
    fields: dict[str, str] = field(default_factory=dict)
    end: int = 0
    listed: tuple[str, ...] = ()

    def millimetres(self, name: str) -> float:
        """Millimetres per unit of the header.

        Raises:
            VolumeError: if the unit is not known, or differs between axes.
        """
        named = self.fields.get("distanceunits")
        quoted = self.fields.get("space units", self.fields.get("units", ""))
        units = {named} if named is not None else set(re.findall(r'"([^"]*)"', quoted)) - {""}
        known = {_MILLIMETRES.get(unit.strip().lower().removesuffix("s")) for unit in units} or {1.0}
        if known == {None} or len(known) > 1:
            text = "the unit " + units.pop() if len(units) == 1 else "several units"
            raise VolumeError(name, f"has {text} in its header, and not one that is known", "save it in mm")
        return known.pop() or 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What is assumed of an NRRD that names no anatomical space."""
        space = self.fields.get("space", "")
        letters = "".join(word[0] for word in re.split(r"[-\s]+", space) if word) if "-" in space else space
        if self.file.suffix.lower() not in (".nrrd", ".nhdr") or letters.upper() in _ANATOMICAL:
            return ()
        return ("the header names no anatomical space, so left and right are a guess",)

    def check_compressed(self) -> None:
        """Compares the checksum of compressed voxels.

        Raises:
            ValueError: if they are damaged.
        """
        if self._packing and (voxels := self._voxels()):
            _check_checksum(*voxels)

    def check_end(self, needed: int) -> None:
        """Checks that the file of the voxels does not end before they do, and reads them only where nothing else tells.

        Args:
            needed: bytes of the voxels, unpacked.

        Raises:
            ValueError: if it ends too early.
        """
        voxels = self._voxels()
        if voxels is None or self._is_text:
            return
        file, start = voxels
        size = self.fields.get("compresseddatasize", "")
        if not self._packing:
            check_length(file, start + needed)
        elif size.isdigit():
            check_length(file, start + int(size))
        elif self._packing != "gzip" or not ends_as_gzip(file, needed):
            _check_checksum(file, start)

    @property
    def _packing(self) -> str:
        """How the voxels are compressed: "gzip", "zlib", or "" for not at all."""
        encoding, compressed = self.fields.get("encoding", ""), self.fields.get("compresseddata", "")
        if encoding.lower() in ("gzip", "gz"):
            return "gzip"
        return "zlib" if compressed.lower() == "true" else ""

    @property
    def _is_text(self) -> bool:
        """Whether the voxels are written in a way whose length says nothing, such as digits."""
        encoding = self.fields.get("encoding", "raw").lower()
        return encoding not in ("raw", "gzip", "gz") or self.fields.get("binarydata", "true").lower() != "true"

    def _voxels(self) -> tuple[Path, int] | None:
        """The file of the voxels, and where they begin; None if they lie in several files, or after more to skip."""
        if not self.fields:
            return None
        if self._named == "LOCAL":
            return self.file, self.end
        skips = {"line skip", "byte skip", "headersize"} & self.fields.keys()
        return None if _SEVERAL.match(self._named) or skips else (self.file.parent / self._named, 0)

    def voxel_files(self) -> list[Path]:
        """The files of the voxels, whether they are there or not; this file where it holds them."""
        if self._named == "LOCAL":
            return [self.file]
        names = [self._named]
        if self._named.startswith("LIST"):
            names = [name for name in map(str.strip, self.listed) if name]
        elif numbered := _NUMBERED.match(self._named):
            first, last, step = (int(number) for number in numbered.groups()[1:])
            numbers = range(first, last + (1 if step > 0 else -1), step or 1)[:_MOST_FILES]
            names = [numbered[1] % number for number in numbers]
        return [self.file.parent / name for name in names] or [self.file]

    @property
    def _named(self) -> str:
        """What the header says of the file of the voxels; "LOCAL": it is the header's own."""
        names = ("data file", "datafile", "elementdatafile")
        return next((self.fields[name] for name in names if name in self.fields), "LOCAL")


def read_text_header(file: str) -> TextHeader:
    """The header of an NRRD or MetaImage file; one without fields for any other file."""
    path = Path(file)
    if path.suffix.lower() not in (".nrrd", ".nhdr", ".mha", ".mhd"):
        return TextHeader(path)
    with path.open("rb") as stream:
        start = stream.read(_USUAL)
        if not _END.search(start) or _LIST.search(start):  # few headers are as long, and the voxels may follow
            start += stream.read(_LONGEST - _USUAL)
    last, listed = _END.search(start), _LIST.search(start)
    end = last.end() if last else len(start)
    names = tuple(_text(start[listed.end() :]).split("\n\n")[0].splitlines()) if listed else ()
    return TextHeader(path, _fields(start[:end]), end, names)


def _text(header: bytes) -> str:
    try:
        return header.decode()
    except UnicodeDecodeError:
        return header.decode("latin-1")


def _fields(header: bytes) -> dict[str, str]:
    text = _text(header)
    pairs = (re.match(r"([^:=#]+?)\s*(?::=?|=)\s*(.*)", line) for line in text.splitlines())
    return {pair[1].strip().lower(): pair[2].strip() for pair in pairs if pair}


def _check_checksum(file: Path, start: int) -> None:
    inflate = zlib.decompressobj(wbits=47)  # of zlib, or of gzip
    with file.open("rb") as stream:
        stream.seek(start)
        try:
            while not inflate.eof and (part := stream.read(_CHUNK)):
                while part:  # in pieces: little data may unpack to much
                    inflate.decompress(part, _CHUNK)
                    part = inflate.unconsumed_tail
        except zlib.error as error:
            raise ValueError(f"its compressed data are damaged: {error}") from error
    if not inflate.eof:
        raise ValueError("its compressed data end too early")
