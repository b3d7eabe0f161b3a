"""Real files of every awkward kind, read as upright 8-bit RGB."""

import base64
import io
import os
import socket
import struct

import numpy as np
import pytest
from PIL import Image, features

from cca_hf import UnreadableImageError
from cca_hf.models.images import decode_image, load_image


@pytest.fixture
def gradient() -> Image.Image:
    """Dark on the left, bright on the right, wider than high."""
    return Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (20, 1))).convert("RGB")


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", ["grey.png", "palette.png", "palette.gif", "cmyk.jpg", "rgb.webp", "rgb.bmp"])
def test_modes(gradient, tmp_path, name):
    mode = {"grey": "L", "palette": "P", "cmyk": "CMYK", "rgb": "RGB"}[name.split(".")[0]]
    (gradient.quantize(256) if mode == "P" else gradient.convert(mode)).save(tmp_path / name)
    got = pixels(load_image(tmp_path / name))
    assert got.shape == (20, 40, 3)
    assert np.abs(got - pixels(gradient)).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path, suffix):
    sixteen = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    path = tmp_path / f"sixteen.{suffix}"
    Image.fromarray(sixteen).save(path)
    np.testing.assert_allclose(pixels(load_image(path))[0, :, 0], np.arange(256), atol=1)


def tiff(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["float in [0, 1]", "integers in [0, 255]", "integers in [0, 65535]", "12 bits"])
def test_greys_whose_range_is_known(kind):
    levels = np.tile(np.arange(256), (4, 1))
    if kind == "12 bits":
        rows = np.tile(np.linspace(0, 4095, 256).astype(np.uint16), (4, 1))
        packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in rows.reshape(-1, 2).tolist())
        tags = [(256, 3, 256), (257, 3, 4), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (278, 3, 4)]
        tags.append((279, 4, len(packed)))
        table = b"".join(struct.pack("<HHLL", tag, size, 1, value) for tag, size, value in tags)
        content = b"II*\0" + struct.pack("<LH", 8, len(tags)) + table + bytes(4) + bytes(12) + packed
    elif kind == "float in [0, 1]":
        content = tiff((levels / 255).astype(np.float32))
    else:
        content = tiff((levels * (257 if "65535" in kind else 1)).astype(np.int32))
    np.testing.assert_allclose(pixels(load_image(content))[0, :, 0], np.arange(256), atol=1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.float32([[0, 65535]]), r"floats must be in \[0, 1\]; got \[0, 65535\]"),
        (np.float32([[0, np.nan]]), r"floats must be in \[0, 1\]; got \[nan, nan\]"),
        (np.int32([[0, 2**31 - 1]]), r"integers must be in \[0, 255\] or \[0, 65535\]; got \[0, 2147483647\]"),
        (np.int32([[-5, 5]]), r"integers must be in .*; got \[-5, 5\]"),
    ],
)
def test_greys_whose_range_is_not_known(values, reason):
    content = tiff(values)
    with pytest.raises(UnreadableImageError, match=f"an image of {len(content)} bytes cannot be read .*{reason}"):
        load_image(content)


def exif(orientation: int, resolution: tuple[int, int]) -> bytes:
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, orientation, 0) + struct.pack("<HHLL", 0x011A, 10, 1, 38)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4) + struct.pack("<ll", *resolution)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_note_that_cannot_be_read_is_no_note(gradient, kind):
    """A resolution of -1/0, which Pillow cannot write back, and EXIF that is none."""
    for note, size in ((exif(6, (-1, 0)), (20, 40)), (b"Exif\0\0rubbish, rubbish", (40, 20))):
        file = io.BytesIO()
        gradient.save(file, kind, exif=note)
        loaded = load_image(file.getvalue())
        assert loaded.size == size
        assert load_image(loaded).size == size  # it does not turn again


def test_an_image_in_memory_is_not_changed(gradient):
    loaded = load_image(gradient)
    loaded.paste("red", (0, 0, 40, 20))
    assert gradient.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_is_no_file(tmp_path):
    """Opening it would wait for its other end."""
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImageError, match="a.jpg' cannot be read as an image: it is not a file"):
        decode_image(tmp_path / "a.jpg")


def test_one_bit_images(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "bits.png")
    assert set(np.unique(pixels(load_image(tmp_path / "bits.png")))) == {0, 255}


def test_transparency_lies_on_white(tmp_path):
    layered = np.zeros((4, 4, 4), np.uint8)
    layered[:2, :, 0], layered[:2, :, 3] = 200, 255  # red above, transparent black below
    Image.fromarray(layered).save(tmp_path / "cutout.png")
    got = pixels(load_image(tmp_path / "cutout.png"))
    assert (got[:2] == [200, 0, 0]).all() and (got[2:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(gradient, tmp_path, orientation):
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = gradient.transpose(back[orientation]) if orientation > 1 else gradient
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    got = pixels(load_image(tmp_path / "phone.jpg"))
    assert got.shape == (20, 40, 3)
    assert np.abs(got - pixels(gradient)).mean() < 4


def test_every_kind_of_input(gradient, tmp_path):
    gradient.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    array = np.asarray(gradient)
    ways = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        gradient,
        array,
        array.astype(np.float32) / 255,
        array.astype(np.uint16) * 257,
        np.dstack([array, np.full((20, 40), 255, np.uint8)]),
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ]
    for way in ways:
        np.testing.assert_array_equal(pixels(load_image(way)), array)
    np.testing.assert_array_equal(pixels(load_image(array[..., :1])), array)
    np.testing.assert_array_equal(pixels(load_image(array[..., 0])), array)


def test_unreadable_images_are_named(gradient, tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    for name, reason in [
        ("truncated.jpg", "truncated"),
        ("text.jpg", "cannot identify"),
        ("none.jpg", "No such file"),
    ]:
        with pytest.raises(UnreadableImageError, match=f"{name}' cannot be read as an image: .*{reason}"):
            load_image(tmp_path / name)
    with pytest.raises(UnreadableImageError, match="an image of 3 bytes"):
        load_image({"bytes": b"abc", "path": None})
    with pytest.raises(UnreadableImageError, match="both are missing"):
        load_image({"bytes": None, "path": None})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 40), np.uint8), r"channels last; got shape \(3, 20, 40\)"),
        (np.zeros((0, 4, 3), np.uint8), "got shape"),
        (np.full((4, 4, 3), 2.0), r"must be in \[0, 1\]; got \[2, 2\]"),
        (np.full((4, 4, 3), np.nan), "must be in"),
        (np.zeros((4, 4, 3), np.int64), "got int64"),
        (7, "got int"),
    ],
)
def test_arrays_of_another_kind_are_refused(array, message):
    with pytest.raises(UnreadableImageError, match=message):
        load_image(array)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (40, 40)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableImageError, match="bomb"):
        load_image(tmp_path / "bomb.png")


def broken_files() -> dict[str, bytes]:
    """Files on which Pillow's decoders raise something else than an `OSError`."""
    # a DirectDraw surface of 4 x 4 pixels in a format that nobody has defined
    surface = struct.pack("<4s7I44x8I20x", b"DDS ", 124, 0x1007, 4, 4, 16, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0)
    files = {"broken.dds": surface}
    if "avif" in features.get_supported_modules():  # from Pillow 11.3 on
        avif = io.BytesIO()
        Image.new("RGB", (16, 16)).save(avif, "AVIF")
        files["broken.avif"] = avif.getvalue().replace(b"iloc", b"free")
    return files


@pytest.mark.parametrize(("name", "content"), broken_files().items(), ids=broken_files())
def test_any_error_of_a_decoder_names_the_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"{name}' cannot be read as an image: .") as error:
        load_image(tmp_path / name)
    assert isinstance(error.value.__cause__, RuntimeError)  # NotImplementedError is one


def test_an_error_without_a_text_is_named_by_its_kind(monkeypatch):
    def broken(image):
        raise struct.error

    monkeypatch.setattr(Image.Image, "load", broken)
    with pytest.raises(UnreadableImageError, match="an image of type Image cannot be read as an image: error"):
        load_image(Image.new("RGB", (4, 4)))


def test_images_from_a_server(gradient, image_server):
    url, answers = image_server
    buffer = io.BytesIO()
    gradient.save(buffer, "PNG")
    answers |= {"/a.png": buffer.getvalue(), "/closed.png": "hang up"}
    np.testing.assert_array_equal(pixels(load_image(f"{url}/a.png")), pixels(gradient))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/a.png"
        for dead in (f"{url}/none.png", f"{url}/closed.png", refused, "http://[broken"):
            with pytest.raises(UnreadableImageError) as error:
                load_image(dead)
            assert str(error.value).startswith(f"{dead!r} cannot be read as an image: ")


def test_transparency_of_a_data_url_lies_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert (pixels(load_image(url)) == 255).all()
