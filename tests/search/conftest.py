"""A small catalogue whose embeddings have something to do with its labels, and an index of it on either engine."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema

pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
pytest.importorskip("qdrant_client", reason='the index needs the client: pip install "cca_hf[qdrant]"')

ATTRIBUTES = ("colour", "shape", "heel height")
COLOURS, SHAPES = ("red", "green", "blue", 'it\'s "odd"'), ("round", "square", "flat")
CHECKPOINT = CheckpointId("me/cca-shoes", "5c" * 32)
COLUMNS = {
    "colour": "text",
    "shape": "text",
    "heel height": "text",
    "price": "number",
    "year": "integer",
    "in_stock": "boolean",
}


@dataclass
class Catalogue:
    item_ids: list[str]
    embeddings: np.ndarray  # (items, 3, dim), normalised
    columns: dict[str, list]
    schema: IndexSchema = field(init=False)

    def __post_init__(self) -> None:
        self.schema = IndexSchema(ATTRIBUTES, self.embeddings.shape[2], dict(COLUMNS), CHECKPOINT)

    def rows(self, predicate: Callable[[dict], bool]) -> np.ndarray:
        """(items,) which items a plain Python function says yes to."""
        names = list(self.columns)
        return np.array(
            [predicate(dict(zip(names, row, strict=True))) for row in zip(*self.columns.values(), strict=True)]
        )

    def similarities(self, query: np.ndarray, attribute: str) -> np.ndarray:
        """(items,) cosines with `query` (dim,)."""
        return self.embeddings[:, ATTRIBUTES.index(attribute)] @ (query / np.linalg.norm(query))


def make_catalogue(items: int, dim: int = 16, seed: int = 0) -> Catalogue:
    rng = np.random.default_rng(seed)
    names = (COLOURS, SHAPES, ("low", "high"))
    labels = np.stack([rng.integers(0, len(values), items) for values in names], axis=1)
    embeddings = np.empty((items, len(names), dim), dtype=np.float32)
    for place, values in enumerate(names):
        centres = rng.normal(size=(len(values), dim))
        embeddings[:, place] = centres[labels[:, place]] + 0.6 * rng.normal(size=(items, dim))
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)

    def holed(values: list, share: float) -> list:
        return [None if hole else value for value, hole in zip(values, rng.random(items) < share, strict=True)]

    columns = {
        "colour": holed([COLOURS[label] for label in labels[:, 0]], 0.1),
        "shape": holed([SHAPES[label] for label in labels[:, 1]], 0.1),
        "heel height": [("low", "high")[label] for label in labels[:, 2]],
        "price": holed(np.round(rng.uniform(0, 100, items), 2).tolist(), 0.1),
        "year": holed(rng.integers(2010, 2020, items).tolist(), 0.1),
        "in_stock": holed((rng.random(items) < 0.5).tolist(), 0.1),
    }
    return Catalogue([f"item-{row:05}" for row in range(items)], embeddings, columns)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return make_catalogue(400)


@pytest.fixture(scope="session")
def few() -> Catalogue:
    """For tests that write: the imitation of a Qdrant server takes its time over each item."""
    return make_catalogue(40, seed=1)


# a Qdrant server too, where there is one: CCA_QDRANT_URL=http://host:6333
ENGINES = ["lance", "qdrant"] + ["server"] * ("CCA_QDRANT_URL" in os.environ)


@pytest.fixture(params=ENGINES)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A free place on each engine that can be opened again."""
    with a_place(request.param, tmp_path, f"qdrant-local:{tmp_path}/qdrant/shoes") as place:
        yield place


@pytest.fixture(params=ENGINES, scope="session")
def index(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, catalogue
) -> Iterator[AttributeIndex]:
    """The whole catalogue, to be read and not written."""
    with (
        a_place(request.param, tmp_path_factory.mktemp("index"), "qdrant-local:shoes") as place,
        AttributeIndex.create_from_schema(place, catalogue.schema) as index,
    ):
        index.add(catalogue.item_ids, embeddings=catalogue.embeddings, columns=catalogue.columns)
        yield index


@pytest.fixture
def small_index(location: str, few: Catalogue) -> Iterator[AttributeIndex]:
    """A few items, to be written over."""
    with AttributeIndex.create_from_schema(location, few.schema) as index:
        index.add(few.item_ids, embeddings=few.embeddings, columns=few.columns)
        yield index


@contextlib.contextmanager
def a_place(engine: str, folder: Path, imitation: str) -> Iterator[str]:
    if engine == "lance":
        yield str(folder / "shoes.index")
    elif engine == "qdrant":
        yield imitation
    else:
        from qdrant_client import QdrantClient

        name = f"cca_hf_test_{uuid.uuid4().hex}"
        yield f"{os.environ['CCA_QDRANT_URL']}/{name}"
        QdrantClient(url=os.environ["CCA_QDRANT_URL"]).delete_collection(name)
