"""What a visitor of the Space may send: a guard in front of the routes of Gradio.

Gradio opens any file of its upload folder, and downloads any address, that a request names in any field. It stores as
many uploads as arrive. The guard lets a request name only files that the same visitor uploaded, and no addresses, and
it limits uploads and searches per visitor. A visitor is an IP address; for IPv6, its network of 64 bits.
"""

import asyncio
import functools
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cca_hf.hub.clients import client_of

KEPT_SECONDS = 3600  # until an upload is deleted
LOST = "The page does not have this image. Upload it again."
_FORM = 10_000  # bytes of an upload beside its file
_MOST_EVENT = 100_000  # bytes of any other request
_MOST_STORED = 1_000_000_000  # bytes of all uploads
_BODY_SECONDS = 60.0
_ELSEWHERE = re.compile(r"/proxy=|/file[=/]+https?:|/deep_link$", re.IGNORECASE)
_FULL = "You sent more than this page can take. Try again in a few minutes."


class VisitorGuard:
    """ASGI middleware for Gradio's app.

    Args:
        folder: Gradio's upload folder, which holds nothing else.
        most_bytes: of an uploaded file.
    """

    def __init__(self, app: ASGIApp, folder: Path, most_bytes: int) -> None:
        self._app, self._folder, self._most_bytes = app, folder, most_bytes
        self._uploads: dict[tuple[str, str], float] = {}  # (visitor, path) -> time of the upload
        self._files = _Allowance(most=60, seconds=3600)
        self._bytes = _Allowance(most=200_000_000, seconds=3600)
        self._events = _Allowance(most=60, seconds=40)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["method"] != "POST":
                if _ELSEWHERE.search(scope["path"]):
                    raise _Refusal(403, "This page opens no addresses.")
                await self._app(scope, receive, send)
            elif scope["path"].rstrip("/").endswith("/upload"):
                await self._upload(scope, receive, send)
            else:
                await self._event(scope, receive, send)
        except _Refusal as refusal:
            await refusal.response(scope)(scope, receive, send)
        except ClientDisconnect:  # nobody waits for an answer
            return

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        visitor = client_of(scope)
        body = await _body(scope, receive, self._most_bytes + _FORM)
        stored = await asyncio.to_thread(self._delete_old_files)
        if stored + len(body) > _MOST_STORED:
            raise _Refusal(503, "The page has no room for more uploads. Try again later.")
        if not (self._files.spend(visitor, 1) and self._bytes.spend(visitor, len(body))):
            raise _Refusal(429, _FULL)
        answer = bytearray()

        async def note(message: Message) -> None:
            answer.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._note_uploads(visitor, bytes(answer))
            await send(message)

        await self._app(scope, _replay(body, receive), note)

    def _note_uploads(self, visitor: str, answer: bytes) -> None:
        """Stores the paths of an answer to an upload, which is a list of paths or an error as text."""
        try:
            paths = json.loads(answer)
        except ValueError:
            return
        if isinstance(paths, list):
            self._uploads.update(dict.fromkeys(((visitor, path) for path in paths), time.monotonic()))

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        visitor = client_of(scope)
        body = await _body(scope, receive, _MOST_EVENT)
        named: list[Any] = []

        def note(pairs: list[tuple[str, Any]]) -> None:
            named.extend(value for key, value in pairs if key == "path")

        try:
            json.loads(body or b"null", object_pairs_hook=note)
        except (ValueError, RecursionError) as error:
            raise _Refusal(400, "A request must be JSON.") from error
        if not all(isinstance(path, str) and (visitor, path) in self._uploads for path in named):
            raise _Refusal(403, LOST)
        if not self._events.spend(visitor, 1):
            raise _Refusal(429, _FULL)
        await self._app(scope, _replay(body, receive), send)

    def _delete_old_files(self) -> int:
        """Deletes what is older than an hour, also files that Gradio left after broken uploads.

        Returns:
            The bytes of the other files.
        """
        stored, until = 0, time.time() - KEPT_SECONDS
        for path in self._folder.rglob("*"):
            try:
                about = path.lstat()
                if not path.is_file():
                    continue
                if about.st_ctime < until:
                    path.unlink()
                else:
                    stored += about.st_size
            except FileNotFoundError:  # Gradio deleted it in the meantime
                continue
        self._uploads = {key: at for key, at in self._uploads.items() if at > time.monotonic() - KEPT_SECONDS}
        return stored


@functools.cache  # which also keeps the folder until the process ends
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cca-space-", dir=os.environ.get("GRADIO_TEMP_DIR"))


def private_upload_folder() -> Path:
    """A folder for the uploads of this process, which is deleted when the process ends.

    `GRADIO_TEMP_DIR` says where it is made, and names it afterwards, because Gradio reads it there.
    """
    folder = _temporary_folder().name
    os.environ["GRADIO_TEMP_DIR"] = folder
    return Path(folder)


class _Allowance:
    """What a visitor may spend: at once `most`, and again as much in each `seconds`."""

    def __init__(self, most: float, seconds: float) -> None:
        self._most, self._per_second = most, most / seconds
        self._left: dict[str, tuple[float, float]] = {}  # visitor -> what was left, at which time

    def spend(self, visitor: str, amount: float) -> bool:
        now = time.monotonic()
        if len(self._left) > 10_000:
            self._left = {each: left for each, left in self._left.items() if self._now(*left, now) < self._most}
        left = self._now(*self._left.get(visitor, (self._most, now)), now)
        enough = left >= amount
        self._left[visitor] = (left - amount if enough else left, now)
        return enough

    def _now(self, left: float, at: float, now: float) -> float:
        return min(self._most, left + (now - at) * self._per_second)


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self, scope: Scope) -> Response:
        """In the form that Gradio's page shows to its user: text after an upload, otherwise an object."""
        if scope["path"].rstrip("/").endswith("/upload"):
            return PlainTextResponse(str(self), self.status)
        return JSONResponse({"detail": str(self)}, self.status)


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in Request(scope, receive).stream():
                body += chunk
                if len(body) > most:
                    raise _Refusal(413, f"A request may have {most:,} bytes.")
    except TimeoutError as error:
        raise _Refusal(408, f"The request was not complete after {_BODY_SECONDS:g} s.") from error
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns the body, which has been read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
