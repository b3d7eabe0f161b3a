"""Measures the speed and the recall of a search: the index, an exact scan and faiss, in one run.

    cca embed --model out --dataset me/shoes --split train --output_dir embeddings
    python scripts/benchmark_search.py --embeddings embeddings --output docs/benchmarks   # search_<machine>.json
    python scripts/benchmark_search.py --embeddings embeddings --graph 8-bit --output docs/benchmarks
    python scripts/benchmark_search.py --embeddings embeddings --items 1000000 --attributes 1 --output docs/benchmarks

The items are real embeddings, projected to `--dim` principal components, and repeated with a little noise up to
`--items`. One real embedding in ten is a query and not an item. Every search is also measured with a filter that keeps
10 % of the items. Recall is the share of the 10 nearest items of an exact scan that the search returns. Every engine
runs in a separate process, one query at a time; faiss (`pip install faiss-cpu`) and numpy use OMP_NUM_THREADS threads.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads

TOP = 10
NOISE = 0.2  # length of the noise that is added to an embedding of length 1
KEPT = 10.0  # one item in ten has a lower price
WEIGHTS = (1.0, 0.5)  # for the mixture of two attributes
MANIFEST = "manifest.json"


def load_real(folder: Path, attributes: int, dim: int) -> tuple[list[str], np.ndarray]:
    """Names of the attributes, and normalised principal components, (items, attributes, dim)."""
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["attributes"][:attributes]
    table = pads.dataset(sorted(folder.glob("embeddings-*.parquet"))).to_table([f"embedding_{name}" for name in names])
    columns = []
    for column in table.columns:
        vectors = column.combine_chunks().flatten().to_numpy().reshape(len(table), -1).astype(np.float64)
        if vectors.shape[1] > dim:
            _, axes = np.linalg.eigh(vectors.T @ vectors)
            vectors = vectors @ axes[:, -dim:]
        columns.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return names, np.stack(columns, axis=1).astype(np.float32)


def enlarge(real: np.ndarray, count: int) -> np.ndarray:
    """Normalised copies with noise, (count, attributes, dim)."""
    rng = np.random.default_rng(0)
    rows = real[np.arange(count) % len(real)]
    noisy = rows + rng.normal(size=rows.shape).astype(np.float32) * np.float32(NOISE / np.sqrt(real.shape[2]))
    return noisy / np.linalg.norm(noisy, axis=2, keepdims=True)


def timed(ask: Callable[[int], list[int]], truth: list[set[int]]) -> dict[str, float]:
    """Milliseconds per query (wall clock and CPU), and recall. A tenth of the queries runs before, to warm up."""
    wall, processor, recall = [], [], []
    for query in [*range(len(truth) // 10), *range(len(truth))]:
        started, used = time.perf_counter(), time.process_time()
        found = ask(query)
        wall.append(1000 * (time.perf_counter() - started))
        processor.append(1000 * (time.process_time() - used))
        recall.append(len(truth[query].intersection(found)) / max(1, len(truth[query])))
    wall, processor, recall = (values[-len(truth) :] for values in (wall, processor, recall))
    return {
        "p50_ms": float(np.median(wall)),
        "p95_ms": float(np.percentile(wall, 95)),
        "cpu_ms": float(np.median(processor)),
        "recall_at_10": float(np.mean(recall)),
    }


def nearest(similarity: np.ndarray) -> list[int]:
    best = np.argpartition(-similarity, TOP)[:TOP]
    return best[np.argsort(-similarity[best])].tolist()


def run_numpy(folder: Path) -> dict:
    """Measures the exact scan, and writes its results as the truth for the other engines."""
    items, queries, prices = (np.load(folder / f"{name}.npy") for name in ("items", "queries", "prices"))
    columns = [np.ascontiguousarray(items[:, place]) for place in range(items.shape[1])]
    kept = prices < KEPT
    shares = np.array(WEIGHTS[: len(columns)]) / sum(WEIGHTS[: len(columns)])

    def plain(query: int) -> list[int]:
        return nearest(columns[0] @ queries[query, 0])

    def filtered(query: int) -> list[int]:
        return nearest(np.where(kept, columns[0] @ queries[query, 0], -2))

    def mixed(query: int, only: np.ndarray | None = None) -> list[int]:
        total = sum(share * (columns[place] @ queries[query, place]) for place, share in enumerate(shares))
        return nearest(total if only is None else np.where(only, total, -2))

    asked: dict[str, Callable[[int], list[int]]] = {
        "plain": plain,
        "filtered": filtered,
        "mixture": mixed,
        "mixture_filtered": lambda query: mixed(query, kept),
    }
    truth = {name: [ask(query) for query in range(len(queries))] for name, ask in asked.items()}
    (folder / "truth.json").write_text(json.dumps(truth))
    return {name: timed(ask, [set(found) for found in truth[name]]) for name, ask in asked.items()}


def run_faiss(folder: Path) -> dict:
    import faiss

    items, queries = (np.load(folder / f"{name}.npy") for name in ("items", "queries"))
    vectors = np.ascontiguousarray(items[:, 0])
    started = time.perf_counter()
    index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(vectors)
    built = time.perf_counter() - started
    index.hnsw.efSearch = 100
    faiss.write_index(index, str(folder / "faiss.index"))
    truth = [set(found) for found in json.loads((folder / "truth.json").read_text())["plain"]]
    return {
        "build_s_one_attribute": built,
        "disk_mb_one_attribute": (folder / "faiss.index").stat().st_size / 1e6,
        "plain": timed(lambda query: index.search(queries[query : query + 1, 0], TOP)[1][0].tolist(), truth),
    }


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def run_build(folder: Path) -> dict:
    import lancedb

    from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, LanceSettings

    settings = LanceSettings(graph=json.loads((folder / "graph.json").read_text()))
    items, prices = np.load(folder / "items.npy", mmap_mode="r"), np.load(folder / "prices.npy")
    names = json.loads((folder / "names.json").read_text())
    schema = IndexSchema(tuple(names), items.shape[2], {"price": "number"}, CheckpointId("", "benchmark"))
    started = time.perf_counter()
    with AttributeIndex.create_from_schema(folder / "index", schema, settings=settings) as index:
        for first in range(0, len(items), 10_000):
            part = slice(first, first + 10_000)
            ids = range(first, first + len(prices[part]))
            index.add(list(ids), embeddings=items[part], columns={"price": prices[part]})
        added = time.perf_counter() - started
        index.optimize()
    built = time.perf_counter() - started
    used = sum(os.times()[:2])
    most = megabytes(folder / "index")
    # as optimize() does once the old versions are ten minutes old
    lancedb.connect(folder / "index").open_table("items").optimize(cleanup_older_than=timedelta(0))
    return {
        "add_s": added,
        "build_s": built,
        "build_cpu_s": used,
        "disk_at_most_mb": most,
        "disk_mb": megabytes(folder / "index"),
        "of_that_indexes_mb": megabytes(folder / "index" / "items.lance" / "_indices"),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_search(folder: Path) -> dict:
    from cca_hf.search import AttributeIndex, CheckpointId

    queries = np.load(folder / "queries.npy")
    names = json.loads((folder / "names.json").read_text())
    truth = {
        name: [set(found) for found in each] for name, each in json.loads((folder / "truth.json").read_text()).items()
    }
    where = f"price < {KEPT}"
    weights = dict(zip(names, WEIGHTS, strict=False))
    with AttributeIndex.open(folder / "index", CheckpointId("", "benchmark")) as index:

        def ask(filtered: bool, mixed: bool) -> Callable[[int], list[int]]:
            space = {"weights": weights} if mixed else {"attribute": names[0]}
            only = where if filtered else None
            return lambda query: [
                int(hit.item_id) for hit in index.search(embedding=queries[query], where=only, top=TOP, **space)
            ]

        result: dict = {
            "plain": timed(ask(False, False), truth["plain"]),
            "filtered": timed(ask(True, False), truth["filtered"]),
        }
        result["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if len(names) > 1:
            few = len(queries) // 4
            result["mixture"] = timed(ask(False, True), truth["mixture"][:few])
            result["mixture_filtered"] = timed(ask(True, True), truth["mixture_filtered"][:few])
        started = time.perf_counter()
        index.search_many(embeddings=queries, attribute=names[0], top=TOP)
        result["search_many_ms_a_query"] = 1000 * (time.perf_counter() - started) / len(queries)
    return result


ROLES = {"numpy": run_numpy, "faiss": run_faiss, "build": run_build, "search": run_search}


def in_own_process(role: str, folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, "--role", role, "--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="output folder of 'cca embed'")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--attributes", type=int, default=4)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--graph", choices=("exact", "8-bit"), default="exact", help="see LanceSettings")
    parser.add_argument(
        "--output", type=Path, help="folder for search_<machine>.json; entries of other sizes are kept"
    )
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        print(json.dumps(ROLES[arguments.role](arguments.folder)))
        return
    if arguments.embeddings is None:
        parser.error("--embeddings is missing: the output folder of 'cca embed'")
    names, real = load_real(arguments.embeddings, arguments.attributes, arguments.dim)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        held_out = np.arange(len(real)) % 10 == 0
        np.save(folder / "items.npy", enlarge(real[~held_out], arguments.items))
        np.save(folder / "queries.npy", real[held_out][: arguments.queries])
        np.save(folder / "prices.npy", np.random.default_rng(2).uniform(0, 100, arguments.items))
        (folder / "names.json").write_text(json.dumps(names))
        (folder / "graph.json").write_text(json.dumps(arguments.graph))
        result = {
            "items": arguments.items,
            "real_embeddings": int((~held_out).sum()),
            "queries": int(min(held_out.sum(), arguments.queries)),
            "load_before": os.getloadavg()[0],
            "attributes": len(names),
            "dim": real.shape[2],
            **{role: in_own_process(role, folder) for role in ("numpy", "faiss", "build", "search")},
        }
    for engine in ("numpy", "faiss", "search"):
        for question, figures in result[engine].items():
            if isinstance(figures, dict):
                print(f"{engine:7}{question:17}" + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    print("build  " + "  ".join(f"{name} {value:.1f}" for name, value in result["build"].items()))
    if arguments.output:
        # imported here, because it imports torch, and the memory was measured without torch
        from speed_measures import file_name, machine_name

        machine = machine_name()
        path = arguments.output / file_name(machine, "search")
        earlier = json.loads(path.read_text()) if path.exists() else {}
        size = f"{arguments.items} x {len(names)} x {real.shape[2]}, {arguments.graph}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, **earlier, size: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
