"""Attribute mAP as an `evaluate` module: a thin layer over `cca_hf.evaluate_embeddings`.

`evaluate` parses the imports of this file line by line, so each import has its own line.
"""

import datasets
import evaluate
import numpy as np

from cca_hf.evaluation import evaluate_embeddings

_DESCRIPTION = """\
Mean average precision of retrieval under each attribute of an image (colour, sleeve length, ...) and over all of
them. Under an attribute, the images labelled with it are ranked by the cosine similarity of their embeddings; images
with the query's value are relevant. Average precision runs over the full list and is 0 if nothing is relevant. Equal
similarities count as the expectation over their random order, so that a constant embedding scores the chance level,
which is returned with every figure.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: embeddings, (images, attributes, dim); (images, dim) for a single attribute. Normalised here.
    references: value ids, (images, attributes), -1 = not labelled; (images,) for a single attribute.
    attributes: names of the attributes. Default: "0", "1", ...
    groups: (images,) ids of near copies, which are not candidates for each other, -1 = none.
    gallery_predictions, gallery_references, gallery_groups: the candidates, in the same shapes. Without them every
        image is a query against all others.

Returns:
    map: plain mean of the attributes' mean average precision, a fraction in [0, 1] like all others.
    map_weighted: the same mean weighted by queries.
    map_<attribute>, recall@k, r_precision, ...: see `cca_hf.EvaluationResult.metrics`.
    chance_map, chance_map_<attribute>, ...: the scores of a random ranking.

Examples:
    >>> attribute_map = evaluate.load("attribute_map")
    >>> embeddings = [[[1, 0]], [[0.9, 0.1]], [[0, 1]], [[0.2, 0.9]]]
    >>> results = attribute_map.compute(predictions=embeddings, references=[[0], [0], [1], [1]], attributes=["colour"])
    >>> results["map_colour"]
    1.0
"""

_CITATION = """\
@inproceedings{ma2020fine,
  title     = {Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network},
  author    = {Ma, Zhe and Dong, Jianfeng and Long, Zhongzi and Zhang, Yao and He, Yuan and Xue, Hui and Ji, Shouling},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2020},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AttributeMap(evaluate.Metric):
    def _info(self):
        vector, number = datasets.Value("float32"), datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features(
                    predictions=datasets.Sequence(datasets.Sequence(vector)), references=datasets.Sequence(number)
                ),
                datasets.Features(predictions=datasets.Sequence(vector), references=number),
            ],
        )

    def _compute(
        self,
        predictions,
        references,
        attributes=None,
        groups=None,
        gallery_predictions=None,
        gallery_references=None,
        gallery_groups=None,
    ):
        embeddings, labels = _with_attributes(predictions, references)
        gallery, highest = None, labels.max(axis=0)
        if gallery_predictions is not None:
            gallery = (*_with_attributes(gallery_predictions, gallery_references), gallery_groups)
            highest = np.maximum(highest, gallery[1].max(axis=0))
        names = [str(place) for place in range(len(highest))] if attributes is None else list(attributes)
        if len(names) != len(highest):
            raise ValueError(
                f"references are of {len(highest)} attributes, but attributes names {len(names)}: {names}"
            )
        values = {name: [str(value) for value in range(top + 1)] for name, top in zip(names, highest, strict=True)}
        return evaluate_embeddings(embeddings, labels, values, groups=groups, gallery=gallery).metrics()


def _with_attributes(embeddings, labels):
    """(N, A, D) and (N, A), also for a single attribute."""
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    return (embeddings[:, None], labels[:, None]) if embeddings.ndim == 2 else (embeddings, labels)
