"""`cca data`: benchmarks from their original downloads to data sets of this package, and data sets to the Hub."""

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import SpreadLists

if TYPE_CHECKING:
    from cca_hf.data.benchmarks.annotations import Benchmark

app = typer.Typer(
    name="data",
    help="Prepare the benchmarks, from their original downloads to data sets that train, evaluate and load read; "
    "put data sets on the Hub.",
    rich_markup_mode=None,
)


class Prepared(StrEnum):
    """The benchmarks there are loaders for."""

    FASHIONAI = "fashionai"
    DARN = "darn"
    DEEPFASHION = "deepfashion"
    ZAPPOS50K = "zappos50k"


class Downloaded(StrEnum):
    """The benchmarks that are lists of addresses."""

    DARN = "darn"


class Triplets(StrEnum):
    """Where the triplets of Zappos50K come from."""

    LISTS = "lists"
    SAMPLE = "sample"
    NONE = "none"


@app.command()
def prepare(
    benchmark: Annotated[Prepared, typer.Argument(metavar="NAME", help="fashionai, darn, deepfashion or zappos50k.")],
    root: Annotated[Path, typer.Option("--root", metavar="FOLDER", help="Where the download was unpacked.")],
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="A new folder for the data set.")],
    asen_splits: Annotated[
        Path | None,
        typer.Option(
            "--asen_splits",
            "--asen-splits",
            metavar="FOLDER",
            help="ASEN's split files (the folder with meta.json): the queries and galleries that papers report on.",
        ),
    ] = None,
    annotations_only: Annotated[
        bool,
        typer.Option(
            "--annotations_only", "--annotations-only", help="Write the paths of the pictures in their place."
        ),
    ] = False,
    triplets: Annotated[
        Triplets | None,
        typer.Option(
            "--triplets",
            metavar="KIND",
            help="zappos50k only: 'lists' (default) takes CSN's files, 'sample' draws from the metadata, or 'none'.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="NUMBER", help="zappos50k only: of drawn triplets (default 0).")
    ] = None,
) -> None:
    """Bring a benchmark into one data set of parquet files, which --dataset takes and a Hub repository holds.

    What is missing is named with its source; where some pictures are missing, every result on the data says so.

    \b
    Examples:
      cca data prepare fashionai --root FashionAI --asen_splits asen/data --output fashionai
      cca data prepare zappos50k --root zappos --output zappos50k
      cca train --dataset fashionai --backbone google/vit-base-patch16-224-in21k --output_dir out
    """
    is_zappos = benchmark is Prepared.ZAPPOS50K
    given = {"--asen_splits": asen_splits} if is_zappos else {"--triplets": triplets, "--seed": seed}
    for option, value in given.items():
        if value is not None:
            raise typer.BadParameter(f"{option} is not for {benchmark.value}")
    with contextlib.redirect_stdout(sys.stderr):
        from cca_hf.data.benchmarks.prepare import prepare_benchmark

        loaded = _load(benchmark, root, asen_splits, triplets or Triplets.LISTS, seed or 0)
        coverage = prepare_benchmark(loaded, output, with_images=not annotations_only)
    for split, own in coverage.items():
        print(f"{split}: {own if own.found < own.listed else f'{own.listed:,} images'}")
    for split, rows in (loaded.triplets or {}).items():
        print(f"triplets, {split}: {rows.num_rows:,}")
    for remark in loaded.remarks:
        print(remark)
    print(f"written: {output}")


def _load(benchmark: Prepared, root: Path, asen_splits: Path | None, triplets: Triplets, seed: int) -> "Benchmark":
    from cca_hf.data.benchmarks.darn import load_darn
    from cca_hf.data.benchmarks.deepfashion import load_deepfashion
    from cca_hf.data.benchmarks.fashionai import load_fashionai
    from cca_hf.data.benchmarks.zappos50k import load_zappos50k

    if benchmark is Prepared.FASHIONAI:
        return load_fashionai(root, asen_splits)
    if benchmark is Prepared.DARN:
        return load_darn(root, asen_splits)
    if benchmark is Prepared.DEEPFASHION:
        return load_deepfashion(root, asen_splits)
    return load_zappos50k(root, triplets.value, seed)


@app.command()
def download(
    benchmark: Annotated[Downloaded, typer.Argument(metavar="NAME", help="darn.")],
    urls: Annotated[
        Path, typer.Option("--urls", metavar="FILE", help="Its list of addresses, '<folder>/<name> <url>' a line.")
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="Gets pic/<folder>/<name>.jpg and dead_links.tsv.")
    ],
    size: Annotated[
        int, typer.Option("--size", metavar="PIXELS", min=1, help="Shorter side; smaller pictures stay as they are.")
    ] = 320,
    workers: Annotated[
        int, typer.Option("--workers", metavar="NUMBER", min=1, help="Pictures at the same time.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Without an answer, or its next piece.")
    ] = 20.0,
    retry_dead: Annotated[
        bool, typer.Option("--retry_dead", "--retry-dead", help="Ask the links in dead_links.tsv once more.")
    ] = False,
) -> None:
    """Fetch the pictures of a list that are still to be had. Interrupted, the same command goes on where it was.

    \b
    Example:
      cca data download darn --urls darn_url.txt --output darn
    """
    with contextlib.redirect_stdout(sys.stderr):
        from cca_hf.data.benchmarks.annotations import existing
        from cca_hf.data.benchmarks.darn import URLS
        from cca_hf.data.benchmarks.download import DEAD_LINKS, DownloadSettings, download_images

        settings = DownloadSettings(size=size, workers=workers, timeout=timeout)
        report = download_images(existing(urls, URLS), output, settings, retry_dead=retry_dead)
    print(report)
    if report.dead:
        print(f"dead links: {output / DEAD_LINKS}")


@app.command(cls=SpreadLists)
def push(
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="ID_OR_FOLDER", help="Data set: a folder, or an id on the Hub.")
    ],
    repo: Annotated[str, typer.Option("--repo", metavar="ID", help="Repository on the Hub, such as me/shoes.")],
    attributes: Annotated[
        list[str] | None,
        typer.Option(
            "--attributes", metavar="NAME ...", help="Attribute columns. Default: every column that is a ClassLabel."
        ),
    ] = None,
    group_column: Annotated[
        str | None, typer.Option("--group_column", "--group-column", metavar="NAME", help="Column near copies share.")
    ] = None,
    annotations_only: Annotated[
        bool,
        typer.Option(
            "--annotations_only",
            "--annotations-only",
            help="Leave the pictures out, where they may not be passed on: file_name says which they are.",
        ),
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="Branch, made where there is none. Default: the main one."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the data, such as cc-by-4.0.")
    ] = None,
    message: Annotated[
        str, typer.Option("--message", metavar="TEXT", help="Of the commit.")
    ] = "Push the data set by cca_hf",
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry_run", "--dry-run", metavar="FOLDER", help="Write the files into a new folder instead."),
    ] = None,
) -> None:
    """Put a data set on the Hub in one commit: parquet files, and a card that counts it.

    Splits go as they are. Every picture is decoded before anything is sent, and an unreadable one is named. The token
    is that of 'hf auth login', or HF_TOKEN.

    \b
    Examples:
      cca data push --dataset shoes/ --attributes colour closure --repo me/shoes --private
      cca data push --dataset fashionai --repo me/fashionai-labels --annotations_only --dry_run to-look-at
    """
    with contextlib.redirect_stdout(sys.stderr):
        from cca_hf.data.loading import load_attribute_dataset
        from cca_hf.hub.dataset_publishing import push_dataset, stage_dataset

        data = load_attribute_dataset(dataset, attributes, group_column=group_column, make_splits=False)
        told = (
            str(stage_dataset(data, dry_run, repo, with_images=not annotations_only, licence=licence))
            if dry_run is not None
            else push_dataset(
                data,
                repo,
                with_images=not annotations_only,
                private=private or None,
                revision=revision,
                licence=licence,
                message=message,
            )
        )
    print(told)
