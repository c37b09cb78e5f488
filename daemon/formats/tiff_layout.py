"""Reads the directories of a TIFF file and the places of its strips or tiles (TIFF 6.0, BigTIFF), never pixels.

Unlike image libraries, it is strict about missing data, limits memory and time for hostile files, and is fast enough
for repeated tests of a growing file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from daemon.formats import tiff_description
from daemon.formats.reading import DamagedError, Extent

_MAX_PAGES = 1 << 14
_MAX_ENTRIES = 1 << 12
_MAX_SEGMENTS = 1 << 24
_MAX_TEXT = 1 << 20
_MAX_VALUES = 1 << 12
_MAX_DIRECTORY_BYTES = 1 << 28
_SEGMENTS = (273, 279, 324, 325)
_COMPRESSED_TAIL = 64
_TYPES = {
    1: "u1",
    2: "S1",
    3: "u2",
    4: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
_DESCRIPTION, _NAME, _RECORDED, _FORMAT, _SUB = 270, 285, 306, 339, 330
_TEXTS = (_DESCRIPTION, _NAME, _RECORDED)
_PREDICTOR, _METAMORPH = 317, 33629
_WANTED = {254, 256, 257, 258, 259, 262, 266, _DESCRIPTION, 273, 277, 278, 279, 284, _NAME,
           _PREDICTOR, _RECORDED, *range(322, 326), _SUB, _FORMAT, 32997, 32998, _METAMORPH}  # fmt: skip
_MOST_SUB = 64
_WRONG = "its directory gives no or a wrong number of {}: the size of the image determines it"
_UNPREDICTED = "its directory states a predictor, which uncompressed pixels do not have: it is ignored"
_NO_COMPRESSION = "its directory states compression 0, which does not exist: read as uncompressed"
_NO_KIND = "its directory states no valid kind of its numbers: read as whole ones without a sign, the default"


@dataclass(frozen=True, slots=True, eq=False)
class PageLayout:
    """One directory. Sizes in pixels, `offsets` and `lengths` of its strips or tiles in bytes."""

    width: int
    height: int
    depth: int
    samples: int
    bits: int
    sample_format: int
    photometric: int
    compression: int
    subfile: int
    segment_width: int
    segment_height: int
    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint64]
    kind_stated: bool = True
    """Whether the file states the kind of its numbers (signed, floating-point); unsigned is the default."""
    remark: str = ""
    """A harmless error in its directory that was corrected, of uncompressed pixels only; empty: none."""
    reversed_bits: bool = False
    name: str = ""
    """Its PageName, or else a short description or the name within a longer one."""
    signal: str = ""
    """Detector, signal or channel by its description."""
    recorded: str = ""
    """Its DateTime."""

    @property
    def pixels(self) -> int:
        """Numbers in the page."""
        return self.width * self.height * self.depth * self.samples

    @property
    def segment_row(self) -> int:
        """Bytes in one uncompressed row of a strip or tile."""
        return max(1, -(-self.segment_width * self.samples * self.bits // 8))

    def tail(self, length: int) -> int:
        """Bytes from the last row with pixels to the end of the last strip or tile, of so many bytes in all.

        The last tile may end in rows of padding, a strip never does.
        """
        if self.compression != 1:
            return min(length, _COMPRESSED_TAIL)
        pictured = (self.height - 1) % self.segment_height + 1
        return min(length, self.segment_row * (1 + max(0, length // self.segment_row - pictured)))


@dataclass(frozen=True, slots=True, eq=False)
class TiffLayout:
    """All directories of a file, in the order of their chain."""

    byteorder: str
    pages: tuple[PageLayout, ...]
    description: str
    """ImageDescription of the first page."""
    inner: tuple[PageLayout, ...] = ()
    """Images in sub-directories of the pages."""
    outdated: bool = False
    """Whether the description declares frames that the file does not contain."""
    planes: int = 1
    """Of a MetaMorph stack, whose only directory places the first one."""

    @property
    def contiguous_frames(self) -> int:
        """Frames that follow the only directory's data without directories of their own (large ImageJ stacks, STK)."""
        if len(self.pages) != 1 or self.pages[0].compression != 1 or self.outdated:
            return 1
        return max(self.planes, tiff_description.frames(self.description, self.pages[0].pixels))

    def extent(self) -> Extent:
        """The extent of the pixel data in the file."""
        start, end, tail = 2**63, 0, 1
        for page in self.pages:
            start = min(start, int(page.offsets.min()))
            ends = page.offsets + page.lengths
            last = int(ends.argmax())
            if int(ends[last]) > end:
                length = int(page.lengths[last])
                end = int(ends[last])
                tail = page.tail(length)
        if self.contiguous_frames > 1:
            page = self.pages[0]
            end = int(page.offsets[0]) + self.contiguous_frames * page.height * page.segment_row
        return Extent(start, end, tail)


def parse(stream: BinaryIO, size: int) -> TiffLayout:
    """Read all directories of a TIFF of `size` bytes. Raises DamagedError, OSError."""
    reader, offset = _opened(stream, size)
    layout = _directories(reader, offset)
    if layout.extent().end <= size:
        return layout
    alone = replace(layout, outdated=True)
    # An incomplete copy of a stack rarely ends exactly there.
    if 0 <= size - alone.extent().end < layout.pages[0].segment_row:
        return alone
    frames = layout.contiguous_frames
    raise DamagedError(f"the description declares {frames} frames, the file is too short for them", cut=True)


def _opened(stream: BinaryIO, size: int) -> tuple["_Reader", int]:
    """A reader for the header's byte order and word length, and the offset of the first directory."""
    stream.seek(0)
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise DamagedError("the TIFF header is cut off", cut=True)
    big = int(np.frombuffer(head, order + "u2", 1, 2)[0]) == 43
    if big and len(head) < 16:
        raise DamagedError("the BigTIFF header is cut off", cut=True)
    offset = int(np.frombuffer(head, order + ("u8" if big else "u4"), 1, 8 if big else 4)[0])
    if offset == 0:
        raise DamagedError("the TIFF directory has not been written yet")
    return _Reader(stream, size, order, big), offset


def _directories(reader: "_Reader", offset: int) -> TiffLayout:
    """The chain of directories that begins at `offset`, with the images in their sub-directories."""
    pages: list[PageLayout] = []
    inner: list[PageLayout] = []
    description = ""
    seen: set[int] = set()
    segments, planes = 0, 1
    while offset:
        if offset in seen:
            raise DamagedError("the TIFF directories form a loop")
        seen.add(offset)
        following = 0
        try:
            tags, following = reader.directory(offset)
            pages.append(_page(tags, reader.size))
        except DamagedError as error:
            if not pages and not following:
                raise
            raise DamagedError(f"page {len(pages) + 1} of the TIFF: {error}", cut=error.cut) from error
        if len(pages) == 1:
            description, planes = str(tags.get(_DESCRIPTION, "")), max(1, _one(tags, _METAMORPH, 1))
        inner += reader.inner(tags, _MOST_SUB - len(inner))
        offset = following
        segments += len(pages[-1].offsets)
        if len(pages) > _MAX_PAGES or segments > _MAX_SEGMENTS:
            raise DamagedError(f"the TIFF claims more than {_MAX_PAGES} pages or {_MAX_SEGMENTS} strips")
    if planes > 1 and (len(pages) > 1 or pages[0].compression != 1):
        raise DamagedError(f"of {planes} planes of a MetaMorph stack only the first is placed; save it uncompressed")
    return TiffLayout(reader.order, tuple(pages), description, tuple(inner), planes=planes)


class _Reader:
    """Reads directories of one byte order and word length."""

    def __init__(self, stream: BinaryIO, size: int, order: str, big: bool) -> None:
        self.stream, self.size, self.order = stream, size, order
        self.word, self.words = ("u8", 8) if big else ("u4", 4)
        self.number, self.numbers = ("u8", 8) if big else ("u2", 2)
        entry: list[tuple[str, Any]] = [
            ("code", order + "u2"),
            ("type", order + "u2"),
            ("count", order + self.word),
            ("value", f"V{self.words}"),
        ]
        self.entry = np.dtype(entry)
        self._budget = _MAX_DIRECTORY_BYTES

    def bytes(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise DamagedError(f"the file ends at byte {self.size}, its directory needs {offset + length}", cut=True)
        self.stream.seek(offset)
        data = self.stream.read(length)
        if len(data) < length:
            raise DamagedError("the file became shorter while it was read", cut=True)
        return data

    def directory(self, offset: int) -> tuple[dict[int, Any], int]:
        """The wanted tags of one directory and the offset of the next (0: none)."""
        count = int(np.frombuffer(self.bytes(offset, self.numbers), self.order + self.number)[0])
        if not 0 < count <= _MAX_ENTRIES:
            raise DamagedError(
                f"the TIFF directory at byte {offset} has {count} entries: it is not written yet, or damaged"
            )
        data = self.bytes(offset + self.numbers, count * self.entry.itemsize + self.words)
        following = int(np.frombuffer(data[-self.words :], self.order + self.word)[0])
        entries = np.frombuffer(data, self.entry, count)
        wanted = [entry for entry in entries if int(entry["code"]) in _WANTED]
        # A tag without a value states nothing.
        return {int(one["code"]): self.value(one) for one in wanted if one["count"]}, following

    def inner(self, tags: dict[int, Any], most: int) -> list[PageLayout]:
        """At most so many images in sub-directories of a directory; invalid ones are skipped."""
        found = []
        for offset in tags.get(_SUB, ())[: max(0, most)]:
            try:
                found.append(_page(self.directory(int(offset))[0], self.size))
            except DamagedError:
                continue
        return found

    def value(self, entry: Any) -> Any:
        code, count = int(entry["code"]), int(entry["count"])
        if code == _METAMORPH:  # one value for each plane; only their number counts
            return np.array([count])
        kind = _TYPES.get(int(entry["type"]))
        if kind is None:
            raise DamagedError(f"TIFF tag {code} has an impossible type")
        length = count * int(kind[1])
        if code in _TEXTS:
            length = min(length, _MAX_TEXT)
        elif count > (_MAX_SEGMENTS if code in _SEGMENTS else _MAX_VALUES):
            raise DamagedError(f"TIFF tag {code} claims {count} values")
        self._budget -= length
        if self._budget < 0:  # a sparse file can claim much
            raise DamagedError("the TIFF's directories claim more bytes than any micrograph's")
        inline = entry["value"].tobytes()
        if length <= self.words and count * int(kind[1]) <= self.words:
            data = inline[:length]
        else:
            data = self.bytes(int(np.frombuffer(inline, self.order + self.word)[0]), length)
        if code in _TEXTS:
            return _decoded(data.split(b"\0", 1)[0])
        return np.frombuffer(data, self.order + kind if kind != "S1" else kind)


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:  # older programs wrote µ in one byte
        return text.decode("latin-1")


def _short(text: Any) -> str:
    return text if isinstance(text, str) and len(text) <= tiff_description.LONGEST_NAME else ""


def _one(tags: Mapping[int, Any], code: int, default: int) -> int:
    return int(tags[code][0]) if code in tags else default


def _page(tags: Mapping[int, Any], size: int) -> PageLayout:
    """The page of one directory. Raises DamagedError if it contradicts itself or the size of the file."""
    width, height, depth = _one(tags, 256, 0), _one(tags, 257, 0), _one(tags, 32997, 1)
    samples, bits = _one(tags, 277, 1), _one(tags, 258, 1)
    if min(width, height, depth, samples, bits) < 1 or samples > 4096 or bits > 128:
        raise DamagedError(
            f"the TIFF directory declares an impossible image ({width} x {height}, {samples} x {bits} bits)"
        )
    remarks = []
    if _one(tags, 259, 1) == 0:
        tags = {**tags, 259: np.ones(1, np.uint16)}
        remarks.append(_NO_COMPRESSION)
    segments = _segments(tags, width, height, depth)
    lengths, wrong_lengths = _lengths(tags, segments, size)
    offsets = segments.offsets
    if not offsets.all() or not lengths.all():
        raise DamagedError("strips or tiles of the image have not been written")
    if int(offsets.max()) > size or int(lengths.max()) > size or int((offsets + lengths).max()) > size:
        raise DamagedError(f"the file ends at byte {size}, but its directory places pixels beyond that", cut=True)
    wrong = [text for text in (segments.wrong, wrong_lengths) if text]
    remarks += [_WRONG.format(" and ".join(wrong))] if wrong else []
    plain, sample_format = _one(tags, 259, 1) == 1, _one(tags, _FORMAT, 1)
    if plain and _one(tags, _PREDICTOR, 1) != 1:
        remarks.append(_UNPREDICTED)
    if plain and sample_format == 0:
        remarks.append(_NO_KIND)
        sample_format = 1
    return PageLayout(
        width=width,
        height=height,
        depth=depth,
        samples=samples,
        bits=bits,
        sample_format=sample_format,
        photometric=_one(tags, 262, 1),
        compression=_one(tags, 259, 1),
        subfile=_one(tags, 254, 0),
        segment_width=segments.width,
        segment_height=segments.height,
        offsets=offsets,
        lengths=lengths,
        kind_stated=_FORMAT in tags and _NO_KIND not in remarks,
        remark="; ".join(remarks),
        reversed_bits=_one(tags, 266, 1) == 2,
        name=_short(tags.get(_NAME)) or tiff_description.title(str(tags.get(_DESCRIPTION, ""))),
        signal=tiff_description.signal(str(tags.get(_DESCRIPTION, ""))),
        recorded=_short(tags.get(_RECORDED)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Segments:
    """The strips or tiles of a page: size of each in pixels, offsets in the file, and bytes of their pixels."""

    width: int
    height: int
    offsets: NDArray[np.uint64]
    needed: NDArray[np.uint64]
    wrong: str
    """The kind of numbers with a harmless error; empty: none."""


def _segments(tags: Mapping[int, Any], width: int, height: int, depth: int) -> _Segments:
    """The strips or tiles of an image of this size, pixels. Raises DamagedError if there are too few."""
    samples = _one(tags, 277, 1)
    planes = samples if _one(tags, 284, 1) == 2 else 1
    tiled = 322 in tags
    across_each, down_each, deep_each = width, min(_one(tags, 278, height), height), 1
    if tiled:  # a block of a volume spans several planes
        across_each, down_each, deep_each = _one(tags, 322, width), _one(tags, 323, height), _one(tags, 32998, 1)
    wrong = ""
    if not tiled and _one(tags, 259, 1) == 1 and len(tags.get(273, ())) == planes and down_each < height:
        down_each = height  # one strip is the whole image
        wrong = "rows in a strip"
    offsets, lengths = tags.get(324 if tiled else 273), _stated_lengths(tags)
    if min(across_each, down_each, deep_each) < 1 or offsets is None:
        raise DamagedError("the TIFF directory does not state where the pixels are")
    down, across = -(-height // down_each), -(-width // across_each)
    expected = down * across * -(-depth // deep_each) * planes
    if len(offsets) < expected or (lengths is not None and len(lengths) < expected):
        raise DamagedError(f"the TIFF directory lists {len(offsets)} strips or tiles, the image has {expected}")
    row = -(-across_each * (samples // planes) * _one(tags, 258, 1) // 8)
    rows = np.full(expected, down_each, np.uint64)
    if not tiled and height % down_each:
        rows.reshape(-1, down)[:, -1] = height % down_each  # the last strip may be shorter, a tile never is
    needed = rows * np.uint64(min(row * deep_each, 2**31))
    return _Segments(across_each, down_each, offsets[:expected].astype(np.uint64), needed, wrong)


def _stated_lengths(tags: Mapping[int, Any]) -> NDArray[Any] | None:
    found: NDArray[Any] | None = tags.get(325 if 322 in tags else 279, tags.get(279))
    return found


def _lengths(tags: Mapping[int, Any], segments: _Segments, size: int) -> tuple[NDArray[np.uint64], str]:
    """The bytes of each strip or tile in the file, and the kind of stated lengths with a harmless error (or empty)."""
    needed, stated = segments.needed, _stated_lengths(tags)
    if stated is not None:
        stated = stated[: len(needed)].astype(np.uint64)
    plain = _one(tags, 259, 1) == 1
    if plain and _one(tags, 262, 1) != 6:  # subsampled colour (6) holds fewer bytes than its shape needs
        if stated is None:  # libraries then read the first only
            return needed, "bytes in a strip or tile" if len(needed) > 1 else ""
        if not ((stated < needed).any() or (segments.offsets + stated > size).any()):
            return needed, ""
        if (stated < needed).any():
            _require_room(segments.offsets, needed)
        return needed, "bytes in a strip or tile"
    if stated is None and not plain:
        raise DamagedError("the TIFF directory does not state how many bytes its compressed strips or tiles have")
    return (needed if stated is None else stated), ""


def _require_room(offsets: NDArray[np.uint64], needed: NDArray[np.uint64]) -> None:
    """Raises DamagedError if strips or tiles of full size would overlap: their content is then undefined."""
    order = np.argsort(offsets)
    if (offsets[order][:-1] + needed[order][:-1] > offsets[order][1:]).any():
        raise DamagedError("strips or tiles declare fewer bytes than their rows need")
