"""The endpoint's handler: every form of input gives what `encode` gives, and every bad one is told what is wrong."""

import ast
import base64
import io
import json
import os
import shutil
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from cca_hf.hub import handler as module
from cca_hf.hub.handler import EndpointHandler, Limits, RequestError, RequestReader
from cca_hf.models import images

from .served import ATTRIBUTES, bomb, picture_file, save_checkpoint

JPEG, OTHER = picture_file(0), picture_file(1)
TEXT = base64.b64encode(JPEG).decode()
NAMES = list(ATTRIBUTES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cca-shoes")


@pytest.fixture(scope="module")
def model(folder):
    return save_checkpoint(folder)


@pytest.fixture(scope="module")
def handler(model, folder):
    return EndpointHandler(str(folder), Limits(max_pictures=4, max_bytes=200_000, max_pixels=1_000_000))


@pytest.mark.parametrize(
    "picture",
    [
        JPEG,
        TEXT,
        "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76)) + "\n",
        f"data:image/jpeg;base64,{TEXT}",
        f"DATA:;base64,{TEXT}",
        Image.open(io.BytesIO(JPEG)),
    ],
    ids=["bytes", "base64", "base64 in lines", "data URL", "data URL without a type", "PIL"],
)
def test_every_form_of_a_picture(handler, model, picture):
    answer = json.loads(json.dumps(handler({"inputs": picture})))
    assert list(answer) == NAMES
    np.testing.assert_allclose(list(answer.values()), model.encode(JPEG)[0], atol=1e-6)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_kind_of_file(handler, model, form):
    content = picture_file(2, form)
    answer = handler({"inputs": base64.b64encode(content).decode()})
    np.testing.assert_allclose(list(answer.values()), model.encode(content)[0], atol=1e-6)


def test_lists_and_names(handler, model):
    want = model.encode([JPEG, OTHER])
    answer = handler({"inputs": [JPEG, base64.b64encode(OTHER).decode()], "parameters": None})
    np.testing.assert_allclose([list(each.values()) for each in answer], want, atol=1e-6)
    (alone,) = handler({"inputs": [JPEG], "parameters": {"attribute": ["heel height", "colour", "colour"]}})
    assert list(alone) == ["heel height", "colour"]
    np.testing.assert_allclose(list(alone.values()), want[0, [2, 0]], atol=1e-6)
    one = handler({"inputs": JPEG, "parameters": {"attribute": "shape"}})
    assert list(one) == ["shape"]
    np.testing.assert_allclose(one["shape"], want[0, 1], atol=1e-6)


def test_this_one_but_red(handler, model):
    own = model.encode([JPEG, OTHER])
    red = model.value_prototypes("colour")["red"]
    answer = handler({"inputs": JPEG, "parameters": {"add": {"colour": "red"}, "remove": ["shape"]}})
    np.testing.assert_allclose(list(answer.values()), [red, np.zeros(16), own[0, 2]], atol=1e-6)
    parameters = {"attribute": ["shape", "colour"], "add": {"shape": "round"}, "remove": {"colour": "red"}}
    answers = handler({"inputs": [JPEG, OTHER], "parameters": parameters})
    want = model.manipulate(own, add=parameters["add"], remove=parameters["remove"])[:, [1, 0]]
    assert [list(each) for each in answers] == [["shape", "colour"]] * 2
    np.testing.assert_allclose([list(each.values()) for each in answers], want, atol=1e-6)
    assert abs(answers[0]["colour"] @ red) < 1e-6 < abs(own[0, 0] @ red)
    assert handler({"inputs": JPEG, "parameters": {"add": {}, "remove": None}}) == handler({"inputs": JPEG})


SCANS = JPEG[:-2] + 100 * (b"\xff\xda\x00\x0c" + bytes(10)) + JPEG[-2:]
HEADER = b"IHDR" + 2 * (60_000).to_bytes(4, "big") + b"\x08\x02\0\0\0"
HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\r" + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + b"\0\0\0\0IDAT"


def changing(**parameters: object) -> dict:
    return {"inputs": TEXT, "parameters": parameters}


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (JPEG, "invalid_request", "a request must be an object; got bytes"),
        ({}, "invalid_request", "no 'inputs'"),
        (
            {"input": TEXT},
            "unknown_parameter",
            "unknown key 'input' in the request. Did you mean 'inputs'? Allowed: inputs, parameters.",
        ),
        ({"inputs": TEXT, "attribute": "shape"}, "unknown_parameter", "Allowed: inputs, parameters."),
        ({"inputs": None}, "invalid_request", "inputs: an image must be base64 text, or a data: URL; got NoneType"),
        ({"inputs": [TEXT, 3]}, "invalid_request", "inputs[1]: an image must be base64 text"),
        ({"inputs": {"bytes": TEXT}}, "invalid_request", "got dict"),
        ({"inputs": []}, "invalid_request", "a list of 0 images; 1 to 4 are allowed"),
        ({"inputs": [TEXT] * 5}, "too_many_pictures", "a list of 5 images; 1 to 4 are allowed"),
        ({"inputs": TEXT, "parameters": "shape"}, "invalid_request", "'parameters' must be an object; got str"),
        ({"inputs": TEXT, "parameters": {"atribute": 1}}, "unknown_parameter", "Did you mean 'attribute'?"),
        ({"inputs": TEXT, "parameters": {"attribute": 1}}, "invalid_request", f"names from {NAMES}; got int"),
        ({"inputs": TEXT, "parameters": {"attribute": []}}, "invalid_request", "got list"),
        ({"inputs": TEXT, "parameters": {"attribute": [None]}}, "invalid_request", "got list"),
        ({"inputs": TEXT, "parameters": {"attribute": "color"}}, "unknown_attribute", "Did you mean 'colour'?"),
        (
            {"inputs": TEXT, "parameters": {"attribute": "x" * 9999}},
            "unknown_attribute",
            f"The model's attributes are {NAMES}.",
        ),
        (changing(add={"colour": "rd"}), "invalid_request", "unknown value 'rd' of 'colour'. Did you mean 'red'?"),
        (changing(add={"color": "red"}), "unknown_attribute", "Did you mean 'colour'?"),
        (changing(add={"shape": "long"}), "invalid_request", "'long' of 'shape' has no prototype"),
        (changing(add={"heel height": "flat"}), "invalid_request", "'heel height' has no prototypes of its values"),
        (changing(add={"colour": "red"}, remove=["colour"]), "invalid_request", "'colour' is in add, with 'red', and"),
        (changing(add={"colour": "red"}, attribute="shape"), "invalid_request", "which 'attribute' leaves out of the"),
        (changing(add=["colour"]), "invalid_request", "'add' must be an object of attributes and values, such as"),
        (changing(add={"colour": 3}), "invalid_request", "'add' must be an object of attributes and values, such as"),
        (changing(add={"colour": "x" * 9999}), "invalid_request", "a name in 'add' has more than 1000 characters"),
        (changing(remove="shape"), "invalid_request", "'remove' must be a list of attributes, or an object of"),
        (changing(remove=[3]), "invalid_request", "'remove' must be a list of attributes, or an object of"),
        ({"inputs": "../shoe.jpg"}, "invalid_request", "got '../shoe.jpg'"),
        (
            {"inputs": "https://example.com/shoe.jpg"},
            "url_not_allowed",
            "URLs are not allowed here: an image must be base64 text",
        ),
        ({"inputs": "file:///etc/passwd"}, "invalid_request", "got 'file:///etc/passwd'"),
        ({"inputs": "data:image/jpeg,abc"}, "invalid_request", "must be in base64; got 'data:image/jpeg'"),
        ({"inputs": ""}, "unreadable_picture", "0 bytes are not a complete image in a supported format (JPEG, PNG"),
        ({"inputs": b"no picture"}, "unreadable_picture", "10 bytes are not a complete image"),
        (
            {"inputs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
            "unreadable_picture",
            "not a complete image",
        ),
        ({"inputs": [JPEG, JPEG[:-300]]}, "unreadable_picture", "inputs[1]: "),
        ({"inputs": picture_file(0, "PNG")[:-40]}, "unreadable_picture", "not a complete image"),
        ({"inputs": JPEG + bytes(200_000)}, "too_large", "at most 200,000 bytes per image are allowed"),
        ({"inputs": bomb()}, "too_large", "an image of 6000 x 6000 pixels; at most 1,000,000 are allowed"),
        ({"inputs": Image.new("RGB", (2000, 600))}, "too_large", "an image of 2000 x 600"),
        ({"inputs": HUGE}, "too_large", "3600000000 pixels"),
        ({"inputs": SCANS}, "too_large", "a JPEG with 101 scans; at most 64 are allowed"),
    ],
)
def test_what_is_refused(handler, data, kind, message):
    with pytest.raises(RequestError) as error:
        handler(data)
    assert error.value.kind == kind and error.value.status == module.STATUS_OF[kind]
    assert message in str(error.value) and len(str(error.value)) < 400


def test_a_bomb_is_not_decoded(monkeypatch):
    content = bomb()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(RequestError, match="6000 x 6000"):
        RequestReader(NAMES, Limits(), images).read(content)


def test_text_is_no_name_of_a_file(handler, tmp_path, monkeypatch):
    """Not even where it could be one: `abcd` is base64 too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abcd").write_bytes(JPEG)
    with pytest.raises(RequestError, match="3 bytes are not a complete image"):
        handler({"inputs": "abcd"})


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_file_is_what_was_checked():
    """PIL tries IM before TIFF: what begins as the one and goes on as the other must not be decoded as the other."""
    polyglot = b"II*\0" + b": x\nImage type: L image\nImage size (x*y): 9000*9000\n\x1a" + bytes(600)
    with Image.open(io.BytesIO(polyglot)) as image:
        assert (image.format, image.size) == ("IM", (9000, 9000))
    with pytest.raises(RequestError, match="not a complete image"):
        RequestReader(NAMES, Limits(), images).read(polyglot)


def test_limits_of_the_environment():
    assert Limits.from_environment({}) == Limits()
    given = {"CCA_ALLOW_URLS": "1", "CCA_MAX_PIXELS": "1e6", "CCA_URL_SECONDS": "2.5", "OTHER": "x"}
    assert Limits.from_environment(given) == Limits(allow_urls=True, max_pixels=1_000_000, url_seconds=2.5)
    assert Limits.from_environment({"CCA_ALLOW_URLS": "0"}) == Limits()
    for text in ("yes", "inf"):
        with pytest.raises(ValueError, match=f"CCA_MAX_BYTES must be a number, 0 or 1 for a switch; got '{text}'"):
            Limits.from_environment({"CCA_MAX_BYTES": text})
    with pytest.raises(ValueError, match="must be at least 1"):
        Limits(max_pictures=0)


AS_AN_ENDPOINT = """
import sys
sys.modules["cca_hf"] = None  # importing it raises ImportError
import importlib.util, json
folder, picture = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")  # as Inference Endpoints do
sys.modules["handler"] = handler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
with open(picture, "rb") as file:
    print(json.dumps(endpoint({"inputs": file.read(), "parameters": {"add": {"colour": "red"}}})))
"""


def test_on_the_hub(folder, model, tmp_path, warm_python):
    """In a repository, beside the checkpoint, in a Python that does not have cca_hf."""
    repository = shutil.copytree(folder, tmp_path / "repository")
    shutil.copy(module.__file__, repository / "handler.py")
    (tmp_path / "picture.jpg").write_bytes(JPEG)
    environment = {**os.environ, "PYTHONPATH": ""}
    words = ["-c", AS_AN_ENDPOINT, repository, tmp_path / "picture.jpg"]
    process = warm_python.run(*words, cwd=tmp_path, env=environment, check=True)
    answer = json.loads(process.stdout.splitlines()[-1])
    want = model.manipulate(model.encode(JPEG)[0], add={"colour": "red"})
    np.testing.assert_allclose(list(answer.values()), want, atol=1e-6)


def test_it_travels_alone():
    """At its top level it imports what is there wherever a checkpoint loads."""
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    imported = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    sources = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in sources)
    imported |= {(node.module or "").split(".")[0] for node in sources}
    assert imported <= {"torch", "transformers", "PIL", *sys.stdlib_module_names}
