"""Measures a search with changed values against a plain search by the same attributes, in one run.

    cca embed --model out --dataset me/shoes --split train --output_dir embeddings
    python scripts/benchmark_value_search.py --model out --embeddings embeddings --output docs/benchmarks

The items are real embeddings of a model that has prototypes of its values, repeated with a little noise up to
`--items`; one real embedding in ten is a query and not an item. All searches are mixtures of all attributes with equal
weights, and take turns:

    plain        index.search(embedding=e)
    one change   index.search(embedding=model.manipulate(e, add={attribute: value}))
    two changes  the same with two attributes
    by values    index.search(embedding=e, values={attribute: value}), with the prototypes that the index stores

Attributes and values are drawn. Recall is the share of the 10 nearest items of an exact scan that the search returns.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_search import enlarge, load_real, nearest
from speed_measures import file_name, machine_name

from cca_hf.models.loading import load_model
from cca_hf.search import AttributeIndex, IndexSchema

ITEMS_AT_ONCE = 10_000
TURNS_TO_WARM_UP = 40  # the index keeps more in memory after some searches
LONGEST = 1 << 20  # numbers of an embedding: no projection


def make_index(location: Path, model: Any, names: list[str], items: np.ndarray) -> AttributeIndex:
    """An index of the items, which are embeddings of the model under all of its attributes."""
    index = AttributeIndex.create_from_schema(location, IndexSchema.of_model(model, "", {}))
    assert list(index.schema.attributes) == names, "embed all attributes of the model, in its order"
    for first in range(0, len(items), ITEMS_AT_ONCE):
        part = items[first : first + ITEMS_AT_ONCE]
        index.add(list(range(first, first + len(part))), embeddings=part)
    index.optimize()
    return index


def measure(index: AttributeIndex, model: Any, items: np.ndarray, queries: np.ndarray) -> dict[str, dict[str, float]]:
    """Milliseconds and recall of each kind of search."""
    rng = np.random.default_rng(1)
    prototypes = index.schema.prototypes
    equal = dict.fromkeys(index.schema.attributes, 1.0)
    flat = items.reshape(len(items), -1)
    seconds: dict[str, list[float]] = {}
    recall: dict[str, list[float]] = {}
    for turn, query in enumerate([*queries[:TURNS_TO_WARM_UP], *queries]):
        attributes = rng.permutation(list(prototypes))[:2].tolist()
        change = {name: str(rng.choice(list(prototypes[name]))) for name in attributes}
        first = {attributes[0]: change[attributes[0]]}
        changes: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # for `manipulate`, and for the index
            "plain": ({}, {}),
            "one change": (first, {}),
            "two changes": (change, {}),
            "by values": ({}, first),
        }
        for name, (add, values) in changes.items():
            started = time.perf_counter()
            changed = model.manipulate(query, add=add) if add else query
            hits = index.search(embedding=changed, weights=equal, values=values or None)
            used = time.perf_counter() - started
            if turn >= TURNS_TO_WARM_UP:
                target = model.manipulate(query, add={**add, **values})
                truth = nearest(flat @ target.ravel())
                seconds.setdefault(name, []).append(used)
                recall.setdefault(name, []).append(len({int(hit.item_id) for hit in hits} & set(truth)) / len(truth))
    return {
        name: {
            "p50_ms": 1000 * float(np.median(times)),
            "p95_ms": 1000 * float(np.percentile(times, 95)),
            "recall_at_10": float(np.mean(recall[name])),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint with prototypes of values")
    parser.add_argument("--embeddings", type=Path, required=True, help="output folder of 'cca embed' with this model")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--output", type=Path, help="folder for manipulation_<machine>.json; other sizes are kept")
    arguments = parser.parse_args()
    model = load_model(arguments.model, "cpu")
    if not model.has_prototypes:
        parser.error(f"{arguments.model} has no prototypes of values")
    names, real = load_real(arguments.embeddings, len(model.config.attributes), LONGEST)
    held_out = np.arange(len(real)) % 10 == 0
    items, queries = enlarge(real[~held_out], arguments.items), real[held_out][: arguments.queries]
    with tempfile.TemporaryDirectory() as scratch, make_index(Path(scratch, "index"), model, names, items) as index:
        load_before = os.getloadavg()[0]
        figures = measure(index, model, items, queries)
    plain = figures["plain"]["p50_ms"]
    for name, each in figures.items():
        shown = "  ".join(f"{key} {value:.3f}" for key, value in each.items())
        print(f"{name:12} {shown}  times plain {each['p50_ms'] / plain:.2f}")
    if arguments.output:
        machine = machine_name()
        path = arguments.output / file_name(machine, "manipulation")
        earlier = json.loads(path.read_text()) if path.exists() else {}
        size = f"{arguments.items} x {len(names)} x {real.shape[2]}"
        result = {"items": arguments.items, "queries": len(queries), "load_before": load_before, **figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, **earlier, size: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
