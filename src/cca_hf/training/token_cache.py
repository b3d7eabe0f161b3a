"""Features of what is frozen of a backbone, computed once and stored on disk: each further epoch costs only the rest.

The cache stores `CCAModel.get_backbone_features` of each image and (if training flips images) of its mirror image. If
the later part of the backbone learns, it stores `CCAModel.get_early_features`: each step runs the later part on them.
Random crops are windows of the stored maps. The output of a whole backbone is not cropped, and nothing is recoloured.

    cache/train.json        what the features were made from; written last, so a split with this file is complete
    cache/train.features    (images, versions, numbers) in the order of the split, read memory-mapped

A run that was killed leaves `train.partial` and `train.partial.json`; the next run continues after the last complete
image. Several processes may share a cache: one computes, the others wait.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers.utils.logging import tqdm

from cca_hf.data.sampler import SampleKey
from cca_hf.data.schema import IMAGE_COLUMN, AttributeDataset
from cca_hf.data.torch_dataset import AttributeExample, AttributeImages, TrainingTransform
from cca_hf.models.backbones import architecture_of, cannot_be_resumed, parameters_of_levels
from cca_hf.models.images import ImageReader
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_images import digest_of_weights
from cca_hf.models.whole_files import write_json

_FORMAT = 1
# numpy has no bfloat16: such numbers are stored by their bits
_STORED_AS = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32}


class CachedImages(AttributeImages):
    """One split with features instead of images: of the mirror image where `transform` would flip the image.

    If `transform` crops images, half of the batches are to be cut to a window of their maps, see `_window_of`.
    """

    transform: TrainingTransform | None

    def __init__(
        self,
        data: AttributeDataset,
        split: str,
        path: Path,
        described: Mapping[str, Any],
        transform: TrainingTransform | None,
    ) -> None:
        super().__init__(data, split, transform)
        self._path = path
        self._described = described

    @cached_property
    def _features(self) -> np.memmap:  # opened at the first use, in the worker process that reads it
        return np.memmap(self._path, _STORED_AS[self._described["dtype"]], mode="r", shape=_shape(self._described))

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[Any]:
        """Features (numbers,) and labels (attributes,) of each key."""
        rows = [key.index if isinstance(key, SampleKey) else int(key) for key in keys]
        block = torch.from_numpy(self._features[rows, [self._version(key) for key in keys]])  # (keys, numbers)
        features = block.view(getattr(torch, self._described["dtype"]))
        window = self._window_of(keys[0])
        pairs = zip(features, self.labels[rows], strict=True)
        return [{"features": feature, "labels": label, "window": window} for feature, label in pairs]

    def _version(self, key: int | SampleKey) -> int:
        if self.transform is None or not isinstance(key, SampleKey):
            return 0
        return int(self.transform.draw((1, 1), np.random.default_rng(key.seed))[1])

    def _window_of(self, key: int | SampleKey) -> "_Window | None":
        """The part of the maps that a batch uses, drawn from the seed of its first image; `None` for the whole.

        A window lacks one row and one column of the coarsest map, and those of the other maps that they cover.
        """
        rows, columns = self._described.get("window_grid") or (0, 0)
        if self.transform is None or not isinstance(key, SampleKey) or min(rows, columns) < 2:
            return None
        share = (rows - 1) * (columns - 1) / (rows * columns)
        if self.transform.crop_scale[0] > share:
            return None
        is_cropped, top, left = np.random.default_rng((key.seed, 1)).integers(2, size=3)
        return _Window(int(top), int(left), rows, columns) if is_cropped else None


class _Window(NamedTuple):
    """All cells of a map except its first or last row and column, in units of a map of `rows` x `columns` cells."""

    top: int
    left: int
    rows: int
    columns: int

    def cut(self, cells: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels) -> the same of the window."""
        height, width = cells.shape[1] // self.rows, cells.shape[2] // self.columns  # of a cell of the coarsest map
        cells = cells[:, self.top * height : (self.top + self.rows - 1) * height]
        return cells[:, :, self.left * width : (self.left + self.columns - 1) * width]


def _collate_features(
    levels: Sequence[list[int]], grids: Sequence[list[int]] | None, examples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Examples of `CachedImages` -> `labels`, and `backbone_features`: one (batch, cells, channels) for each level.

    With the (height, width) `grids` of the levels, the first one is a hidden state, (batch, channels, height, width).
    """
    stacked = torch.stack([example["features"] for example in examples])
    parts = stacked.split([cells * channels for cells, channels in levels], dim=1)
    features = [part.unflatten(1, level) for part, level in zip(parts, levels, strict=True)]
    if grids is not None:
        maps = [feature.unflatten(1, grid) for feature, grid in zip(features, grids, strict=True)]
        window = examples[0]["window"]
        if window is not None:
            maps = [window.cut(cells) for cells in maps]
        features = [maps[0].permute(0, 3, 1, 2), *(cells.flatten(1, 2) for cells in maps[1:])]
    return {"backbone_features": features, "labels": torch.stack([example["labels"] for example in examples])}


def _read_versions(reader: ImageReader, versions: int, examples: Sequence[AttributeExample]) -> torch.Tensor:
    """Pixel values (batch * versions, 3, height, width) of each image, and with two versions of its mirror image."""
    images = []
    for example in examples:
        images.append(reader.resize(example["image"]))
        if versions == 2:  # mirrored first, as in training: what pads may not be symmetric
            images.append(reader.resize(torch.from_numpy(example["image"]).flip(1).numpy()))
    return reader.scale(torch.stack(images), torch.device("cpu"), torch.float32)


@dataclass(eq=False, repr=False)
class TokenCache:
    """The features of a data set's images under one backbone, in a folder.

    The features are those of the whole backbone if it is frozen; otherwise those of the first feature levels, as many
    of them as are frozen.

    Args:
        folder: created if it does not exist. Its features belong to one backbone, image processor and data set.
        dtype: the stored precision.
        flipped: whether to store the mirror images of `train` as well.
        autocast: compute in bfloat16 or float16, as the training does; `None` computes in the precision of the model.
        frozen_parameters: parameters that do not learn in this training, besides those without `requires_grad`.

    Raises:
        ValueError: if the first feature level of the backbone learns or it has none, even if only statistics of batch
            normalisation learn; if its later part cannot be run by itself.
    """

    folder: str | Path
    model: CCAModel
    data: AttributeDataset
    _: KW_ONLY
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    flipped: bool = True
    autocast: torch.dtype | None = None
    batch_size: int = 64
    num_workers: int = 0
    frozen_parameters: InitVar[Iterable[nn.Parameter]] = ()

    def __post_init__(self, frozen_parameters: Iterable[nn.Parameter]) -> None:
        frozen = set(frozen_parameters)
        named = self.model.backbone.named_parameters()
        learning = {name: p for name, p in named if p.requires_grad and p not in frozen}
        if learns_statistics(self.model):
            raise ValueError("a token cache needs freeze_batch_norm: the statistics would change with every step")
        self.model = self.model.in_eval_mode()
        # None: the whole backbone is frozen
        self._num_levels = _count_frozen_levels(self.model, set(learning.values())) if learning else None
        if self._num_levels == 0:
            raise ValueError(
                "a token cache needs a frozen backbone, or a frozen early part of a network of feature maps "
                f"(frozen_levels); in this one {next(iter(learning))} learns"
            )
        if self._num_levels is not None:
            self._check_later_part(self._num_levels)
        self._backbone = self._describe_backbone(list(learning))
        self._described: dict[str, dict[str, Any]] = {}
        self.collator = partial(_collate_features, self._backbone["levels"], self._backbone.get("grids"))

    def images_of(self, split: str, transform: TrainingTransform | None = None) -> CachedImages:
        """The features of a split, computed now if the folder does not have them.

        Raises:
            ValueError: if the folder contains features of another backbone, processor, precision or data set.
            OSError: if the disk is too small; nothing is written then.
            UnreadableImageError: if an image cannot be read; names it.
        """
        folder = Path(self.folder)
        path = folder / f"{split}.features"
        if split not in self._described:
            described = self._backbone | {
                "pictures": _hash_images(self.data.splits[split].select_columns([IMAGE_COLUMN])),
                "rows": self.data[split].num_rows,
                "versions": 2 if self.flipped and split == "train" else 1,
            }
            folder.mkdir(parents=True, exist_ok=True)
            header = path.with_suffix(".json")
            with FileLock(folder / f"{split}.lock"):
                if not header.exists():
                    self._compute(split, path, described)
            stored = json.loads(header.read_text())
            differing = [name for name in described if stored.get(name) != described[name]]
            if differing:
                raise ValueError(
                    f"{self.folder} contains features of another run, which differ in {', '.join(differing)}: give "
                    "another folder, or delete this one"
                )
            self._described[split] = described
        return CachedImages(self.data, split, path, self._described[split], transform)

    @torch.inference_mode()
    def _describe_backbone(self, learning: Collection[str]) -> dict[str, Any]:
        """What the features of an image depend on, and their shapes.

        Args:
            learning: names of the parameters that learn.
        """
        processor, config = self.model.image_processor, self.model.config
        image = torch.zeros(1, 3, *ImageReader(processor).height_and_width)
        features = self._features(image)
        described = {
            "format": _FORMAT,
            "backbone": digest_of_weights(self.model.backbone, without=learning).hexdigest(),
            "backbone_config": _hash_json(architecture_of(config.backbone_config)),
            "image_processor": _hash_json(processor.to_dict()),
            "feature_levels": list(config.feature_levels),
            "levels": [list(_as_rows(feature).shape[1:]) for feature in features],
            "computed_in": str(self.autocast or self.model.dtype).removeprefix("torch."),
            "dtype": self.dtype,
        }
        if self._num_levels is not None:
            output, *others = self.model.get_backbone_outputs(image.to(self.model.device, self.model.dtype)).grids
            grids = [list(features[0].shape[-2:]), *(list(grid) for grid in others[-self._num_levels :])]
            # windows need maps whose cells cover whole cells of the state
            coarsest = [min(sides) for sides in zip(output, *grids, strict=True)]
            fits = all(side % least == 0 for grid in grids for side, least in zip(grid, coarsest, strict=True))
            described |= {"frozen_levels": self._num_levels, "grids": grids, "window_grid": coarsest if fits else None}
        return described

    @torch.inference_mode()
    def _check_later_part(self, num_levels: int) -> None:
        """Raises `ValueError` if the later part of the backbone computes something else when it runs by itself."""
        size = ImageReader(self.model.image_processor).height_and_width
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        images = images.to(self.model.device, self.model.dtype)
        expected = self.model.get_image_tokens(images)
        resumed = self.model.project_features(self.model.get_early_features(images, num_levels))
        tolerance = torch.finfo(self.model.dtype).eps ** 0.5
        if resumed.shape != expected.shape or (resumed - expected).norm() > tolerance * expected.norm():
            raise ValueError(cannot_be_resumed(self.model.backbone))

    def _features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        device = self.model.device
        pixel_values = pixel_values.to(device, self.model.dtype)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            if self._num_levels is None:
                return self.model.get_backbone_features(pixel_values)
            return self.model.get_early_features(pixel_values, self._num_levels)

    def _compute(self, split: str, path: Path, described: dict[str, Any]) -> None:
        rows, versions, numbers = _shape(described)
        row_bytes = versions * numbers * np.dtype(_STORED_AS[self.dtype]).itemsize
        partial, header = path.with_suffix(".partial"), path.with_suffix(".partial.json")
        if not header.exists() or json.loads(header.read_text()) != described:
            partial.unlink(missing_ok=True)
            write_json(described, header)
        done = partial.stat().st_size // row_bytes if partial.exists() else 0
        free = shutil.disk_usage(self.folder).free
        wanted = (rows - done) * row_bytes
        print(
            f"Token cache of {split!r} in {self.folder}: {rows:,} images x {versions} x "
            f"{row_bytes / versions / 1e3:,.0f} kB = {rows * row_bytes / 1e6:,.0f} MB"
            + (f", {done:,} images are there already" if done else ""),
            flush=True,
        )
        if wanted > free:
            raise OSError(
                f"the token cache of {split!r} needs {wanted / 1e9:,.2f} GB more, and {self.folder} has "
                f"{free / 1e9:,.2f} GB free; bfloat16 or float16 need half of float32, and without flips half again"
            )
        with partial.open("ab") as file:
            file.truncate(done * row_bytes)  # a killed run may have left half an image
            for block in self._blocks(split, done, versions):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        header.replace(path.with_suffix(".json"))

    @torch.inference_mode()
    def _blocks(self, split: str, done: int, versions: int) -> Any:
        """Bytes of (batch, versions, numbers), starting at row `done`."""
        images = AttributeImages(self.data, split)
        loader = DataLoader(
            Subset(images, range(done, len(images))),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=partial(_read_versions, ImageReader(self.model.image_processor), versions),
        )
        dtype = getattr(torch, self.dtype)
        for batch in tqdm(loader, desc=f"Token cache ({split})", unit="batch"):
            flat = torch.cat([_as_rows(feature).flatten(1) for feature in self._features(batch)], dim=1)
            stored = flat.to(dtype)
            if not torch.isfinite(stored).all():
                largest = flat.abs().max().item()
                raise ValueError(f"features of up to {largest:.3g} do not fit into {self.dtype}: use bfloat16")
            yield stored.cpu().view(torch.uint8).numpy().tobytes()


def _count_frozen_levels(model: CCAModel, learning: set[nn.Parameter]) -> int:
    """How many of the first feature levels do not depend on parameters that learn."""
    for num_levels in range(len(model.config.feature_levels), 0, -1):
        if learning.isdisjoint(parameters_of_levels(model.backbone, model.config, num_levels)):
            return num_levels
    return 0


def _as_rows(feature: torch.Tensor) -> torch.Tensor:
    """A hidden state (batch, channels, height, width) as (batch, cells, channels); rows of cells as they are."""
    return feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature


def _shape(described: Mapping[str, Any]) -> tuple[int, int, int]:
    numbers = sum(cells * channels for cells, channels in described["levels"])
    return described["rows"], described["versions"], numbers


def _hash_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _hash_images(dataset: Dataset) -> str:
    """A hash of the images' bytes if the data set contains them, else of the files' names, sizes and times."""
    digest = hashlib.sha256()
    for start in range(0, dataset.num_rows, 256):
        for image in dataset[start : start + 256][IMAGE_COLUMN]:
            content = image["bytes"]
            if content is None:
                status = os.stat(image["path"])
                content = f"{image['path']} {status.st_size} {status.st_mtime_ns}".encode()
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
    return digest.hexdigest()


def learns_statistics(model: CCAModel) -> bool:
    """Whether training changes the backbone's statistics of batch normalisation."""
    norms = (module for module in model.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return not model.config.freeze_batch_norm and any(norms)
