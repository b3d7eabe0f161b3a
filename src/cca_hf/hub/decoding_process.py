"""A process that decodes the images of requests, without torch: `decoding.py` starts this file and ends the process.

It reads 8 bytes with a length, and an encoded image, until its input ends. It writes a line of JSON with the image's
mode and size, or with an error, and the bytes of the pixels.
"""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

_ORIENTATION = 0x0112


def main() -> None:
    hub = Path(__file__).parent
    handler = runpy.run_path(str(hub / "handler.py"))
    # the part of the model's code that reads headers imports no torch; URLs are fetched in the server
    images = SimpleNamespace(**runpy.run_path(str(hub.parent / "models" / "image_headers.py")))
    reader = handler["RequestReader"]([], handler["Limits"](**json.loads(sys.argv[1])), images)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while length := source.read(8):
        content = source.read(int.from_bytes(length, "big"))
        pixels = b""
        try:
            image = reader.read(content)
        except handler["RequestError"] as error:
            about = {"kind": error.kind, "message": str(error)}
        else:
            about, pixels = describe(image)
        target.write(json.dumps({**about, "bytes": len(pixels)}).encode() + b"\n")
        target.write(pixels)
        target.flush()


def describe(image: Image.Image) -> tuple[dict[str, Any], bytes]:
    """What `decoding.rebuild` needs to make the same image."""
    transparency = image.info.get("transparency")
    about = {
        "mode": image.mode,
        "size": image.size,
        "palette": image.getpalette() if image.mode in ("P", "PA") else None,
        "transparency": list(transparency) if isinstance(transparency, bytes | tuple) else transparency,
        "alpha_by_colour": isinstance(transparency, bytes),
        "orientation": _orientation(image),
    }
    return about, image.tobytes()


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # a note that cannot be read is no note
        return None
    return value if isinstance(value, int) else None


if __name__ == "__main__":
    main()
