"""The Space as strangers use it, who write their requests themselves: what its page opens, fetches, keeps and does."""

import gzip
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from transformers import ViTConfig

from cca_hf import CCAModel
from cca_hf.search import AttributeIndex

pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
gradio = pytest.importorskip("gradio", reason='the Space needs Gradio: pip install "cca_hf[space]"')

from cca_hf.hub.space import Lookup, launch_space, make_space  # noqa: E402
from cca_hf.hub.space.visitors import LOST  # noqa: E402

META = {"_type": "gradio.FileData"}
SETTINGS = [["colour"], [], ""]


class Visitor:
    """A client of the page without a browser."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=300)
        config = self.http.get("/config").json()
        self.image = next(each["id"] for each in config["components"] if each["type"] == "image")
        self.functions = {tuple(each["targets"][0]): each["id"] for each in config["dependencies"] if each["targets"]}

    def upload(self, content: bytes, name: str = "mine.png") -> httpx.Response:
        return self.http.post("/gradio_api/upload", files={"files": (name, content)})

    def join(self, data: list, function: int | None = None, **more: object) -> httpx.Response:
        number = self.functions[self.image, "input"] if function is None else function
        body = {"data": data, "fn_index": number, "session_hash": "abc", **more}
        return self.http.post("/gradio_api/queue/join", json=body)

    def result(self) -> str:
        """The results of a request that joined the queue, as HTML."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return message["output"]["data"][2]
        raise AssertionError("the page did not answer")


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookup]:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    folder = tmp_path_factory.mktemp("catalogue")
    model = CCAModel.from_backbone(config, {"colour": ["red", "blue"]}).eval()
    paths = [str(folder / f"{name}.png") for name in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (40, 40), Path(path).stem).save(path)
    with AttributeIndex.create(folder / "index", model, columns={"picture": "text"}) as index:
        index.add(["a", "b"], images=paths, columns={"picture": paths})
        yield Lookup(model, index)


@pytest.fixture(scope="module")
def address(lookup: Lookup) -> Iterator[str]:
    yield launch_space(lookup, wait=False)
    gradio.close_all()


@pytest.fixture(scope="module")
def visitor(address: str) -> Visitor:
    return Visitor(address)


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()


def test_an_upload_is_searched_with(visitor: Visitor) -> None:
    (path,) = visitor.upload(png()).json()
    for payload in ({"path": path, "orig_name": "mine.png", "meta": META}, {"path": path}):
        assert visitor.join([payload, *SETTINGS]).status_code == 200
        assert "Nearest to mine.png" in visitor.result()


def test_no_file_but_an_upload_is_opened(visitor: Visitor, tmp_path: Path) -> None:
    """With or without the mark that Gradio checks, and in any field; the answer does not tell what exists."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    (tmp_path / "private.png").write_bytes(png())
    (folder / "server.png").write_bytes(png("blue"))  # in the folder of the uploads, and not from this visitor
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(folder / "pipe.png")
    named = [tmp_path / "private.png", tmp_path / "pipe.png", tmp_path / "missing.png", tmp_path, "/etc/passwd", ""]
    named += [folder / name for name in ("server.png", "link.png", "pipe.png", "missing.png", "../a.png")]
    for path in (
        *map(str, named),
        "http://127.0.0.1/a.png",
        "https://example.org/a.png",
        "a\0b",
        None,
        3,
        {"path": 1},
    ):
        for mark in ({}, {"meta": META}, {"url": "http://127.0.0.1/a.png", "meta": META}):
            payload = {"path": path, "orig_name": "mine.png", **mark}
            answers = [visitor.join(data) for data in ([payload, *SETTINGS], [None, [payload], [], ""])]
            answers.append(visitor.join([None, *SETTINGS], event_data=payload))
            assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {(403, LOST)}
    twice = (
        '{"data": [{"path": "/etc/passwd", "path": "/etc/hosts"}, [], [], ""], "fn_index": 1, "session_hash": "abc"}'
    )
    assert visitor.http.post("/gradio_api/queue/join", content=twice).status_code == 403


@pytest.mark.usefixtures("address")  # which names the folder of the uploads
def test_without_the_guard_a_page_opens_uploads_alone(lookup: Lookup, tmp_path: Path) -> None:
    """`make_space` in another app has no guard: its own check refuses all other paths, with one message."""
    (tmp_path / "private.png").write_bytes(png())
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    (folder / "out.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(folder / "queue.png")
    page = make_space(lookup)
    _, address, _ = page.launch(prevent_thread_lock=True, ssr_mode=False)
    try:
        stranger = Visitor(address)
        for path in (
            tmp_path / "private.png",
            tmp_path / "no.png",
            folder / "out.png",
            folder / "queue.png",
            "a\0b",
            "",
        ):
            assert stranger.join([{"path": str(path), "orig_name": "mine.png"}, *SETTINGS]).status_code == 200
            assert LOST in stranger.result()
        (path,) = stranger.upload(png()).json()
        assert stranger.join([{"path": path, "orig_name": "mine.png"}, *SETTINGS]).status_code == 200
        assert "Nearest to mine.png" in stranger.result()
    finally:
        page.close()


@pytest.mark.parametrize("path", ["file=http://127.0.0.1/a.png", "file=https://example.org/a", "file/http://a.example/",
                                  "proxy=http://127.0.0.1/", "proxy=https://a.hf.space/"])  # fmt: skip
def test_no_address_is_fetched_for_a_visitor(visitor: Visitor, path: str) -> None:
    answer = visitor.http.get(f"/gradio_api/{path}")
    assert (answer.status_code, answer.json()["detail"]) == (403, "This page opens no addresses.")


def test_other_ways_in_are_closed(visitor: Visitor) -> None:
    """Forms that are no upload, sessions as files, searches beside the queue, and bodies that are no JSON or large."""
    post = visitor.http.post
    assert post("/gradio_api/process_recording", files={"video": ("a.mp4", b"0")}).status_code == 400
    assert visitor.http.get("/gradio_api/deep_link", params={"session_hash": "abc"}).status_code == 403
    direct = {"data": [None, *SETTINGS], "fn_index": visitor.functions[visitor.image, "input"]}
    assert post("/gradio_api/run/predict", json=direct).status_code == 404
    assert post("/gradio_api/queue/join", content=b"[" * 90_000).status_code == 400
    assert post("/gradio_api/queue/join", content=bytes(100_001)).status_code == 413


def test_an_upload_is_small_and_is_not_unpacked(visitor: Visitor) -> None:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    request = httpx.Request("POST", "http://x", files={"files": ("a.png", bytes(15_000_000))})
    headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": "gzip"}
    before = size_of(folder)
    packed = gzip.compress(request.read())
    assert visitor.http.post("/gradio_api/upload", content=packed, headers=headers).status_code == 400
    assert size_of(folder) == before
    several = [("files", (f"{number}.png", bytes(6_000_000))) for number in range(4)]
    answer = visitor.http.post("/gradio_api/upload", files=several)
    assert (answer.status_code, answer.text) == (413, "A request may have 20,981,520 bytes.")
    assert size_of(folder) == before


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def test_uploads_are_deleted_and_limited(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour; and a visitor has 60 at once, all visitors together 1 GB."""
    folder, visitor = Path(os.environ["GRADIO_TEMP_DIR"]), Visitor(address)
    broken = folder / "tmp-of-a-broken-upload"
    broken.write_bytes(b"half")
    (first,) = visitor.upload(png("green")).json()
    assert Path(first).is_file() and broken.is_file()
    with monkeypatch.context() as later:
        later.setattr("cca_hf.hub.space.visitors.KEPT_SECONDS", -1)
        (second,) = visitor.upload(png("yellow")).json()
    assert not Path(first).exists() and not broken.exists() and Path(second).is_file()
    assert visitor.join([{"path": first}, *SETTINGS]).status_code == 403
    with monkeypatch.context() as full:
        full.setattr("cca_hf.hub.space.visitors._MOST_STORED", 100)
        answer = visitor.upload(png())
        assert (answer.status_code, answer.text) == (503, "The page has no room for more uploads. Try again later.")
    answers = [visitor.upload(png()) for _ in range(61)]
    assert answers[0].status_code == 200 and answers[-1].status_code == 429
    assert answers[-1].text == "You sent more than this page can take. Try again in a few minutes."


def test_a_queue_has_an_end(visitor: Visitor, lookup: Lookup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many searches at once, 32 wait, and the next is refused at once; a visitor has 60, and then some a minute."""
    let_go, examples = threading.Event(), lookup.examples
    monkeypatch.setattr(lookup, "examples", lambda *some, **named: (let_go.wait(300), examples(*some, **named))[1])
    more = next(number for (_, event), number in visitor.functions.items() if event == "click")
    codes: list[int] = []
    try:
        while 429 not in codes:  # the allowance grows again, by one and a half a second
            codes.append(visitor.join([None], more).status_code)
    finally:
        let_go.set()
    assert codes.count(200) in (32, 33) and codes[34] == 503
