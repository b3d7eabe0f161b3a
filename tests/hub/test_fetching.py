"""Images by URL: from public hosts alone, whatever a name, a redirect or a slow host tries."""

import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cca_hf import UnreadableImageError
from cca_hf.hub.handler import Limits, RequestError, RequestReader
from cca_hf.models import fetching, images
from cca_hf.models.fetching import FetchError, fetch, is_public

from .served import picture_file

PICTURE = picture_file(0)
LIMITS = Limits(allow_urls=True, max_bytes=100_000, url_seconds=20)
NO_HOST = "^the URL gives no image: its host must be public, and answer in time$"


def fetch_for_strangers(url, seconds=20.0):
    return fetch(url, seconds=seconds, max_bytes=100_000, for_strangers=True)


def read(url, limits=LIMITS):
    """As the server and an endpoint do."""
    return RequestReader(["colour"], limits, images).read(url)


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
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("connected"))
    with pytest.raises(RequestError) as error:
        read(url)
    assert error.value.kind in ("url_not_allowed", "unreachable_url")


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
            case "/cut":
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"x" * 10)
                self.close_connection = True
            case "/path/%C3%BC%20a%20b":
                self.answer(200, self.path.encode())
            case "/password":
                self.answer(200, self.headers["Authorization"].encode())
            case "http://shop.test/picture":
                self.answer(200, self.path.encode())
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
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(fetching, "_PORTS", {"http": public.server_port, "https": public.server_port})
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
    at = f"http://127.0.0.1:{public.server_port}"
    assert read(f"{at}/picture") == PICTURE
    assert read(f" HTTP{at[4:]}/to?/to?/picture ") == PICTURE
    with pytest.raises(RequestError, match="10 bytes are not a complete image"):
        read(f"{at}/text")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/to?http://127.0.0.2:{port}/secret", "unreachable_url", NO_HOST),
        ("/to?//127.0.0.2:{port}/secret", "unreachable_url", NO_HOST),
        ("/to?http://127.0.0.1:22/", "url_not_allowed", "on port 80 or 443"),
        ("/to?file:///etc/passwd", "url_not_allowed", "must be http or https"),
        ("/around", "unreachable_url", "^the URL gives no image: more than 5 redirects$"),
        ("/nowhere", "unreachable_url", "^the URL gives no image: HTTP status 404$"),
        ("/cut", "unreachable_url", "^the URL gives no image: broke off: 90 bytes are missing$"),
        ("/endless", "too_large", "^the URL gives no image: more than 100,000 bytes$"),
    ],
)
def test_what_a_url_may_not_do(hosts, path, kind, message):
    public, private = hosts
    with pytest.raises(RequestError, match=message) as error:
        read(f"http://127.0.0.1:{public.server_port}{path.format(port=public.server_port)}")
    assert error.value.kind == kind
    assert private.RequestHandlerClass.asked == []


@pytest.mark.parametrize("path", ["/slow", "/slow_head", "/to?/slow"])
def test_a_slow_host(hosts, path):
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"^not complete after 0.5 s$"):
        fetch_for_strangers(f"http://127.0.0.1:{hosts[0].server_port}{path}", seconds=0.5)
    assert time.monotonic() - started < 20  # of 50 that it would take


@pytest.mark.parametrize("sends", [b"", b"\x16\x03\x03\x40\x00\x02"])
def test_a_handshake_without_end(hosts, sends):
    """The host accepts connections, and begins the handshake at most; there are as many as a server has threads."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        fetching._PORTS["https"] = port
        connected = []

        def accept():
            while len(connected) < 16:
                connected.append(mute.accept()[0])
                connected[-1].sendall(sends)

        threading.Thread(target=accept, daemon=True).start()
        with ThreadPoolExecutor(16) as pool:
            fetches = [pool.submit(fetch_for_strangers, f"https://127.0.0.1:{port}/", 1.0) for _ in range(16)]
            reasons = [str(each.exception(timeout=60)) for each in fetches]
            assert reasons == ["not complete after 1 s"] * 16
            again = pool.submit(fetch_for_strangers, f"http://127.0.0.1:{hosts[0].server_port}/picture")
            assert again.result(timeout=60) == PICTURE
        for connection in connected:
            connection.close()


def test_a_silent_name_server(monkeypatch):
    let_go = threading.Event()

    def silent(*args, **options):
        let_go.wait(120)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    started = time.monotonic()
    with pytest.raises(RequestError, match=NO_HOST):
        read("http://shop.test/picture", Limits(allow_urls=True, url_seconds=0.2))
    assert time.monotonic() - started < 60
    let_go.set()


def test_nobody_learns_which_hosts_exist(hosts, names):
    """A private host, one that does not exist, and one that refuses connections have one message and one kind."""
    public, private = hosts
    port = public.server_port
    names |= {"inside.test": [["127.0.0.2"]], "nowhere.test": [[]], "refuses.test": [["127.0.0.1"]]}
    told = set()
    for name in ("inside.test", "nowhere.test", "refuses.test"):
        if name == "refuses.test":
            public.shutdown()
            public.server_close()
        with pytest.raises(RequestError) as error:
            read(f"http://{name}:{port}/picture")
        told.add((error.value.kind, str(error.value)))
    assert told == {("unreachable_url", NO_HOST[1:-1])}
    assert private.RequestHandlerClass.asked == []


def test_a_name_that_changes_its_meaning(hosts, names):
    """The connection goes to the address that was checked; nobody asks for the name again."""
    public, private = hosts
    names["shop.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    assert fetch_for_strangers(f"http://shop.test:{public.server_port}/picture") == PICTURE
    assert names["shop.test"] == [["127.0.0.2"]] and private.RequestHandlerClass.asked == []
    with pytest.raises(FetchError, match="'shop.test' is not public"):
        fetch_for_strangers(f"http://shop.test:{public.server_port}/picture")
    assert private.RequestHandlerClass.asked == []


def test_a_name_that_means_both(hosts, names):
    names["shop.test"] = [["127.0.0.1", "127.0.0.2"]]
    with pytest.raises(FetchError, match="'shop.test' is not public"):
        fetch_for_strangers(f"http://shop.test:{hosts[0].server_port}/picture")
    assert hosts[0].RequestHandlerClass.asked == []


def test_the_next_address_is_tried(hosts, names):
    names["shop.test"] = [["127.0.0.1", "127.0.0.1"]]
    refused = []
    really = socket.create_connection

    def connect(*args, **options):
        if not refused:
            refused.append(args)
            raise ConnectionRefusedError
        return really(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", connect)
        assert fetch_for_strangers(f"http://shop.test:{hosts[0].server_port}/picture") == PICTURE
    assert len(refused) == 1


def test_a_redirect_whose_name_is_private(hosts, names):
    public, private = hosts
    names |= {"shop.test": [["127.0.0.1"]] * 2, "inside.test": [["127.0.0.2"]] * 3}
    port = public.server_port
    for private_hosts in (False, True):  # a public host does not lead to a private one, even where both are allowed
        with pytest.raises(FetchError, match="'inside.test' is not public"):
            fetch(f"http://shop.test:{port}/to?http://inside.test:{port}/picture", private_hosts=private_hosts)
    assert private.RequestHandlerClass.asked == []
    assert fetch(f"http://inside.test:{port}/picture", private_hosts=True) == PICTURE


def test_the_host_is_told_its_name(hosts, names):
    names |= {"shop.test": [["127.0.0.1"]], "bücher.test": [["127.0.0.1"]]}
    port = hosts[0].server_port
    assert fetch_for_strangers(f"http://shop.test:{port}/name") == f"shop.test:{port}".encode()
    assert fetch_for_strangers(f"http://bücher.test:{port}/name") == f"xn--bcher-kva.test:{port}".encode()


def test_spaces_and_passwords_in_urls(hosts):
    at = f"127.0.0.1:{hosts[0].server_port}"
    assert fetch(f"http://{at}/path/ü a%20b?c=d e") == b"/path/%C3%BC%20a%20b?c=d%20e"
    assert fetch(f"http://me:p%40ss@{at}/password") == b"Basic bWU6cEBzcw=="


def test_the_proxy_of_the_environment(hosts, names, monkeypatch):
    """For a user's own jobs alone. A name that only the proxy knows is its matter."""
    public, private = hosts
    monkeypatch.setenv("http_proxy", f"http://127.0.0.2:{private.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    names |= {"shop.test": [[], []], "inside.test": [["127.0.0.2"]]}
    assert fetch("http://shop.test/picture") == b"http://shop.test/picture"  # what the proxy was asked for
    assert fetch(f"http://127.0.0.1:{public.server_port}/picture") == PICTURE
    with pytest.raises(FetchError, match="'inside.test' is not public"):
        fetch("http://inside.test/picture")
    with pytest.raises(FetchError, match="'shop.test' does not exist"):
        fetch_for_strangers("http://shop.test/picture")


def test_urls_in_data_lead_to_public_hosts(hosts, monkeypatch):
    """A dict comes from a data set, a text from the user himself."""
    url = f"http://127.0.0.2:{hosts[1].server_port}/picture"
    from_data = {"bytes": None, "path": url}
    with pytest.raises(UnreadableImageError) as error:
        images.load_image(from_data)
    reason = "the host '127.0.0.2' is not public; data may refer to public hosts only, unless CCA_TRUST_DATA=1 is set"
    assert str(error.value) == f"{url} cannot be read as an image: {reason}"
    assert hosts[1].RequestHandlerClass.asked == []
    assert images.load_image(url).size == (60, 48)
    monkeypatch.setenv("CCA_TRUST_DATA", "1")
    assert images.load_image(from_data).size == (60, 48)


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
    fetching._PORTS["https"] = server.server_port
    for name in ("shop.test", "other.test"):
        names[name] = [["127.0.0.1"], ["127.0.0.1"]]
    url = f"https://shop.test:{server.server_port}/picture"
    fetching._tls.cache_clear()
    with pytest.raises(FetchError, match="^no answer: .*CERTIFICATE_VERIFY_FAILED"):  # nobody vouches for it
        fetch_for_strangers(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fetching._tls.cache_clear()
    assert fetch_for_strangers(url) == PICTURE
    with pytest.raises(FetchError, match="^no answer: .*CERTIFICATE_VERIFY_FAILED"):  # it is another's
        fetch_for_strangers(url.replace("shop", "other"))
    fetching._tls.cache_clear()
    server.shutdown()
    server.server_close()
