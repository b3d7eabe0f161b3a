"""Killed, on a full disk, or written to by two: the index stays whole, and says what is the matter."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, IndexLockedError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import processes  # noqa: E402


def start(role: str, location: str | Path) -> subprocess.Popen[str]:
    source = str(HERE.parent.parent / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, str(HERE / "processes.py"), role, str(location)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


def check_whole(location: str | Path, acknowledged: list[str]) -> int:
    """Every block is there as a whole, at the last generation that was acknowledged or the one after it; searching
    finds what numpy finds. Returns the number of items."""
    with AttributeIndex.open(location, processes.SCHEMA.checkpoint, settings=processes.SETTINGS) as index:
        last = {int(block): int(generation) for block, generation in map(str.split, acknowledged)}
        vectors = {}
        for block in range(4):
            ids = [str(block * processes.ITEMS + place) for place in range(processes.ITEMS)]
            there = index.ids_among(ids)
            assert len(there) in (0, processes.ITEMS), "half a block"
            if not there:
                assert block not in last
                continue
            generations = {hit.columns["round"] for hit in index.get(ids)}
            assert len(generations) == 1, "half a block is of another generation"
            (generation,) = generations
            assert last.get(block, generation - 1) in (generation, generation - 1)
            vectors |= dict(zip(ids, processes.vectors_of(block * processes.ITEMS, generation), strict=True))
        assert index.count() == len(vectors)
        if vectors:
            ids, all_vectors = list(vectors), np.stack(list(vectors.values()))
            query = np.ones(processes.DIM, dtype=np.float32)
            similarity = all_vectors[:, 0] @ query / np.linalg.norm(all_vectors[:, 0], axis=1)
            found = [hit.item_id for hit in index.search(embedding=query, attribute="colour", top=5)]
            exact = [ids[row] for row in np.argsort(-similarity)[:5]]
            assert len(set(found) & set(exact)) >= 4
        return len(vectors)


def write_and_kill(location: str | Path, seconds: float) -> list[str]:
    """What was acknowledged before the process was killed, `seconds` after it began."""
    process = start("write", location)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begin\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read()
    finally:
        process.kill()
        process.wait()
    return [line for line in said.splitlines(keepends=False) if said.count(f"{line}\n")]


@pytest.mark.parametrize("seconds", [0.05, 0.6, 2.5])
def test_killed_while_writing_and_indexing(seconds, tmp_path):
    acknowledged = write_and_kill(tmp_path / "index", seconds)
    items = check_whole(tmp_path / "index", acknowledged)
    assert items >= processes.ITEMS * len({line.split()[0] for line in acknowledged})
    # the dead process has left no lock
    with AttributeIndex.open(tmp_path / "index", processes.SCHEMA.checkpoint, writable=True) as index:
        index.add(["new"], embeddings=processes.vectors_of(0, 0)[:1])
        index.optimize()
        assert index.count() == items + 1


def test_two_writers(tmp_path):
    location = tmp_path / "index"
    AttributeIndex.create_from_schema(location, processes.SCHEMA).close()
    process = start("hold", location)
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(IndexLockedError, match="another process is writing to the index at .*index"):
            AttributeIndex.open(location, writable=True)
        with AttributeIndex.open(location) as index:
            assert index.count() == 0  # reading is free
    finally:
        process.kill()
        process.wait()
    AttributeIndex.open(location, writable=True).close()


def test_a_reader_sees_what_is_written_meanwhile(tmp_path):
    location = tmp_path / "index"
    with (
        AttributeIndex.create_from_schema(location, processes.SCHEMA) as writer,
        AttributeIndex.open(location) as reader,
    ):
        ids = [str(place) for place in range(processes.ITEMS)]
        writer.add(ids, embeddings=processes.vectors_of(0, 0))
        assert writer.count() == processes.ITEMS
        time.sleep(1.1)
        assert reader.count() == processes.ITEMS
        assert reader.search(item="3", attribute="shape", top=1)


def test_a_full_disk(mount_disk):
    """On a file system of 8 MB: an error that says so, and everything that was acknowledged still there."""
    disk = mount_disk(8)
    process = start("fill", disk / "index")
    said, _ = process.communicate(timeout=300)
    word, items, code, message = said.strip().split(maxsplit=3)
    assert (word, int(code)) == ("full", errno.ENOSPC) and int(items) >= 10 * processes.ITEMS
    assert "its previous content is unchanged: the disk is full" in message
    with AttributeIndex.open(disk / "index") as index:
        assert index.count() == int(items)
        assert len(index.search(item="7", attribute="colour", top=10)) == 10
