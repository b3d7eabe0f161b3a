"""Embedding a catalogue to parquet: equal to `encode`, in every form, and whole after any interruption."""

import itertools
import json
import os
import random
import signal
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

import cca_hf.embedding.job as job_module
from cca_hf import CCAModel, UnreadableImageError
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.job import EmbeddingJob, EmbeddingSettings, embed_catalogue
from cca_hf.models.encoding import ImageEncoder


def read(folder: Path) -> datasets.Dataset:
    files = sorted(map(str, Path(folder).glob("embeddings-*.parquet")))
    return datasets.Dataset.from_parquet(files, cache_dir=str(Path(folder).with_name("cache")))


def vectors(rows: datasets.Dataset, *attributes: str) -> np.ndarray:
    table = rows.with_format("arrow")[:]
    columns = [table[f"embedding_{attribute}"].combine_chunks().flatten().to_numpy() for attribute in attributes]
    return np.stack([column.reshape(len(rows), -1) for column in columns], axis=1)


def embed(model: ImageEncoder, pictures: Path, folder: Path, rank: int = 0, num_ranks: int = 1, **options):
    settings = EmbeddingSettings(**{"shard_size": 8, "batch_size": 4, **options})
    images = Catalogue.from_folder(pictures)
    return embed_catalogue(model, images, folder, settings, rank=rank, num_ranks=num_ranks, show_progress=False)


def expected(model: CCAModel, pictures: Path, ids: list[str]) -> np.ndarray:
    return model.encode([pictures / item for item in ids], batch_size=4, show_progress=False)


def test_equals_encode(model, pictures, tmp_path):
    done = embed(model, pictures, tmp_path / "out")
    assert (done.items, done.num_items, done.complete, done.unreadable) == (42, 42, True, {})
    assert len(list((tmp_path / "out").iterdir())) == 6 + 1  # 42 / 8 shards and the manifest
    rows = read(tmp_path / "out")
    assert rows["item_id"][:] == sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.*"))
    want = expected(model, pictures, rows["item_id"][:])
    np.testing.assert_array_equal(vectors(rows, "colour", "heel height"), want)
    assert rows.features["embedding_colour"] == datasets.List(datasets.Value("float32"), length=16)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 5e-4), ("int8", 5e-3)])
def test_smaller_numbers(model, pictures, tmp_path, dtype, error):
    embed(model, pictures, tmp_path / "out", dtype=dtype, attributes=["heel height"])
    rows = read(tmp_path / "out")
    want = expected(model, pictures, rows["item_id"][:])[:, 1]
    got = vectors(rows, "heel height")[:, 0]
    assert got.dtype == dtype and "embedding_colour" not in rows.column_names
    if dtype == "int8":
        scale = np.array(rows["scale_heel height"][:], dtype=np.float32)[:, None]
        np.testing.assert_allclose(scale[:, 0], np.abs(want).max(axis=1) / 127, rtol=1e-6)
        assert np.abs(got).max() == 127
        cosine = (got.astype(float) * want).sum(1) / np.linalg.norm(got.astype(float), axis=1)
        assert cosine.min() > 0.9999
        got = got * scale
    np.testing.assert_allclose(got, want, atol=error)


def test_columns_are_carried_over(model, pictures, tmp_path):
    paths = sorted(pictures.rglob("*.*"))
    data = datasets.Dataset.from_dict(
        {"image": list(map(str, paths)), "sku": list(range(100, 142)), "colour": [n % 2 for n in range(42)]},
        features=datasets.Features(
            image=datasets.Image(), sku=datasets.Value("int32"), colour=datasets.ClassLabel(names=["red", "blue"])
        ),
    )
    catalogue = Catalogue.from_dataset(data, id_column="sku", columns=["colour"])
    embed_catalogue(model, catalogue, tmp_path / "out", EmbeddingSettings(shard_size=32), show_progress=False)
    rows = read(tmp_path / "out")
    assert rows.column_names == ["item_id", "colour", "embedding_colour", "embedding_heel height"]
    assert rows.features["colour"].names == ["red", "blue"]
    assert rows["item_id"][:] == list(range(100, 142)) and rows["colour"][:] == [n % 2 for n in range(42)]
    np.testing.assert_allclose(vectors(rows, "colour", "heel height"), model.encode(paths), atol=1e-6)
    taken = Catalogue.from_dataset(data.rename_column("colour", "embedding_colour"), columns=["embedding_colour"])
    with pytest.raises(ValueError, match="'embedding_colour' cannot be kept"):
        embed_catalogue(model, taken, tmp_path / "other")


def test_unreadable_pictures(model, pictures, tmp_path):
    whole = (pictures / "right/001.jpg").read_bytes()
    (pictures / "right/001.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImageError, match="001.jpg"):
        embed(model, pictures, tmp_path / "out")
    assert 0 < len(list((tmp_path / "out").glob("embeddings-*"))) < 6
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("embeddings-*")}
    done = embed(model, pictures, tmp_path / "out", on_unreadable="skip")
    assert done.complete and list(done.unreadable) == ["right/001.jpg"] and "truncated" in str(done.unreadable)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    rows = read(tmp_path / "out")
    assert len(rows) == 41 and "right/001.jpg" not in rows["item_id"][:]
    want = expected(model, pictures, rows["item_id"][:])
    np.testing.assert_allclose(vectors(rows, "colour", "heel height"), want, atol=1e-6)
    (pictures / "right/001.jpg").write_bytes(whole)  # repaired: but its shard is there, and says that it is not in it
    with pytest.raises(ValueError, match="was made from other images"):
        embed(model, pictures, tmp_path / "out")


def test_another_job_is_refused(model, pictures, tmp_path):
    embed(model, pictures, tmp_path / "out")
    for options, named in [
        ({"dtype": "int8"}, r"dtype \(float32 there, int8 now\)"),
        ({"attributes": ["colour"]}, "attributes"),
        ({"shard_size": 16}, "shard_size"),
    ]:
        with pytest.raises(ValueError, match=f"another job, which differs in {named}"):
            embed(model, pictures, tmp_path / "out", **options)
    (pictures / "left/000.png").rename(pictures / "left/0000.png")
    with pytest.raises(ValueError, match="00000-of-00006.parquet was made from other images"):
        embed(model, pictures, tmp_path / "out")
    model.projection.weight.data += 0.1
    with pytest.raises(ValueError, match="differs in model"):
        embed(model, pictures, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest.json"):
        embed(model, pictures, tmp_path / "out")
    with pytest.raises(ValueError, match="multiple of batch_size; got 6 and 4"):
        embed(model, pictures, tmp_path / "new", shard_size=6)
    with pytest.raises(ValueError, match="'int8'; got 'int4'"):
        embed(model, pictures, tmp_path / "new", dtype="int4")
    assert not (tmp_path / "new").exists()


def test_ranks_share_the_shards(model, pictures, tmp_path):
    first = embed(model, pictures, tmp_path / "out", rank=0, num_ranks=2)
    assert not first.complete and first.items == 24
    assert sorted(path.name[11:16] for path in (tmp_path / "out").glob("emb*")) == ["00000", "00002", "00004"]
    assert embed(model, pictures, tmp_path / "out", rank=1, num_ranks=2).complete
    rows = read(tmp_path / "out")
    assert len(set(rows["item_id"][:])) == len(rows) == 42


def test_the_slower_of_two_processes_ends_well(model, pictures, tmp_path, monkeypatch):
    """While the first process writes its first shard, a second one, with another process id, does the whole job."""
    out, written, write_table, process = tmp_path / "out", [], pq.write_table, os.getpid()
    results = []

    def slow(*given, **options):
        written.append(os.getpid())
        write_table(*given, **options)
        if len(written) == 1:
            monkeypatch.setattr(os, "getpid", lambda: process + 1)
            results.append(embed(model, pictures, out))
            monkeypatch.setattr(os, "getpid", lambda: process)

    monkeypatch.setattr(pq, "write_table", slow)
    results.append(embed(model, pictures, out))
    assert results[0] == results[1] and results[0].complete
    assert written.count(process + 1) == 6 and written.count(process) <= 2  # finished shards are skipped
    assert sorted(path.name for path in out.iterdir() if path.name != "manifest.json") == [
        f"embeddings-0000{shard}-of-00006.parquet" for shard in range(6)
    ]


class WrittenAtOnce(Executor):
    """In place of the thread that writes shards, so that the order of the events is the same in every run."""

    def __init__(self, *arguments, **options):
        pass

    def submit(self, function, /, *arguments, **options):
        future = Future()
        future.set_result(function(*arguments, **options))
        return future


def test_two_processes_share_the_work_of_one_folder(model, pictures, tmp_path, monkeypatch):
    """Batch by batch in turn: one from the front, the other from the back after the first shards, which both made."""
    written, write_shard = [], job_module.write_shard  # whether an embedded shard was written, or was there already
    monkeypatch.setattr(job_module, "write_shard", lambda *given: written.append(write_shard(*given)) or written[-1])
    monkeypatch.setattr(job_module, "ThreadPoolExecutor", WrittenAtOnce)
    settings = EmbeddingSettings(shard_size=4, batch_size=4)
    job = EmbeddingJob.begin(model, Catalogue.from_folder(pictures), tmp_path / "out", settings)
    processes = [job.make(model, job.missing(), 4) for _ in range(2)]
    done = [0, 0]
    for images in itertools.zip_longest(*processes, fillvalue=0):
        done = [before + number for before, number in zip(done, images, strict=True)]
    assert done == [42, 42] and job.describe().complete
    assert written.count(True) == 11
    assert written.count(False) == 4  # the first two shards and the two where the processes meet
    rows = read(tmp_path / "out")
    want = expected(model, pictures, rows["item_id"][:])
    np.testing.assert_allclose(vectors(rows, "colour", "heel height"), want, atol=1e-6)


def test_two_commands_at_once(model_folder, model, pictures, tmp_path, warm_python):
    program = ["-c", PROGRAM, model_folder, pictures, tmp_path / "out"]
    with open(tmp_path / "errors.txt", "w") as stderr:
        both = [warm_python.start(*program, stderr=stderr) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], (tmp_path / "errors.txt").read_text()
    rows = read(tmp_path / "out")
    assert sorted(rows["item_id"][:]) == sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.*"))


PROGRAM = """
import sys
from cca_hf import CCAModel
import cca_hf.embedding.job as job_module
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.job import EmbeddingSettings, embed_catalogue
model = CCAModel.from_pretrained(sys.argv[1]).eval()
print("ready", flush=True)
embed_catalogue(model, Catalogue.from_folder(sys.argv[2]), sys.argv[3], EmbeddingSettings(shard_size=2, batch_size=1))
"""


def test_killed_at_any_moment_it_goes_on(model_folder, model, pictures, tmp_path, warm_python):
    """kill -9 a few hundredths of a second into the work, again and again, until a run comes to its end."""
    out = tmp_path / "out"
    draw = random.Random(0)
    kept: dict[Path, int] = {}
    kills = 0
    for attempt in range(100):
        process = warm_python.start("-c", PROGRAM, model_folder, pictures, out)
        assert process.stdout.readline() == "ready\n"
        if attempt < 3:
            before = len(kept)
            while len(list(out.glob("embeddings-*"))) <= before + 1 and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        process.wait()
        finished = {path: path.stat().st_mtime_ns for path in out.glob("embeddings-*")}
        assert all(pq.read_table(path).num_rows == 2 for path in finished)  # each is whole ...
        assert all(finished[path] == time for path, time in kept.items())  # ... and was never made again
        kept = finished
        if process.returncode == 0:
            break
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2 and len(kept) == 21
    rows = read(out)
    assert sorted(rows["item_id"][:]) == sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.*"))
    want = expected(model, pictures, rows["item_id"][:])
    np.testing.assert_allclose(vectors(rows, "colour", "heel height"), want, atol=1e-5)
    assert json.loads((out / "manifest.json").read_text())["num_items"] == 42
