"""The `handler.py` of a repository on the Hub: a checkpoint as a Hugging Face Inference Endpoint.

    {"inputs": picture, "parameters": {"attribute": "colour"}}    ->  {"colour": [...]}
    {"inputs": [picture, picture]}                                ->  [{"colour": [...], "closure": [...]}, {...}]

A picture is base64 text, a `data:` URL or, where that is switched on, an http address; from Python also bytes and PIL
images. Text is never taken for the name of a file. `attribute` is a name or a list of them; without it all are meant.
What cannot be answered raises a `RequestError`, whose message the endpoint sends as {"error": message}.

`cca serve` reads requests by the same classes. The file travels to the Hub alone and imports nothing of cca_hf.

Addresses are fetched from public hosts only: every address that a name stands for is checked, at each redirect again,
and the connection goes to the address that was checked: a name that changes its meaning in between gains nothing.
"""

import base64
import contextlib
import io
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from http.client import HTTPException
from typing import Any, TypeAlias, cast
from urllib.parse import urljoin

import torch
from PIL import Image
from transformers import AutoModel

Picture: TypeAlias = bytes | Image.Image
Answer: TypeAlias = dict[str, list[float]] | list[dict[str, list[float]]]

STATUS_OF = {  # the kinds of RequestError, and what a server answers them with
    "invalid_request": 400,
    "unknown_attribute": 400,
    "unknown_parameter": 400,
    "url_not_allowed": 400,
    "too_large": 413,
    "too_many_pictures": 413,
    "unreadable_picture": 422,
    "unreachable_url": 422,
}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # PIL hands some of the others to other programs
_MAX_SCANS = 64  # of a JPEG, which has one or about ten; each costs the time of a whole picture
_DECIMALS = 8  # what float32 holds of a vector's length of 1; more digits would be noise and half of the answer
_PORTS = (80, 443)
_MAX_REDIRECTS = 3
_ASK_FOR = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "cca_hf"}
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_CLOUD_SERVICES = (ipaddress.ip_network("168.63.129.16"), ipaddress.ip_network("192.0.0.0/24"))  # Azure's, Oracle's


class RequestError(ValueError):
    """A request that cannot be answered; the message says what was given and what is allowed."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind
        self.status = STATUS_OF[kind]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        max_pictures: in it.
        max_bytes: of a picture's file.
        max_pixels: of a picture, read off its header before it is decoded.
        allow_urls: whether pictures may be named by http addresses, which this machine then fetches.
        url_seconds: for fetching one of them, redirects included.
    """

    max_pictures: int = 32
    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    allow_urls: bool = False
    url_seconds: float = 10.0

    def __post_init__(self) -> None:
        if min(self.max_pictures, self.max_bytes, self.max_pixels) < 1 or not self.url_seconds > 0:
            raise ValueError(f"limits must be at least 1, url_seconds above 0; got {self}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """Fields by their names in capitals after `CCA_`, such as `CCA_ALLOW_URLS=1`; the defaults of the others.

        Raises:
            ValueError: naming the variable that is not as it should be.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            variable, kind = f"CCA_{field.name.upper()}", cast(type, type(field.default))
            try:
                if variable in environment:
                    values[field.name] = kind(float(environment[variable]))
            except (ValueError, OverflowError) as error:
                told = f"{variable} must be a number, 0 or 1 for a switch; got {environment[variable]!r}"
                raise ValueError(told) from error
        return cls(**values)


class RequestReader:
    """Reads what clients send, for a model of these attributes."""

    def __init__(self, attributes: Sequence[str], limits: Limits):
        self.attributes = list(attributes)
        self.limits = limits
        Image.init()
        self.formats = [name for name in _FORMATS if name in Image.OPEN]
        if limits.allow_urls:
            _import_urllib3()  # what is missing is said now, not at the first address

    def parse(self, data: Any) -> "Request":
        """Checks the form of a request; its pictures are not looked at yet.

        Raises:
            RequestError: saying what is wrong with it.
        """
        if not isinstance(data, Mapping):
            raise RequestError(
                "invalid_request", f"a request is an object with 'inputs' in it; got {type(data).__name__}"
            )
        _refuse_unknown(data, ("inputs", "parameters"), "a request")
        if "inputs" not in data:
            raise RequestError("invalid_request", "the request has no 'inputs': a picture, or a list of pictures")
        parameters = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(parameters, Mapping):
            raise RequestError("invalid_request", f"'parameters' must be an object; got {type(parameters).__name__}")
        _refuse_unknown(parameters, ("attribute",), "'parameters'")
        attributes = self._names(parameters.get("attribute"))
        inputs = data["inputs"]
        if not isinstance(inputs, list | tuple):
            return Request([inputs], attributes, self, is_list=False)
        if not 1 <= len(inputs) <= self.limits.max_pictures:
            told = f"'inputs' is a list of {len(inputs)} pictures; 1 to {self.limits.max_pictures} are allowed"
            raise RequestError("too_many_pictures" if inputs else "invalid_request", told)
        return Request(inputs, attributes, self, is_list=True)

    def _names(self, attribute: Any) -> list[str]:
        if attribute is None:
            return self.attributes
        names = [attribute] if isinstance(attribute, str) else attribute
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            told = f"'attribute' must be a name or a list of names, of {self.attributes}"
            raise RequestError("invalid_request", f"{told}; got {type(attribute).__name__}")
        for name in names:
            if name not in self.attributes:
                told = f"unknown attribute {name[:100]!r}.{_closest(name, self.attributes)}"
                raise RequestError("unknown_attribute", f"{told} This model knows {self.attributes}.")
        return list(dict.fromkeys(names))

    def read(self, picture: Any) -> Picture:
        """A picture whose header has been read and found in bounds, fetched if it is named by an address.

        Returns:
            The bytes of a JPEG, for which there are faster decoders than PIL's; another picture decoded by PIL.

        Raises:
            RequestError: saying what is wrong with it.
        """
        if isinstance(picture, str):
            picture = self._read_text(picture.strip())
        if isinstance(picture, bytes):
            return self._open(picture)
        if not isinstance(picture, Image.Image):
            raise RequestError("invalid_request", f"{self._wanted()}; got {type(picture).__name__}")
        self._check_size(picture)
        return picture

    def _read_text(self, text: str) -> bytes:
        if is_url(text):
            if not self.limits.allow_urls:
                raise RequestError("url_not_allowed", f"nothing is fetched from addresses here: {self._wanted()}")
            return fetch_picture(text, self.limits)
        start, _, encoded = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
        if start and not start.lower().endswith(";base64"):
            raise RequestError("invalid_request", f"a data: URL must be in base64; got {start[:100]!r}")
        try:  # if it is far too long, that has been paid for when it was received
            return base64.b64decode("".join(encoded.split()), validate=True)
        except ValueError as error:
            raise RequestError("invalid_request", f"{self._wanted()}; got {text[:40]!r}") from error

    def _open(self, content: bytes) -> Picture:
        if len(content) > self.limits.max_bytes:
            allowed = f"at most {self.limits.max_bytes:,} a picture are allowed"
            raise RequestError("too_large", f"a file of {len(content):,} bytes; {allowed}")
        try:
            image = Image.open(io.BytesIO(content), formats=self.formats)
            self._check_size(image)
            if image.format not in ("JPEG", "MPO"):
                image.load()  # of these formats, while `Image.open` of the bytes might see another in them
                return image
        except RequestError:
            raise
        except Image.DecompressionBombError as error:  # beyond PIL's own bound
            raise RequestError("too_large", str(error)) from error
        except Exception as error:  # of broken files PIL's readers say so by whatever comes up
            told = f"{len(content):,} bytes that are no whole picture ({', '.join(self.formats)})"
            raise RequestError("unreadable_picture", told) from error
        scans = content.count(b"\xff\xda")
        if scans > _MAX_SCANS:
            raise RequestError("too_large", f"a JPEG of {scans:,} scans; at most {_MAX_SCANS} are allowed")
        return content

    def _check_size(self, image: Image.Image) -> None:
        if image.width * image.height > self.limits.max_pixels:
            allowed = f"at most {self.limits.max_pixels:,} pixels are allowed"
            raise RequestError("too_large", f"a picture of {image.width} x {image.height}; {allowed}")

    def _wanted(self) -> str:
        return f"a picture is base64 text,{' an http address' if self.limits.allow_urls else ''} or a data: URL"


class Request(Sequence[Picture]):
    """What was asked for. Its pictures are read when they are taken, in whatever thread, and not kept."""

    def __init__(self, pictures: Sequence[Any], attributes: list[str], reader: RequestReader, *, is_list: bool):
        self.pictures = pictures  # as they were given
        self.attributes = attributes
        self._reader = reader
        self._is_list = is_list

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: Any) -> Any:
        try:
            return self._reader.read(self.pictures[row])
        except RequestError as error:
            raise RequestError(error.kind, f"{self.place(row)}: {error}") from error

    def place(self, row: int) -> str:
        """How an error calls a picture."""
        return f"inputs[{row}]" if self._is_list else "inputs"

    def answer(self, rows: Sequence[torch.Tensor]) -> Answer:
        """`rows` (attributes, dim), one for each picture, in the form that the request wants them."""
        rounded = (row.double().round(decimals=_DECIMALS).tolist() for row in rows)
        vectors = [dict(zip(self.attributes, row, strict=True)) for row in rounded]
        return vectors if self._is_list else vectors[0]


class EndpointHandler:
    """What Inference Endpoints look for in `handler.py`: made once with the repository's folder, called per request.

    Args:
        path: folder of the checkpoint, or its id on the Hub.
        limits: by default those of the environment, see [`Limits.from_environment`].
    """

    def __init__(self, path: str = "", limits: Limits | None = None):
        model = AutoModel.from_pretrained(path, trust_remote_code=True)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.model = model.to(accelerator or "cpu").eval()
        self.reader = RequestReader(model.config.attributes, Limits.from_environment() if limits is None else limits)

    def __call__(self, data: Any) -> Answer:
        """One request -> its pictures' L2-normalised vectors by attribute; in a list if the pictures came in one.

        Raises:
            RequestError: the endpoint answers with status 400 and the message.
        """
        request = self.reader.parse(data)
        rows: list[torch.Tensor] = []
        for batch in self.model.encode_batches(request, request.attributes, on_unreadable="skip"):
            for row, error in batch.unreadable.items():
                raise RequestError("unreadable_picture", f"{request.place(row)}: {error}")
            rows.extend(batch.values)
        return request.answer(rows)


# ---- Pictures by address ----


def is_url(picture: Any) -> bool:
    """Whether a picture is named by an http address."""
    return isinstance(picture, str) and picture.strip()[:8].lower().startswith(("http://", "https://"))


def fetch_picture(url: str, limits: Limits) -> bytes:
    """What lies at a public address.

    Raises:
        RequestError: if it is not public, does not answer in time, or answers with too much.
    """
    until = time.monotonic() + limits.url_seconds
    for _ in range(_MAX_REDIRECTS + 1):
        found = _ask(url, until, limits)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise RequestError("unreachable_url", f"the address redirects more than {_MAX_REDIRECTS} times")


def public_addresses(host: str, port: int) -> list[str]:
    """What a host's name stands for.

    Raises:
        RequestError: if that is nothing, or any of it is private, of this machine, of the link, or of no host at all.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError("unreachable_url", f"there is no host {host[:100]!r}") from error
    addresses = [str(each[4][0]) for each in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise RequestError("url_not_allowed", f"pictures are fetched from public addresses; {host[:100]!r} is none")
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host in the public internet."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):  # nor may it hold one of IPv4, which might be any
        return parsed in _GLOBAL_IPV6 and parsed.is_global and parsed.sixtofour is None and parsed.teredo is None
    return parsed.is_global and not parsed.is_multicast and not any(parsed in each for each in _CLOUD_SERVICES)


def _ask(url: str, until: float, limits: Limits) -> bytes | str:
    """A picture, or the address that the host sends on to."""
    urllib3 = _import_urllib3()
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError as error:
        raise RequestError("url_not_allowed", f"{url[:100]!r} is no address") from error
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme or "")
    if parts.scheme not in ("http", "https") or not parts.host or parts.auth is not None or port not in _PORTS:
        allowed = "http or https at port 80 or 443, without a password"
        raise RequestError("url_not_allowed", f"an address must be {allowed}; got {url[:100]!r}")
    host = parts.host.strip("[]")
    address = public_addresses(host, port)[0]
    left = max(until - time.monotonic(), 0.001)
    if parts.scheme == "https":  # to the address that was checked, with the certificate of the name
        connection = urllib3.connection.HTTPSConnection(address, port, timeout=left, server_hostname=host)
    else:
        connection = urllib3.connection.HTTPConnection(address, port, timeout=left)
    alarm = threading.Timer(left, _hang_up, [connection])  # the timeout is one piece's, and a head may be in many
    alarm.start()
    try:
        headers = {**_ASK_FOR, "Host": parts.netloc}
        connection.request("GET", parts.request_uri, headers=headers, preload_content=False, decode_content=False)
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
            return str(response.headers["Location"])
        if response.status != 200:
            raise RequestError("unreachable_url", f"the address answers with HTTP {response.status}")
        content = bytearray()
        while chunk := response.read1(65_536):
            content += chunk
            if len(content) > limits.max_bytes:
                raise RequestError("too_large", f"more than {limits.max_bytes:,} bytes lie at the address")
            if time.monotonic() > until:
                break
        if time.monotonic() > until:  # here too: who was hung up on may look like who had nothing more to say
            raise RequestError("unreachable_url", f"the picture is not whole after {limits.url_seconds:g} s")
        return bytes(content)
    except (urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
        raise RequestError("unreachable_url", f"no answer from the address: {type(error).__name__}") from error
    finally:
        alarm.cancel()
        connection.close()


def _hang_up(connection: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it is not connected, or not any more
        connection.sock.shutdown(socket.SHUT_RDWR)


def _import_urllib3() -> Any:
    try:
        import urllib3
        import urllib3.connection
    except ImportError as error:
        wanted = 'pip install "cca_hf[download]", or urllib3 in the requirements.txt of the repository'
        raise ImportError(f"pictures are fetched from addresses by urllib3: {wanted}") from error
    return urllib3


# ---- What errors say ----


def _refuse_unknown(given: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            told = f"{where} has no {str(key)[:100]!r}.{_closest(str(key), known)}"
            raise RequestError("unknown_parameter", f"{told} Allowed: {', '.join(known)}.")


def _closest(name: str, known: Sequence[str]) -> str:
    closest = get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f" Did you mean {closest[0]!r}?" if closest else ""
