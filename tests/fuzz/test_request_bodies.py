"""Random request bodies: JSON that is nearly right, and damaged image files. None may get a 500 or a wrong answer."""

import asyncio
import base64
import json
import random

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")

from cca_hf.hub.handler import STATUS_OF, Limits  # noqa: E402
from cca_hf.hub.server import EmbeddingServer, ServerSettings  # noqa: E402

from ..hub.served import ATTRIBUTES, picture_file, save_checkpoint  # noqa: E402

JSON_BODIES, FILES = 600, 300
FORMS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
NAMES = list(ATTRIBUTES)
IMAGES = [picture_file(number, form) for number, form in enumerate(FORMS)]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]
ODD = [
    *(None, True, -1, 10**400, 1e308, float("nan"), "", " ", "\0", "\ud800", "=", "A", "data:", "data:text/html,x"),
    *("data:image/png;base64,", "http://127.0.0.1/", "file:///etc/passwd", "/etc/passwd", "[" * 50, "colour", "color"),
    *([], {}, [[]], {"path": "/etc/passwd"}, {"bytes": "AAAA"}, ["colour", 3], "inputs", {"inputs": "x"}),
]


def nearly_right(chance: random.Random) -> object:
    """A request of which some parts were replaced."""

    def part(usual: object) -> object:
        return chance.choice(ODD) if chance.random() < 0.25 else usual

    images = [part(chance.choice(TEXTS)) for _ in range(chance.choice([1, 1, 2, 3, 33]))]
    inputs = part(images if chance.random() < 0.6 else images[0])
    attribute = part(chance.choice([NAMES, NAMES[0], NAMES[:2] * 3, None]))
    request = {"inputs": inputs, "parameters": part({"attribute": attribute})}
    for key in list(request):
        if chance.random() < 0.05:
            request[str(part(key))] = request.pop(key)
    return part(request)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file with bytes that were replaced, doubled, cut out or swapped with those of another file."""
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 2, 8, 40])):
        at, length = chance.randrange(len(damaged) + 1), chance.choice([1, 1, 2, 4, 60])
        other = chance.choice(IMAGES)
        start = chance.randrange(len(other))
        new = [chance.randbytes(length), b"", bytes(damaged[at : at + length]) * 2, other[start : start + length],
               b"\xff" * length, bytes(length)]  # fmt: skip
        damaged[at : at + length] = chance.choice(new)
    return bytes(damaged)


def test_every_body_gets_its_answer(tmp_path):
    model = save_checkpoint(tmp_path)
    want = model.encode(IMAGES)
    chance = random.Random(0)

    def check(answer: httpx.Response, sent: object) -> None:
        if answer.status_code == 200:
            rows = answer.json() if isinstance(answer.json(), list) else [answer.json()]
            for row in rows:
                assert set(row) <= set(NAMES), sent
                np.testing.assert_allclose(np.linalg.norm(list(row.values()), axis=1), 1, atol=1e-5)
        else:
            error = answer.json()
            assert set(error) == {"error", "error_type"}, sent
            assert answer.status_code == STATUS_OF[error["error_type"]], sent

    async def run() -> None:
        server = EmbeddingServer(model, "cca-shoes", Limits(max_pixels=1_000_000), ServerSettings(max_body=300_000))
        app = server.app()
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client,
        ):
            codes = set()
            for _ in range(JSON_BODIES):
                text = json.dumps(nearly_right(chance))
                if chance.random() < 0.1:
                    text = text[: chance.randrange(len(text))]
                headers = {"Content-Type": chance.choice(["application/json"] * 9 + ["text/plain"])}
                answer = await client.post("/", content=text.encode("utf-8"), headers=headers)
                codes.add(answer.status_code)
                check(answer, text[:300])
            for number in range(FILES):
                content = damaged(IMAGES[number % len(IMAGES)], chance)
                answer = await client.post("/", content=content, headers={"Content-Type": "image/png"})
                codes.add(answer.status_code)
                check(answer, content)
            assert codes >= {200, 400, 413, 415, 422}
            whole = (await client.post("/", json={"inputs": TEXTS})).json()
        np.testing.assert_allclose([list(row.values()) for row in whole], want, atol=1e-6)

    asyncio.run(run())
