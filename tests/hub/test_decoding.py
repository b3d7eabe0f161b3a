"""Images that are decoded in processes: the same images, an end for those that take too long, and turns of clients."""

import io
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from cca_hf.hub.clients import FairExecutor, client_of
from cca_hf.hub.decoding import DecodingProcesses
from cca_hf.hub.handler import Limits, RequestError
from cca_hf.models.images import load_image

from .served import bomb, picture_file

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def processes():
    processes = DecodingProcesses(Limits(max_pixels=1_000_000))
    yield processes
    processes.close()


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8))
FILES = {
    "rgb": file_of(COLOURS.convert("RGB"), "PNG"),
    "rgba": file_of(COLOURS, "PNG"),
    "grey with alpha": file_of(COLOURS.convert("LA"), "PNG"),
    "palette": file_of(COLOURS.convert("RGB").quantize(16), "PNG"),
    "palette, one transparent": file_of(COLOURS.convert("RGB").quantize(16), "PNG", transparency=3),
    "palette, alpha": file_of(COLOURS.convert("RGB").quantize(16), "PNG", transparency=bytes(range(0, 160, 10))),
    "transparent colour": file_of(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "transparent grey": file_of(Image.new("L", (8, 8), 7), "PNG", transparency=7),
    "two levels": file_of(COLOURS.convert("1"), "PNG"),
    "16 bits": file_of(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "turned png": file_of(COLOURS, "PNG", exif=turned()),
    "turned webp": file_of(COLOURS, "WEBP", lossless=True, exif=turned()),
    "turned tiff": file_of(COLOURS.convert("RGB"), "TIFF", exif=turned()),
    "cmyk": file_of(COLOURS.convert("CMYK"), "TIFF"),
    "gif": file_of(COLOURS.convert("RGB"), "GIF"),
    "bmp": file_of(COLOURS.convert("RGB"), "BMP"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_image_is_the_same(processes, name):
    expected = load_image(FILES[name])
    decoded = load_image(processes.decode(FILES[name]))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))


def test_errors_are_those_of_the_reader(processes):
    with pytest.raises(RequestError, match="6000 x 6000 pixels; at most 1,000,000") as refused:
        processes.decode(bomb())
    assert refused.value.kind == "too_large"
    with pytest.raises(RequestError, match="10 bytes are not a complete image") as refused:
        processes.decode(b"no picture")
    assert refused.value.kind == "unreadable_picture"


def test_a_decoder_that_takes_too_long_is_ended(processes, monkeypatch):
    """And the next image gets a new process."""
    processes.decode(FILES["gif"])
    first = processes._of_thread.process
    first.send_signal(19)  # SIGSTOP: it does not go on
    with monkeypatch.context() as short:
        short.setattr("cca_hf.hub.decoding.DECODING_SECONDS", 0.1)
        with pytest.raises(RequestError, match=r"takes more than 0.1 s to decode") as refused:
            processes.decode(FILES["gif"])
    assert refused.value.kind == "too_large" and first.poll() is not None
    assert processes.decode(FILES["gif"]).size == COLOURS.size


def test_a_decoder_that_breaks(monkeypatch):
    processes = DecodingProcesses(Limits())
    monkeypatch.setattr(processes, "_command", [sys.executable, "-S", "-c", "import os; os.abort()"])
    with pytest.raises(RequestError, match="ends its decoder") as refused:
        processes.decode(picture_file(0, "PNG"))
    assert refused.value.kind == "unreadable_picture"
    processes.close()
    with pytest.raises(RequestError, match="the server is stopping"):
        processes.decode(picture_file(0, "PNG"))


def test_clients_take_turns():
    """The one image of a client does not wait for the many of another."""
    executor, go_on, order = FairExecutor(1, "test"), threading.Event(), []
    first = executor.submit("busy", lambda: go_on.wait(300))
    done = [executor.submit("busy", lambda number=number: order.append(number)) for number in range(5)]
    done.append(executor.submit("other", lambda: order.append("other")))
    go_on.set()
    for each in (first, *done):
        each.result(300)
    executor.close(300)
    assert order.index("other") <= 1 and [each for each in order if each != "other"] == [0, 1, 2, 3, 4]


def test_a_client_is_an_address_or_its_network():
    hosts = ["192.0.2.1", "192.0.2.2", "2001:db8:1:2:3::4", "2001:db8:1:2:5::6", "2001:db8:1:3::4", "testclient"]
    assert [client_of({"client": (host, 1)}) for host in hosts] == [
        "192.0.2.1", "192.0.2.2", "2001:db8:1:2::/64", "2001:db8:1:2::/64", "2001:db8:1:3::/64", "testclient",
    ]  # fmt: skip
    assert client_of({"client": None}) == client_of({}) == ""
