"""Run by the tests as processes of their own, to be killed or to run into each other.

python processes.py write LOCATION    adds, writes over and indexes without end; prints what has been acknowledged
python processes.py hold LOCATION     opens for writing, says so, and waits
python processes.py fill LOCATION     adds until it fails, and prints the error
"""

import sys
import time

import numpy as np

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, LanceSettings

ITEMS, DIM = 500, 32
SCHEMA = IndexSchema(("colour", "shape"), DIM, {"round": "integer"}, CheckpointId("me/cca-shoes", "5c" * 32))
SETTINGS = LanceSettings(index_from=1000)


def vectors_of(first: int, generation: int) -> np.ndarray:
    """(ITEMS, 2, DIM): what item number `first`, ... have in a generation."""
    return np.random.default_rng([first, generation]).normal(size=(ITEMS, 2, DIM)).astype(np.float32)


def write(location: str) -> None:
    """Four blocks of items in turn; each time round they are written over, and now and then all is indexed."""
    with AttributeIndex.create_from_schema(location, SCHEMA, settings=SETTINGS) as index:
        print("begin", flush=True)
        for generation in range(10_000):
            for block in range(4):
                ids = [str(block * ITEMS + place) for place in range(ITEMS)]
                vectors = vectors_of(block * ITEMS, generation)
                index.add(ids, embeddings=vectors, columns={"round": [generation] * ITEMS})
                print(block, generation, flush=True)
            index.optimize()


def hold(location: str) -> None:
    with AttributeIndex.open(location, SCHEMA.checkpoint, writable=True):
        print("open", flush=True)
        time.sleep(600)


def fill(location: str) -> None:
    with AttributeIndex.create_from_schema(location, SCHEMA, settings=SETTINGS) as index:
        for block in range(10_000):
            ids = [str(block * ITEMS + place) for place in range(ITEMS)]
            try:
                index.add(ids, embeddings=vectors_of(block * ITEMS, 0), columns={"round": [0] * ITEMS})
            except OSError as error:
                print(f"full {block * ITEMS} {error.errno} {error}", flush=True)
                return


if __name__ == "__main__":
    {"write": write, "hold": hold, "fill": fill}[sys.argv[1]](sys.argv[2])
