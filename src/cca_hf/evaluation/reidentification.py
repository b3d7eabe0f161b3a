"""Re-identification: a query searches images of its identity that were taken by other cameras.

The protocol of Market-1501 (Zheng et al., ICCV 2015), as in torchreid:

- Gallery images of the query's identity *and* camera are left out of its ranking. Images of other identities by this
  camera stay.
- Images without an identity are no candidates. Identities that no query has are distractors.
- A query without a match in another camera is left out of the means, and counted.
- mAP is the mean of the average precision over the whole ranking. CMC@k is the share of queries with a match among the
  first k. mINP is the mean of R / (the rank of the last of R matches), Ye et al., 2020.

Images are ranked by cosine. Equal similarities count as the mean over all their orders (`retrieval/ranking.py`), so a
constant embedding scores exactly chance. torchreid's sort leaves their order to chance.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from cca_hf.data.reidentification import ReidentificationData, SearchImages
from cca_hf.data.torch_dataset import AttributeCollator
from cca_hf.models.image_embedder import features_of

from .arrays import FloatArray, IntArray, to_ids, to_numpy
from .reidentification_result import ReidentificationResult
from .retrieval.candidates import Side
from .retrieval.intervals import map_intervals
from .retrieval.metrics import AttributeRetrieval, retrieve

_KS = (1, 5, 10)


class Sightings(NamedTuple):
    """Images on one side of a search.

    Args:
        embeddings: (images, dim); normalised here.
        identities: (images,) ids; -1 = unknown, which is neither query nor candidate.
        cameras: (images,) ids; -1 = unknown: nothing is left out for such a query.
        parts: (images,) ids; a query searches only the images of its part. Default: all images.
    """

    embeddings: NDArray | torch.Tensor
    identities: object
    cameras: object
    parts: object | None = None


def evaluate_reidentification(
    queries: Sightings, gallery: Sightings, *, split: str = "test", ks: Sequence[int] = _KS
) -> ReidentificationResult:
    """Ranks the gallery for every query and scores the rankings, a block of queries at a time.

    Args:
        split: the name of the images.
        ks: of CMC@k.

    Raises:
        ValueError: if arrays do not fit, embeddings are not finite, only one side has `parts`, or no query has a match
            in another camera.
    """
    if (queries.parts is None) != (gallery.parts is None):
        raise ValueError("parts of the queries and of the gallery go together: give both or neither")
    sides = [_checked("query", queries), _checked("gallery", gallery)]
    cameras = 1 + max(side.cameras.max(initial=-1) for side in sides)
    asking, searched = (
        Side.of(
            name,
            side.embeddings,
            side.identities,
            np.where((side.identities < 0) | (side.cameras < 0), -1, side.identities * cameras + side.cameras),
            None,
            None,
        )
        for name, side in zip(("query", "gallery"), sides, strict=True)
    )
    found: list[AttributeRetrieval] = []
    for part in np.unique(sides[0].parts):
        rows = [np.flatnonzero((side.parts == part) & (side.identities >= 0)) for side in sides]
        if all(map(len, rows)):
            found.append(retrieve(asking.rows(rows[0]), searched.rows(rows[1]), ks=ks))
    answered = [each.num_relevant > 0 for each in found]
    count = int(sum(each.sum() for each in answered))
    if not count:
        raise ValueError(
            f"none of the {len(sides[0].identities):,} queries of the split {split!r} has a match by another camera "
            f"in the gallery of {len(sides[1].identities):,} images: nothing can be measured. Check the columns of "
            "identities and cameras"
        )

    def of_answered(choose: Callable[[AttributeRetrieval], NDArray]) -> NDArray:
        return np.concatenate([choose(each)[kept] for each, kept in zip(found, answered, strict=True)])

    identities: IntArray = of_answered(lambda each: each.labels)
    precisions: FloatArray = of_answered(lambda each: each.scores.average_precision)
    figures = {"map": float(precisions.mean())}
    chance = {"map": float(of_answered(lambda each: each.chance.average_precision).mean())}
    for k in ks:
        figures[f"cmc@{k}"] = float(of_answered(lambda each, k=k: each.scores.recall[k]).mean())
        chance[f"cmc@{k}"] = float(of_answered(lambda each, k=k: each.chance.recall[k]).mean())
    figures["minp"] = float(of_answered(lambda each: each.inverse_penalty).mean())
    chance["minp"] = float(of_answered(lambda each: each.chance_inverse_penalty).mean())
    candidates = sides[1].identities[np.isin(sides[1].parts, sides[0].parts) & (sides[1].identities >= 0)]
    return ReidentificationResult(
        split=split,
        figures=figures,
        chance=chance,
        interval=map_intervals(precisions[:, None], identities)[1],
        queries=count,
        identities=len(np.unique(identities)),
        left_out=len(sides[0].identities) - count,
        gallery=len(candidates),
        distractors=int((~np.isin(candidates, identities)).sum()),
    )


class ReidentificationEvaluator:
    """Embeds the queries and the gallery of a split, and ranks them; see [`evaluate_reidentification`]."""

    primary_metric: str = ReidentificationResult.primary_metric
    shown_metrics: Iterable[str] = ("map", "cmc@1")

    def __init__(self, data: ReidentificationData, image_processor: BaseImageProcessor) -> None:
        self.data = data
        self.collator: Callable[[list[Any]], dict[str, torch.Tensor]] = AttributeCollator(image_processor)

    def images(self, split: Any) -> Dataset[Any]:
        return SearchImages(self.data, split) if isinstance(split, str) else split

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return features_of(model(pixel_values=batch["pixel_values"])), batch["labels"]

    def score(self, images: Any, predictions: NDArray, labels: NDArray) -> ReidentificationResult:
        return score_search(images, predictions)


def score_search(images: SearchImages, embeddings: NDArray) -> ReidentificationResult:
    """The result of embeddings (images, dim) in the order of the images."""
    search = images.search
    queries, gallery = (
        Sightings(embeddings[side], search.identities[side], search.cameras[side], search.parts[side])
        for side in (search.is_query, ~search.is_query)
    )
    return evaluate_reidentification(queries, gallery, split=search.split)


class _Checked(NamedTuple):
    embeddings: NDArray
    identities: IntArray
    cameras: IntArray
    parts: IntArray


def _checked(name: str, side: Sightings) -> _Checked:
    shape = (len(side.embeddings),)
    identities, cameras = (
        to_ids(f"{name} {kind}", ids, shape, ", one for each embedding")
        for kind, ids in (("identities", side.identities), ("cameras", side.cameras))
    )
    parts = np.zeros(shape, np.int64)
    if side.parts is not None:
        parts = to_ids(f"{name} parts", side.parts, shape, ", one for each embedding")
    return _Checked(to_numpy(side.embeddings), identities, cameras, parts)
