"""Who sends a request, as a server sees it, so that one client cannot take the room of all."""

import ipaddress
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any


def client_of(scope: Mapping[str, Any]) -> str:
    """The IP address of an ASGI scope; for IPv6 the network of 64 bits, which belongs to one customer."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name, or no address at a Unix socket
        return str(host)
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


class FairExecutor:
    """Threads that take the jobs of all clients in turn: a client with many jobs delays only its own."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._jobs: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # in the order of the turns
        self._changed = threading.Condition()
        self._closed = False
        # daemons, because a job may be a decoder that ignores the end of the server
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, client: str, job: Callable[[], Any]) -> "Future[Any]":
        """Runs a job when it is the client's turn."""
        future: Future[Any] = Future()
        with self._changed:
            self._jobs.setdefault(client, deque()).append((future, job))
            self._changed.notify()
        return future

    def close(self, seconds: float) -> None:
        """Cancels the jobs that have not begun, and waits some seconds for the others."""
        with self._changed:
            for jobs in self._jobs.values():
                for future, _ in jobs:
                    future.cancel()
            self._jobs.clear()
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            future, job = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del future, job, taken  # or this frame would hold the image until the next job, and an error in a cycle

    def _take(self) -> "tuple[Future[Any], Callable[[], Any]] | None":
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return None
            client = next(iter(self._jobs))
            jobs = self._jobs.pop(client)
            taken = jobs.popleft()
            if jobs:
                self._jobs[client] = jobs  # behind the others
            return taken
