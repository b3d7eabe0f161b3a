"""Embedding by the workers of a Ray cluster, or of a Ray that is started on this machine; the files are the same.

Ray Data hands out shards: each worker, an actor, holds the model and makes one missing shard after the other. A shard
appears when it is whole, see `shards.py`: a worker that dies costs what it had of one shard, Ray starts another in its
place and gives it that shard again; and a job started again asks for those alone that are missing. No picture and no
embedding travels through Ray: workers read and write the disk that all of them share.
"""

import contextlib
import logging as python_logging
import os
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
from accelerate.utils.memory import should_reduce_batch_size
from transformers.utils import logging

from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import UnreadableImageError

from .catalogue import Catalogue
from .job import EmbeddedFolder, EmbeddingJob
from .shards import DType
from .tries import MOST, Tries

_FIRST_BATCH_ON_CPU = 32
_FIRST_BATCH = 256
_MOST_CPUS_BESIDE_ACCELERATOR = 8  # threads that read pictures, see `encode`


def embed_catalogue_on_ray(
    load_model: Callable[[], ImageEncoder],
    catalogue: Catalogue,
    folder: str | PathLike[str],
    *,
    attributes: Sequence[str] | None = None,
    dtype: DType = "float32",
    shard_size: int = 4096,
    batch_size: int | None = None,
    num_workers: int | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    ray_workers: int | None = None,
    show_progress: bool = True,
) -> EmbeddedFolder:
    """As `embed_catalogue`, by Ray: the one that is running or that `RAY_ADDRESS` names, else one of this machine.

    Args:
        load_model: is called once by each worker, and here for the manifest. It is sent to them, so it must pickle.
        catalogue: workers read its files under the same paths as here.
        folder: on a disk that all workers share.
        batch_size: pictures a pass. By default 32 on a CPU and 256 on an accelerator; where that is too much for the
            device's memory, a half, a quarter, ... is tried.
        num_workers: threads that read pictures, for each worker of Ray.
        ray_workers: how many hold the model. By default one for each GPU; without one, one for each machine.

    Raises:
        ImportError: Ray is not installed.
        ValueError, UnreadableImageError: as `embed_catalogue`.
        RuntimeError: several workers died at the same shard.
        ray.exceptions.RayError: Ray itself, or code of the model, failed.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise ImportError('the engine "ray" needs Ray Data: pip install "cca_hf[ray]"') from error

    if batch_size is not None and batch_size < 1 or ray_workers is not None and ray_workers < 1:
        raise ValueError(f"batch_size and ray_workers must be at least 1; got {batch_size} and {ray_workers}")
    job = EmbeddingJob.begin(
        load_model(),
        catalogue,
        folder,
        attributes=attributes,
        dtype=dtype,
        shard_size=shard_size,
        num_workers=num_workers,
        on_unreadable=on_unreadable,
    )
    missing = job.missing()
    total = job.pictures_in(missing)
    with logging.tqdm(total=total, desc="Embedding", unit="picture", disable=not show_progress) as progress:
        if missing:
            with _running_ray():
                workers, resources = _share_out(ray_workers, len(missing))
                tries = ray.remote(Tries).options(num_cpus=0).remote()
                shards = ray.data.from_items(missing, override_num_blocks=len(missing))
                # one at a time: what waits at a worker could not be taken by another that is idle
                pool = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1)
                done = shards.map_batches(
                    ShardMaker,
                    fn_constructor_args=(load_model, job, batch_size, tries),
                    batch_size=1,
                    compute=pool,
                    **resources,
                )
                done.context.enable_progress_bars = done.context.print_on_execution_start = False
                for row in done.iter_rows():
                    if row["unreadable"]:
                        raise UnreadableImageError(row["unreadable"])
                    if row["died"]:
                        raise RuntimeError(row["died"])
                    progress.update(int(row["pictures"]))
    return job.describe()


class ShardMaker:
    """A worker: holds the model, and makes the shards that Ray Data gives it."""

    def __init__(
        self, load_model: Callable[[], ImageEncoder], job: EmbeddingJob, batch_size: int | None, tries: Any
    ) -> None:
        self.model = load_model()
        self.job = job
        self.tries = tries
        on_cpu = self.model.device.type == "cpu"
        self.batch_size = batch_size or (_FIRST_BATCH_ON_CPU if on_cpu else _FIRST_BATCH)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list]:
        """One shard, {"item": (1,)}. What goes wrong with a picture is told, not raised: Ray would bury it."""
        import ray

        shard = int(block["item"][0])
        told: dict[str, list] = {"pictures": [0], "unreadable": [""], "died": [""]}
        if ray.get(self.tries.begin.remote(shard)) > MOST:
            first, last = self.job.manifest.range_of(shard)
            told["died"] = [
                f"{MOST} workers in turn died at the pictures {first} to {last - 1} of the catalogue: there is too "
                "little memory, or one of them is more than its decoder can take; finished shards are kept"
            ]
            return told
        try:
            told["pictures"] = [self._make(shard)]
        except UnreadableImageError as error:
            told["unreadable"] = [str(error)]
        return told

    def _make(self, shard: int) -> int:
        while True:
            try:
                return sum(self.job.make(self.model, [shard], self.batch_size))
            except RuntimeError as error:
                if self.batch_size == 1 or not should_reduce_batch_size(error):
                    raise
            self.batch_size //= 2


@contextlib.contextmanager
def _running_ray() -> Iterator[None]:
    """The Ray there is, or one that ends with the work."""
    import ray

    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of how Ray Data itself makes actors
        python_logging.getLogger("ray.data").setLevel(python_logging.ERROR)
        ray.init(log_to_driver=False, logging_level=python_logging.ERROR, include_dashboard=False)
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _share_out(workers: int | None, shards: int) -> tuple[int, dict[str, Any]]:
    """How many workers, and what of a machine is each one's."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise RuntimeError("no machine of the Ray cluster has a processor to give")
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    workers = min(workers or gpus or len(machines), shards)
    each = -(-workers // len(machines))  # on one machine, at most
    cpus = max(1, int(min(machine["CPU"] for machine in machines)) // each)
    if not gpus:
        return workers, {"num_cpus": cpus}
    return workers, {"num_cpus": min(cpus, _MOST_CPUS_BESIDE_ACCELERATOR), "num_gpus": min(1.0, gpus / workers)}
