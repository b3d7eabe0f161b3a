"""A model behind HTTP: reads requests as `handler.py` does, and embeds the images of many requests together.

    POST /  or  /embed     a request as JSON, or an image as the body with ?attribute=colour&add=colour=red
    GET  /                 the model's attributes (none for one embedding of an image), the values that a request can
                           add, and the limits
    GET  /health           200 while the model answers, otherwise 503
    GET  /metrics          for Prometheus

Every error is {"error": message, "error_type": kind}. `docs/serving.md` describes the limits.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from cca_hf.extras import require
from cca_hf.models import images
from cca_hf.models.configuration_images import public_name
from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import UnreadableImageError
from cca_hf.models.value_prototypes import PrototypeEncoder

from .batching import Batcher, BusyError
from .clients import FairExecutor, client_of
from .decoding import DecodingProcesses
from .handler import Limits, Readable, Request, RequestError, RequestReader, is_url

try:
    import prometheus_client as prometheus
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as HTTPRequest
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from .connections import MOST_CONNECTIONS, Connection
except ImportError:
    require("serve", "serving needs")
    raise

_BODY_SECONDS = 60.0  # until a body must have arrived
_STALL_SECONDS = 10.0  # in which a body may fall behind its rate
_BODY_RATE = 20_000  # bytes per second
_IDLE_SECONDS = 75  # until an idle connection is closed; load balancers expect more than their own 60
_BODIES_AT_ONCE = 8  # bodies of the maximum size; many more if they are smaller
_MOST_MARKS = 100  # brackets, commas and quotes of JSON per image and per attribute; text in base64 has none
_MARKS = (b"[", b"{", b",", b'"')
_MOST_READERS = 8
_FETCHERS = 16
_PLAIN_JPEG = b"\xff\xd8\xff"
_GRACE = 0.8  # the part of the time to stop in which requests are still answered
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_KINDS = {404: "not_found", 405: "method_not_allowed"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32  # images in a forward pass
    max_waiting: int = 256  # images that have been accepted and not answered
    max_body: int = 20_000_000  # bytes of a request
    shutdown_seconds: int = 30  # to end when the server is stopped; in 80 % of them it answers accepted requests


class _Reader(RequestReader):
    """Decodes JPEGs in the thread that reads them, where they take a bounded time, and other formats in a process."""

    def __init__(self, model: ImageEncoder, limits: Limits):
        changer = model if isinstance(model, PrototypeEncoder) else None
        super().__init__(_names_of(model), limits, images, changer)
        self.processes = DecodingProcesses(limits)

    def _open(self, content: bytes) -> Readable:
        if content.startswith(_PLAIN_JPEG):
            return super()._open(content)
        return self.processes.decode(content)


class EmbeddingServer:
    """The routes and their shared state."""

    def __init__(self, model: ImageEncoder, name: str, limits: Limits, settings: ServerSettings):
        least = limits.max_pictures
        if settings.max_waiting < least:
            raise ValueError(f"max_waiting must be at least max_pictures, {least}; got {settings.max_waiting}")
        self.settings = settings
        self.reader = _Reader(model, limits)
        self.most_marks = _MOST_MARKS * (limits.max_pictures + len(model.config.attributes))
        self.model = model
        names = _names_of(model)
        self.description = {
            "model": public_name(name),
            "attributes": names,
            "values": {name: list(model.value_prototypes(name)) for name in names} if model.has_prototypes else {},
            "dim": model.config.embedding_dim or model.config.hidden_size,
            "limits": {**asdict(limits), "max_body": settings.max_body},
        }
        self.bytes_held = 0
        self.bytes_of: Counter[str] = Counter()  # client -> bytes that are held
        self.answering: set[asyncio.Task[Any]] = set()
        self.stopping = False
        self.metrics = _Metrics()
        readers = min(_MOST_READERS, os.cpu_count() or 1)
        if model.device.type == "cpu":
            readers = max(1, readers // 2)
        waiting = settings.max_waiting
        per_client = max(limits.max_pictures, waiting // 2)
        self.batcher = Batcher(model, settings.max_batch, waiting, per_client, readers, self.metrics.batch_done)
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        # separate threads wait for other servers, so that images in requests are not delayed
        self.fetchers = FairExecutor(_FETCHERS, "fetch") if limits.allow_urls else None

    def app(self) -> Starlette:
        """The ASGI application, for uvicorn or another server."""
        routes = [Route("/", self.describe), Route("/health", self.health), Route("/metrics", self.show_metrics)]
        routes += [Route(path, self.embed, methods=["POST"]) for path in ("/", "/embed")]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_such_route}, lifespan=self._lifespan)
        app.router.redirect_slashes = False  # it would redirect to any host that a request names
        return app

    def give_up(self) -> None:
        """Answers what is still waiting with 503, because the server must end."""
        self.stopping = True
        self.reader.processes.close()
        for task in self.answering:
            task.cancel()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.reader.processes.close()
        if self.fetchers is not None:
            self.fetchers.close(0)
        await asyncio.to_thread(self.batcher.close)

    async def describe(self, request: HTTPRequest) -> Response:
        return JSONResponse(self.description)

    async def health(self, request: HTTPRequest) -> Response:
        alive = self.batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the model's thread has stopped"}, 200 if alive else 503)

    async def show_metrics(self, request: HTTPRequest) -> Response:
        text = prometheus.generate_latest(self.metrics.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    async def embed(self, request: HTTPRequest) -> Response:
        started = time.perf_counter()
        task = asyncio.current_task()
        assert task is not None
        self.answering.add(task)
        try:
            async with self._body(request) as body:
                response = Response(await self._answer(request, body), media_type="application/json")
        except RequestError as error:
            response = _error(error.status, error.kind, str(error))
            error.__traceback__ = None  # its frames hold the body, in a cycle that only the garbage collector ends
        except BusyError as error:
            response = _error(503, "busy", f"{error}; try again in a second")
            response.headers["Retry-After"] = "1"
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            task.uncancel()
            response = _error(503, "busy", "the server is stopping; try again in a minute")
            response.headers["Retry-After"] = "60"
        except Exception:
            logger.exception("an error occurred while answering a request")
            response = _error(500, "internal_error", "an error occurred in the server; see its log")
        finally:
            self.answering.discard(task)
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(time.perf_counter() - started)
        return response

    async def _answer(self, http: HTTPRequest, body: bytes) -> bytes:
        request = await asyncio.to_thread(self._parse, http, body)
        ids = self.model.config.attribute_ids(request.attributes or None)
        from_urls = any(is_url(image) for image in request.images)
        rows = await self.batcher.embed(request, ids, client_of(http.scope), self.fetchers if from_urls else None)
        embeddings = []
        for place, row in enumerate(rows):
            if isinstance(row, UnreadableImageError):
                raise RequestError("unreadable_picture", f"{request.place(place)}: {row}")
            if isinstance(row, Exception):
                raise row
            embeddings.append(row)
        return await asyncio.to_thread(lambda: json.dumps(request.answer(embeddings), allow_nan=False).encode())

    def _parse(self, http: HTTPRequest, body: bytes) -> Request:
        given: dict[str, list[str]] = {}
        for key, value in http.query_params.multi_items():
            given.setdefault(key, []).append(value)
        parameters: dict[str, Any] = dict(given)
        if "add" in given:  # ?add=colour=red
            parameters["add"] = {name: value for name, _, value in (pair.partition("=") for pair in given["add"])}
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            self._check_marks(body)
            try:
                data = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise RequestError("invalid_request", f"the body is not valid JSON: {error}") from error
            if parameters and isinstance(data, dict):
                if "parameters" in data:
                    raise RequestError("invalid_request", "give parameters in the body or in the URL, not in both")
                data["parameters"] = parameters
            return self.reader.parse(data)
        if kind.startswith("image/") or kind == "application/octet-stream":
            return self.reader.parse({"inputs": body, "parameters": parameters})
        allowed = "application/json, image/... or application/octet-stream"
        raise RequestError("unsupported_media_type", f"Content-Type must be {allowed}; got {kind[:100]!r}")

    def _check_marks(self, body: bytes) -> None:
        """Refuses JSON that would become many objects, before they are made: a few bytes each, they take far more."""
        marks = sum(body.count(mark) for mark in _MARKS)
        if marks > self.most_marks:
            allowed = f"at most {self.most_marks:,} are allowed"
            raise RequestError("too_large", f"the JSON has {marks:,} brackets, commas and quotes; {allowed}")

    @contextlib.asynccontextmanager
    async def _body(self, request: HTTPRequest) -> AsyncIterator[bytes]:
        most = self.settings.max_body
        too_large = f"at most {most:,} bytes per request are allowed"
        if int(request.headers.get("content-length", 0)) > most:
            raise RequestError("too_large", too_large)
        client, most_held = client_of(request.scope), _BODIES_AT_ONCE * most
        chunks, size = [], 0
        now = asyncio.get_running_loop().time
        until = now() + _BODY_SECONDS
        try:
            try:
                async with asyncio.timeout(_STALL_SECONDS) as timeout:
                    deadline = now() + _STALL_SECONDS
                    async for chunk in request.stream():
                        size += len(chunk)
                        self.bytes_held += len(chunk)
                        self.bytes_of[client] += len(chunk)
                        if size > most:
                            raise RequestError("too_large", too_large)
                        if self.bytes_held > most_held:
                            raise BusyError(f"requests of {self.bytes_held:,} bytes are being received")
                        if self.bytes_of[client] > most_held // 2:
                            raise BusyError(f"requests of {self.bytes_of[client]:,} bytes of this client are held")
                        chunks.append(chunk)
                        deadline = min(deadline + len(chunk) / _BODY_RATE, now() + _STALL_SECONDS, until)
                        timeout.reschedule(deadline)
            except ClientDisconnect as error:
                raise RequestError("broken_off", "the connection closed before the end of the request") from error
            except TimeoutError as error:
                rate = f"{_BODY_RATE:,} bytes per second"
                message = f"the request stopped, or it arrived at less than {rate}, or it took {_BODY_SECONDS:g} s"
                raise RequestError("too_slow", message) from error
            body = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            self.bytes_held -= size
            self.bytes_of[client] -= size
            if not self.bytes_of[client]:
                del self.bytes_of[client]


class _Server(uvicorn.Server):
    """uvicorn, whose last answers are 503 before its time to stop is over."""

    def __init__(self, config: uvicorn.Config, server: EmbeddingServer):
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        seconds = _GRACE * self._server.settings.shutdown_seconds
        alarm = asyncio.get_running_loop().call_later(seconds, self._server.give_up)
        await super().shutdown(sockets)
        alarm.cancel()


class _Metrics:
    """The metrics of /metrics: requests, batches, waiting images, and the memory and CPU time of the process."""

    def __init__(self) -> None:
        registry = self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        counter = partial(prometheus.Counter, registry=registry)
        histogram = partial(prometheus.Histogram, registry=registry)
        self.requests = counter("cca_requests", "Requests that were answered.", ["status"])
        self.seconds = histogram("cca_request_seconds", "Seconds from the request's headers to the answer.")
        self.batches = histogram("cca_batch_pictures", "Images in a forward pass.", buckets=_BATCH_SIZES)
        self.batch_seconds = counter("cca_model_seconds", "Seconds that the model was running.")
        waiting = "Images that were accepted and are not answered."
        self.waiting = prometheus.Gauge("cca_waiting_pictures", waiting, registry=registry)

    def batch_done(self, images: int, seconds: float) -> None:
        self.batches.observe(images)
        self.batch_seconds.inc(seconds)


def serve(model: ImageEncoder, name: str, limits: Limits, settings: ServerSettings) -> None:
    """Serves until SIGTERM or SIGINT, then answers the accepted requests and returns.

    Raises:
        OSError: if the port is not free.
        ValueError: if `max_waiting` is below the number of images of a request.
    """
    server = uvicorn_server(EmbeddingServer(model, name, limits, settings))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # uvicorn sends the signal to the process again when it has stopped; this handler lets the function return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        address = (settings.host, settings.port)
        with socket.create_server(address, family=family, backlog=MOST_CONNECTIONS) as listening:
            place = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
            print(f"{name} is served at http://{place}:{listening.getsockname()[1]}", flush=True)
            server.run([listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def uvicorn_server(server: EmbeddingServer) -> uvicorn.Server:
    """The server that `serve` runs."""
    settings = server.settings
    config = uvicorn.Config(
        server.app(),
        settings.host,
        settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=Connection,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    return _Server(config, server)


def _names_of(model: ImageEncoder) -> list[str]:
    """The attributes of a model; none if its only space has no name."""
    return [name for name in model.config.attributes if name]


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": message, "error_type": kind}, status)


async def _no_such_route(request: HTTPRequest, error: Any) -> Response:
    routes = "POST / or /embed, GET /, /health or /metrics"
    message = f"there is no {request.method} {request.url.path[:100]}; use {routes}"
    response = _error(error.status_code, _KINDS.get(error.status_code, "invalid_request"), message)
    response.headers.update(error.headers or {})
    return response
