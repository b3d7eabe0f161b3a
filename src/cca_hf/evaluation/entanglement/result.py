"""The result of an entanglement measurement: one matrix a reader, its mean off the diagonal, and how sure they are."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.results import ResultCard, save_result
from cca_hf.evaluation.text_table import format_table

Matrix = NDArray[np.float64]  # (A, A): the row's attribute was asked for, the column's is read


@dataclass(frozen=True)
class ReaderEntanglement:
    """What one reader found. Rows: the attribute whose embeddings are read; columns: the attribute that is read.

    `accuracy`, `floor` and `ceiling` are balanced accuracies: of the reader on the embeddings, of one that has the
    row's value alone (on the diagonal: nothing), and of the reader on the unconditioned features. Off the diagonal all
    three are told the row's value. NaN where the column cannot be read at all.
    """

    accuracy: Matrix
    floor: Matrix
    ceiling: Matrix
    matrix: Matrix  # (accuracy - floor) / (ceiling - floor), NaN where the two are too close
    spread: Matrix  # standard deviation of `matrix` over bootstrap samples of the pictures
    score_spread: float

    @property
    def score(self) -> float:
        """Mean of the defined entries off the diagonal; NaN if there are none."""
        return mean_off_diagonal(self.matrix)

    @property
    def informativeness(self) -> float:
        """Mean of the defined entries on the diagonal; NaN if there are none."""
        diagonal = np.diagonal(self.matrix)
        return float(np.nanmean(diagonal)) if np.isfinite(diagonal).any() else math.nan


@dataclass(frozen=True)
class EntanglementResult:
    """How much of the other attributes each attribute's embeddings tell: 0 nothing, 1 as much as the features do."""

    attributes: tuple[str, ...]
    readers: dict[str, ReaderEntanglement]  # "linear", "neighbours"
    images: int
    values: dict[str, int]  # attribute -> values with enough pictures to be read

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
        """(asked, read) pairs that are part of no mean: the features tell hardly more than the label alone."""
        missing = np.argwhere(np.isnan(self.readers["linear"].matrix)).tolist()
        return [(self.attributes[row], self.attributes[column]) for row, column in missing]

    def metrics(self) -> dict[str, float]:
        """`entanglement`, `informativeness` and the first one's `entanglement_spread`, each also `..._neighbours`."""
        figures: dict[str, float] = {}
        for name, reader in self.readers.items():
            tail = "" if name == "linear" else f"_{name}"
            figures |= {
                f"entanglement{tail}": reader.score,
                f"entanglement{tail}_spread": reader.score_spread,
                f"informativeness{tail}": reader.informativeness,
            }
        return figures

    def table(self, decimals: int = 2) -> str:
        """A table for terminals: one section a reader, rows asked for, columns read, `-` where undefined."""
        sections = []
        for reader_name, reader in self.readers.items():
            rows = [
                [f"{name} ({reader_name})", *(_cell(figure, decimals) for figure in figures)]
                for name, figures in zip(self.attributes, reader.matrix, strict=True)
            ]
            sections.append(rows)
        lines = [format_table(["asked for (reader), read", *self.attributes], sections)]
        for reader_name, reader in self.readers.items():
            lines.append(
                f"{reader_name}: entanglement {_cell(reader.score, decimals + 1)} "
                f"(+- {_cell(reader.score_spread, decimals + 1)}), the mean off the diagonal; "
                f"informativeness {_cell(reader.informativeness, decimals + 1)}, the mean on it."
            )
        if self.undefined:
            pairs = ", ".join(f"{read} from {asked}" for asked, read in self.undefined)
            lines.append(f"Undefined, the features tell hardly more than the label does (linear reader): {pairs}.")
        return "\n".join(lines)

    def card(self) -> ResultCard:
        """The section of a model card about this result, which must be of the test split."""
        return ResultCard(
            "Entanglement",
            "entanglement of attribute embeddings",
            f"A linear reader predicts attributes from embeddings of {self.images:,} test images. From the embeddings "
            f"of one attribute it finds {self.score:.3f} of what the backbone's features reveal about the other "
            f"attributes, and {self.informativeness:.2f} of what they reveal about that attribute itself. 0 means "
            "nothing beyond what the label itself reveals, 1 means as much as the features.\n",
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON; NaN as None; `from_dict` reads it back."""
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
        """The inverse of `to_dict`."""
        readers = {
            name: ReaderEntanglement(**{field: _restored(figures) for field, figures in fields.items()})
            for name, fields in content["readers"].items()
        }
        return cls(tuple(content["attributes"]), readers, content["images"], dict(content["values"]))

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all; missing folders are made."""
        return save_result(self, path)

    @classmethod
    def load_json(cls, path: str | Path) -> "EntanglementResult":
        """The inverse of `save_json`."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def mean_off_diagonal(matrix: Matrix) -> float:
    """Mean of the entries that are defined (not NaN) and not on the diagonal; NaN if there are none."""
    others = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(np.nanmean(others)) if np.isfinite(others).any() else math.nan


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
