"""Whether the files of a checkpoint, of embeddings or of an index are the ones that were written: `cca check`."""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from cca_hf.embedding.shards import MANIFEST, has_changed
from cca_hf.models.modeling_images import CHECKPOINT_FILES, check_weights
from cca_hf.models.whole_files import CHECKSUMS, WITHOUT_CHECKSUM, read_checksums, sha256_of

State = Literal["ok", "no checksum", "changed", "missing", "not finite"]


class CheckedFile(NamedTuple):
    """A file of a folder; version 0.1 wrote no checksums."""

    name: str
    state: State

    @property
    def usable(self) -> bool:
        return self.state in ("ok", "no checksum")


def check_folder(folder: str | PathLike[str]) -> Iterator[CheckedFile]:
    """Compare the files of a folder with their checksums, one after the other.

    Args:
        folder: a checkpoint, the output of `cca embed` or `cca export`, or an index to which nobody writes now.

    Raises:
        FileNotFoundError: if the folder contains none of these.
        ValueError: if its `checksums.json` is damaged.
    """
    place = Path(folder)
    if (place / MANIFEST).is_file():
        return _check_shards(sorted(place.glob("embeddings-*.parquet")))
    known = read_checksums(place) if (place / CHECKSUMS).is_file() else {}
    present = [path for pattern in (*CHECKPOINT_FILES, "*.lance/**/*") for path in place.glob(pattern)]
    files = [path for path in present if path.name not in WITHOUT_CHECKSUM and not path.is_dir()]
    names = {path.relative_to(place).as_posix() for path in files}
    if not known and not any(name == "config.json" or ".lance/" in name for name in names):
        raise FileNotFoundError(f"{place} contains no checkpoint, no embeddings and no index")
    return _check_files(place, known.keys() | names, known)


def _check_shards(shards: Iterable[Path]) -> Iterator[CheckedFile]:
    states: dict[bool | None, State] = {True: "changed", False: "ok", None: "no checksum"}
    for path in shards:
        yield CheckedFile(path.name, states[has_changed(path)] if path.is_file() else "missing")


def _check_files(folder: Path, names: Iterable[str], known: Mapping[str, str]) -> Iterator[CheckedFile]:
    for name in sorted(names):
        path = folder / name
        if not path.is_file():
            yield CheckedFile(name, "missing")
        elif name in known and sha256_of(path) != known[name]:
            yield CheckedFile(name, "changed")
        elif path.suffix == ".safetensors" and not _is_finite(path):
            yield CheckedFile(name, "not finite")
        else:
            yield CheckedFile(name, "ok" if name in known else "no checksum")


def _is_finite(weights: Path) -> bool:
    try:
        with safe_open(weights, framework="pt") as file:
            check_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a mapping
    except (ValueError, SafetensorError):
        return False
    return True
