"""Pictures by address: from public hosts alone, whatever a name, a redirect or a slow host tries."""

import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3.connection

from cca_hf.hub import handler
from cca_hf.hub.handler import Limits, RequestError, RequestReader, fetch_image, is_public

from .served import picture_file

PICTURE = picture_file(0)
LIMITS = Limits(allow_urls=True, max_bytes=100_000, url_seconds=20)
SHORT = Limits(allow_urls=True, url_seconds=0.5)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.5.5",
            "192.168.1.1",
            "100.64.0.1",
            "255.255.255.255",
        ),
        *("169.254.169.254", "168.63.129.16", "192.0.0.192", "198.18.0.1", "192.0.2.7", "224.0.0.1", "240.0.0.1"),
        *("::", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::"),
        *("2001::1", "2001:db8::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
    ],
)
def test_addresses_that_are_not(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/"),
        *("http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://localhost/", "http://0/"),
        *(
            "http://169.254.169.254/latest/meta-data/",
            "http://127.0.0.1:80#@example.com/",
            "http://10.0.0.1\\@8.8.8.8/",
        ),
        *(
            "http://user:password@8.8.8.8/",
            "http://8.8.8.8:22/",
            "https://8.8.8.8:8443/",
            "http:///shoe.jpg",
            "http://[/",
        ),
    ],
)
def test_addresses_that_are_refused(url, monkeypatch):
    monkeypatch.setattr(urllib3.connection.HTTPConnection, "connect", lambda self: pytest.fail("connected"))
    with pytest.raises(RequestError) as error:
        RequestReader(["colour"], LIMITS).read(url)
    assert error.value.kind == "url_not_allowed"


class Host(BaseHTTPRequestHandler):
    """What the public and the private host of these tests answer; `asked` has every path."""

    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.asked.append(self.path)
        path, _, rest = self.path.partition("?")
        match path:
            case "/picture":
                self.answer(200, PICTURE)
            case "/to":
                self.answer(302, b"", Location=rest)
            case "/around":
                self.answer(302, b"", Location="/around")
            case "/text":
                self.answer(200, b"no picture")
            case "/endless":
                self.send_response(200)
                self.end_headers()
                self.go_on(b"x" * 10_000, 0)
            case "/slow":
                self.send_response(200)
                self.end_headers()
                self.go_on(b"x", 0.05)
            case "/slow_head":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                self.go_on(b"x", 0.05)
            case "/name":
                self.answer(200, self.headers["Host"].encode())
            case _:
                self.answer(404, b"")

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def go_on(self, chunk, pause):
        self.close_connection = True
        try:
            for _ in range(1000):
                self.wfile.write(chunk)
                time.sleep(pause)
        except OSError:
            pass

    def log_message(self, *args):
        pass


def start(address, port=0):
    kind = type("Host", (Host,), {"asked": []})
    server = ThreadingHTTPServer((address, port), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    return server


@pytest.fixture
def hosts(monkeypatch):
    """(public host, private host): 127.0.0.1 taken for a public address, 127.0.0.2 not, at the same port."""
    public = start("127.0.0.1")
    try:
        private = start("127.0.0.2", public.server_port)
    except OSError:
        pytest.skip("this machine has no address 127.0.0.2")
    monkeypatch.setattr(handler, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(handler, "_PORTS", (public.server_port,))
    yield public, private
    for server in (public, private):
        server.shutdown()
        server.server_close()


@pytest.fixture
def names(monkeypatch):
    """What names stand for, `names["shop.test"] = [[first answer], [second answer], ...]`."""
    known: dict[str, list[list[str]]] = {}
    really = socket.getaddrinfo

    def resolve(host, port, *args, **options):
        if host not in known:
            return really(host, port, *args, **options)
        addresses = known[host].pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def test_a_picture_is_fetched(hosts):
    public, private = hosts
    reader = RequestReader(["colour"], LIMITS)
    at = f"http://127.0.0.1:{public.server_port}"
    assert reader.read(f"{at}/picture") == PICTURE
    assert reader.read(f" HTTP{at[4:]}/to?/to?/picture ") == PICTURE
    with pytest.raises(RequestError, match="10 bytes are not a complete image"):
        reader.read(f"{at}/text")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/to?http://127.0.0.2:{port}/secret", "url_not_allowed", "'127.0.0.2' is not public"),
        ("/to?//127.0.0.2:{port}/secret", "url_not_allowed", "'127.0.0.2' is not public"),
        ("/to?http://127.0.0.1:22/", "url_not_allowed", "on port 80 or 443"),
        ("/to?file:///etc/passwd", "url_not_allowed", "must be http or https"),
        ("/around", "unreachable_url", "redirects more than 3 times"),
        ("/nowhere", "unreachable_url", "HTTP status 404"),
        ("/endless", "too_large", "the file at the URL has more than 100,000 bytes"),
    ],
)
def test_what_an_address_may_not_do(hosts, path, kind, message):
    public, private = hosts
    with pytest.raises(RequestError, match=message) as error:
        fetch_image(f"http://127.0.0.1:{public.server_port}{path.format(port=public.server_port)}", LIMITS)
    assert error.value.kind == kind
    assert private.RequestHandlerClass.asked == []


@pytest.mark.parametrize("path", ["/slow", "/slow_head"])
def test_a_slow_host(hosts, path):
    started = time.monotonic()
    with pytest.raises(RequestError) as error:
        fetch_image(f"http://127.0.0.1:{hosts[0].server_port}{path}", SHORT)
    assert error.value.kind == "unreachable_url" and time.monotonic() - started < 20  # of 50 that it would take


def test_a_host_that_is_not_there(hosts):
    hosts[0].server_close()
    with pytest.raises(RequestError, match="no answer from the URL"):
        fetch_image(f"http://127.0.0.1:{hosts[0].server_port}/picture", LIMITS)


def test_a_name_that_changes_its_meaning(hosts, names):
    """The connection goes to the address that was checked; nobody asks for the name again."""
    public, private = hosts
    names["shop.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    assert fetch_image(f"http://shop.test:{public.server_port}/picture", LIMITS) == PICTURE
    assert names["shop.test"] == [["127.0.0.2"]] and private.RequestHandlerClass.asked == []
    with pytest.raises(RequestError, match="'shop.test' is not public"):
        fetch_image(f"http://shop.test:{public.server_port}/picture", LIMITS)
    assert private.RequestHandlerClass.asked == []


def test_a_name_that_means_both(hosts, names):
    names["shop.test"] = [["127.0.0.1", "127.0.0.2"]]
    with pytest.raises(RequestError, match="'shop.test' is not public"):
        fetch_image(f"http://shop.test:{hosts[0].server_port}/picture", LIMITS)
    assert hosts[0].RequestHandlerClass.asked == []


def test_a_redirect_whose_name_is_private(hosts, names):
    public, private = hosts
    names["shop.test"] = [["127.0.0.1"]]
    names["inside.test"] = [["127.0.0.2"]]
    port = public.server_port
    with pytest.raises(RequestError, match="'inside.test' is not public"):
        fetch_image(f"http://shop.test:{port}/to?http://inside.test:{port}/picture", LIMITS)
    assert private.RequestHandlerClass.asked == []


def test_the_host_is_told_its_name(hosts, names):
    names["shop.test"] = [["127.0.0.1"]]
    port = hosts[0].server_port
    assert fetch_image(f"http://shop.test:{port}/name", LIMITS) == f"shop.test:{port}".encode()


def test_certificates_are_those_of_the_name(hosts, names, tmp_path, monkeypatch):
    import ssl

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    what = "req -x509 -newkey rsa:2048 -nodes -subj /CN=shop.test -addext subjectAltName=DNS:shop.test"
    command = ["openssl", *what.split(), "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    server = start("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(handler, "_PORTS", (server.server_port,))
    for name in ("shop.test", "other.test"):
        names[name] = [["127.0.0.1"], ["127.0.0.1"]]
    url = f"https://shop.test:{server.server_port}/picture"
    with pytest.raises(RequestError, match="no answer from the URL: SSL"):  # nobody vouches for it
        fetch_image(url, LIMITS)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch_image(url, LIMITS) == PICTURE
    with pytest.raises(RequestError, match="no answer from the URL"):  # it is another's
        fetch_image(url.replace("shop", "other"), LIMITS)
    server.shutdown()
    server.server_close()
