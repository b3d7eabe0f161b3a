"""Triplet accuracy as an `evaluate` module: a thin layer over `cca_hf.evaluation.triplet_accuracy`.

`evaluate` parses the imports of this file line by line, so each import has its own line.
"""

import datasets
import evaluate
import numpy as np

from cca_hf.evaluation import triplet_accuracy

_DESCRIPTION = """\
The share of triplets of images (anchor, close, far), each under a condition such as "heel height", in which the
embedding of the anchor is nearer to the close image than to the far image, by cosine similarity. Ties are wrong.
Returned for each condition and over all triplets (the micro average, as is usual on Zappos50K).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: embeddings under each triplet's own condition, (triplets, 3, dim): anchor, close, far. Normalised
        here.
    references: the condition of each triplet, by name.

Returns:
    triplet_accuracy: over all triplets, a fraction in [0, 1] like all others.
    triplet_accuracy_macro: plain mean over the conditions.
    triplet_accuracy_<condition>: over the triplets of one condition.
    triplet_ties: the share of ties, which count as wrong.

Examples:
    >>> triplet_accuracy = evaluate.load("triplet_accuracy")
    >>> embeddings = [[[1, 0], [0.9, 0.1], [0, 1]], [[1, 0], [0.1, 0.9], [0.8, 0.2]]]
    >>> results = triplet_accuracy.compute(predictions=embeddings, references=["heel", "closure"])
    >>> results["triplet_accuracy"], results["triplet_accuracy_heel"]
    (0.5, 1.0)
"""

_CITATION = """\
@inproceedings{veit2017conditional,
  title     = {Conditional Similarity Networks},
  author    = {Veit, Andreas and Belongie, Serge and Karaletsos, Theofanis},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2017},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TripletAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                predictions=datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                references=datasets.Value("string"),
            ),
        )

    def _compute(self, predictions, references):
        embeddings = np.asarray(predictions)
        if embeddings.ndim != 3 or embeddings.shape[1] != 3:
            raise ValueError(
                f"predictions must have shape (triplets, 3, dim): anchor, close, far; got {embeddings.shape}"
            )
        names, conditions = np.unique(np.asarray(references), return_inverse=True)
        rows = np.arange(3 * len(embeddings)).reshape(-1, 3)
        return triplet_accuracy(embeddings.reshape(len(rows) * 3, -1), rows, conditions, names.tolist()).metrics()
