"""The result of an entanglement measurement: a matrix for each reader, its mean off the diagonal, and their spread."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.results import Result, ResultCard
from cca_hf.evaluation.text_table import Table, markdown_table

READER_NAMES = {"linear": "linear reader", "neighbours": "nearest neighbours", "mlp": "small MLP"}
_ON_DIAGONAL, _OFF_DIAGONAL = "70, 130, 220", "240, 140, 40"  # red, green and blue
_STRONGEST = 0.7  # opacity at 1: the figure stays readable on a light and on a dark page

Matrix = NDArray[np.float64]  # (A, A): row = attribute of the embeddings, column = attribute that is predicted


@dataclass(frozen=True)
class ReaderEntanglement:
    """Figures of one reader. Rows: the attribute of the embeddings; columns: the attribute that is predicted.

    `accuracy`, `floor` and `ceiling` are balanced accuracies: of the reader on the embeddings, of a reader that knows
    only the row's value (on the diagonal: nothing), and of the reader on the unconditioned features. Off the diagonal
    all three know the row's value. NaN if the column cannot be predicted at all.
    """

    accuracy: Matrix
    floor: Matrix
    ceiling: Matrix
    matrix: Matrix  # (accuracy - floor) / (ceiling - floor), NaN where the two are too close
    spread: Matrix  # standard deviation of `matrix` over bootstrap samples of the images
    score_spread: float

    @property
    def score(self) -> float:
        """Mean of the defined entries off the diagonal; NaN if there are none."""
        return mean_off_diagonal(self.matrix)

    @property
    def informativeness(self) -> float:
        """Mean of the defined entries on the diagonal; NaN if there are none."""
        return _mean(np.diagonal(self.matrix))


@dataclass(frozen=True, repr=False)
class EntanglementResult(Result):
    """How much each attribute's embeddings reveal about the other attributes.

    0 means no more than the attribute's own label reveals, 1 as much as the backbone's features do.
    """

    attributes: tuple[str, ...]
    readers: dict[str, ReaderEntanglement]  # "linear", and any of "neighbours" and "mlp"
    images: int
    values: dict[str, int]  # attribute -> number of values with enough images to be predicted

    primary_metric: ClassVar[str] = "entanglement"

    @property
    def score(self) -> float:
        """The linear reader's mean off the diagonal."""
        return self.readers["linear"].score

    @property
    def informativeness(self) -> float:
        """The linear reader's mean on the diagonal."""
        return self.readers["linear"].informativeness

    @property
    def undefined(self) -> list[tuple[str, str]]:
        """(row, column) attributes that no mean includes: too few images, or features that reveal too little."""
        missing = np.argwhere(np.isnan(self.readers["linear"].matrix)).tolist()
        return [(self.attributes[row], self.attributes[column]) for row, column in missing]

    def metrics(self) -> dict[str, float]:
        """`entanglement`, `entanglement_spread`, `informativeness`; with `_neighbours` or `_mlp` of those readers."""
        figures: dict[str, float] = {}
        for name, reader in self.readers.items():
            tail = "" if name == "linear" else f"_{name}"
            figures[f"entanglement{tail}"] = reader.score
            figures[f"entanglement{tail}_spread"] = reader.score_spread
            figures[f"informativeness{tail}"] = reader.informativeness
        return figures

    def table(self, decimals: int = 2) -> str:
        """A table for terminals."""
        return super().table(decimals)

    def as_table(self, decimals: int) -> Table:
        """A section for each reader; rows = embeddings, columns = attribute that is predicted, `-` = undefined.

        In a notebook it is a heat map: blue on the diagonal, where much is good, and orange off it, where much is bad.
        """
        sections, notes = [], []
        styles: dict[tuple[int, int, int], str] = {}
        for section, (reader_name, reader) in enumerate(self.readers.items()):
            for row, column in np.argwhere(np.isfinite(reader.matrix)).tolist():
                colour = _ON_DIAGONAL if row == column else _OFF_DIAGONAL
                strength = min(max(float(reader.matrix[row, column]), 0.0), 1.0)
                styles[section, row, column + 1] = f"background-color: rgba({colour}, {strength * _STRONGEST:.2f})"
            cells = ([_cell(each, decimals) for each in figures] for figures in reader.matrix)
            names = (f"{name} ({reader_name})" for name in self.attributes)
            sections.append([[name, *row] for name, row in zip(names, cells, strict=True)])
            figures = (reader.score, reader.score_spread, reader.informativeness)
            score, spread, informativeness = (_cell(each, decimals + 1) for each in figures)
            notes.append(
                f"{reader_name}: entanglement {score} (+- {spread}), the mean off the diagonal; "
                f"informativeness {informativeness}, the mean on it."
            )
        if self.undefined:
            pairs = ", ".join(f"{read} from {row}" for row, read in self.undefined)
            reason = "the features reveal hardly more than the label, or too few images have both labels"
            notes.append(f"Undefined, because {reason} (linear reader): {pairs}.")
        return Table(["embeddings (reader)", *self.attributes], sections, notes, styles)

    def card(self) -> ResultCard:
        scores = [f"{READER_NAMES[name]} {_cell(reader.score, 3)}" for name, reader in self.readers.items()]
        others = f" The entanglement by reader: {', '.join(scores)}." if len(scores) > 1 else ""
        cells = ([_cell(each, 2) for each in figures] for figures in self.readers["linear"].matrix)
        rows = [[name, *row] for name, row in zip(self.attributes, cells, strict=True)]
        return ResultCard(
            "What an embedding reveals about other attributes",
            "disentanglement of attribute embeddings",
            f"On {self.images:,} test images, the entanglement is {self.score:.3f} and the informativeness is "
            f"{self.informativeness:.2f} (linear reader).{others} Entanglement measures how much an embedding reveals "
            "about the other attributes. Informativeness measures how much it reveals about its attribute. 0 means no "
            "more than the label of the attribute reveals, and 1 means as much as the features of the backbone "
            "reveal. A row is the attribute of the embedding, a column the attribute that the linear reader predicts."
            f"\n\n{markdown_table([['', *self.attributes], *rows])}\n",
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON, with None for NaN; `from_dict` is the inverse."""
        readers = {
            name: {field: _plain(figures) for field, figures in vars(reader).items()}
            for name, reader in self.readers.items()
        }
        return {
            "attributes": list(self.attributes),
            "images": self.images,
            "values": dict(self.values),
            "readers": readers,
            "metrics": {name: _plain(figure) for name, figure in self.metrics().items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EntanglementResult":
        readers = {
            name: ReaderEntanglement(**{field: _restored(figures) for field, figures in fields.items()})
            for name, fields in content["readers"].items()
        }
        return cls(tuple(content["attributes"]), readers, content["images"], dict(content["values"]))


def mean_off_diagonal(matrix: Matrix) -> float:
    """Mean of the entries that are defined (not NaN) and not on the diagonal; NaN if there are none."""
    return _mean(matrix[~np.eye(len(matrix), dtype=bool)])


def _mean(figures: Matrix) -> float:
    return float(np.nanmean(figures)) if np.isfinite(figures).any() else math.nan


def _cell(figure: float, decimals: int) -> str:
    return "-" if math.isnan(figure) else f"{figure:.{decimals}f}"


def _restored(figures: Any) -> Any:
    """The inverse of `_plain`."""
    if figures is None:
        return math.nan
    return np.array(figures, dtype=float) if isinstance(figures, list) else figures


def _plain(figures: Any) -> Any:
    """Arrays as lists, NaN as None: JSON has no NaN."""
    if isinstance(figures, np.ndarray | list):
        return [_plain(each) for each in figures]
    return None if math.isnan(figures) else float(figures)
