"""Fetches the content of a URL, carefully: one deadline, and public hosts only unless the caller allows others.

Every address of a host is checked, again after each redirect, and the connection goes to the checked address. So a
name that resolves differently a moment later has no effect. The deadline holds for name lookup, connection, TLS
handshake and body together, however slowly a host sends.
"""

import base64
import io
import ipaddress
import socket
import ssl
import threading
import time
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

try:
    import certifi  # for a Python without the certificates of the system
except ImportError:
    certifi = None  # type: ignore[assignment]

_PORTS = {"http": 80, "https": 443}
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY = (429, 500, 502, 503, 504)
_HEADERS = {
    "Accept": "image/*,*/*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "Mozilla/5.0 (compatible; cca_hf)",
}
_UNQUOTED = "!#$%&'()*+,/:;=?@[]~"  # what is already part of a URL, escapes included
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_CLOUD_SERVICES = (ipaddress.ip_network("168.63.129.16"), ipaddress.ip_network("192.0.0.0/24"))  # Azure's, Oracle's


class FetchError(Exception):
    """A URL without content; the message is the reason, and may name an internal host.

    Args:
        part: what is wrong: the form of the URL, a host that is private or not reached, its answer, or the size.
        temporary: whether another try may succeed.
    """

    def __init__(
        self, reason: str, part: Literal["url", "private", "host", "answer", "size"], *, temporary: bool = False
    ):
        super().__init__(reason)
        self.part = part
        self.temporary = temporary


class _Limits(NamedTuple):
    until: float  # on the monotonic clock
    idle_seconds: float

    def left(self) -> float:
        """Seconds that the next operation may take."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, self.idle_seconds)


def is_url(text: str) -> bool:
    """Whether the text is an http URL."""
    return text[:8].lower().startswith(("http://", "https://"))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host on the public internet."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):  # without an IPv4 address inside, which might be any
        return parsed in _GLOBAL_IPV6 and parsed.is_global and parsed.sixtofour is None and parsed.teredo is None
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in _CLOUD_SERVICES)


def fetch(
    url: str,
    *,
    seconds: float = 30.0,
    idle_seconds: float | None = None,
    max_bytes: int = 500_000_000,
    private_hosts: bool = False,
    for_strangers: bool = False,
) -> bytes:
    """The content at an http URL.

    Args:
        seconds: for everything, including redirects.
        idle_seconds: for a single wait. Default: `seconds`.
        private_hosts: whether the host may be private. A public host cannot redirect to a private one in any case.
        for_strangers: whether the URL comes from somebody who may not use this machine's access: then no port but 80
            and 443, no password and no proxy.

    Raises:
        FetchError: if there is no such content; the message is the reason, without the URL.
    """
    limits = _Limits(time.monotonic() + seconds, seconds if idle_seconds is None else idle_seconds)
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            parts = _parse(url, for_strangers)
            route = _find_route(parts, limits, private_hosts, use_proxy=not for_strangers)
            private_hosts = private_hosts and not route.is_public
            answer = _ask(parts, route, limits, max_bytes)
        except TimeoutError as error:
            idle = time.monotonic() < limits.until
            waited = f"no data for {limits.idle_seconds:g} s" if idle else f"not complete after {seconds:g} s"
            raise FetchError(waited, "answer", temporary=idle) from error
        except (HTTPException, OSError, ValueError) as error:
            raise FetchError(f"no answer: {_in_one_line(error)}", "answer", temporary=True) from error
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise FetchError(f"more than {_MAX_REDIRECTS} redirects", "answer")


class _Route(NamedTuple):
    """How to reach a host: its addresses, or those of a proxy."""

    addresses: list[str]
    port: int
    is_public: bool
    proxy: SplitResult | None = None


def _parse(url: str, for_strangers: bool) -> SplitResult:
    try:
        parts = urlsplit(quote(url.strip(), safe=_UNQUOTED))
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(f"{url[:100]!r} is not a URL", "url") from error
    if parts.scheme not in _PORTS or not host:
        raise FetchError(f"a URL must be http or https; got {url[:100]!r}", "url")
    if for_strangers and (parts.username is not None or port not in (None, *_PORTS.values())):
        raise FetchError(f"a URL must be on port 80 or 443, without a password; got {url[:100]!r}", "url")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _host(parts: SplitResult) -> str:
    return unquote(parts.hostname or "")


def _authority(parts: SplitResult) -> str:
    """Host and port, for the header `Host`."""
    host = _host(parts)
    name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    return name if parts.port is None else f"{name}:{parts.port}"


# ---- From the host to a connection ----


def _find_route(parts: SplitResult, limits: _Limits, private_hosts: bool, *, use_proxy: bool) -> _Route:
    host, port = _host(parts), _port(parts)
    proxy = _proxy_for(parts) if use_proxy else None
    addresses = _look_up(host, port, limits)
    if not addresses and proxy is None:
        raise FetchError(f"the host {host[:100]!r} does not exist", "host", temporary=True)
    public = all(map(is_public, addresses))
    if not public and not private_hosts:
        raise FetchError(f"the host {host[:100]!r} is not public", "private")
    if proxy is None:
        return _Route(addresses, port, public)
    return _Route(_look_up(_host(proxy), proxy.port or 80, limits), proxy.port or 80, public, proxy)


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    """The proxy of the environment, as for every other download of `transformers`."""
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(_host(parts)):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _look_up(host: str, port: int, limits: _Limits) -> list[str]:
    """The IP addresses of a host, none if it does not exist. A thread waits, since a name server may be silent."""
    found: SimpleQueue[list[str]] = SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            infos = []
        found.put([str(info[4][0]) for info in infos])

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        return found.get(timeout=limits.left())
    except (Empty, TimeoutError) as error:
        raise FetchError(f"the host {host[:100]!r} was not found in time", "host", temporary=True) from error


def _connect(route: _Route, limits: _Limits) -> socket.socket:
    """A connection to the first address that answers."""
    problem: OSError = TimeoutError()
    for address in route.addresses:
        try:
            return socket.create_connection((address, route.port), timeout=limits.left())
        except OSError as error:
            problem = error
    raise FetchError(f"no connection: {_in_one_line(problem)}", "host", temporary=True) from problem


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if certifi is not None:
        context.load_verify_locations(certifi.where())
    return context


# ---- The request and its answer ----


class _TimedReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, limits: _Limits):
        self._connected, self._limits = connected, limits

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connected.settimeout(self._limits.left())
        return self._connected.recv_into(buffer)


class _TimedSocket:
    """What `http.client` needs of a socket. Its operations together end at the deadline."""

    def __init__(self, connected: socket.socket, limits: _Limits):
        self._connected, self._limits = connected, limits

    def sendall(self, content: bytes) -> None:
        self._connected.settimeout(self._limits.left())
        self._connected.sendall(content)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._connected, self._limits), 65_536)

    def close(self) -> None:
        """`http.client` closes a socket before the body is read; `_ask` closes it afterwards."""


def _ask(parts: SplitResult, route: _Route, limits: _Limits, max_bytes: int) -> bytes | str:
    """The content at a URL, or the URL that it redirects to."""
    connected = _connect(route, limits)
    try:
        target = parts.path or "/"
        headers = {**_HEADERS, "Host": _authority(parts)}
        if parts.username is not None:
            headers["Authorization"] = _credentials(parts)
        if route.proxy is not None and parts.scheme == "https":
            _tunnel(connected, parts, route.proxy, limits)
        elif route.proxy is not None:
            target = f"http://{headers['Host']}{target}"
            if route.proxy.username is not None:
                headers["Proxy-Authorization"] = _credentials(route.proxy)
        if parts.scheme == "https":
            context = _tls()
            connected.settimeout(limits.left())
            connected = context.wrap_socket(connected, server_hostname=_host(parts))
        connection = HTTPConnection(_host(parts), _port(parts))
        connection.sock = _TimedSocket(connected, limits)
        connection.request("GET", f"{target}?{parts.query}" if parts.query else target, headers=headers)
        return _read(connection.getresponse(), max_bytes)
    finally:
        connected.close()


def _read(response: HTTPResponse, max_bytes: int) -> bytes | str:
    location = response.headers["Location"]
    if response.status in _REDIRECTS and location:
        return str(location)
    if response.status != 200:
        raise FetchError(f"HTTP status {response.status}", "answer", temporary=response.status in _TEMPORARY)
    content = bytearray()
    while chunk := response.read1(65_536):
        content += chunk
        if len(content) > max_bytes:
            raise FetchError(f"more than {max_bytes:,} bytes", "size")
    if response.length:
        raise FetchError(f"broke off: {response.length:,} bytes are missing", "answer", temporary=True)
    return bytes(content)


def _tunnel(connected: socket.socket, parts: SplitResult, proxy: SplitResult, limits: _Limits) -> None:
    place = _authority(parts) if parts.port else f"{_authority(parts)}:{_port(parts)}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if proxy.username is not None:
        lines.append(f"Proxy-Authorization: {_credentials(proxy)}")
    timed: Any = _TimedSocket(connected, limits)
    timed.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    response = HTTPResponse(timed, method="CONNECT")
    response.begin()
    if response.status != 200:
        raise FetchError(f"the proxy answered with HTTP status {response.status}", "answer", temporary=True)


def _credentials(parts: SplitResult) -> str:
    name_and_password = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(name_and_password.encode()).decode()}"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
