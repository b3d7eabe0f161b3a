"""FGVC-Aircraft: 10,000 images of 100 variants of aircraft, with their family and manufacturer.

    fgvc-aircraft-2013b/data/variants.txt                           one name in each line, such as "737-700"
    fgvc-aircraft-2013b/data/images_variant_{train,val,test}.txt    "<image> <variant>"
    fgvc-aircraft-2013b/data/images_{family,manufacturer}_{train,val,test}.txt, families.txt, manufacturers.txt
    fgvc-aircraft-2013b/data/images/<image>.jpg

The class is the variant. The columns `family` and `manufacturer` are read if their files are there.

Paper: Maji, Kannala, Rahtu, Blaschko, Vedaldi, Fine-Grained Visual Classification of Aircraft, arXiv 1306.5151.
"""

from os import PathLike
from pathlib import Path

from cca_hf.models.configuration_images import did_you_mean

from .annotations import Benchmark, existing, read_lines
from .fine_grained import LABEL, Image, folder_of, make_benchmark, read_pairs

SOURCE = "FGVC-Aircraft, fgvc-aircraft-2013b.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
# column -> the word in the names of the files, and the file with the names
_LEVELS = {
    LABEL: ("variant", "variants.txt"),
    "family": ("family", "families.txt"),
    "manufacturer": ("manufacturer", "manufacturers.txt"),
}
_PART_OF_SPLIT = {"train": "train", "validation": "val", "test": "test"}
_REMARK = "The lowest 20 rows of an image show its source, and are part of the image here."


def load_aircraft(root: str | PathLike[str]) -> Benchmark:
    """Reads the images and variants in the official splits.

    Args:
        root: the folder `fgvc-aircraft-2013b`, or another one that contains the folder with `variants.txt`.

    Raises:
        FileNotFoundError: if a file is missing; names its origin.
        ValueError: for a line of another form, an unknown name, or an image without a family; names the file.
    """
    folder = folder_of(Path(root), "variants.txt", SOURCE)
    levels = {column: level for column, level in _LEVELS.items() if column == LABEL or (folder / level[1]).is_file()}
    classes = {column: read_lines(folder / names) for column, (_, names) in levels.items()}
    splits = {}
    for split, part in _PART_OF_SPLIT.items():
        tables = {
            column: _read(existing(folder / f"images_{word}_{part}.txt", SOURCE), classes[column])
            for column, (word, _) in levels.items()
        }
        for column, table in tables.items():
            if missing := [image for image in tables[LABEL] if image not in table]:
                raise ValueError(
                    f"{folder / f'images_{levels[column][0]}_{part}.txt'} lacks {len(missing)} images, such as "
                    f"{missing[0]}"
                )
        splits[split] = [
            Image(f"images/{image}.jpg", tuple(table[image] for table in tables.values())) for image in tables[LABEL]
        ]
    return make_benchmark("FGVC-Aircraft", SOURCE, folder, splits, classes, [_REMARK])


def _read(path: Path, names: list[str]) -> dict[str, int]:
    """Image -> the id of its name."""
    ids = {name: place for place, name in enumerate(names)}
    table = {}
    for image, name, place in read_pairs(path, "<image> <name>"):
        if name not in ids:
            raise ValueError(f"{place}: unknown name {name!r}.{did_you_mean(name, names)}")
        table[image] = ids[name]
    return table
