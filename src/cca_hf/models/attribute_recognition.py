"""Recognition of attributes: labels, the loss, and `predict`, for every model with logits of the values of attributes.

The logits (batch, num_logits) of all attributes are side by side, in the order of `config.attributes`: one for each
value, or one, for the second value, if the attribute is binary. `config.logit_slices` has their places. Labels have
the same shape: 1, 0, and -1 where an image is not labelled.

The loss of a value that is not exclusive is binary cross-entropy with the weight exp(y (1 - p) + (1 - y) p), where p
is the share of training images with this value. This is the loss of C2T-Net, the predecessor of CLEAR. Ours: the loss
of an exclusive attribute is the cross-entropy of a softmax, and images that are not labelled take no part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor
from transformers.utils import ModelOutput

from .configuration_images import RecognitionConfig, did_you_mean
from .encoding import as_sequence, pixel_batches
from .images import ImageInput, UnreadableImageError

Labels = Sequence[Any] | np.ndarray | torch.Tensor

NOT_LABELLED = -1.0


@dataclass
class AttributeRecognitionOutput(ModelOutput):
    """
    Args:
        loss: the loss of [`recognition_loss`], a scalar, if labels are given.
        logits: (batch, num_logits), see `config.logit_slices`.
        features: what the logits are computed from: (batch, dim), or (batch, attributes, dim) if an image has one
            embedding for each attribute.
        cross_attentions: for CLEAR with `output_attentions=True`, see [`CLEARModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model recognises of one attribute in one image.

    Args:
        value: the value. For an attribute with several values, a list of them, which may be empty. `None` if it is
            unknown.
        probability: calibrated probability of `value`; for a list, that of its least probable value. If the value is
            unknown or the list is empty, the highest probability of a value.
        probabilities: the probability of each value, by name.
    """

    value: str | list[str] | None
    probability: float
    probabilities: dict[str, float]


class PredictionBatch(NamedTuple):
    """Some images in order: their rows, their predictions by attribute, and the errors of unreadable ones by row."""

    rows: list[int]
    predictions: list[dict[str, Prediction]]
    unreadable: dict[int, UnreadableImageError]


def check_recognisable(config: RecognitionConfig) -> None:
    """Check that the values of all attributes are known.

    Raises:
        ValueError: if there are no attributes, or too few values of one.
    """
    if not config.attributes:
        raise ValueError("recognition needs attributes with values; this configuration has no attributes")
    for name in config.attributes:
        least = 1 if config.kind_of(name) == "multiple" else 2
        if len(config.values_of(name)) < least:
            raise ValueError(
                f"recognition needs at least {least} values of {name!r}, which is {config.kind_of(name)}; it has "
                f"{config.values_of(name)}. Give attributes as {{name: [value, ...]}}, such as the attributes of an "
                "AttributeDataset"
            )


def encode_labels(config: RecognitionConfig, labels: Mapping[str, Labels]) -> torch.Tensor:
    """Labels as targets of the loss.

    Args:
        labels: one sequence for each attribute, with one entry for each image: the id or the name of a value, a list
            of ids or names for an attribute with several values, or `None` or -1 for an image that is not labelled.
            An attribute that is left out is not labelled in any image.

    Returns:
        (images, num_logits) float32: 1, 0, or -1 where an image is not labelled.

    Raises:
        ValueError: for an unknown attribute or value (the message has the row and the closest name), for a list where
            an attribute has one value, or for sequences of different lengths.
    """
    for name in labels:
        config.attribute_id(name)  # raises for an unknown name
    lengths = {name: len(column) for name, column in labels.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the labels of all attributes must be of the same images; their numbers are {lengths}")
    count = next(iter(lengths.values()), 0)
    targets = np.full((count, config.num_logits), NOT_LABELLED, np.float32)
    for name, part in config.logit_slices.items():
        if name not in labels:
            continue
        ids = {value: index for index, value in enumerate(config.values_of(name))}
        column = labels[name]
        if isinstance(column, np.ndarray | torch.Tensor):
            column = column.tolist()
        one_hot = np.full((count, len(ids)), NOT_LABELLED, np.float32)
        for row, label in enumerate(column):
            given = _value_ids(label, name, ids, row, several=config.kind_of(name) == "multiple")
            if given is not None:
                one_hot[row] = 0
                one_hot[row, given] = 1
        targets[:, part] = one_hot[:, 1:] if config.kind_of(name) == "binary" else one_hot
    return torch.from_numpy(targets)


def _value_ids(label: Any, attribute: str, ids: Mapping[str, int], row: int, *, several: bool) -> list[int] | None:
    """The ids of the values of one image, or None if it is not labelled."""
    if label is None:
        return None
    is_list = isinstance(label, Sequence) and not isinstance(label, str)
    if is_list and not several:
        raise ValueError(
            f"{attribute!r} has one value for an image; row {row} has {list(label)}. Its kind in attribute_kinds must "
            "be 'multiple' for lists"
        )
    entries = list(label) if is_list else [label]
    if not is_list and not isinstance(label, str) and int(label) == -1:
        return None
    return [_value_id(entry, attribute, ids, row) for entry in entries]


def _value_id(entry: Any, attribute: str, ids: Mapping[str, int], row: int) -> int:
    if isinstance(entry, str):
        if entry in ids:
            return ids[entry]
        hint = did_you_mean(entry, list(ids), cutoff=0.5)
        raise ValueError(f"unknown value {entry!r} of {attribute!r} in row {row}.{hint} Its values are {list(ids)}")
    value_id = int(entry)
    if not 0 <= value_id < len(ids):
        raise ValueError(f"the ids of {attribute!r} lie in 0..{len(ids) - 1}, or are -1; row {row} has {value_id}")
    return value_id


def positive_shares(config: RecognitionConfig, labels: torch.Tensor) -> dict[str, list[float]]:
    """The share of labelled images that have each value, for `config.positive_shares`.

    Args:
        labels: (images, num_logits), the result of [`encode_labels`] for the training images.

    Returns:
        Attribute -> a share for each logit, for the attributes that are not exclusive. Without a labelled image, 0.5.
    """
    labelled = labels != NOT_LABELLED
    counts = labelled.sum(dim=0).double()
    shares = ((labels == 1).sum(dim=0).double() / counts).nan_to_num(0.5)
    return {
        name: shares[part].tolist()
        for name, part in config.logit_slices.items()
        if config.kind_of(name) != "exclusive"
    }


def recognition_loss(config: RecognitionConfig, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over all attributes of their losses, a scalar in float32 or above.

    The loss of an exclusive attribute is the mean over its labelled images; that of another attribute is the sum of
    these means over its logits. Without a labelled image it is 0. Images that are not labelled get no gradient.

    Args:
        logits: (batch, num_logits).
        labels: (batch, num_logits) of 1, 0, and -1 where an image is not labelled; see [`encode_labels`].

    Raises:
        ValueError: if the labels are of another shape.
    """
    if labels.shape != logits.shape or logits.shape[-1] != config.num_logits:
        raise ValueError(
            f"logits and labels must be of shape (batch, {config.num_logits}), a column for each logit of "
            f"{config.attributes}; got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    labels = labels.to(logits)
    labelled = (labels != NOT_LABELLED).to(logits.dtype)
    total = logits.sum() * 0  # connected to the model also if nothing is labelled
    for name, part in config.logit_slices.items():
        if config.kind_of(name) != "exclusive":
            continue
        of_image = -(labels[:, part].clamp(min=0) * logits[:, part].log_softmax(dim=-1)).sum(dim=-1)
        total = total + of_image.sum() / labelled[:, part.start].sum().clamp(min=1)
    columns, shares = _columns_and_shares(config, logits)
    if len(columns):
        wanted, known = labels[:, columns], labelled[:, columns]
        weights = 1.0 if shares is None else (wanted * (1 - shares) + (1 - wanted) * shares).exp()
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits[:, columns], wanted.clamp(min=0), reduction="none"
        )
        total = total + ((losses * weights * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)).sum()
    return total / len(config.attributes)


def _columns_and_shares(config: RecognitionConfig, like: torch.Tensor) -> tuple[list[int], torch.Tensor | None]:
    """The places of the logits of attributes that are not exclusive, and their shares, if they are known."""
    names = [name for name in config.attributes if config.kind_of(name) != "exclusive"]
    slices = config.logit_slices
    columns = [column for name in names for column in range(slices[name].start, slices[name].stop)]
    if config.positive_shares is None:
        return columns, None
    return columns, like.new_tensor([share for name in names for share in config.positive_shares[name]])


def value_probabilities(config: RecognitionConfig, logits: torch.Tensor) -> torch.Tensor:
    """Calibrated probabilities from the logits of a model.

    The weights of the loss move the logit that minimises it by 1 - 2 p, for a value with the share p. So the
    probability is sigmoid((logit - (1 - 2 p)) / temperature), or softmax(logits / temperature) for exclusive values.

    Args:
        logits: (batch, num_logits).

    Returns:
        (batch, num_logits) float32: the probability of each value, or of the second value of a binary attribute.
    """
    probabilities = logits.float().clone()
    columns, shares = _columns_and_shares(config, probabilities)
    if shares is not None:
        probabilities[:, columns] -= 1 - 2 * shares
    for name, part in config.logit_slices.items():
        scores = probabilities[:, part] / config.temperature_of(name)
        probabilities[:, part] = scores.softmax(dim=-1) if config.kind_of(name) == "exclusive" else scores.sigmoid()
    return probabilities


def predictions_of(
    config: RecognitionConfig, probabilities: torch.Tensor, attributes: Sequence[str] | None = None
) -> list[dict[str, Prediction]]:
    """Values from probabilities.

    Args:
        probabilities: (images, num_logits), the result of [`value_probabilities`].
        attributes: names; all attributes by default.

    Returns:
        For each image a prediction by attribute. With the threshold t of the attribute, the value of an exclusive or a
        binary attribute is the most probable one, or `None` if its probability is below t. The values of another
        attribute are those with a probability of at least t. If no value reaches t, they are `None`, or an empty list
        if all probabilities are at most 1 - t.
    """
    names, slices = config.attributes if attributes is None else attributes, config.logit_slices
    return [
        {name: _prediction(config, name, row[slices[name]]) for name in names}
        for row in probabilities.cpu().double().tolist()
    ]


def _prediction(config: RecognitionConfig, attribute: str, found: list[float]) -> Prediction:
    if config.kind_of(attribute) == "binary":
        found = [1 - found[0], found[0]]
    probabilities = dict(zip(config.values_of(attribute), found, strict=True))
    best, threshold = max(probabilities, key=probabilities.__getitem__), config.threshold_of(attribute)
    if config.kind_of(attribute) != "multiple":
        known = probabilities[best] >= threshold
        return Prediction(best if known else None, probabilities[best], probabilities)
    values = [value for value, probability in probabilities.items() if probability >= threshold]
    if values:
        return Prediction(values, min(probabilities[value] for value in values), probabilities)
    absent = probabilities[best] <= 1 - threshold
    return Prediction([] if absent else None, probabilities[best], probabilities)


class AttributeRecogniser:
    """`predict` for a model whose output has `logits`, see [`AttributeRecognitionOutput`]."""

    config: RecognitionConfig
    image_processor: BaseImageProcessor

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
    ) -> list[dict[str, Prediction]]:
        """Recognise the values of attributes in images.

        Args:
            images: one image or several: paths, URLs, bytes, PIL images, arrays, or the image column of a `Dataset`.
            attributes: one name or several; all attributes by default.
            batch_size: images per forward pass.
            num_workers: threads that read images, see [`CCAModel.encode`].

        Returns:
            For each image, a [`Prediction`] by attribute name. Also a single image gives a list.

        Raises:
            ValueError: for an unknown attribute; the message names the closest one.
            UnreadableImageError: if an image cannot be read; the message names its row and its source.
        """
        batches = self.predict_batches(images, attributes, batch_size=batch_size, num_workers=num_workers)
        return [prediction for batch in batches for prediction in batch.predictions]

    def predict_batches(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> Iterator[PredictionBatch]:
        """As [`predict`], one batch after the other, for results that do not fit into memory.

        Args:
            on_unreadable: `"skip"` leaves out images that cannot be read, and reports them in `unreadable`.

        Yields:
            A [`PredictionBatch`] for every `batch_size` images.
        """
        names = [self.config.attributes[index] for index in self.config.attribute_ids(attributes)]
        sequence = as_sequence(images)
        return self._predict_batches(names, sequence, batch_size, num_workers, on_unreadable)

    def _predict_batches(
        self,
        names: list[str],
        images: Sequence[ImageInput],
        batch_size: int,
        num_workers: int | None,
        on_unreadable: Literal["error", "skip"],
    ) -> Iterator[PredictionBatch]:
        model: Any = self.in_eval_mode()
        for batch in pixel_batches(model, images, batch_size, num_workers, on_unreadable):
            predictions: list[dict[str, Prediction]] = []
            if batch.rows:
                with torch.inference_mode():
                    logits = model(batch.values).logits[: len(batch.rows)]
                predictions = predictions_of(self.config, value_probabilities(self.config, logits), names)
            yield PredictionBatch(batch.rows, predictions, batch.unreadable)

    def in_eval_mode(self) -> Self:
        """This model, or a copy in evaluation mode; implemented by [`ImagePreTrainedModel`]."""
        raise NotImplementedError
