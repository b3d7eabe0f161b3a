"""Models whose process dies, or whose device is small: loaded by workers of Ray."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from cca_hf import CCAModel
from cca_hf.models.encoding import ImageBatch


def load_mortal(folder: Path, lives: Path) -> CCAModel:
    """Kills its process, as `kill -9` would, behind the first batch of a shard; once for each file in `lives`."""
    model = CCAModel.from_pretrained(folder).eval()
    encode_batches = model.encode_batches

    def dying(*args, **options) -> Iterator[ImageBatch]:
        for number, batch in enumerate(encode_batches(*args, **options)):
            if number == 1:
                for life in lives.iterdir():
                    life.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    model.encode_batches = dying
    return model


def load_small(folder: Path, most: int) -> CCAModel:
    """Has memory for `most` pictures a pass."""
    model = CCAModel.from_pretrained(folder).eval()
    embed = model._embed

    def checked(pixel_values, attribute_ids):
        if len(pixel_values) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return embed(pixel_values, attribute_ids)

    model._embed = checked
    return model
