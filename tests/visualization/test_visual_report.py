"""The report: one page that holds everything, in a real browser too where there is one."""

import base64
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cca_hf.evaluation import BackboneEvaluator, RetrievalEvaluator
from cca_hf.evaluation.entanglement.result import EntanglementResult, ReaderEntanglement
from cca_hf.visualization import write_report

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
    assert "30 images of the\nsplit" in text  # 5 queries, 25 in the gallery
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


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => { document.title = "PROBE" + JSON.stringify({
  widths: [...document.images].map(image => image.naturalWidth),
  shown: [...document.images].map(image => image.getBoundingClientRect().width),
  resources: performance.getEntriesByType("resource").map(entry => entry.name),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  background: getComputedStyle(document.body).backgroundColor,
}) + "PROBE" })</script></head>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH: the page is not opened in a real browser")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (500, "dark")])  # 500 is the narrowest window it makes
def test_in_a_real_browser(report, tmp_path, width, scheme):
    """Served over HTTP, so that every request of the page would be seen; the probe needs scripts to be allowed."""
    page = report.read_text(encoding="utf-8").replace("</head>", PROBE)
    page = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode() if self.path == "/" else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=5000",
                f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
                "--dump-dom", f"http://127.0.0.1:{server.server_port}/",
            ],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    probe = re.search(r"<title>PROBE(.*?)PROBE</title>", done.stdout, re.S)
    assert probe, done.stdout[:500] + done.stderr[-500:]
    seen = json.loads(probe[1].replace("&amp;", "&"))
    assert requests == ["/"] and seen["resources"] == []
    assert len(seen["widths"]) == 39 and min(seen["widths"]) > 0 and min(seen["shown"]) > 30
    assert seen["overflow"] <= 0  # nothing to scroll sideways
    assert seen["background"] == ("rgb(12, 14, 20)" if scheme == "dark" else "rgb(250, 250, 249)")
