"""Decodes the images of requests in processes that are ended if an image takes too long, or breaks its decoder."""

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from .handler import Limits, RequestError

DECODING_SECONDS = 10.0  # for an image; one of 25 million pixels takes about one
_ORIENTATION = 0x0112
_PROGRAM = Path(__file__).with_name("decoding_process.py")


class _OfThread(threading.local):
    process: "subprocess.Popen[bytes] | None" = None


class DecodingProcesses:
    """One process for each thread that decodes. It starts with the first image, and again after it was ended."""

    def __init__(self, limits: Limits) -> None:
        self._command = [sys.executable, str(_PROGRAM), json.dumps({**asdict(limits), "allow_urls": False})]
        self._of_thread = _OfThread()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def decode(self, content: bytes) -> Image.Image:
        """An image as `RequestReader.read` returns it.

        Raises:
            RequestError: as there, or if the process ended or was ended.
        """
        process = self._process()
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        alarm = threading.Timer(DECODING_SECONDS, end)
        alarm.start()
        try:
            about, pixels = _ask(process, content)
        except (OSError, ValueError):
            about = None
        alarm.cancel()
        alarm.join()
        if about is None or late.is_set():
            self._end(process)
        if about is None and late.is_set():
            taken = f"more than {DECODING_SECONDS:g} s to decode"
            raise RequestError("too_large", f"an image of {len(content):,} bytes takes {taken}")
        if about is None:
            raise RequestError("unreadable_picture", f"an image of {len(content):,} bytes ends its decoder")
        if "kind" in about:
            raise RequestError(about["kind"], about["message"])
        return rebuild(about, pixels)

    def close(self) -> None:
        """Ends all processes; images that they decode are answered with an error."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def _process(self) -> "subprocess.Popen[bytes]":
        process = self._of_thread.process
        if process is None:
            with self._lock:
                if self._closed:
                    raise RequestError("unreadable_picture", "the server is stopping")
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # warnings of PIL about images of others
                    start_new_session=True,  # Ctrl+C ends the server, which then ends its processes
                )
                self._running.add(process)
            self._of_thread.process = process
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            self._running.discard(process)
        self._of_thread.process = None
        process.kill()
        with contextlib.suppress(OSError):  # what it did not read any more
            process.communicate()


def _ask(process: "subprocess.Popen[bytes]", content: bytes) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(len(content).to_bytes(8, "big"))
    process.stdin.write(content)
    process.stdin.flush()
    about = json.loads(process.stdout.readline())
    pixels = process.stdout.read(about["bytes"])
    if len(pixels) < about["bytes"]:
        raise ValueError("the process ended")
    return about, pixels


def rebuild(about: dict[str, Any], pixels: bytes) -> Image.Image:
    """The image that `decoding_process.describe` described."""
    image = Image.frombytes(about["mode"], tuple(about["size"]), pixels)
    if about["palette"] is not None:
        image.putpalette(about["palette"])
    transparency = about["transparency"]
    if transparency is not None:
        as_list = bytes if about["alpha_by_colour"] else tuple
        image.info["transparency"] = as_list(transparency) if isinstance(transparency, list) else transparency
    if about["orientation"] is not None:
        exif = Image.Exif()
        exif[_ORIENTATION] = about["orientation"]
        image.info["exif"] = exif.tobytes()
    return image
