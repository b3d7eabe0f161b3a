"""`cca serve` as a process of its own, asked over HTTP: right answers, batches, bad requests, an orderly end."""

import asyncio
import base64
import gc
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch

from cca_hf.cli.main import main
from cca_hf.hub.connections import MOST_CONNECTIONS
from cca_hf.hub.handler import Limits, RequestError
from cca_hf.hub.server import EmbeddingServer, ServerSettings, uvicorn_server
from cca_hf.models.images import UnreadableImageError
from cca_hf.runtimes.export import ExportedModel

from .served import ATTRIBUTES, bomb, picture_file, save_checkpoint

NAMES = list(ATTRIBUTES)
JPEG = picture_file(0)
TEXT = base64.b64encode(JPEG).decode()
IMAGE = {"Content-Type": "image/jpeg"}
MOST = 300_000  # bytes of a request


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cca-shoes")


@pytest.fixture(scope="module")
def model(folder):
    return save_checkpoint(folder)


def start(warm_python, folder, *flags):
    """A server, and its address when it is there."""
    command = ["-m", "cca_hf.cli.main", "serve", "--model", folder, "--device", "cpu", "--port", "0", *flags]
    process = warm_python.start(*command)
    line = process.stdout.readline()
    found = re.search(r"is served at (http://\S+)", line)
    assert found, (line, process.stderr.read())
    return process, found[1]


def assert_quiet(process):
    """It has nothing to say about bad requests, but of what is no HTTP at all."""
    said = process.stderr.read().replace("WARNING:  Invalid HTTP request received.", "")
    assert not re.search("error|warning|exception|traceback", said, flags=re.IGNORECASE), said


@pytest.fixture(scope="module")
def server(model, folder, warm_python):
    process, address = start(warm_python, folder, "--max_body", str(MOST), "--max_pixels", "1000000")
    yield address
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert_quiet(process)


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server, timeout=300) as client:
        yield client
        assert client.get("/health").json() == {"status": "ok"}  # whatever was asked before


def metric(client, name):
    text = client.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, flags=re.MULTILINE))


def test_what_is_served(client, folder):
    told = client.get("/").json()
    assert told["model"] == folder.name and told["attributes"] == NAMES and told["dim"] == 16
    assert told["values"] == {"colour": ["red", "blue"], "shape": ["round"], "heel height": []}
    assert told["limits"]["max_body"] == MOST and told["limits"]["allow_urls"] is False


def test_a_picture_as_the_body(client, model):
    want = model.encode(JPEG)[0]
    answer = client.post("/", content=JPEG, headers=IMAGE)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == NAMES
    np.testing.assert_allclose(list(answer.json().values()), want, atol=1e-6)
    some = {"attribute": ["heel height", "colour"]}
    answer = client.post(
        "/embed", params=some, content=JPEG, headers={"Content-Type": "application/octet-stream"}
    ).json()
    assert list(answer) == ["heel height", "colour"]
    np.testing.assert_allclose(list(answer.values()), want[[2, 0]], atol=1e-6)


def test_this_one_but_red(client, model):
    """In the URL and in JSON."""
    want = model.manipulate(model.encode(JPEG)[0], add={"colour": "red", "shape": "round"}, remove=["heel height"])
    url = "/?add=colour=red&add=shape=round&remove=heel+height"
    change = {"add": {"colour": "red", "shape": "round"}, "remove": ["heel height"]}
    for answer in (
        client.post(url, content=JPEG, headers=IMAGE),
        client.post("/", json={"inputs": TEXT, "parameters": change}),
    ):
        np.testing.assert_allclose(list(answer.json().values()), want, atol=1e-6)
    answer = client.post("/?add=colour", content=JPEG, headers=IMAGE)
    assert answer.status_code == 400 and "unknown value '' of 'colour'" in answer.json()["error"]


def test_as_an_endpoint_is_asked(client, model):
    png = base64.b64encode(picture_file(1, "PNG")).decode()
    want = model.encode([JPEG, picture_file(1, "PNG")])
    one = client.post("/", json={"inputs": f"data:image/jpeg;base64,{TEXT}", "parameters": {"attribute": "shape"}})
    np.testing.assert_allclose(one.json()["shape"], want[0, 1], atol=1e-6)
    both = client.post("/embed?attribute=colour", json={"inputs": [TEXT, png]}).json()
    np.testing.assert_allclose([each["colour"] for each in both], want[:, 0], atol=1e-6)


def send(**options):
    return {"method": "POST", "url": "/", **options}


@pytest.mark.parametrize(
    ("request_", "status", "kind", "message"),
    [
        (send(content=JPEG[:-300], headers=IMAGE), 422, "unreadable_picture", "inputs: an image of"),
        (send(content=b"no picture", headers=IMAGE), 422, "unreadable_picture", "not a complete image"),
        (send(content=b"", headers=IMAGE), 422, "unreadable_picture", "0 bytes"),
        (send(content=bomb(), headers=IMAGE), 413, "too_large", "6000 x 6000 pixels; at most 1,000,000"),
        (send(content=bytes(MOST + 1), headers=IMAGE), 413, "too_large", "at most 300,000 bytes per request"),
        (send(content=bytes(4_000_000), headers=IMAGE), 413, "too_large", "at most 300,000 bytes per request"),
        (send(content=(bytes(50_000) for _ in range(40)), headers=IMAGE), 413, "too_large", "at most 300,000 bytes"),
        (send(content=JPEG), 415, "unsupported_media_type", "Content-Type must be application/json, image/... or"),
        (send(files={"file": JPEG}), 415, "unsupported_media_type", "got 'multipart/form-data'"),
        (send(content=JPEG, headers=IMAGE, params={"attribute": "color"}), 400, "unknown_attribute", "'colour'?"),
        (send(content=JPEG, headers=IMAGE, params={"size": "3"}), 400, "unknown_parameter", "unknown key 'size'"),
        (send(json={"inputs": TEXT, "parameters": {}}, params={"attribute": "shape"}), 400, "invalid_request", "both"),
        (send(json=[TEXT]), 400, "invalid_request", "got list"),
        (send(json={"inputs": [TEXT, "shoe.jpg"]}), 400, "invalid_request", "inputs[1]: an image must be base64 text"),
        (send(json={"inputs": "http://127.0.0.1/"}), 400, "url_not_allowed", "URLs are not allowed here"),
        (send(json={"inputs": ["AAAA"] * 33}), 413, "too_many_pictures", "33 images; 1 to 32"),
        (send(content=b"{", headers={"Content-Type": "application/json"}), 400, "invalid_request", "not valid JSON"),
        (
            send(content=b"\xff", headers={"Content-Type": "application/json"}),
            400,
            "invalid_request",
            "not valid JSON",
        ),
        (
            send(content=b"[" * 3_000, headers={"Content-Type": "application/json"}),
            400,
            "invalid_request",
            "not valid JSON",
        ),
        (
            send(content=b"[" + b"[[]]," * 50_000, headers={"Content-Type": "application/json"}),
            413,
            "too_large",
            "the JSON has 150,001 brackets, commas and quotes; at most 3,500 are allowed",
        ),
        (
            send(content=JPEG, headers=IMAGE, params={f"a{number}": "" for number in range(7_000)}),
            400,
            "unknown_parameter",
            "unknown key 'a0'",
        ),
        (send(json={"inputs": "AB " * 90_000}), 422, "unreadable_picture", "135,000 bytes are not a complete image"),
        ({"method": "POST", "url": "/no"}, 404, "not_found", "there is no POST /no; use POST / or /embed"),
        (
            {"method": "GET", "url": "/health/", "headers": {"Host": "evil.example"}},
            404,
            "not_found",
            "no GET /health/",
        ),
        ({"method": "GET", "url": "/embed"}, 405, "method_not_allowed", "there is no GET /embed"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value)[:30],
)
def test_bad_requests(client, request_, status, kind, message):
    answer = client.request(**request_)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert message in answer.json()["error"]


def test_what_is_no_http(client, server):
    host, port = server.removeprefix("http://").split(":")
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
    for content in (b"\x16\x03\x01 hello", b"GET / HTTP/9\r\n\r\n", head + JPEG[:500]):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_many_at_a_time(client, server, model):
    """Each gets its own picture's vectors, under the attributes that it asked for, and passes are shared."""
    files = [picture_file(number) for number in range(16)]
    want = model.encode(files)
    before = {name: metric(client, f"cca_batch_pictures_{name}") for name in ("sum", "count")}

    def ask(number):
        place, attribute = number % len(files), number % len(NAMES)
        answer = one.post("/", params={"attribute": NAMES[attribute]}, content=files[place], headers=IMAGE)
        np.testing.assert_allclose(answer.json()[NAMES[attribute]], want[place, attribute], atol=1e-6)
        return answer.status_code

    limits = httpx.Limits(max_connections=32)
    with httpx.Client(base_url=server, timeout=300, limits=limits) as one, ThreadPoolExecutor(32) as pool:
        assert set(pool.map(ask, range(320))) == {200}
    pictures, passes = (metric(client, f"cca_batch_pictures_{name}") - before[name] for name in ("sum", "count"))
    assert pictures == 320 and passes < 320
    assert metric(client, "cca_waiting_pictures") == 0 and metric(client, "process_resident_memory_bytes") > 1e6
    assert metric(client, "cca_requests_total") >= 320


def test_it_ends_in_order(model, folder, warm_python):
    """SIGTERM: what was taken in is answered, nothing more is, and the exit code is 0."""
    process, address = start(warm_python, folder, "--max_batch", "1")
    body = {"inputs": [TEXT] * 32}
    with httpx.Client(base_url=address, timeout=300) as client, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.post, "/", json=body) for _ in range(4)]
        while metric(client, "cca_waiting_pictures") < 96 and not all(each.done() for each in answers):
            pass
        process.send_signal(signal.SIGTERM)
        codes = [each.result().status_code for each in answers]
    assert process.wait() == 0
    assert_quiet(process)
    assert codes == [200] * 4
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


class Held:
    """Holds up the model until it is let go."""

    def __init__(self, model, monkeypatch):
        self.let_go, self.sizes = threading.Event(), []
        embed = model.embed_pixels

        def held(pixel_values, attribute_ids):
            self.sizes.append(len(pixel_values))
            assert self.let_go.wait(300)
            return embed(pixel_values, attribute_ids)

        monkeypatch.setattr(model, "embed_pixels", held)


def in_process(model, limits, settings, ask):
    """What `ask` returns, given a client of a server without a network in between."""

    async def run():
        server = EmbeddingServer(model, "cca-shoes", limits, settings)
        app = server.app()
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as one,
        ):
            return await asyncio.wait_for(ask(server, one), 300)

    return asyncio.run(run())


def test_what_waits_is_embedded_together(model, monkeypatch):
    """And the one that comes first does not wait for the others."""
    settings, want = ServerSettings(max_batch=4), model.encode(JPEG)[0]

    async def ask(server, client):
        held = Held(model, monkeypatch)
        answers = [asyncio.create_task(client.post("/", content=JPEG, headers=IMAGE))]
        while not held.sizes:
            await asyncio.sleep(0.01)
        answers += [asyncio.create_task(client.post("/", content=JPEG, headers=IMAGE)) for _ in range(7)]
        while server.batcher._read.qsize() < 7:
            await asyncio.sleep(0.01)
        held.let_go.set()
        return held.sizes, [(await each).json() for each in answers]

    sizes, answers = in_process(model, Limits(), settings, ask)
    assert sizes == [1, 4, 3]
    for answer in answers:
        np.testing.assert_allclose(list(answer.values()), want, atol=1e-6)


def test_too_much_at_a_time(model, monkeypatch):
    """503 with Retry-After, at once; what was taken in before is answered, and then there is room again."""
    limits, settings = Limits(max_pictures=2), ServerSettings(max_waiting=3)

    async def ask(server, client):
        held = Held(model, monkeypatch)
        taken = [asyncio.create_task(client.post("/", json={"inputs": [TEXT] * 2}))]
        while server.batcher.waiting < 2:
            await asyncio.sleep(0.01)
        own = await client.post("/", json={"inputs": TEXT})
        other = httpx.AsyncClient(transport=httpx.ASGITransport(server.app(), client=("192.0.2.7", 1)))
        taken.append(asyncio.create_task(other.post("http://x/", json={"inputs": TEXT})))
        while server.batcher.waiting < 3:
            await asyncio.sleep(0.01)
        refused = await other.post("http://x/", json={"inputs": TEXT})
        bad = await client.post("/", json={"inputs": TEXT, "parameters": {"attribute": "x"}})
        held.let_go.set()
        done = [(await each).status_code for each in taken]
        return own, refused, bad.status_code, done, (await client.post("/", json={"inputs": TEXT})).status_code

    own, refused, bad, done, again = in_process(model, limits, settings, ask)
    assert (refused.status_code, refused.headers["retry-after"], refused.json()["error_type"]) == (503, "1", "busy")
    assert "3 images are waiting, and at most 3 may wait" in refused.json()["error"]
    assert own.status_code == 503 and "2 images of this client are waiting, and at most 2 of" in own.json()["error"]
    assert (bad, done, again) == (400, [200, 200], 200)
    with pytest.raises(ValueError, match="max_waiting must be at least max_pictures, 32; got 3"):
        EmbeddingServer(model, "x", Limits(), settings)


def test_bodies_are_bounded_together(model):
    """Clients that send slowly hold no more than eight of the largest bodies, and each of them no more than four."""
    settings = ServerSettings(max_body=1000)

    async def ask(server, client):
        go_on = asyncio.Event()

        async def slowly():
            yield bytes(900)
            await go_on.wait()

        def sent_from(host):
            one = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address=host), timeout=300)
            return asyncio.create_task(one.post(client.base_url, content=slowly(), headers=IMAGE))

        sent = []
        for host, refused in (("127.0.0.1", 1), ("127.0.0.2", 2), ("127.0.0.3", 3)):
            sent += [sent_from(host) for _ in range(1 if refused == 3 else 5)]
            while server.metrics.registry.get_sample_value("cca_requests_total", {"status": "503"}) != refused:
                await asyncio.sleep(0.01)
            while server.bytes_held != min(4 * refused, 8) * 900:
                await asyncio.sleep(0.01)
        go_on.set()
        return [await each for each in sent], server.bytes_held, server.bytes_of

    # httpx's own transport would collect a body before it hands it on: asked over sockets, then
    answers, left, left_of = over_sockets(model, Limits(), settings, ask)
    assert left == 0 and not left_of
    assert sorted(answer.status_code for answer in answers) == [422] * 8 + [503] * 3
    messages = {answer.json()["error"] for answer in answers if answer.status_code == 503}
    assert messages == {"requests of 4,500 bytes of this client are held; try again in a second",
                        "requests of 8,100 bytes are being received; try again in a second"}  # fmt: skip


@pytest.mark.parametrize("limit", ["_BODY_SECONDS", "_STALL_SECONDS"])
def test_a_body_that_takes_too_long(model, monkeypatch, limit):
    monkeypatch.setattr(f"cca_hf.hub.server.{limit}", 0.1)

    async def ask(server, client):
        go_on = asyncio.Event()

        async def slowly():
            yield b"x"
            await go_on.wait()

        sent = asyncio.create_task(client.post("/", content=slowly(), headers=IMAGE))
        while server.metrics.registry.get_sample_value("cca_requests_total", {"status": "408"}) != 1:
            await asyncio.sleep(0.01)
        go_on.set()
        return (await sent).json()["error_type"], server.bytes_held

    assert over_sockets(model, Limits(), ServerSettings(), ask) == ("too_slow", 0)


def test_silent_connections_make_room(server):
    """Those that have waited longest for a request; then others still get answers."""
    host, port = server.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(MOST_CONNECTIONS + 40)]
    try:
        assert httpx.get(f"{server}/health", timeout=300).json() == {"status": "ok"}
        assert httpx.post(server, content=JPEG, headers=IMAGE, timeout=300).status_code == 200
        assert silent[0].recv(1) == b""
    finally:
        for each in silent:
            each.close()


def test_a_head_that_takes_too_long(model, monkeypatch):
    """The first of a connection, and a later one."""
    monkeypatch.setattr("cca_hf.hub.connections.HEAD_SECONDS", 0.2)

    async def ask(server, client):
        whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        seen = []
        for content in (b"", whole[:10], whole + whole[:10]):
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            writer.write(content)
            seen.append(await reader.read())
            writer.close()
        return seen

    silent, partly, later = over_sockets(model, Limits(), ServerSettings(), ask)
    assert silent == partly == b"" and later.startswith(b"HTTP/1.1 200") and later.endswith(b'{"status":"ok"}')


def test_what_waits_at_the_end_is_told_so(model, monkeypatch):
    """When the time to stop is nearly over: 503 and not 500, for what is received, decoded or embedded."""
    held = Held(model, monkeypatch)

    async def rest_of(reader, writer):
        text = await reader.readuntil(b"a minute")
        writer.close()
        return text

    async def ask(server, client):
        held.let_go.clear()
        sent = [asyncio.create_task(client.post("/", json={"inputs": [TEXT] * 3}))]
        sent.append(asyncio.create_task(client.post("/", content=picture_file(1, "PNG"), headers=IMAGE)))
        while server.batcher.waiting < 4:
            await asyncio.sleep(0.01)
        held_before = server.bytes_held
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nx")
        while server.bytes_held == held_before:
            await asyncio.sleep(0.01)
        return [*sent, rest_of(reader, writer)]

    held.let_go.set()
    try:
        first, second, third = over_sockets(model, Limits(), ServerSettings(shutdown_seconds=1), ask, answered=True)
    finally:
        held.let_go.set()
    assert third.startswith(b"HTTP/1.1 503") and b"the server is stopping; try again in a minute" in third
    for answer in (first, second):
        assert answer.status_code == 503 and answer.headers["retry-after"] == "60"
        assert answer.json() == {"error": "the server is stopping; try again in a minute", "error_type": "busy"}


def over_sockets(model, limits, settings, ask, *, answered=False):
    """As `in_process`, over HTTP; `answered`: `ask` returns requests, which the end of the server answers."""

    async def run():
        server = EmbeddingServer(model, "cca-shoes", limits, settings)
        process = uvicorn_server(server)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(process.serve([listening]))
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=address, timeout=300) as client:
                result = await asyncio.wait_for(ask(server, client), 300)
                process.should_exit = True
                if answered:
                    result = await asyncio.gather(*result)
                await serving
        return result

    return asyncio.run(run())


def test_what_is_refused_is_let_go(model):
    """At once and not when the garbage is collected: an error that is among its frames' variables keeps the body."""

    async def ask(server, client):
        bad = [{"content": JPEG[:-300], "headers": IMAGE}, {"json": {"inputs": [TEXT, "x"]}}, {"content": JPEG}]
        bad.append({"content": in_chunks(), "headers": IMAGE})
        return [(await client.post("/", **options)).status_code for options in bad]

    async def in_chunks():
        for _ in range(100):
            yield bytes(700)

    gc.collect()
    gc.disable()
    try:
        codes = over_sockets(model, Limits(), ServerSettings(max_body=5000), ask)
        kept = [each for each in gc.get_objects() if type(each) in (RequestError, UnreadableImageError)]
    finally:
        gc.enable()
    assert codes == [422, 400, 415, 413] and kept == []


def test_pictures_by_address(model, monkeypatch):
    """Fetched by threads of their own, beside which pictures that are here already are answered."""
    let_go, want = threading.Event(), model.encode(JPEG)[0]

    def fetch(url, **limits):
        assert url == "https://example.com/shoe.jpg" and let_go.wait(300)
        return JPEG

    monkeypatch.setattr("cca_hf.models.images.fetch", fetch)

    async def ask(server, client):
        address = {"inputs": ["https://example.com/shoe.jpg"] * 8}
        slow = asyncio.create_task(client.post("/", json=address))
        while server.batcher.waiting < 8:
            await asyncio.sleep(0.01)
        fast = await client.post("/", json={"inputs": TEXT})
        let_go.set()
        return [fast.json(), *(await slow).json()]

    answers = in_process(model, Limits(allow_urls=True), ServerSettings(), ask)
    assert len(answers) == 9
    for answer in answers:
        np.testing.assert_allclose(list(answer.values()), want, atol=1e-6)


def test_a_pass_that_fails(model, monkeypatch, caplog):
    async def ask(server, client):
        with monkeypatch.context() as patch:
            patch.setattr(model, "embed_pixels", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
            failed = await client.post("/", json={"inputs": TEXT})
        return failed, await client.post("/", json={"inputs": TEXT}), await client.get("/health")

    failed, then, health = in_process(model, Limits(), ServerSettings(), ask)
    assert failed.status_code == 500 and failed.json()["error_type"] == "internal_error"
    assert "out of memory" in caplog.text and "out of memory" not in failed.text
    assert then.status_code == 200 and health.status_code == 200


def test_an_exported_model(model):
    """Its graph is the model itself: an export takes many seconds."""

    def run(inputs):
        pixel_values = torch.from_numpy(inputs["pixel_values"])
        with torch.no_grad():
            return model(pixel_values, torch.arange(3).expand(len(pixel_values), -1)).embeddings.numpy()

    exported = ExportedModel(model.config, model.image_processor, {"attribute_input": False}, run)
    want = model.encode([JPEG, picture_file(1)])

    async def ask(server, client):
        one = client.post("/?attribute=shape", content=JPEG, headers=IMAGE)
        other = client.post("/", content=picture_file(1), headers=IMAGE)
        changed = client.post("/?add=colour=red", content=JPEG, headers=IMAGE)
        return [each.json() for each in await asyncio.gather(one, other, changed)]

    one, other, refused = in_process(exported, Limits(), ServerSettings(), ask)
    assert refused["error"] == "'add' and 'remove' need a checkpoint; this is an exported model"
    np.testing.assert_allclose(one["shape"], want[0, 1], atol=1e-5)
    np.testing.assert_allclose(list(other.values()), want[1], atol=1e-5)


def test_what_cannot_be_served(folder, model, tmp_path, capsys, monkeypatch):
    assert main(["serve", "--model", str(tmp_path / "nothing")]) == 1
    assert "there is no checkpoint at" in capsys.readouterr().err
    assert main(["serve", "--model", str(folder), "--device", "cpu", "--max_waiting", "3"]) == 1
    assert "max_waiting must be at least max_pictures" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(folder), "--device", "cpu", "--port", port]) == 1
    assert "Address already in use" in capsys.readouterr().err
    monkeypatch.setenv("CCA_ALLOW_URLS", "perhaps")
    assert main(["serve", "--model", str(folder)]) == 1
    assert "CCA_ALLOW_URLS must be a number, 0 or 1 for a switch; got 'perhaps'" in capsys.readouterr().err
