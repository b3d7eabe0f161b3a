"""The Space in a real browser: `cca demo` as a process of its own, and a page that is used as people use it."""

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image as PILImage
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from cca_hf.cli.main import main
from cca_hf.data.shapes import SHAPE_ATTRIBUTES, generate_shapes_dataset
from cca_hf.models.images import UnreadableImageError
from cca_hf.models.loading import load_encoder
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.search import AttributeIndex
from cca_hf.search.sources import ImageSource, fill_index

from ..warm_python import WarmProcess, WarmPython

pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
pytest.importorskip("gradio", reason='the Space needs Gradio: pip install "cca_hf[space]"')

import gradio  # noqa: E402

from cca_hf.hub.space import Lookup, export_space, launch_space  # noqa: E402
from cca_hf.hub.space.page import MOST_BYTES, MOST_PIXELS, open_upload  # noqa: E402
from cca_hf.hub.space.shapes import index_shapes, train_shapes  # noqa: E402

ATTRIBUTES = list(SHAPE_ATTRIBUTES)
PATIENCE = 300_000  # milliseconds: the machine may be busy
# `cca` with an ear on the network: whose addresses the process asks for.
LISTENING = """
import os, socket, sys
real = socket.getaddrinfo
def heard(host, *rest, **named):
    with open(os.environ["HEARD"], "a") as file:
        file.write(f"{host}\\n")
    return real(host, *rest, **named)
socket.getaddrinfo = heard
"""


class Served(NamedTuple):
    address: str
    heard: Path  # a name a line

    def names(self) -> set[str]:
        return set(self.heard.read_text().split()) if self.heard.exists() else set()


def serve(
    python: WarmPython, code: str, arguments: list[str], heard: Path, cwd: Path | None = None
) -> tuple[WarmProcess, Served]:
    """Runs code in a Python of its own, until it says where its page is."""
    environment = {**os.environ, "HEARD": str(heard), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    output = heard.with_name("output.txt")
    with open(output, "w") as file:
        process = python.start("-c", LISTENING + code, *arguments, stdout=file, stderr=file, env=environment, cwd=cwd)
    while process.poll() is None:
        address = re.search(r"http://127\.0\.0\.1:\d+", output.read_text())
        if address:
            return process, Served(address[0], heard)
        time.sleep(0.05)
    raise AssertionError(f"it ended with {process.wait()}: {output.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make demo` leaves it, but for the training: drawn shapes, and a checkpoint that looks here and there."""
    folder = tmp_path_factory.mktemp("space") / "demo"
    (folder / "shapes").mkdir(parents=True)
    generate_shapes_dataset(200, image_size=48, seed=0)["test"].to_parquet(folder / "shapes" / "test.parquet")
    torch.manual_seed(0)
    backbone = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=48, patch_size=8
    )
    model = CCAModel.from_backbone(backbone, SHAPE_ATTRIBUTES)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("backbone."):
                weight.mul_(6)  # attention that is not even
    model.save_pretrained(folder / "cca")
    return folder


@pytest.fixture(scope="module")
def lookup(folder: Path) -> Iterator[Lookup]:
    model = CCAModel.from_pretrained(train_shapes(folder)).eval()
    with AttributeIndex.open(index_shapes(folder, model), model) as index:
        yield Lookup(model, index)


@pytest.fixture(scope="module")
def served(
    folder: Path, lookup: Lookup, tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython
) -> Iterator[Served]:
    """`cca demo`, which finds what `lookup` made."""
    heard = tmp_path_factory.mktemp("heard") / "names"
    code = "from cca_hf.cli.main import main; sys.exit(main(['demo', *sys.argv[1:]]))"
    process, served = serve(warm_python, code, ["--folder", str(folder)], heard)
    yield served
    process.send_signal(signal.SIGTERM)
    process.wait()


@pytest.fixture(scope="module")
def context(browser) -> Iterator:
    """The pages of a context share a cache, so that the files of Gradio are read once."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 900})
    yield context
    context.close()


def open_page(context, address: str) -> Iterator[SimpleNamespace]:
    """A page that has answered, with what it asked of others than its server, and its complaints."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    outside: list[str] = []

    own = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.locator("#cca-results .cca-card").first.wait_for()
    yield SimpleNamespace(page=page, outside=outside, errors=errors)
    page.close()


@pytest.fixture
def opened(context, served: Served) -> Iterator[SimpleNamespace]:
    yield from open_page(context, served.address)


@pytest.fixture
def page(opened: SimpleNamespace):
    return opened.page


def encoded(picture: PILImage.Image, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def own_picture() -> PILImage.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    pixels[20:70, 10:50] = (220, 40, 40)
    return PILImage.fromarray(pixels)


def upload(page, name: str, content: bytes, kind: str = "image/jpeg") -> None:
    if page.locator("#cca-picture [aria-label=Clear]").count():
        page.locator("#cca-picture [aria-label=Clear]").click()
    file = {"name": name, "mimeType": kind, "buffer": content}
    page.locator("#cca-picture input[type=file]").set_input_files(file)


def headline(page, text: str) -> None:
    page.locator("#cca-found", has_text=text).wait_for()


def choose(page, *attributes: str) -> None:
    """These and no others."""
    for name in ATTRIBUTES:
        page.get_by_role("checkbox", name=name, exact=True).set_checked(name in attributes)
    shown = "[...document.querySelectorAll('#cca-results .cca-attention')].length"
    page.wait_for_function(f"{shown} === {len(attributes)}")


def items(card) -> list[str]:
    return card.locator("button[data-item]").evaluate_all("buttons => buttons.map(each => each.dataset.item)")


def test_it_opens_with_something_to_see_and_asks_nobody_else(opened, served):
    page = opened.page
    assert page.locator("h1").inner_text() == "Alike in which respect?" == page.title()
    assert "40 images" in page.locator("#cca-head p").inner_text()
    cards = page.locator("#cca-results .cca-card")
    assert cards.count() == 4  # attributes, of five
    assert [len(items(cards.nth(place))) for place in range(4)] == [10] * 4
    button = cards.first.locator("button").first
    assert button.locator("small").all_inner_texts() == [f"item {button.get_attribute('data-item')}"]
    assert page.locator("#cca-examples button").count() == 12
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert opened.outside == [] and opened.errors == []
    assert served.names() <= {"127.0.0.1", "localhost", "0.0.0.0"}, "the server asked somebody"


def test_an_upload_finds_what_the_index_finds(page, lookup, own_picture):
    upload(page, "mine.png", encoded(own_picture, "PNG"), "image/png")
    headline(page, "Nearest to mine.png")
    choose(page, "shape")
    (card,) = page.locator("#cca-results .cca-card").all()
    expected = [hit.item_id for hit in lookup.index.search(image=own_picture, attribute="shape")]
    assert items(card) == expected and len(expected) == 10
    choose(page, "shape", "colour")
    colour, shape = page.locator("#cca-results .cca-card").all()  # in the order of the model
    assert items(shape) == expected != items(colour)


def test_attention_changes_with_the_attribute(page, lookup, own_picture):
    upload(page, "mine.png", encoded(own_picture, "PNG"), "image/png")
    headline(page, "mine.png")
    seen = {}
    for name in ("colour", "background"):
        choose(page, name)
        picture = page.locator("#cca-results .cca-attention img")
        assert picture.get_attribute("alt") == f"attention of {name} on mine.png"
        assert picture.evaluate("image => image.naturalHeight") == 440  # as high as the picture is, for its width
        seen[name] = picture.get_attribute("src")
    assert seen["colour"] != seen["background"]


def png_of(width: int, height: int) -> bytes:
    """A small file of many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(1 + width // 8)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_bad_uploads_get_a_message(opened, own_picture):
    page = opened.page
    whole = encoded(own_picture.resize((400, 600)))
    said = {
        "notes.png": (b"these are notes", "notes.png is not an image in a supported format: JPEG, PNG, WEBP, GIF, "),
        "half.jpg": (whole[: len(whole) // 2], "half.jpg is damaged or incomplete."),
        "bomb.png": (png_of(20_000, 10_000), "bomb.png has more than 64 million pixels."),
        "empty.jpg": (b"", "empty.jpg is not an image in a supported format:"),
    }
    for name, (content, message) in said.items():
        upload(page, name, content)
        page.get_by_role("alert").filter(has_text=message).wait_for()
        assert "Traceback" not in page.content() and page.locator("#cca-results .cca-card").count() == 0
    upload(page, "notes.txt", b"these are notes", "text/plain")  # the browser's part of Gradio refuses it
    page.get_by_text("Invalid file type").first.wait_for()
    upload(page, "huge.jpg", whole + bytes(MOST_BYTES))
    page.get_by_text("exceed the maximum allowed size of 20.0 Mb").first.wait_for()
    upload(page, "mine.jpg", whole)
    headline(page, "Nearest to mine.jpg")
    assert page.locator("#cca-results .cca-card").count() == 4 and opened.errors == []


def test_what_was_found_can_be_asked_with(page, lookup):
    first = items(page.locator("#cca-results .cca-card").first)
    page.locator("#cca-results .cca-card").first.locator("button").nth(2).click()
    headline(page, f"Nearest to item {first[2]}")
    found = items(page.locator("#cca-results .cca-card").first)
    assert found == [hit.item_id for hit in lookup.index.search(item=first[2], attribute="colour")]
    assert first[2] not in found
    (own,) = lookup.index.get([first[2]])
    titles = page.locator("#cca-results h3").all_inner_texts()
    assert titles == [f"{name} {own.columns[name]}" for name in ATTRIBUTES[:4]]
    before = items(page.locator("#cca-examples"))
    page.get_by_role("button", name="Show other examples").click()
    page.wait_for_function(
        "before => document.querySelector('#cca-examples button').dataset.item !== before", arg=before[0]
    )
    assert len(set(items(page.locator("#cca-examples")))) == 12


def test_this_one_but_red_and_filters(page, lookup):
    query = re.search(r"item (\S+)", page.locator("#cca-found").inner_text())[1]
    (own,) = lookup.index.get([query])
    choose(page, "shape")
    page.get_by_role("button", name="But with other values, or a filter").click()
    page.locator(".cca-change input").first.wait_for()
    names = page.locator(".cca-change input").evaluate_all("inputs => inputs.map(each => each.ariaLabel)")
    assert names == ATTRIBUTES
    change(page, "colour", "blue")
    page.locator(".cca-mixed").wait_for()
    mixed, shape = page.locator("#cca-results .cca-card").all()
    assert mixed.locator("h3").inner_text() == "colour blue, the same shape"
    wanted = {"values": {"colour": "blue"}, "weights": {"shape": 1, "colour": 1}}
    hits = lookup.index.search(item=query, **wanted)
    assert items(mixed) == [hit.item_id for hit in hits]
    right = [value for hit in hits for value in ("blue", own.columns["shape"]) if value in hit.columns.values()]
    assert mixed.locator(".cca-alike").all_inner_texts() == [f"✓ {value}" for value in right]
    change(page, "shape", "any")
    mixed.locator("h3", has_text="colour blue, any shape").wait_for()
    assert items(mixed) == [hit.item_id for hit in lookup.index.search(values={"colour": "blue"}, top=11)
                            if hit.item_id != query][:10]  # fmt: skip
    change(page, "shape", "the same")
    change(page, "colour", own.columns["colour"])
    page.get_by_text(f"item {query} has colour {own.columns['colour']} already.").wait_for()
    change(page, "colour", "the same")
    page.locator(".cca-mixed").wait_for(state="detached")
    (shape,) = page.locator("#cca-results .cca-card").all()
    where = page.get_by_label("Only items that match this filter")
    where.fill("colour == 'red' and shape != 'star'")
    where.press("Enter")
    expected = [hit.item_id for hit in lookup.index.search(item=query, attribute="shape", where=where.input_value())]
    shape.locator(f"li:nth-child({len(expected)}):last-child").wait_for()
    assert items(shape) == expected
    where.fill("color == 'red'")
    where.press("Enter")
    page.get_by_role("alert").filter(has_text="colour").wait_for()  # the closest name
    where.fill("")
    where.press("Enter")
    shape.wait_for()
    assert len(items(shape)) == 10


def change(page, attribute: str, value: str) -> None:
    page.locator(f".cca-change input[aria-label={attribute}]").fill(value)
    page.get_by_role("option", name=value, exact=True).click()


def test_by_keyboard_alone(page):
    """Tab, Enter and Space: a picture of the catalogue, then an attribute less, then a picture that was found."""

    def tab_to(selector: str) -> str:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return page.evaluate("document.activeElement.dataset.item ?? document.activeElement.name")
        raise AssertionError(f"{selector} is not reached by Tab")

    tab_to("#cca-examples button")
    item = tab_to("#cca-examples button")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # it can be seen
    page.keyboard.press("Enter")
    headline(page, f"item {item}")
    page.wait_for_function("document.activeElement.id === 'cca-found'")  # a reader goes on where the answer is
    item = tab_to("#cca-results button")
    page.keyboard.press("Enter")
    headline(page, f"item {item}")
    page.wait_for_function("document.activeElement.id === 'cca-found'")
    page.locator("#cca-examples button").last.focus()
    tab_to("#cca-attributes input")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('#cca-results .cca-card').length === 3")


@pytest.fixture
def phone(browser, served: Served) -> Iterator:
    size = {"width": 390, "height": 844}
    context = browser.new_context(reduced_motion="reduce", viewport=size, has_touch=True, is_mobile=True)
    for opened in open_page(context, served.address):
        yield opened.page
    context.close()


def test_on_a_phone(phone, own_picture):
    """Nothing to scroll sideways, every control within reach and large enough to hit, all of it usable."""
    upload(phone, "mine.jpg", encoded(own_picture))
    headline(phone, "mine.jpg")
    phone.get_by_role("button", name="But with other values, or a filter").tap()
    phone.get_by_label("Only items that match this filter").wait_for()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in ("#cca-picture", "#cca-examples button", "#cca-attributes label", "#cca-where textarea",
                     "#cca-where input", ".cca-change input", "#cca-results button", "#cca-results img"):  # fmt: skip
        for box in (each.bounding_box() for each in phone.locator(selector).all() if each.is_visible()):
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390, selector
            assert "label" not in selector or box["height"] >= 24, selector
    choose(phone, "pattern")
    card = phone.locator("#cca-results .cca-card")
    card.locator("button").first.tap()
    headline(phone, "item")
    assert len(items(card)) == 10


def test_every_picture_is_described_and_every_control_has_a_name(page):
    alts = page.evaluate("[...document.images].map(each => each.getAttribute('alt'))")
    assert None not in alts
    own = page.evaluate("[...document.querySelectorAll('.cca-picture img, .cca-attention img')].map(each => each.alt)")
    assert len(own) == 12 + 4 * 11 and all(own)
    assert any(re.match(r"item \d+, colour \w+, .*similarity 0\.\d\d", alt) for alt in own)
    nameless = page.evaluate("""[...document.querySelectorAll('button, input:not([type=file])')].filter(each =>
        each.offsetParent && !(each.innerText || each.ariaLabel || each.title || each.labels?.length
        || each.querySelector('img[alt]'))).map(each => each.outerHTML)""")
    assert nameless == []


def check_requirements(file: Path) -> None:
    """Nothing of them is this package, and pip takes them as they are, without a package index."""
    text = file.read_text(encoding="utf-8")
    names = set(re.findall(r"^[\w-]+", text, re.MULTILINE))
    assert {"torch", "transformers", "gradio", "lancedb", "pylance"} < names and not {"cca_hf", "cca-hf"} & names
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-q", "-r", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_exported_space_starts_alone(context, folder, lookup, tmp_path, own_picture, warm_python):
    """In another place, without the checkpoint and the data that it was made from."""
    written = export_space(lookup, tmp_path / "made", title="Shapes & <more>")
    space = shutil.move(written, tmp_path / "space")
    _, metadata, text = (space / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(metadata)
    assert fields["sdk"] == "gradio" and fields["app_file"] == "app.py" and fields["title"] == "Shapes & <more>"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["sdk_version"]) and fields["python_version"] >= "3.11"
    assert len(fields["short_description"]) <= 60 and {fields["colorFrom"], fields["colorTo"]} <= SPACE_COLOURS
    assert "colour, shape, pattern" in text and "40 images" in text
    check_requirements(space / "requirements.txt")
    assert str(folder) not in (space / "app.py").read_text()
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        # as `python app.py`, with the package that is beside it
        code = "import runpy; from pathlib import Path; space = Path(sys.argv[1]).parent; "
        code += (
            "sys.path.insert(0, str(space)); import cca_hf; assert Path(cca_hf.__file__).parent == space / 'cca_hf'; "
        )
        code += "runpy.run_path(sys.argv[1], run_name='__main__')"
        process, served = serve(warm_python, code, [str(space / "app.py")], tmp_path / "heard", cwd=tmp_path)
        try:
            for opened in open_page(context, served.address):
                page = opened.page
                assert page.locator("h1").inner_text() == "Shapes & <more>"
                assert page.locator(".cca-lost").count() == 0 and page.locator("#cca-results img").count() == 4 * 11
                upload(page, "mine.png", encoded(own_picture, "PNG"), "image/png")
                headline(page, "mine.png")
                choose(page, "size")
                found = items(page.locator("#cca-results .cca-card"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    finally:
        hidden.rename(folder)
    assert found == [hit.item_id for hit in lookup.index.search(image=own_picture, attribute="size")]


# https://huggingface.co/docs/hub/spaces-config-reference
SPACE_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_export_by_command(folder, tmp_path, capsys, lookup):
    assert main(["demo", "--folder", str(folder), "--export", str(tmp_path / "space"), "--title", "Mine"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'space'}",
        f"next: hf upload ACCOUNT/NAME {tmp_path / 'space'} . --repo-type space",
    ]
    assert {each.name for each in (tmp_path / "space").iterdir()} == {
        "README.md", "app.py", "catalogue.index", "cca_hf", "model", "pictures", "requirements.txt",
    }  # fmt: skip
    assert main(["demo", "--folder", str(folder), "--export", str(tmp_path / "space")]) == 1
    assert "exists already; choose a new folder" in capsys.readouterr().err


def test_a_checkpoint_of_the_hub_is_named_at_its_revision(lookup, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    cached = Path(HF_HUB_CACHE) / "models--me--cca-shapes"
    for path, text in {f"snapshots/{commit}/config.json": "{}", "refs/main": commit}.items():
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(text)
    monkeypatch.setattr(lookup.model.config, "name_or_path", "me/cca-shapes")
    written = export_space(lookup, tmp_path / "space")
    assert not (written / "model").exists()
    assert f"load_encoder('me/cca-shapes', revision='{commit}')" in (written / "app.py").read_text()
    assert yaml.safe_load((written / "README.md").read_text().split("---\n", 2)[1])["models"] == ["me/cca-shapes"]


def test_a_picture_with_an_address_is_named_and_not_copied(lookup, tmp_path):
    model = lookup.model
    rows = np.asarray(model.encode([PILImage.new("RGB", (48, 48), colour) for colour in ("red", "blue")]))
    address = "https://example.org/shoe.jpg"
    with AttributeIndex.create(tmp_path / "index", model, columns={"picture": "text"}) as index:
        index.add(["a", "b"], embeddings=rows, columns={"picture": [address, None]})
        written = export_space(Lookup(model, index), tmp_path / "space")
        assert Lookup(model, index).values == {} and "item_id" not in Lookup(model, index).filters
    assert not (written / "pictures").exists()
    with AttributeIndex.open(written / "catalogue.index", model) as copy:
        assert [hit.columns["picture"] for hit in copy.get(["a", "b"])] == [address, None]
        assert copy.schema.checkpoint.name == "model"


def test_values_of_number_and_boolean_columns_are_offered(lookup, tmp_path, monkeypatch):
    """They are searched for under the names of the model's values, 38 for 38.0."""
    model = lookup.model
    first, second = lookup.attributes[:2]
    monkeypatch.setattr(model.config, "attribute_values", {first: ["38", "9"], second: ["false", "true"]})
    rows = np.asarray(model.encode([PILImage.new("RGB", (48, 48), colour) for colour in ("red", "blue", "lime")]))
    kinds = {"picture": "text", first: "number", second: "boolean"}
    cells = {"picture": [None] * 3, first: [38.0, 9.0, None], second: [True, False, False]}
    with AttributeIndex.create(tmp_path / "index", model, columns=kinds) as index:
        index.add(["a", "b", "c"], embeddings=rows, columns=cells)
        shown = Lookup(model, index)
        assert shown.values == {first: ["38", "9"], second: ["false", "true"]}
        query = shown.make_query(PILImage.new("RGB", (48, 48), "lime"))
        (wish,) = shown.find(query, [], instead={first: "38"}, top=3)
        assert wish.title == f"{first} 38" and wish.note == ""
        assert {found.item_id: found.values for found in wish.found} == {
            "a": (("38", True),), "b": (("9", False),), "c": (),
        }  # fmt: skip
        (wish,) = shown.find(query, [], instead={second: "false"}, top=3)
        assert {found.item_id: found.values for found in wish.found} == {
            "a": (("true", False),), "b": (("false", True),), "c": (("false", True),),
        }  # fmt: skip
        own = shown.make_query(PILImage.new("RGB", (48, 48), "blue"), item_id="b")
        (wish, *_) = shown.find(own, [first], instead={second: "FALSE", first: None}, keep=0.5)
        assert (wish.title, wish.note) == (f"{second} FALSE, any {first}", f"item b has {second} false already.")


def test_values_with_a_prototype_need_no_column(lookup, tmp_path):
    """The values that the model has a prototype of are offered, and searched for by it."""
    model = lookup.model
    most = max(map(len, model.config.attribute_values.values()))
    known = np.zeros((5, most), bool)
    known[0, :2] = True
    model.set_prototypes(np.random.default_rng(0).normal(size=(5, most, 32)), known)
    rows = np.asarray(model.encode([PILImage.new("RGB", (48, 48), colour) for colour in ("red", "blue", "lime")]))
    with AttributeIndex.create(tmp_path / "index", model, columns={"picture": "text"}) as index:
        prototypes = model.value_prototypes("colour")
        model.set_prototypes(None)
        index.add(["a", "b", "c"], embeddings=rows, columns={"picture": [None] * 3})
        shown = Lookup(model, index)
        assert shown.values == {"colour": list(prototypes)} and len(prototypes) == 2
        query, value = shown.make_query(PILImage.new("RGB", (48, 48), "lime")), next(iter(prototypes))
        (wish, _) = shown.find(query, ["shape"], instead={"colour": value}, keep=0.5)
        similarity = (rows[:, 0] @ prototypes[value] + 0.5 * rows[:, 1] @ query.embeddings[1]) / 1.5
        assert {found.item_id: found.similarity for found in wish.found} == pytest.approx(
            dict(zip("abc", similarity.tolist(), strict=True)), abs=1e-5
        )


def test_an_index_that_cannot_be_shown_is_refused(lookup, tmp_path):
    with AttributeIndex.create(tmp_path / "index", lookup.model) as index:
        with pytest.raises(ValueError, match="has no column 'picture' with the paths or URLs of its images"):
            Lookup(lookup.model, index)
    with AttributeIndex.create(tmp_path / "empty", lookup.model, columns={"picture": "text"}) as index:
        with pytest.raises(ValueError, match="is empty"):
            Lookup(lookup.model, index)


def test_lost_pictures_leave_the_others(lookup, tmp_path):
    """Files that are gone are said to be; everything else is found and shown."""
    paths = []
    for place, colour in enumerate(("red", "blue", "green")):
        paths.append(str(tmp_path / f"{place}.png"))
        PILImage.new("RGB", (48, 48), colour).save(paths[-1])
    with AttributeIndex.create(tmp_path / "index", lookup.model, columns={"picture": "text"}) as index:
        index.add(["0", "1", "2"], images=paths, columns={"picture": paths})
        Path(paths[1]).unlink()
        small = Lookup(lookup.model, index)
        (row,) = small.find(small.make_query(small.image_of("0"), item_id="0"), ["colour"])
        assert {found.item_id: found.image is None for found in row.found} == {"1": True, "2": False}
        with pytest.raises(UnreadableImageError, match="1.png"):
            small.image_of("1")


def test_the_command_says_what_is_missing(tmp_path, capsys):
    def error_of(*words: str) -> str:
        assert main(["demo", *words]) in (1, 2)
        return capsys.readouterr().err

    assert "--model needs the --store" in error_of("--model", "me/cca-shoes")
    assert "opens no page" in error_of("--store", "shoes.index", "--export", "space", "--port", "7000")
    assert "no index" in error_of("--store", str(tmp_path / "nothing"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_is_taken(form, own_picture, tmp_path):
    (tmp_path / "file").write_bytes(encoded(own_picture, form))
    opened = open_upload(tmp_path / "file", "mine")
    assert opened.size == own_picture.size and opened.mode == "RGB"


def test_what_is_refused(own_picture, tmp_path):
    """A program for a printer is no picture here, whatever Pillow could make of it."""
    path = tmp_path / "a-path-nobody-should-see"
    own_picture.save(path, "EPS")
    with pytest.raises(
        UnreadableImageError, match=r"^mine.eps is not an image in a supported format: JPEG, PNG, "
    ) as refused:
        open_upload(path, "mine.eps")
    assert "nobody" not in str(refused.value)
    side = int(MOST_PIXELS**0.5) // 8 * 8
    path.write_bytes(png_of(side, side))
    assert open_upload(path, "large.png").size == (side, side)
    path.write_bytes(png_of(side + 8, side + 8))
    with pytest.raises(UnreadableImageError, match="larger.png has more than 64 million pixels"):
        open_upload(path, "larger.png")


def test_without_attributes(browser, folder, tmp_path):
    """One row of results; nothing to choose but the image and a filter."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**shape, image_size=48, patch_size=8)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(tmp_path / "vit")
    embedder = load_encoder(tmp_path / "vit", "cpu")
    source = ImageSource.from_dataset(str(folder / "shapes"), embedder, str(tmp_path / "vit"), split="test")
    fill_index(str(tmp_path / "index"), source)
    with AttributeIndex.open(tmp_path / "index", embedder) as index:
        lookup = Lookup(embedder, index)
        for opened in open_page(browser, launch_space(lookup, wait=False)):
            page = opened.page
            assert page.locator("h1").inner_text() == "Find similar images"
            assert (
                page.locator("#cca-head p").inner_text().startswith(f"Search {len(index)} images. The page shows the")
            )
            cards = page.locator("#cca-results .cca-card")
            assert cards.count() == 1 and cards.locator("h3, .cca-attention").count() == 0
            name = page.locator("#cca-found").inner_text().removeprefix("Nearest to item ")
            found = [hit.item_id for hit in index.search(item=name)]
            assert items(cards) == found
            assert page.get_by_role("checkbox").count() == 0 and page.locator(".cca-change").count() == 0
            page.get_by_role("button", name="Filter").click()
            page.locator("#cca-where textarea, #cca-where input").fill("shape == 'nothing'")
            page.keyboard.press("Enter")
            page.get_by_text("No images match.").wait_for()
            assert not opened.errors and not opened.outside
        gradio.close_all()
        space = export_space(lookup, tmp_path / "space")
    assert (
        "Find similar images" in (space / "app.py").read_text()
        and "attribute" not in (space / "README.md").read_text()
    )
    AttributeIndex.open(space / "catalogue.index", load_encoder(space / "model", "cpu")).close()
