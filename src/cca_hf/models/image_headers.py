"""Checks the header of an image file before a decoder allocates, or computes, what the header asks for.

Pillow limits the number of pixels. It does not limit what the notes around the pixels cost: 40,000 EXIF entries that
all refer to the same 480 kB ask for 19 GB. No check here refuses a file whose notes are as large as they claim to be.
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

_MOST_PIXELS_OF_SIDE = 1_000_000  # the area is limited by Pillow
_MOST_SEGMENTS = 4096  # of a JPEG before its first scan; an ICC profile of 16 MB has 255
_MOST_SCANS = (
    16  # of a JPEG with as many pixels as Pillow allows; smaller ones may have more. Encoders write about ten
)
_MOST_BLOCKS = 10_000  # of a PNG, beside one for every 512 bytes
_MOST_COMMENT_BYTES = 1_000_000  # of a GIF: Pillow takes time with the square of their number
_MOST_JUNK_BYTES = 65_536
_MOST_STRIPS = 200_000  # of a TIFF
_EXIF = b"Exif\0\0"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_MOST_ENTRIES = 65_535  # of a directory: there are no more tags
_DIRECTORY_TAGS = (34665, 34853, 40965)  # further directories, which Pillow reads with a TIFF
_STRIP_TAGS = (273, 324)  # places of the strips, or tiles, of a TIFF
_SIZE_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_SCAN, _END, _APP1, _APP2 = 0xDA, 0xD9, 0xE1, 0xE2
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = (*_SEQUENTIAL, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB)
_WITHOUT_LENGTH = (0x01, 0xD8, 0xD9, *range(0xD0, 0xD8))


def check_header(file: BinaryIO) -> None:
    """Checks a seekable file, and leaves it at its beginning. A file that is no image is left to the decoder.

    Raises:
        ValueError: if decoding the file would take far more memory or time than its size and its pixels explain.
    """
    start = file.read(12)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if start.startswith(b"\xff\xd8\xff"):
        _check_jpeg(file.read())
    elif start.startswith(_TIFF_STARTS):
        check_directory(file, 0, size)
    elif start.startswith(b"\x89PNG"):
        _check_png(file, size)
    elif start.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(file)
    elif start[4:8] == b"ftyp":  # AVIF, whose EXIF may lie anywhere
        _check_all_directories(file.read())
    file.seek(0)


def check_sides(width: int, height: int) -> None:
    """A row costs memory and time of its own, whatever its length.

    Raises:
        ValueError: if the image is too wide or too high.
    """
    if max(width, height) > _MOST_PIXELS_OF_SIDE:
        raise ValueError(f"{width} x {height} pixels; at most {_MOST_PIXELS_OF_SIDE:,} pixels a side are allowed")


def check_scans(content: bytes, pixels: int) -> None:
    """Decoding a scan of a JPEG takes as long as decoding the whole image.

    Raises:
        ValueError: if the scans have too many pixels together.
    """
    most = _MOST_SCANS * (Image.MAX_IMAGE_PIXELS or 2**63)
    scans = content.count(b"\xff\xda")
    if scans * pixels > most:
        raise ValueError(f"a JPEG of {pixels:,} pixels with {scans:,} scans; at most {most // pixels:,} are allowed")


def check_directory(file: BinaryIO, start: int, size: int) -> None:
    """Checks the entries of the directories of a TIFF file, or of the TIFF structure in EXIF, that Pillow reads.

    Entries that do not overlap are together not larger than the file; some overlap is tolerated.

    Args:
        start, size: where the structure begins in the file, and its number of bytes.
    """
    file.seek(start)
    head = file.read(16)
    if not head.startswith(_TIFF_STARTS) or len(head) < 16:
        return
    order, is_big = "<" if head[:2] == b"II" else ">", head[2] == 43
    count_format, entry_format, inline = (
        (f"{order}Q", f"{order}HHQQ", 8) if is_big else (f"{order}H", f"{order}HHLL", 4)
    )
    count_size, entry_size = struct.calcsize(count_format), struct.calcsize(entry_format)
    seen: set[int] = set()
    most, total = 2 * size + 65_536, 0
    waiting = [struct.unpack_from(f"{order}{'Q' if is_big else 'L'}", head, inline)[0]]
    while waiting:
        offset = waiting.pop()
        if offset >= size or offset in seen:
            continue
        seen.add(offset)
        file.seek(start + offset)
        counted = file.read(count_size)
        if len(counted) < count_size:
            continue
        (count,) = struct.unpack(count_format, counted)
        if count > _MOST_ENTRIES:
            raise ValueError(f"a directory of {count:,} notes; at most {_MOST_ENTRIES:,} are possible")
        table = file.read(count * entry_size)
        for position in range(0, len(table) - entry_size + 1, entry_size):
            tag, kind, number, place = struct.unpack_from(entry_format, table, position)
            if tag in _STRIP_TAGS and number > _MOST_STRIPS:
                raise ValueError(f"an image in {number:,} strips; at most {_MOST_STRIPS:,} are allowed")
            if tag in _DIRECTORY_TAGS:
                waiting.append(place)
            length = number * _SIZE_OF_TYPE.get(kind, 0)
            if length <= inline:
                continue
            if place + length > size:  # Pillow stops here
                break
            total += length
            if total > most:
                raise ValueError(f"{count:,} notes that overlap: they ask for more than {most:,} bytes of {size:,}")


def check_exif(exif: bytes) -> None:
    """[`check_directory`] for an EXIF block of any format."""
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    check_directory(io.BytesIO(exif), 0, len(exif))


def _check_all_directories(content: bytes) -> None:
    file = io.BytesIO(content)
    for start in _TIFF_STARTS:
        place = content.find(start)
        while place >= 0:
            check_directory(file, place, len(content) - place)
            place = content.find(start, place + 1)


def jpeg_header(content: bytes) -> tuple[bytes, bool]:
    """What lies before the first scan of a JPEG, and whether this scan is certainly the only one.

    Raises:
        ValueError: if there are too many segments, or bytes between them.
    """
    frame, components = 0, 0
    for kind, start, _ in _jpeg_segments(content):
        if kind in _FRAMES:
            frame, components = kind, content[start + 5] if start + 5 < len(content) else 0
        if kind == _SCAN:
            in_scan = content[start] if start < len(content) else 0
            return content[:start], frame in _SEQUENTIAL and in_scan == components
    return content, False


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, start, end) of the segments up to the first scan, found as Pillow finds them."""
    position, junk = 2, 0
    for _ in range(_MOST_SEGMENTS):
        marker = content.find(b"\xff", position)
        junk += marker - position
        if marker < 0 or marker + 1 >= len(content) or junk > _MOST_JUNK_BYTES:
            break
        kind = content[marker + 1]
        if kind in (0x00, 0xFF):  # padding
            junk += 1
            position = marker + 1
            continue
        position = marker + 2
        if kind == _END:
            return
        if kind in _WITHOUT_LENGTH:
            continue
        end = position + max(int.from_bytes(content[position : position + 2], "big"), 2)
        yield kind, position + 2, end
        if kind == _SCAN:
            return
        position = end
    else:
        raise ValueError(f"a JPEG with more than {_MOST_SEGMENTS:,} segments before its first scan")
    if junk > _MOST_JUNK_BYTES:
        raise ValueError(f"a JPEG with more than {_MOST_JUNK_BYTES:,} bytes between its segments")


def _check_jpeg(content: bytes) -> None:
    exif = bytearray()
    for kind, start, end in _jpeg_segments(content):
        if kind == _APP1 and content.startswith(_EXIF, start):
            exif += content[start + len(_EXIF) : end]
        if kind == _APP2 and content.startswith(b"MPF\0", start):
            check_directory(io.BytesIO(content[start + 4 : end]), 0, end - start - 4)
    check_exif(bytes(exif))


def _check_png(file: BinaryIO, size: int) -> None:
    most = _MOST_BLOCKS + size // 512
    position = 8
    for _ in range(most):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        position += 12 + int.from_bytes(head[:4], "big")
    raise ValueError(f"a PNG of {size:,} bytes in more than {most:,} chunks")


def _check_gif(file: BinaryIO) -> None:
    head = file.read(13)
    if len(head) == 13 and head[10] & 0x80:
        file.seek(3 << ((head[10] & 7) + 1), io.SEEK_CUR)
    comments = junk = 0
    while (block := file.read(1)) not in (b"", b",", b";"):
        if block != b"!":
            junk += 1
        else:
            is_comment = file.read(1) == b"\xfe"
            while length := int.from_bytes(file.read(1), "big"):
                file.seek(length, io.SEEK_CUR)
                comments += length * is_comment
                if comments > _MOST_COMMENT_BYTES:
                    raise ValueError(f"a GIF with more than {_MOST_COMMENT_BYTES:,} bytes of comments")
        if junk > _MOST_JUNK_BYTES:
            raise ValueError(f"a GIF with more than {_MOST_JUNK_BYTES:,} bytes between its blocks")
