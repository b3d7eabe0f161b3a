"""Embeds with the workers of a Ray cluster, or of a Ray on this machine; writes the same files.

Ray Data distributes shards: each worker, an actor, loads the model and makes one missing shard after the other. When a
worker dies, Ray starts another one that makes the unfinished shard again. Images and embeddings do not pass through
Ray: workers read and write the disk that all of them share.
"""

import contextlib
import logging as python_logging
import os
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any

import numpy as np
from accelerate.utils.memory import should_reduce_batch_size
from transformers.utils import logging

from cca_hf.extras import require
from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import UnreadableImageError

from .catalogue import Catalogue
from .job import EmbeddedFolder, EmbeddingJob, EmbeddingSettings

MOST_TRIES = 3  # workers that may die at one shard
_MOST_CPUS_BESIDE_ACCELERATOR = 8  # threads that read images, see `encode`


def embed_catalogue_on_ray(
    load_model: Callable[[], ImageEncoder],
    catalogue: Catalogue,
    folder: str | PathLike[str],
    settings: EmbeddingSettings | None = None,
    *,
    ray_workers: int | None = None,
    show_progress: bool = True,
) -> EmbeddedFolder:
    """Like `embed_catalogue`, by a running Ray, the Ray in `RAY_ADDRESS`, or a new Ray on this machine.

    Args:
        load_model: called once by each worker, and here for the manifest. It must be picklable.
        catalogue: workers read its files under the same paths as here.
        folder: on a disk that all workers share.
        settings: the default `batch_size` is 32 on a CPU and 256 on an accelerator, and is halved until it fits into
            the memory of the device. `num_workers` is the number of threads of each worker.
        ray_workers: number of workers with a model. Default: one for each GPU; without a GPU, one for each machine.

    Raises:
        ImportError: if Ray is not installed.
        ValueError, UnreadableImageError: as `embed_catalogue`.
        RuntimeError: if several workers died at the same shard.
        ray.exceptions.RayError: if Ray, or code of the model, failed.
    """
    require("ray", 'the engine "ray" needs')
    import ray
    from ray.data import ActorPoolStrategy

    if ray_workers is not None and ray_workers < 1:
        raise ValueError(f"ray_workers must be at least 1; got {ray_workers}")
    job = EmbeddingJob.begin(load_model(), catalogue, folder, settings or EmbeddingSettings())
    missing = job.missing()
    total = job.images_in(missing)
    with logging.tqdm(total=total, desc="Embedding", unit="image", disable=not show_progress) as progress:
        if missing:
            with _running_ray():
                workers, resources = _workers_and_resources(ray_workers, len(missing))
                tries = start_tries()
                shards = ray.data.from_items(missing, override_num_blocks=len(missing))
                # one shard at a time: an idle worker cannot take over a shard that waits at another worker
                pool = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)
                done = shards.map_batches(
                    ShardMaker, fn_constructor_args=(load_model, job, tries), batch_size=1, compute=pool, **resources
                )
                done.context.enable_progress_bars = done.context.print_on_execution_start = False
                for row in done.iter_rows():
                    if row["unreadable"]:
                        raise UnreadableImageError(row["unreadable"])
                    if row["died"]:
                        raise RuntimeError(row["died"])
                    progress.update(int(row["images"]))
    return job.describe()


class ShardMaker:
    """A worker: loads the model, and makes the shards that Ray Data sends."""

    def __init__(self, load_model: Callable[[], ImageEncoder], job: EmbeddingJob, tries: Any) -> None:
        self.model = load_model()
        self.job = job
        self.tries = tries
        on_cpu = self.model.device.type == "cpu"
        self.batch_size = job.settings.batch_size or (32 if on_cpu else 256)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list]:
        """Makes one shard, {"item": (1,)}. Errors of images are returned, since Ray would hide an exception."""
        import ray

        shard = int(block["item"][0])
        result: dict[str, list] = {"images": [0], "unreadable": [""], "died": [""]}
        if ray.get(self.tries.begin.remote(shard)) > MOST_TRIES:
            first, last = self.job.manifest.range_of(shard)
            result["died"] = [
                f"{MOST_TRIES} workers in turn died at the images {first} to {last - 1} of the catalogue: the memory "
                "is too small, or an image crashes its decoder; finished shards are kept"
            ]
            return result
        try:
            result["images"] = [self._make(shard)]
        except UnreadableImageError as error:
            result["unreadable"] = [str(error)]
        return result

    def _make(self, shard: int) -> int:
        while True:
            try:
                return sum(self.job.make(self.model, [shard], self.batch_size))
            except RuntimeError as error:
                if self.batch_size == 1 or not should_reduce_batch_size(error):
                    raise
            self.batch_size //= 2


def start_tries() -> Any:
    """Starts an actor that counts the tries of each shard, to recognise an image that kills its worker."""
    import ray

    class Tries:  # pickled by value, as a local class, so that the process of the actor does not import this module
        def __init__(self) -> None:
            self.begun: dict[int, int] = {}

        def begin(self, shard: int) -> int:
            self.begun[shard] = self.begun.get(shard, 0) + 1
            return self.begun[shard]

    return ray.remote(Tries).options(num_cpus=0).remote()


@contextlib.contextmanager
def _running_ray() -> Iterator[None]:
    """Uses the running Ray, or starts one and stops it at the end."""
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns about actors of Ray Data itself
        python_logging.getLogger("ray.data").setLevel(python_logging.ERROR)
        ray.init(log_to_driver=False, logging_level=python_logging.ERROR, include_dashboard=False)
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()


def _workers_and_resources(workers: int | None, shards: int) -> tuple[int, dict[str, Any]]:
    """The number of workers, and the resources of each."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise RuntimeError("no machine of the Ray cluster has a free CPU")
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    workers = min(workers or gpus or len(machines), shards)
    workers_a_machine = -(-workers // len(machines))
    cpus = max(1, int(min(machine["CPU"] for machine in machines)) // workers_a_machine)
    if not gpus:
        return workers, {"num_cpus": cpus}
    return workers, {"num_cpus": min(cpus, _MOST_CPUS_BESIDE_ACCELERATOR), "num_gpus": min(1.0, gpus / workers)}
