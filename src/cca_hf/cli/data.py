"""`cca data`: published benchmarks as data sets of this package, and data sets on the Hub."""

from pathlib import Path
from typing import Any, Literal

import typer

from cca_hf.extras import require

from . import options
from .options import Command, UsageError, option, stdout_kept_clean, switch

app = typer.Typer(
    name="data",
    help="Convert downloaded benchmarks to data sets for the other commands, and push data sets to the Hub.",
    rich_markup_mode=None,
)

_PEDESTRIANS = ("peta", "pa100k", "rapv1", "rapv2", "market1501_attribute", "upar")
_WITHOUT_FLAGS = ("polyvore", "cub200", "cars", "aircraft", "market1501", "dukemtmc", "msmt17", "veri776")


@app.command(cls=Command)
def prepare(
    benchmark: Literal[
        "fashionai",
        "darn",
        "deepfashion",
        "zappos50k",
        "polyvore",
        "adde",
        "cub200",
        "cars",
        "aircraft",
        "market1501",
        "dukemtmc",
        "msmt17",
        "veri776",
        "peta",
        "pa100k",
        "rapv1",
        "rapv2",
        "market1501_attribute",
        "upar",
    ] = typer.Argument(
        ...,
        metavar="NAME",
        help="fashionai, darn, deepfashion, zappos50k, polyvore, adde, cub200, cars, aircraft, market1501, dukemtmc, "
        "msmt17, veri776, peta, pa100k, rapv1, rapv2, market1501_attribute or upar.",
    ),
    root: Path = option(..., "FOLDER", "Folder with the unpacked download."),
    output: Path = option(..., "FOLDER", "A new folder for the data set."),
    asen_splits: Path | None = option(
        None, "FOLDER", "ASEN's folder with meta.json, which defines the queries and galleries of the papers."
    ),
    adde_splits: Path | None = option(
        None, "FOLDER", "adde only: folder with imgs_*.txt, labels_*.txt and the queries of the paper."
    ),
    attributes: list[str] | None = option(
        None, "NAME ...", "adde only: names of the attributes, in the order of attr_num.txt. Default: attribute_1 ..."
    ),
    annotations_only: bool = switch("annotations_only", "Write the paths of the images instead of the images."),
    triplets: Literal["lists", "sample", "none"] | None = option(
        None, "KIND", "Triplets of zappos50k. lists (default) reads CSN's, sample draws new ones, none writes none."
    ),
    seed: int | None = option(None, "NUMBER", "zappos50k only: seed for '--triplets sample'. Default: 0."),
    by_person: bool | None = switch(
        "by_person", "rapv2 only: splits that share no person, instead of those of the protocol.", None
    ),
) -> None:
    """Convert a benchmark to one data set of parquet files, for --dataset or for the Hub.

    If files are missing, the message says where to get them. If some images are missing, every result on the data set
    says that it was measured on a subset.

    \b
    Examples:
      cca data prepare fashionai --root FashionAI --asen_splits asen/data --output fashionai
      cca data prepare zappos50k --root zappos --output zappos50k
      cca data prepare polyvore --root polyvore_outfits --output polyvore
      cca data prepare cub200 --root CUB_200_2011 --output cub200
      cca data prepare market1501 --root Market-1501-v15.09.15 --output market1501
      cca data prepare pa100k --root PA-100K --output pa100k
      cca data prepare rapv2 --root RAPv2 --by_person --output rapv2
      cca data prepare adde --root images --adde_splits splits/Shopping100k --output shopping100k
      cca train --dataset fashionai --backbone google/vit-base-patch16-224-in21k --output_dir out
    """
    given: dict[str, object] = {"--triplets": triplets, "--seed": seed, "--asen_splits": asen_splits}
    given |= {"--adde_splits": adde_splits, "--attributes": attributes, "--by_person": by_person}
    own: dict[str, tuple[str, ...]] = {
        "zappos50k": ("--triplets", "--seed"),
        "adde": ("--adde_splits", "--attributes"),
    }
    own |= dict.fromkeys((*_WITHOUT_FLAGS, *_PEDESTRIANS), ()) | {"rapv2": ("--by_person",)}
    for name, value in given.items():
        if value is not None and name not in own.get(benchmark, ("--asen_splits",)):
            raise UsageError(f"{name} is not for {benchmark}")
    if benchmark == "adde" and adde_splits is None:
        raise UsageError("adde needs --adde_splits")
    if benchmark in _PEDESTRIANS and benchmark != "upar":
        require("analysis", "the annotations need", without=["sklearn"])
    with stdout_kept_clean():
        from cca_hf.data.benchmarks.adde import load_adde
        from cca_hf.data.benchmarks.aircraft import load_aircraft
        from cca_hf.data.benchmarks.asen import load_darn
        from cca_hf.data.benchmarks.cars import load_cars
        from cca_hf.data.benchmarks.cub200 import load_cub200
        from cca_hf.data.benchmarks.deepfashion import load_deepfashion
        from cca_hf.data.benchmarks.fashionai import load_fashionai
        from cca_hf.data.benchmarks.market1501 import load_dukemtmc, load_market1501
        from cca_hf.data.benchmarks.msmt17 import load_msmt17
        from cca_hf.data.benchmarks.pedestrians import (
            load_market1501_attribute,
            load_pa100k,
            load_peta,
            load_rapv1,
            load_rapv2,
            load_upar,
        )
        from cca_hf.data.benchmarks.polyvore import load_polyvore
        from cca_hf.data.benchmarks.prepare import prepare_benchmark
        from cca_hf.data.benchmarks.veri776 import load_veri776
        from cca_hf.data.benchmarks.zappos50k import load_zappos50k

        if benchmark == "zappos50k":
            loaded = load_zappos50k(root, triplets or "lists", seed or 0)
        elif benchmark in _WITHOUT_FLAGS:
            whole = {"polyvore": load_polyvore, "cub200": load_cub200, "cars": load_cars, "aircraft": load_aircraft}
            whole |= {"market1501": load_market1501, "dukemtmc": load_dukemtmc, "msmt17": load_msmt17}
            whole["veri776"] = load_veri776
            loaded = whole[benchmark](root)
        elif benchmark == "rapv2":
            loaded = load_rapv2(root, by_person=bool(by_person))
        elif benchmark in _PEDESTRIANS:
            of_persons = {"peta": load_peta, "pa100k": load_pa100k, "rapv1": load_rapv1, "upar": load_upar}
            of_persons["market1501_attribute"] = load_market1501_attribute
            loaded = of_persons[benchmark](root)
        elif adde_splits is not None:
            loaded = load_adde(root, adde_splits, attributes)
        else:
            load = {"fashionai": load_fashionai, "darn": load_darn, "deepfashion": load_deepfashion}[benchmark]
            loaded = load(root, asen_splits)
        coverage = prepare_benchmark(loaded, output, with_images=not annotations_only)
    for split, counts in coverage.items():
        print(f"{split}: {counts if counts.found < counts.listed else f'{counts.listed:,} images'}")
    for split, rows in (loaded.triplets or {}).items():
        print(f"triplets, {split}: {rows.num_rows:,}")
    for split, rows in (loaded.changes or {}).items():
        print(f"changes, {split}: {rows.num_rows:,}")
    for remark in loaded.remarks:
        print(remark)
    print(f"written: {output}")


@app.command(cls=Command)
def download(
    benchmark: Literal["darn"] = typer.Argument(..., metavar="NAME", help="darn."),
    urls: Path = option(..., "FILE", "The benchmark's list: lines '<folder>/<name> <url>'."),
    output: Path = option(..., "FOLDER", "Folder for pic/<folder>/<name>.jpg and dead_links.tsv."),
    size: int = option(320, "PIXELS", "Shorter side of the saved images. Smaller images are not enlarged.", min=1),
    workers: int = option(16, "NUMBER", "Number of parallel downloads.", min=1),
    timeout: float = option(20.0, "SECONDS", "Stop a download if the server sends nothing for this time."),
    retry_dead: bool = switch("retry_dead", "Try the links in dead_links.tsv again."),
) -> None:
    """Download the images of a list of URLs, and list dead links. An interrupted download is resumed.

    \b
    Example:
      cca data download darn --urls darn_url.txt --output darn
    """
    with stdout_kept_clean():
        from cca_hf.data.benchmarks.annotations import existing
        from cca_hf.data.benchmarks.asen import DARN_URLS
        from cca_hf.data.benchmarks.download import DEAD_LINKS, DownloadSettings, download_images

        settings = DownloadSettings(size=size, workers=workers, timeout=timeout)
        report = download_images(existing(urls, DARN_URLS), output, settings, retry_dead=retry_dead)
    print(report)
    if report.dead:
        print(f"dead links: {output / DEAD_LINKS}")


@app.command(cls=Command)
def push(
    dataset: str = options.DATASET,
    repo: str = options.REPO,
    attributes: list[str] | None = option(
        None, "NAME ...", "Attribute columns. Default: all ClassLabel columns, or else those whose values repeat."
    ),
    group_column: str | None = options.GROUP_COLUMN,
    annotations_only: bool = switch(
        "annotations_only", "Push no images, if they must not be redistributed. The column file_name has their paths."
    ),
    private: bool = options.PRIVATE,
    revision: str | None = options.REVISION,
    licence: str | None = options.LICENCE,
    message: str = options.message("Push the data set by cca_hf"),
    dry_run: Path | None = options.DRY_RUN,
) -> None:
    """Push a data set to the Hub in one commit: parquet files, and a card with the counts of its values.

    The splits do not change. Every image is decoded before the upload, and an error names the images that cannot be
    read. The token comes from 'hf auth login' or HF_TOKEN.

    \b
    Examples:
      cca data push --dataset shoes/ --attributes colour closure --repo me/shoes --private
      cca data push --dataset fashionai --repo me/fashionai-labels --annotations_only --dry_run to-look-at
    """
    with stdout_kept_clean():
        from cca_hf.data.loading import load_attribute_dataset
        from cca_hf.hub.dataset_publishing import push_dataset, stage_dataset

        data = load_attribute_dataset(dataset, attributes, group_column=group_column, make_splits=False)
        content: dict[str, Any] = {"with_images": not annotations_only, "licence": licence}
        if dry_run is not None:
            place = str(stage_dataset(data, dry_run, repo, **content))
        else:
            place = push_dataset(data, repo, private=private or None, revision=revision, message=message, **content)
    print(place)
