"""Ray's workers: the files of the plain loop, whoever dies on the way. Real processes of Ray, on this machine."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cca_hf import UnreadableImageError
from cca_hf.cli.main import main
from cca_hf.cli.options import load_encoder
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.job import EmbeddingJob, EmbeddingSettings, embed_catalogue
from cca_hf.embedding.ray_engine import MOST_TRIES, ShardMaker, embed_catalogue_on_ray, start_tries

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
import mortal  # noqa: E402

ray = pytest.importorskip("ray", reason='the engine needs Ray Data: pip install "cca_hf[ray]"')
SIZES = EmbeddingSettings(shard_size=8, batch_size=4)
SKIPPING = EmbeddingSettings(shard_size=8, batch_size=4, on_unreadable="skip")


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([HERE, *sys.path]))  # of the workers, which load models of `mortal`
        ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def without_checksum(shard: pa.Table) -> pa.Table:
    """Of the file, whose vectors are not the same to the last bit."""
    return shard.replace_schema_metadata({k: v for k, v in shard.schema.metadata.items() if k != b"cca_hf.sha256"})


def check_same(one: Path, other: Path) -> None:
    """The same files, rows and notes; vectors are within what another number of threads makes of them."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) and len(names) == 7
    assert (one / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()
    for name in names[:-1]:
        left, right = (without_checksum(pq.read_table(folder / name)) for folder in (one, other))
        assert left.schema.equals(right.schema, check_metadata=True)
        for column in left.column_names:
            if not column.startswith("embedding_"):
                assert left[column].equals(right[column])
                continue
            vectors = [table[column].combine_chunks().flatten().to_numpy() for table in (left, right)]
            np.testing.assert_allclose(*vectors, atol=1e-6)


def made(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("embeddings-*")}


def test_same_files_though_a_worker_dies(cluster, model, model_folder, pictures, tmp_path):
    """Begun by the plain loop, with a picture that cannot be read; a worker is killed inside a shard."""
    whole = (pictures / "right/001.jpg").read_bytes()
    (pictures / "right/001.jpg").write_bytes(whole[: len(whole) // 2])
    catalogue = Catalogue.from_folder(pictures)
    plain, out, lives = (tmp_path / name for name in ("plain", "out", "lives"))
    embed_catalogue(model, catalogue, plain, SKIPPING, show_progress=False)
    embed_catalogue(model, catalogue, out, SKIPPING, rank=1, num_ranks=3, show_progress=False)
    before = made(out)
    assert len(before) == 2
    lives.mkdir()
    (lives / "one").touch()
    loading = partial(mortal.load_mortal, model_folder, lives)
    done = embed_catalogue_on_ray(loading, catalogue, out, SKIPPING, ray_workers=2, show_progress=False)
    assert not list(lives.iterdir()), "no worker died"
    assert done.complete and list(done.unreadable) == ["right/001.jpg"]
    check_same(plain, out)
    assert before.items() <= made(out).items()
    again = made(out)
    assert embed_catalogue_on_ray(loading, catalogue, out, SKIPPING, show_progress=False) == done
    assert made(out) == again


def test_what_a_worker_tells(cluster, model_folder, model, pictures, tmp_path):
    (pictures / "left/000.png").write_bytes(b"no picture")
    job = EmbeddingJob.begin(model, Catalogue.from_folder(pictures), tmp_path / "out", EmbeddingSettings(shard_size=8))
    worker = ShardMaker(partial(mortal.load_small, model_folder, 3), job, start_tries())
    assert worker.batch_size == 32
    assert worker({"item": np.array([5])}) == {"images": [2], "unreadable": [""], "died": [""]}
    assert worker.batch_size == 32  # the last shard holds two pictures
    assert worker({"item": np.array([1])})["images"] == [8]
    assert worker.batch_size == 2 and len(made(tmp_path / "out")) == 2
    for _ in range(MOST_TRIES):
        (told,) = worker({"item": np.array([0])})["unreadable"]
        assert "000.png cannot be read as an image" in told
    (told,) = worker({"item": np.array([0])})["died"]
    assert f"{MOST_TRIES} workers in turn died at the images 0 to 7 of the catalogue" in told
    worker.batch_size = 1
    worker.model._embed = lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory. Tried to allocate"))
    with pytest.raises(RuntimeError, match="out of memory"):
        worker({"item": np.array([2])})
    loading = partial(load_encoder, str(model_folder), "cpu")
    with pytest.raises(UnreadableImageError, match="000.png cannot be read as an image"):
        embed_catalogue_on_ray(loading, job.catalogue, tmp_path / "out", job.settings, show_progress=False)
    with pytest.raises(ValueError, match="ray_workers must be at least 1; got 0"):
        embed_catalogue_on_ray(loading, job.catalogue, tmp_path / "out", ray_workers=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        EmbeddingSettings(batch_size=0)


def test_the_whole_job_is_killed(model, model_folder, pictures, tmp_path, warm_python):
    """The command, killed when two of six files are there; started again, it makes the other four alone."""
    embed_catalogue(model, Catalogue.from_folder(pictures), tmp_path / "plain", SIZES, show_progress=False)
    out = tmp_path / "out"
    words = ["-m", "cca_hf.cli.main", "embed", "--engine", "ray", "--model", model_folder]
    words += ["--images", pictures, "--output_dir", out, "--shard_size", "8", "--batch_size", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(tmp_path / "killed.txt", "w") as output:
        process = warm_python.start(*words, stdout=output, stderr=output, env=environment)
    while len(made(out)) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(1)  # a worker lives on for a moment
    before = made(out)
    assert 2 <= len(before) < 6
    done = warm_python.run(*words, env=environment, check=True)
    assert json.loads(done.stdout) == {"folder": str(out), "pictures": 42, "done": 42, "unreadable": {}}
    assert not {"WARNING", "Actor", "deprecated"} & set(done.stderr.split()), "Ray talks of itself: " + done.stderr
    check_same(tmp_path / "plain", out)
    assert before.items() <= made(out).items()


def test_words_that_do_not_go_together(monkeypatch, capsys):
    words = ["embed", "--model", "m", "--images", "p", "--output_dir", "o"]
    assert main([*words, "--ray_workers", "2"]) == 2
    assert "--ray_workers is for --engine ray" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*words, "--engine", "ray"]) == 2
    assert "run it without a launcher" in capsys.readouterr().err


def test_without_ray(monkeypatch, pictures, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "cca_hf\[ray\]"'):
        embed_catalogue_on_ray(lambda: None, Catalogue.from_folder(pictures), tmp_path / "out")
    assert not (tmp_path / "out").exists()
