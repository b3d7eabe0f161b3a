"""The report: one page that holds everything, in a real browser too where there is one."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation import BackboneEvaluator, RetrievalEvaluator
from cca_hf.evaluation.entanglement.result import EntanglementResult, ReaderEntanglement
from cca_hf.visualization import write_report

from .conftest import PURE, VALUES

HISTORY = [
    {"epoch": 0.5, "loss": 0.2, "learning_rate": 1e-3},
    {"epoch": 1.0, "loss": 0.1},
    {"epoch": 1.0, "eval_map": 0.4},
    {"epoch": 2.0, "eval_map": 0.6, "eval_loss": 1.0},
    {"train_runtime": 12.0},
]


@pytest.fixture(scope="module")
def results(model, dataset):
    return {"frozen backbone": BackboneEvaluator(dataset)(model), "CCA": RetrievalEvaluator(dataset)(model)}


@pytest.fixture(scope="module")
def entangled(dataset) -> EntanglementResult:
    names = tuple(dataset.attributes)
    matrix = np.full((len(names), len(names)), 0.375)
    matrix[0, :2] = 1.25, np.nan
    reader = ReaderEntanglement(matrix, matrix, matrix, matrix, matrix, 0.01)
    return EntanglementResult(names, {"linear": reader, "mlp": reader}, 1234, dict.fromkeys(names, 2))


@pytest.fixture(scope="module")
def report(model, dataset, results, entangled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    shown = {"queries": 3, "neighbours": 5, "history": HISTORY, "entanglement": entangled}
    path = write_report(model, dataset, "test", results, folder, **shown)
    assert path == folder / "report.html"
    return path


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def elements(report) -> Elements:
    parser = Elements()
    parser.feed(report.read_text(encoding="utf-8"))
    return parser


def test_refers_to_nothing_outside(report, elements):
    assert not {tag for tag, _ in elements.found} & {"script", "iframe", "object", "embed", "video", "audio", "form"}
    for tag, attributes in elements.found:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", report.read_text(encoding="utf-8"), re.S)
    assert "url(" not in style[1] and "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]
    policies = [
        each.get("content") for tag, each in elements.found if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_pictures_are_whole_and_described(elements, dataset):
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == 3 * (1 + 2 * (1 + 5))  # a query; for each attribute its attention and five neighbours
    for attributes in pictures:
        assert attributes["alt"]
        kind, content = attributes["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        Image.open(io.BytesIO(base64.b64decode(content))).load()
    assert any("neighbour 1 by colour" in attributes["alt"] for attributes in pictures)


def test_figures_are_those_of_the_results(elements, results):
    for name, result in results.items():
        assert name in elements.text
        for figure in (result.overall["map"], result["shape"].scores["map"]):
            assert f"{100 * figure:.1f}" in elements.text
    assert f"chance {100 * results['CCA'].chance_overall['map']:.1f}" in elements.text


def test_the_entanglement_is_a_heat_map(elements, entangled, model, dataset, results, tmp_path):
    assert "Measured on 1,234 images." in elements.text
    for name in ("linear reader", "small MLP"):
        assert f"{name}: entanglement 0.38, informativeness {entangled.informativeness:.2f}" in elements.text
    heats = [each["style"] for tag, each in elements.found if tag == "td" and "heat" in (each.get("style") or "")]
    assert len(heats) == 2 * len(entangled.attributes) ** 2
    assert heats[:2] == ["--heat:100.0%", "--heat:0.0%"] and heats[-1] == "--heat:37.5%"  # above 1, undefined, between
    assert "1.25" in elements.text and "Entanglement" in elements.text
    plain = write_report(model, dataset, "test", results["CCA"], tmp_path, queries=[2], neighbours=1)
    assert "Entanglement" not in plain.read_text(encoding="utf-8")


def test_names_are_escaped(report, elements):
    assert "<b>blue</b> & 'navy'" in elements.text
    assert "<b>blue</b>" not in report.read_text(encoding="utf-8")


def test_curves_show_what_was_logged(report, elements, model, dataset, results, tmp_path):
    assert "Training loss" in elements.text and "mAP on validation" in elements.text
    assert len([tag for tag, _ in elements.found if tag == "path"]) == 2
    plain = write_report(model, dataset, "test", results["CCA"], tmp_path, queries=[2], neighbours=1)
    assert "Training loss" not in plain.read_text(encoding="utf-8")
    assert "chosen by hand" in plain.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def boots(model) -> AttributeDataset:
    """Five boots of the same red, two of the same green and a blue one, so that equal images are the nearest."""
    colours = ["red"] * 5 + ["green"] * 2 + [VALUES["colour"][2]]
    pixels = {colour: pure for colour, pure in zip(VALUES["colour"], PURE, strict=True)}
    rows = {
        "image": [Image.new("RGB", (40, 30), pixels[colour]) for colour in colours],
        "colour": colours,
        "shape": [0, -1] * 4,
        "Name": [f"Boot <{row}>" for row in range(8)],
        "price": [49.9, 20.0, *[None] * 6],
        "sku": [f"A-{row}" for row in range(8)],
        "season": ["winter"] * 8,
    }
    texts = {name: Value("string") for name in ("Name", "sku", "season")}
    labels = {name: ClassLabel(names=values) for name, values in VALUES.items()}
    features = Features(image=ImageColumn(), **labels, price=Value("float32"), **texts)
    data = Dataset.from_dict(rows, features=features).cast_column("image", ImageColumn(decode=False))
    return AttributeDataset(DatasetDict(test=data), VALUES)


@pytest.fixture(scope="module")
def page_of_boots(model, boots, tmp_path_factory) -> str:
    result = RetrievalEvaluator(boots)(model)
    folder = tmp_path_factory.mktemp("boots")
    return write_report(model, boots, "test", {"my-model": result}, folder, queries=[0, 5, 7]).read_text("utf-8")


def test_it_counts_what_could_be_right(page_of_boots):
    _, *queries = page_of_boots.split('<article class="query card">')
    expected = (
        (["right"] * 4 + ["unknown"] * 3, "4 of 4 that could be right"),
        (["right"] + ["unknown"] * 6, "1 of 1 that could be right"),
        (["unknown"] * 7, "no other image with this value was searched"),
    )
    for query, (kinds, count) in zip(queries, expected, strict=True):
        colour, _ = query.split("<h3>shape")
        assert re.findall('<figure class="(.*?)">', colour) == ["looks", *kinds]
        assert f"<span>{count}</span>" in colour


def test_a_split_of_one_image(model, boots, tmp_path):
    alone = AttributeDataset(DatasetDict(test=boots["test"].select([7])), VALUES)
    text = write_report(model, alone, "test", RetrievalEvaluator(alone)(model), tmp_path).read_text(encoding="utf-8")
    assert "no other image with this value was searched" in text
    assert (tmp_path / "report.png").is_file() and not [*(tmp_path / "examples").iterdir()]


def test_an_image_has_its_id_name_and_price(page_of_boots):
    query, *others = page_of_boots.split('<article class="query card">')[1].split("<figure")
    assert query.count("<span>A-0</span>\n<span>Boot &lt;0&gt;</span>\n<span>price 49.9</span>") == 1
    captions = [re.findall("<small.*?>(.*?)</small>", figure) for figure in others[1:5]]
    assert captions[0] == ["A-1", "Boot &lt;1&gt;", "price 20"]
    assert captions[1] == ["A-2", "Boot &lt;2&gt;"]  # no price
    assert "winter" not in page_of_boots


def test_the_title(page_of_boots, report):
    assert "<h1>my-model</h1>" in page_of_boots and "<title>my-model: test</title>" in page_of_boots
    assert "<h1>CCA</h1>" in report.read_text(encoding="utf-8")


def test_few_queries_have_an_interval(report, results):
    low, high = (f"{100 * end:.1f}" for end in results["CCA"].map_interval)
    assert f"95 % interval\n{low} to {high}</span>" in report.read_text(encoding="utf-8")


def test_single_queries_for_a_model_card(report):
    """The query as it is, and a picture of what was found for it."""
    names = sorted(path.name for path in (report.parent / "examples").iterdir())
    assert names == ["1-neighbours.png", "1.jpg", "2-neighbours.png", "2.jpg"]
    for number in "12":
        query = Image.open(report.parent / "examples" / f"{number}.jpg")
        found = Image.open(report.parent / "examples" / f"{number}-neighbours.png")
        assert found.width > 4 * query.width and len(found.convert("RGB").getcolors(10**6)) > 1000


def test_png_beside_it(report):
    picture = Image.open(report.with_name("report.png"))
    assert picture.size[0] > 1000 and picture.size[1] > 800
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_query_and_gallery_splits(model, dataset, tmp_path):
    result = RetrievalEvaluator(dataset, "benchmark")(model)
    path = write_report(model, dataset, "benchmark", result, tmp_path, queries=2, neighbours=2, candidates=20)
    text = path.read_text(encoding="utf-8")
    assert "5 images of the\nsplit <code>benchmark</code>, which are compared with 25 other images." in text
    assert "searched among 20 randomly drawn images" in text


def test_results_of_other_images_are_refused_before_any_work(model, dataset, results, tmp_path):
    other = RetrievalEvaluator(dataset, "benchmark")(model)
    with pytest.raises(ValueError, match="cannot be compared"):
        write_report(model, dataset, "test", {"other": other, "CCA": results["CCA"]}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_page_needs_no_matplotlib(report, model, dataset, results, entangled, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = {"queries": 3, "neighbours": 5, "history": HISTORY, "entanglement": entangled}
    path = write_report(model, dataset, "test", results, tmp_path, **shown)
    assert path.read_bytes() == report.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert caplog.messages == [
        'without matplotlib, report.png and examples/ are not drawn: pip install "cca_hf[plot]"'
    ]


PROBE = """() => ({
  widths: [...document.images].map(image => image.naturalWidth),
  shown: [...document.images].map(image => image.getBoundingClientRect().width),
  wide: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
})"""


def test_in_a_real_browser(report, browser):
    for width, scheme, background in ((1280, "light", "rgb(250, 250, 249)"), (390, "dark", "rgb(12, 14, 20)")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(report.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        seen = page.evaluate(PROBE)
        assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
        assert len(seen["widths"]) == 39 and min(seen["widths"]) > 0 and min(seen["shown"]) > 30
        assert seen["wide"] <= width  # nothing to scroll sideways
        assert seen["background"] == background
