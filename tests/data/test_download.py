"""Fetching pictures from a real web server on this machine: gone, moved, broken, endless, or fine."""

import io
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cca_hf.data.benchmarks.download import DeadLinkError, DownloadSettings, download_images, read_url_list, shrink


def jpeg(width: int, height: int, seed: int = 0, **options: object) -> bytes:
    """A picture of coarse noise: large enough in bytes to be cut."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(encoded, "JPEG", quality=95, **options)
    return encoded.getvalue()


def lying_on_its_side() -> bytes:
    """100 x 80 as stored, 80 x 100 as seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(100, 80, exif=exif)


def transparent_png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGBA", (50, 40), (0, 0, 0, 0)).save(encoded, "PNG")
    return encoded.getvalue()


def endless_png() -> bytes:
    """81 million pixels in a few kilobytes."""
    encoded = io.BytesIO()
    Image.new("1", (9000, 9000)).save(encoded, "PNG")
    return encoded.getvalue()


@cache
def bodies() -> dict[str, bytes]:
    return {
        "small": jpeg(100, 80),
        "huge": jpeg(6000, 4000),
        "cut": jpeg(640, 480)[:5000],
        "page": b"<html>not found, but 200</html>",
        "empty": b"",
        "turned": lying_on_its_side(),
        "transparent": transparent_png(),
        "endless": endless_png(),
    }


class _Handler(BaseHTTPRequestHandler):
    server: "PictureServer"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            times = self.server.asked[self.path]
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "fine":
            time.sleep(self.server.seconds)
            self._send(jpeg(640, 480, seed=int(rest)))
        elif kind == "moved":
            self.send_response(302)
            self.send_header("Location", f"/fine/{rest}")
            self.end_headers()
        elif kind == "always-busy":
            self._send(b"later", 503)
        elif kind == "mute":
            self.server.closing.wait(30)
        elif kind == "busy":  # twice, then fine
            self._send(jpeg(640, 480), 200 if times > 2 else 503)
        elif kind == "breaks":  # once, within the picture
            self._send(jpeg(640, 480), until=None if times > 1 else 2000)
        elif kind == "always-breaks":
            self._send(jpeg(640, 480), until=2000)
        elif kind == "stalls":
            self._send(jpeg(640, 480), until=2000, hold=self.server.closing)
        elif kind == "trickles":
            self._send(jpeg(640, 480), seconds_a_byte=0.02)
        elif kind in self.server.bodies:
            self._send(self.server.bodies[kind])
        else:
            self._send(b"<html>gone</html>", 404)

    def _send(
        self,
        body: bytes,
        status: int = 200,
        until: int | None = None,
        hold: threading.Event | None = None,
        seconds_a_byte: float = 0.0,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if seconds_a_byte:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if self.server.closing.wait(seconds_a_byte):
                        return
            self.wfile.write(body[:until])
            if hold is not None:
                hold.wait(30)
        except (BrokenPipeError, ConnectionResetError):  # the client had enough
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


class PictureServer(ThreadingHTTPServer):
    """Counts what it is asked for, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.seconds = 0.0  # before a fine picture is sent
        self.bodies = dict(bodies())


@contextmanager
def running_server() -> Iterator[PictureServer]:
    server = PictureServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with running_server() as running:
        yield running


def write_list(path: Path, links: dict[str, str], end: str = "\n") -> Path:
    path.write_bytes(end.join(f"{name} {url}" for name, url in links.items()).encode())
    return path


@pytest.fixture(autouse=True)
def _private_hosts(monkeypatch):
    """The server of these tests is on the loopback interface."""
    monkeypatch.setenv("CCA_TRUST_DATA", "1")


PATIENCE = DownloadSettings(workers=8, timeout=1.0, deadline=2.0, retries=2)

FETCHED = {
    "fine/1": (427, 320),
    "moved/2": (427, 320),
    "busy/1": (427, 320),
    "breaks/1": (427, 320),
    "small": (100, 80),
    "huge": (480, 320),
    "turned": (80, 100),
    "transparent": (50, 40),
}
DEAD = {
    "gone": "HTTP status 404",
    "always-busy": "HTTP status 503",
    "always-breaks": "broke off: ",
    "stalls": "no data for 1 s",
    "mute": "no data for 1 s",
    "trickles": "not complete after 2 s",
    "cut": "broken image: image file is truncated",
    "page": "no image",
    "empty": "no image",
    "endless": "too large: 9000 x 9000 pixels",
}


def test_the_web_as_it_is(server, tmp_path):
    """Every kind of answer: what can be had is saved and shrunk, the rest is named with its reason."""
    paths = [*FETCHED, *DEAD]
    links = {f"dir_{i % 2}/{path.replace('/', '-')}": f"{server.address}/{path}" for i, path in enumerate(paths)}
    links["dir_0/refused.jpg"] = "http://127.0.0.1:9/x.jpg"
    urls = write_list(tmp_path / "urls.txt", links, end="\r\n")
    report = download_images(urls, tmp_path / "out", PATIENCE)
    names = {url.removeprefix(f"{server.address}/"): name for name, url in links.items()}
    sizes = {}
    for path in FETCHED:
        with Image.open(tmp_path / "out" / "pic" / f"{names[path]}.jpg") as picture:
            picture.load()
            sizes[path] = picture.size
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
    assert sizes == FETCHED
    reasons = {path: report.dead[names[path]] for path in DEAD}
    assert {path: reasons[path][: len(DEAD[path])] for path in DEAD} == DEAD
    assert report.dead["dir_0/refused.jpg"] == "no connection: [Errno 111] Connection refused"
    assert (report.listed, report.present, report.saved) == (19, 0, 8)
    assert "8 of 19 images are present, 8 of them downloaded now.\n11 links are dead (" in str(report)
    # what is whole and small enough stays byte for byte
    small = tmp_path / "out" / "pic" / f"{names['small']}.jpg"
    assert small.read_bytes() == server.bodies["small"]
    # white behind a transparent picture
    with Image.open(tmp_path / "out" / "pic" / f"{names['transparent']}.jpg") as picture:
        assert min(picture.getpixel((20, 20))) > 250
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 8 + 1
    # only what may get better is asked for again
    tries = {path: server.asked[f"/{path}"] for path in [*FETCHED, *DEAD]}
    assert tries == dict.fromkeys(tries, 1) | {"busy/1": 3, "breaks/1": 2, "moved/2": 1} | dict.fromkeys(
        ("always-busy", "always-breaks", "stalls", "mute"), 3
    )


def test_a_second_run_asks_for_nothing(server, tmp_path):
    links = {"a/1": f"{server.address}/fine/1", "a/2": f"{server.address}/gone", "a/3": f"{server.address}/page"}
    urls = write_list(tmp_path / "urls.txt", links)
    first = download_images(urls, tmp_path / "out", PATIENCE)
    record = (tmp_path / "out" / "dead_links.tsv").read_text()
    assert sorted(record.splitlines()) == [
        f"a/2\t{server.address}/gone\tHTTP status 404", f"a/3\t{server.address}/page\tno image",
    ]  # fmt: skip
    asked = dict(server.asked)
    again = download_images(urls, tmp_path / "out", PATIENCE)
    assert dict(server.asked) == asked and again.dead == first.dead
    assert (again.present, again.saved) == (1, 0)
    assert (tmp_path / "out" / "dead_links.tsv").read_text() == record


def test_dead_links_are_asked_once_more_on_request(server, tmp_path):
    links = {"a/1": f"{server.address}/gone", "a/2": f"{server.address}/later"}
    urls = write_list(tmp_path / "urls.txt", links)
    assert len(download_images(urls, tmp_path / "out", PATIENCE).dead) == 2
    server.bodies["later"] = server.bodies["small"]  # it has come back
    report = download_images(urls, tmp_path / "out", PATIENCE, retry_dead=True)
    assert report.saved == 1 and list(report.dead) == ["a/1"]
    assert (tmp_path / "out" / "dead_links.tsv").read_text() == f"a/1\t{server.address}/gone\tHTTP status 404\n"
    assert download_images(urls, tmp_path / "out", PATIENCE).dead == report.dead


def test_killed_in_the_middle(server, tmp_path, warm_python):
    """kill -9, and the same command once more: every picture whole, and none asked for twice but those under way."""
    server.seconds = 0.1
    links = {f"item_{n // 5}/{n}": f"{server.address}/fine/{n}" for n in range(80)}
    links |= {f"dead/{n}": f"{server.address}/gone/{n}" for n in range(8)}
    urls = write_list(tmp_path / "urls.txt", dict(sorted(links.items(), key=lambda link: link[1][-1])))
    words = ["data", "download", "darn", "--urls", urls, "--output", tmp_path / "out", "--workers", 4, "--size", 64]
    command = ["-m", "cca_hf.cli.main", *words]
    with open(tmp_path / "output.txt", "w") as output:
        running = warm_python.start(*command, stdout=output, stderr=output)
    saved = tmp_path / "out" / "pic"
    while len(list(saved.rglob("*.jpg"))) < 20 and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*.jpg")}
    assert 20 <= len(before) < 80
    for path in before:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) == 64
    record = tmp_path / "out" / "dead_links.tsv"
    known_dead = record.read_text().splitlines()
    with record.open("a") as file:
        file.write("dead/7\thttp://half")  # killed while it wrote
    asked = Counter(server.asked)
    done = warm_python.run(*command, check=True)
    assert "80 of 88 images are present" in done.stdout and "8 links are dead (8 HTTP status 404)." in done.stdout
    assert str(record) in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finished = {f"/fine/{path.stem}" for path in before}
    finished |= {line.split("\t")[1].removeprefix(server.address) for line in known_dead}
    assert not [path for path in finished if server.asked[path] != asked[path]]
    assert len(list(saved.rglob("*.jpg"))) == 80
    assert not list(saved.rglob("*.unfinished"))
    assert len(record.read_text().splitlines()) == 8


def test_shrink_keeps_small_jpegs_and_the_shape_of_others():
    small = jpeg(300, 200)
    assert shrink(small, 200) is small
    with Image.open(io.BytesIO(shrink(small, 100))) as picture:
        assert picture.size == (150, 100)
    with Image.open(io.BytesIO(shrink(jpeg(60, 3000), 30))) as picture:
        assert picture.size == (30, 1500)
    # a large one is decoded to a part of its size: what comes out is still what it shows
    large = jpeg(4000, 4000, seed=5)
    with Image.open(io.BytesIO(shrink(large, 64))) as shrunk, Image.open(io.BytesIO(large)) as whole:
        expected = np.asarray(whole.resize((64, 64), Image.Resampling.LANCZOS), dtype=int)
        assert np.abs(np.asarray(shrunk, dtype=int) - expected).mean() < 4
    with pytest.raises(DeadLinkError, match="no image"):
        shrink(b"GIF89a", 10)


@pytest.mark.parametrize(
    "line", ["a/1", "a/1 ftp://x/y.jpg", "../a/1 http://x/y.jpg", "/etc/x http://x/y.jpg", "a/1 file:///etc/passwd"]
)
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "urls.txt"
    path.write_text(f"a/0 http://x/0.jpg\n{line}\n")
    with pytest.raises(ValueError, match="urls.txt, line 2: expected '<folder>/<name> <http URL>', got"):
        read_url_list(path)


def test_the_list(tmp_path):
    path = tmp_path / "urls.txt"
    path.write_bytes(b"\xef\xbb\xbfa/1.jpg http://x/a b.jpg\r\n\r\nb/2\thttps://x/2\r\na/1.jpg http://x/other.jpg")
    assert read_url_list(path) == {"a/1.jpg": "http://x/a b.jpg", "b/2": "https://x/2"}


def test_settings():
    with pytest.raises(ValueError, match="size and workers must be at least 1"):
        DownloadSettings(workers=0)


def test_a_list_leads_to_public_hosts(server, tmp_path, monkeypatch):
    monkeypatch.delenv("CCA_TRUST_DATA")
    urls = write_list(tmp_path / "urls.txt", {"a/1": f"{server.address}/fine/1"})
    reason = "the host '127.0.0.1' is not public; set CCA_TRUST_DATA=1 if you trust the list"
    assert download_images(urls, tmp_path / "out", PATIENCE).dead == {"a/1": reason}
    assert not server.asked
