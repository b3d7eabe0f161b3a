"""uvicorn's HTTP with a deadline for the head of a request, and with room for new connections at any time."""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # from a connection, or the first byte of a later request, to the end of the head
MOST_CONNECTIONS = 768  # fewer than the files that a process may open, usually 1024


class Connection(H11Protocol):
    """A connection that is closed if no request arrives in time.

    If there are too many, the one that has waited longest for a complete request makes room. So silent and slow
    connections never keep others out.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _waits_since = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waits_since = time.monotonic()
        self._expect_head()
        if len(self.connections) > MOST_CONNECTIONS:
            waiting = [each for each in self.connections if isinstance(each, Connection) and each._is_incomplete()]
            min(waiting, key=lambda each: each._waits_since).transport.close()

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and not self._is_answering():
            self._expect_head()
        super().data_received(data)
        if self._is_answering():
            self._cancel()

    def on_response_complete(self) -> None:
        self._waits_since = time.monotonic()
        super().on_response_complete()
        if self.conn.trailing_data[0] and not self._is_answering():  # a part of the next head came with this request
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_incomplete(self) -> bool:
        return not self.transport.is_closing() and (not self._is_answering() or self.cycle.more_body)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _cancel(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
