"""A model behind HTTP: the requests of `handler.py`, the pictures of many of them in one pass of the model.

    POST /  or  /embed     a request as JSON, or a picture as the body with ?attribute=colour&attribute=closure
    GET  /                 the model's attributes, and the limits
    GET  /health           200 while the model can be asked, 503 otherwise
    GET  /metrics          for Prometheus

HTTP is starlette's and uvicorn's. What is ours: a body is counted while it comes in and given up when it is too large
or too slow; what has come in and is not answered yet is bounded in pictures and in bytes, beyond which the answer is
503 with Retry-After; every error is {"error": what was given and what is allowed, "error_type": its kind}. On SIGTERM
no more is taken in, and what has been is answered.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import UnreadableImageError

from .batching import Batcher, BusyError
from .handler import Limits, Request, RequestError, RequestReader, is_url

try:
    import prometheus_client as prometheus
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as HTTPRequest
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ImportError(f'serving needs {error.name}: pip install "cca_hf[serve]"') from error

_BODY_SECONDS = 60.0  # for a body to come in
_IDLE_SECONDS = 75  # before an idle connection is closed; balancers expect it to be longer than their own 60
_BODIES_AT_ONCE = 8  # of the largest that is allowed; many more of smaller ones
_MOST_CONNECTIONS = 1024
_MOST_READERS = 8
_FETCHERS = 16
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_KINDS = {404: "not_found", 405: "method_not_allowed"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """How a server works.

    Args:
        max_batch: pictures a pass of the model, at most.
        max_waiting: pictures that have been taken in and not been answered, at most.
        max_body: bytes of a request.
        shutdown_seconds: for what has been taken in, when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32
    max_waiting: int = 256
    max_body: int = 20_000_000
    shutdown_seconds: int = 30


class _Failure(Exception):
    """An answer other than 200 that is not about what the request says."""

    def __init__(self, status: int, kind: str, message: str):
        super().__init__(message)
        self.status = status
        self.kind = kind


class EmbeddingServer:
    """The routes, and what they share."""

    def __init__(self, model: ImageEncoder, name: str, limits: Limits, settings: ServerSettings):
        if settings.max_waiting < limits.max_pictures:
            raise ValueError(
                f"max_waiting must be at least max_pictures, {limits.max_pictures}; got {settings.max_waiting}"
            )
        self.settings = settings
        self.reader = RequestReader(model.config.attributes, limits)
        self.model = model
        self.description = {
            "model": name,
            "attributes": model.config.attributes,
            "dim": model.config.embedding_dim or model.config.hidden_size,
            "limits": {**asdict(limits), "max_body": settings.max_body},
        }
        self.bytes_held = 0
        self.metrics = _Metrics()
        readers = min(_MOST_READERS, os.cpu_count() or 1)
        self.batcher = Batcher(
            model,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            num_readers=max(1, readers // 2) if model.device.type == "cpu" else readers,
            observe=self.metrics.batch_done,
        )
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        # they wait for others' servers, so that pictures which are here already need not wait for them
        self.fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch") if limits.allow_urls else None

    def app(self) -> Starlette:
        """For uvicorn, or another server of ASGI applications."""
        return Starlette(
            routes=[
                Route("/", self.describe, methods=["GET"]),
                Route("/", self.embed, methods=["POST"]),
                Route("/embed", self.embed, methods=["POST"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.show_metrics, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _no_such_route},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        if self.fetchers is not None:
            self.fetchers.shutdown(cancel_futures=True)
        await asyncio.to_thread(self.batcher.close)

    async def describe(self, request: HTTPRequest) -> Response:
        return JSONResponse(self.description)

    async def health(self, request: HTTPRequest) -> Response:
        alive = self.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    async def show_metrics(self, request: HTTPRequest) -> Response:
        return Response(self.metrics.text(), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def embed(self, request: HTTPRequest) -> Response:
        started = time.perf_counter()
        try:
            async with self._body(request) as body:
                response = Response(await self._answer(request, body), media_type="application/json")
        except (RequestError, _Failure) as error:
            response = _error(error.status, error.kind, str(error))
            error.__traceback__ = None  # its frames hold the body, and may hold it: a cycle that would wait for gc
        except BusyError as error:
            response = _error(503, "busy", f"{error}; ask again in a second")
            response.headers["Retry-After"] = "1"
        except Exception:
            logger.exception("a request could not be answered")
            response = _error(500, "internal_error", "this is the server's mistake; its log says more")
        self.metrics.request_done(response.status_code, time.perf_counter() - started)
        return response

    async def _answer(self, http: HTTPRequest, body: bytes) -> bytes:
        request = await asyncio.to_thread(self._parse, http, body)
        ids = self.model.config.attribute_ids(request.attributes)
        by_address = any(is_url(picture) for picture in request.pictures)
        rows = await self.batcher.embed(request, ids, self.fetchers if by_address else None)
        found = []
        for place, row in enumerate(rows):
            if isinstance(row, UnreadableImageError):
                raise RequestError("unreadable_picture", f"{request.place(place)}: {row}")
            if isinstance(row, Exception):
                raise row
            found.append(row)
        return await asyncio.to_thread(lambda: json.dumps(request.answer(found), allow_nan=False).encode())

    def _parse(self, http: HTTPRequest, body: bytes) -> Request:
        parameters = {key: http.query_params.getlist(key) for key in http.query_params}
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            try:
                data = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise RequestError("invalid_request", f"the body is no JSON: {error}") from error
            if parameters and isinstance(data, dict):
                if "parameters" in data:
                    raise RequestError("invalid_request", "give parameters in the body or in the address, not in both")
                data["parameters"] = parameters
            return self.reader.parse(data)
        if kind.startswith("image/") or kind == "application/octet-stream":
            return self.reader.parse({"inputs": body, "parameters": parameters})
        allowed = "application/json, image/... or application/octet-stream"
        raise _Failure(415, "unsupported_media_type", f"Content-Type must be {allowed}; got {kind[:100]!r}")

    @contextlib.asynccontextmanager
    async def _body(self, request: HTTPRequest) -> AsyncIterator[bytes]:
        most = self.settings.max_body
        too_large = f"at most {most:,} bytes a request are allowed"
        if int(request.headers.get("content-length", 0)) > most:
            raise RequestError("too_large", too_large)
        chunks, size = [], 0
        try:
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    async for chunk in request.stream():
                        size += len(chunk)
                        self.bytes_held += len(chunk)
                        if size > most:
                            raise RequestError("too_large", too_large)
                        if self.bytes_held > _BODIES_AT_ONCE * most:
                            raise BusyError(f"requests of {self.bytes_held:,} bytes are under way already")
                        chunks.append(chunk)
            except ClientDisconnect as error:
                raise _Failure(400, "broken_off", "the request was not sent to its end") from error
            except TimeoutError as error:
                raise _Failure(408, "too_slow", f"the request was not whole after {_BODY_SECONDS:g} s") from error
            body = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            self.bytes_held -= size


class _Metrics:
    """What /metrics shows: requests, batches, what waits, and the process's own memory and time."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self.requests = prometheus.Counter("cca_requests", "Requests answered.", ["status"], registry=self.registry)
        self.seconds = prometheus.Histogram("cca_request_seconds", "From head to answer.", registry=self.registry)
        self.batches = prometheus.Histogram(
            "cca_batch_pictures", "Pictures a pass of the model.", buckets=_BATCH_SIZES, registry=self.registry
        )
        self.batch_seconds = prometheus.Counter(
            "cca_model_seconds", "Time the model was at work.", registry=self.registry
        )
        self.waiting = prometheus.Gauge(
            "cca_waiting_pictures", "Taken in and not answered yet.", registry=self.registry
        )

    def request_done(self, status: int, seconds: float) -> None:
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def batch_done(self, pictures: int, seconds: float) -> None:
        self.batches.observe(pictures)
        self.batch_seconds.inc(seconds)

    def text(self) -> bytes:
        return prometheus.generate_latest(self.registry)


def serve(model: ImageEncoder, name: str, limits: Limits, settings: ServerSettings) -> None:
    """Serves until the process is told to stop by SIGTERM or SIGINT, and then until what was taken in is answered.

    Raises:
        OSError: if the port cannot be had.
        ValueError: for limits and settings that exclude each other.
    """
    server = EmbeddingServer(model, name, limits, settings)
    config = uvicorn.Config(
        server.app(),
        settings.host,
        settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # uvicorn sends itself the signal once more when it has stopped; so that this is a return and no end of the process
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with socket.create_server(
            (settings.host, settings.port), family=family, backlog=_MOST_CONNECTIONS
        ) as listening:
            place = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
            print(f"{name} is served at http://{place}:{listening.getsockname()[1]}", flush=True)
            uvicorn.Server(config).run([listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": message, "error_type": kind}, status)


async def _no_such_route(request: HTTPRequest, error: Any) -> Response:
    told = "POST / or /embed, GET /, /health or /metrics"
    message = f"there is no {request.method} {request.url.path[:100]}; there is {told}"
    response = _error(error.status_code, _KINDS.get(error.status_code, "invalid_request"), message)
    response.headers.update(error.headers or {})
    return response
