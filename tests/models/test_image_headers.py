"""Small files that ask a decoder for gigabytes or minutes: refused before it begins, or read at their true cost."""

import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from cca_hf import UnreadableImageError
from cca_hf.models.images import ImageReader, load_image

SMALL = {"size": {"height": 24, "width": 24}}


def encoded(kind: str, size: tuple[int, int] = (64, 48), **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **options)
    return file.getvalue()


def directory(entries: list[tuple[int, int, int]], content: bytes) -> bytes:
    """A TIFF structure whose entries (tag, type, number) all refer to `content`."""
    place = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(struct.pack("<HHLL", *entry, place) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + table + bytes(4) + content


def overlapping(number: int, size: int) -> bytes:
    return directory([(1000 + tag, 7, size) for tag in range(number)], bytes(size))


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*chunks: bytes) -> bytes:
    whole = encoded("PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def thin_png(width: int, height: int) -> bytes:
    rows = zlib.compress((b"\0" + bytes(width)) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG without JFIF, for which Pillow reads the resolution in EXIF."""
    written = (bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content for kind, content in segments)
    return b"\xff\xd8" + b"".join(written) + encoded("JPEG")[20:]


def exif_segments(exif: bytes) -> list[tuple[int, bytes]]:
    return [(0xE1, b"Exif\0\0" + exif[start : start + 65_000]) for start in range(0, len(exif), 65_000)]


def gif(comment_blocks: int) -> bytes:
    whole = encoded("GIF")
    place = 13 + (3 << ((whole[10] & 7) + 1))
    return whole[:place] + b"!\xfe" + (b"\xff" + bytes(255)) * comment_blocks + b"\0" + whole[place:]


def nested_tiff() -> bytes:
    """The first directory is honest; the EXIF directory that it refers to is not."""
    inner = overlapping(2000, 100_000)
    outer = directory([(34665, 4, 1)], b"")
    count, rest = inner[8:10], inner[10:]
    shift = len(outer)
    entries = [struct.unpack_from("<HHLL", rest, 12 * row) for row in range(2000)]
    moved = b"".join(struct.pack("<HHLL", *entry[:3], entry[3] + shift - 8) for entry in entries)
    return outer + count + moved + rest[12 * 2000 :]


def many_scans() -> bytes:
    file = io.BytesIO()
    Image.new("L", (4096, 4096), 128).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 100 + whole[-2:]


REFUSED = {
    "EXIF of a JPEG": (lambda: jpeg(*exif_segments(overlapping(20_000, 200_000))), "20,000 notes that overlap"),
    "EXIF with two heads": (
        lambda: jpeg((0xE1, b"Exif\0\0" * 2 + overlapping(1000, 50_000))),
        "1,000 notes",
    ),
    "segments of a JPEG": (
        lambda: jpeg(*[(0xE1, b"Exif\0\0abcd")] * 5000),
        "more than 4,096 segments",
    ),
    "frames of a JPEG": (
        lambda: jpeg((0xE1, b"Exif\0\0"), (0xE2, b"MPF\0" + overlapping(2000, 30_000))),
        "2,000 notes that overlap",
    ),
    "junk in a JPEG": (lambda: b"\xff\xd8\xff\xe1\0\2" + bytes(70_000) + encoded("JPEG"), "65,536 bytes between its"),
    "tags of a TIFF": (lambda: overlapping(400, 200_000), "400 notes that overlap"),
    "EXIF of a TIFF": (nested_tiff, "2,000 notes that overlap"),
    "strips of a TIFF": (lambda: directory([(273, 4, 300_000)], bytes(1_200_000)), "an image in 300,000 strips"),
    "comment of a GIF": (lambda: gif(4000), "a GIF with more than 1,000,000 bytes of comments"),
    "chunks of a PNG": (lambda: png(chunk(b"teXt", b"") * 20_000), "in more than 10,469 chunks"),
    "AVIF": (lambda: b"\0\0\0\x1cftypavif" + bytes(16) + overlapping(1000, 50_000), "1,000 notes that overlap"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_before_it_is_opened(make, reason, tmp_path, monkeypatch):
    content = make()
    (tmp_path / "bomb.jpg").write_bytes(content)
    monkeypatch.setattr(Image, "open", lambda *args: pytest.fail("opened"))
    for image, name in ((content, f"an image of {len(content)} bytes"), (tmp_path / "bomb.jpg", "bomb.jpg'")):
        with pytest.raises(UnreadableImageError, match=f"{name} cannot be read as an image: .*{reason}"):
            load_image(image)


@pytest.mark.parametrize("decoder", ["simplejpeg", "Pillow"])
def test_scans_of_a_jpeg(decoder, monkeypatch):
    if decoder == "Pillow":
        monkeypatch.setattr("cca_hf.models.images.simplejpeg", None)
    reader = ImageReader(ViTImageProcessorPil(**SMALL))
    with pytest.raises(UnreadableImageError, match="of 16,777,216 pixels with 1.. scans; at most 85 are allowed"):
        reader.read(many_scans())


@pytest.mark.parametrize("make", [lambda: png(chunk(b"eXIf", overlapping(20_000, 200_000))), lambda: gif(3000)])
def test_notes_that_cost_nothing_are_no_reason(make):
    """Pillow reads the EXIF of a PNG on demand, and nobody asks for a note that cannot be right."""
    assert load_image(make()).size == (64, 48)


def growth(read) -> tuple[int, object]:
    """MB that a call adds to the memory of a process, and its result; in a child, whose peak is its own."""
    receive, send = os.pipe()
    if (child := os.fork()) == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            result = repr(tuple(read().shape))
        except UnreadableImageError as error:
            result = str(error)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        os.write(send, f"{grown} {result}".encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as file:
        grown, _, result = file.read().partition(" ")
    assert os.waitpid(child, 0)[1] == 0
    return int(grown), result


@pytest.mark.parametrize("size", [(1, 900_000), (900_000, 1)])
def test_a_thin_image(size):
    """Torch resizes the width first: 224 x 900,000 pixels of 4 bytes would be 800 MB."""
    content = thin_png(*size)
    vit, clip = ImageReader(ViTImageProcessorPil()), ImageReader(CLIPImageProcessorPil())
    grown, result = growth(lambda: vit.read(content))
    assert result == "(3, 224, 224)" and grown < 300
    grown, result = growth(lambda: clip.read(content))
    assert f"cannot be resized: {size[0]} x {size[1]} pixels are too long for this image processor" in result
    assert grown < 100


def test_sides_are_limited():
    with pytest.raises(UnreadableImageError, match="1 x 25000000 pixels; at most 1,000,000 pixels a side are allowed"):
        load_image(thin_png(1, 25_000_000))


def test_the_order_of_resizing_changes_little(monkeypatch):
    reader = ImageReader(ViTImageProcessorPil(**SMALL))
    levels = np.random.default_rng(0).integers(0, 256, (5000, 7, 3), dtype=np.uint8)
    expected = reader.resize(levels).int()
    monkeypatch.setattr("cca_hf.models.images._MOST_RESIZED", 10_000)
    assert (reader.resize(levels).int() - expected).abs().max() <= 1
