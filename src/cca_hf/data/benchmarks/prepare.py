"""Writes a benchmark as parquet files: a data set for `load_attribute_dataset` and the Hub.

    README.md                                           description, missing images, and the files of each split
    data/<split>-00000-of-00003-<mark>.parquet          the images and their labels
    triplets/<split>-00000-of-00001-<mark>.parquet      ready triplets, by file name, if the benchmark has them
    disjoint/train.json, ...                            outfits and questions, for `load_outfits`
    changes/<split>-00000-of-00001-<mark>.parquet       changes of values, by file name, if the benchmark has them

The mark is random: `datasets` caches by name, and would return the old content of a folder that was written again.
"""

import json
import secrets
import shutil
from pathlib import Path

from datasets import DatasetDict

from cca_hf.data.change_queries import CHANGES_CONFIG
from cca_hf.data.coverage import Coverage
from cca_hf.data.parquet_files import SHARD_BYTES, write_split
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.models.whole_files import check_new, write_json

from .annotations import Benchmark

TRIPLETS_CONFIG = "triplets"
_MARKER = ".unfinished-data-set"  # in a folder that may be removed


def prepare_benchmark(
    benchmark: Benchmark, output: Path, *, with_images: bool = True, shard_bytes: int = SHARD_BYTES
) -> dict[str, Coverage]:
    """Writes the benchmark to a new folder, completely or not at all.

    Args:
        with_images, shard_bytes: as in `write_split`.

    Returns:
        split -> number of images present and listed.

    Raises:
        FileExistsError: if `output` is not empty, or `<output>.unfinished` is there and was not left by this function.
        FileNotFoundError: if all images are missing.
    """
    check_new(output)
    coverage = {
        split: Coverage(dataset.num_rows - dataset.data.column(IMAGE_COLUMN).null_count, dataset.num_rows)
        for split, dataset in benchmark.splits.items()
    }
    if not any(part.found for part in coverage.values()):
        example = next(iter(benchmark.splits.values()))[0]["file_name"]
        listed = sum(part.listed for part in coverage.values())
        raise FileNotFoundError(
            f"all {listed:,} images of {benchmark.name} are missing, such as {example}; they come with "
            f"{benchmark.source}"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _new_unfinished(output)
    mark = secrets.token_hex(4)
    for split, dataset in benchmark.splits.items():
        folder = unfinished / "data"
        write_split(dataset, folder, split, with_images=with_images, shard_bytes=shard_bytes, mark=mark)
    for name, tables in ((TRIPLETS_CONFIG, benchmark.triplets), (CHANGES_CONFIG, benchmark.changes)):
        for split, dataset in (tables or DatasetDict()).items():
            write_split(dataset, unfinished / name, split, with_images=False, mark=mark)
    for name, content in benchmark.files.items():
        write_json(content, unfinished / name)
    (unfinished / "README.md").write_text(_readme(benchmark, coverage, mark, with_images), encoding="utf-8")
    (unfinished / _MARKER).unlink()
    if output.exists():
        output.rmdir()
    unfinished.rename(output)
    return coverage


def _new_unfinished(output: Path) -> Path:
    """The empty folder beside `output` that becomes `output` at the end; one that was left unfinished is removed."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    if (unfinished / _MARKER).is_file():
        shutil.rmtree(unfinished)
    elif unfinished.exists():
        raise FileExistsError(f"{unfinished} exists, and is not an unfinished data set: rename or remove it")
    unfinished.mkdir()
    (unfinished / _MARKER).touch()
    return unfinished


def _readme(benchmark: Benchmark, coverage: dict[str, Coverage], mark: str, with_images: bool) -> str:
    configurations = {"default": ("data", benchmark.splits)}
    if benchmark.triplets is not None:
        configurations[TRIPLETS_CONFIG] = (TRIPLETS_CONFIG, benchmark.triplets)
    if benchmark.changes is not None:
        configurations[CHANGES_CONFIG] = (CHANGES_CONFIG, benchmark.changes)
    # JSON is YAML
    lines = ["---", "configs:"]
    for name, (folder, splits) in configurations.items():
        files = [{"split": split, "path": f"{folder}/{split}-*-{mark}.parquet"} for split in splits]
        lines.append(f"- {json.dumps({'config_name': name, 'data_files': files, 'default': name == 'default'})}")
    lines += ["---", f"# {benchmark.name}, prepared for cca_hf", ""]
    lines.append(
        f"The images come from {benchmark.source}; the terms of their owners apply: keep this data set private."
        if with_images
        else f"Annotations only; the images come from {benchmark.source}."
    )
    lines += ["", "| split | images | found |", "|---|---|---|"]
    lines += [f"| {split} | {part.listed:,} | {part.found:,} |" for split, part in coverage.items()]
    if benchmark.triplets is not None:
        counts = ", ".join(f"{dataset.num_rows:,} {split}" for split, dataset in benchmark.triplets.items())
        lines += ["", f"Triplets (configuration `{TRIPLETS_CONFIG}`): {counts}."]
    if benchmark.changes is not None:
        counts = ", ".join(f"{dataset.num_rows:,} {split}" for split, dataset in benchmark.changes.items())
        lines += ["", f"Changes of values (configuration `{CHANGES_CONFIG}`): {counts}."]
    if any(part.found < part.listed for part in coverage.values()):
        lines += ["", "**A subset**: rows without an image contain null and are left out when the data set is loaded."]
    for remark in benchmark.remarks:
        lines += ["", remark]
    return "\n".join(lines) + "\n"
