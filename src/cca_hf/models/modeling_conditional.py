"""The base of all models that embed images by attribute: conditions, subspaces, `forward`, attention maps.

A model implements `get_backbone_outputs`, `project_features` and `_embed_tokens`.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_images import AttributeConfig, one_of
from .encoding import as_sequence, pixel_batches
from .images import ImageInput
from .modeling_images import ImagePreTrainedModel, digest_of_weights
from .value_prototypes import PrototypeEncoder, ValuePrototypes

Vector = torch.Tensor | np.ndarray | Sequence[float]


@dataclass
class ConditionalModelOutput(ModelOutput):
    """
    Args:
        embeddings: (batch, dim) for `attribute_ids` of shape (batch,) or a name as `attribute`, (batch, k, dim) for
            (batch, k) or k names as `attributes`, (batch, attributes, dim) without either; L2-normalised.
        hidden_states: those of the backbone, in its own shapes, with `output_hidden_states=True`.
        attentions: (batch, heads, tokens) or (batch, k, heads, tokens), the attention weights over the image tokens,
            with `output_attentions=True`.
    """

    embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: torch.Tensor | None = None

    @property
    def pooler_output(self) -> torch.Tensor | None:
        """The name of `embeddings` in the vision models of transformers."""
        return self.embeddings


class ImageFeatures(NamedTuple):
    """What a backbone computes of a batch of images.

    Args:
        cells: (batch, cells, channels) of the output and then of the levels, from the last to the first.
        grids: (height, width) of their grids, which follow the prefix tokens.
        hidden_states: of the backbone, if they were asked for.
    """

    cells: list[torch.Tensor]
    grids: list[tuple[int, int]]
    hidden_states: tuple[torch.Tensor, ...] | None


class ConditionEmbedding(nn.Module):
    """The query vector q_c of every condition.

    one_hot: q_c = W onehot(c) + b.   lookup: q_c = ReLU(M[c]).   none: q_c = q, the same for every attribute.
    text: q_c = P t_c, where t_c is a frozen text encoder's embedding of the attribute's name, L2-normalised.
    """

    texts: torch.Tensor  # (num_conditions, text_embedding_dim)

    def __init__(self, kind: str, num_conditions: int, hidden_size: int, text_embedding_dim: int | None = None):
        super().__init__()
        self.kind = kind
        self.num_conditions = max(1, num_conditions)
        if text_embedding_dim is not None:  # that is, kind == "text"
            self.register_buffer("texts", torch.zeros(self.num_conditions, text_embedding_dim))
            self.projection = nn.Linear(text_embedding_dim, hidden_size, bias=False)
        else:
            self.table = nn.Embedding(1 if kind == "none" else self.num_conditions, hidden_size)
        if kind == "one_hot":
            self.bias = nn.Parameter(torch.zeros(hidden_size))

    def init_weights(self) -> None:
        """Initialise the parameters and buffers that belong to no linear layer or embedding table."""
        if self.kind == "one_hot":
            init.zeros_(self.bias)
        elif self.kind == "text":
            init.zeros_(self.texts)

    def forward(self, attribute_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Ids (...), all conditions by default -> (..., hidden_size).

        The weights are not read beside their modules, which may be offloaded or have adapters.
        """
        if attribute_ids is None:
            device = self.texts.device if self.kind == "text" else self.table.weight.device
            attribute_ids = torch.arange(self.num_conditions, device=device)
        if self.kind == "text":
            return self.projection(self.texts[attribute_ids])
        if self.kind == "one_hot":
            return self.table(attribute_ids) + self.bias  # row c of the table is W onehot(c)
        if self.kind == "lookup":
            return self.table(attribute_ids).relu()
        return self.table(torch.zeros_like(attribute_ids))

    def append_text(self, name: str, text_embedding: Vector) -> None:
        """Add a condition.

        Raises:
            ValueError: if the conditions are not texts, or if the embedding has another shape, is 0 or is not finite.
        """
        if self.kind != "text":
            raise ValueError(
                f"a condition for {name!r} can be made from text only in a model with condition_embedding='text'; "
                f"this one has {self.kind!r}, whose conditions are learned"
            )
        row = stack_texts([name], {name: text_embedding})
        if row.shape[1] != self.texts.shape[1]:
            raise ValueError(
                f"the text embedding of {name!r} has {row.shape[1]} numbers, this model's have {self.texts.shape[1]}"
            )
        self.texts = torch.cat([self.texts, row.to(self.texts)])
        self.num_conditions = len(self.texts)


def stack_texts(names: Sequence[str], text_embeddings: Mapping[str, Vector]) -> torch.Tensor:
    """Vectors by name -> (names, text_embedding_dim), L2-normalised.

    Raises:
        ValueError: if the names are not those of the mapping, or if vectors differ in length, are 0 or not finite.
    """
    if set(names) != set(text_embeddings):
        raise ValueError(f"text_embeddings must be of the attributes {list(names)}; got {list(text_embeddings)}")
    rows = [torch.as_tensor(text_embeddings[name], dtype=torch.float32, device="cpu") for name in names]
    for name, row in zip(names, rows, strict=True):
        if row.ndim != 1 or row.shape != rows[0].shape:
            raise ValueError(
                f"text_embeddings must be vectors of one length; got {tuple(row.shape)} for {name!r}, and "
                f"{tuple(rows[0].shape)} for {names[0]!r}"
            )
        if not torch.isfinite(row).all() or not row.any():
            raise ValueError(f"the text embedding of {name!r} is 0, NaN or infinite")
    return nn.functional.normalize(torch.stack(rows), dim=1)


# of the maps with probabilities, measured on validation, see docs/entanglement.md: the length of a signature, and what
# is left of it for an image that shows one value clearly; the share of an embedding as trained, for an image that
# resembles no value, and how sharp that limit is
_SIGNATURE = 0.4
_LEAST_DOUBT = 0.1
_AS_TRAINED = 0.6
_SHARPNESS = 0.02
_IMPOSSIBLE = -1e4  # the bias of a row without a value; it is finite in every precision


class AttributeSubspaces(nn.Module):
    """The last step of a model: a map of each attribute's embedding. Ours, not the paper's.

    An embedding also contains traces of other attributes, which a simple classifier can read. So with e the normalised
    embedding under attribute c, the model returns for `attribute_map="project"`

        e_c = normalise(P_c e + b_c)

    with P_c (A, dim, dim) a projection on the differences between the means of the attribute's values, and b_c
    (A, dim) their centre. For `"values"` and `"retrieval"` it returns

        e_c = normalise([p, 0.4 (1.1 - |p|^2)^1/2 f(z)]),        p = softmax(W_c e + a_c)

    of the same width. p (values) are the probabilities of the attribute's values. The inner product of two p is the
    probability that two images show the same value, which is what a search by attribute ranks by. Embeddings are
    compared by their cosine, so the signature f(z) fills up the length of an image whose value is in doubt:

        f(z) = [cos(F z), sin(F z)] / (numbers of the signature / 2)^1/2,        F random

    These are random Fourier features (Rahimi and Recht 2007) of a Gaussian kernel. The signatures of two images are
    close to orthogonal, unless the images have nearly the same z, such as two copies of one image. With `"values"`,
    z is p: the embedding depends on nothing but the probabilities. With `"retrieval"`, z is e and the kernel is wider,
    so that similar images are close. This ranks better, but contains other attributes.

    An image that resembles no value of the training cannot be described by probabilities. With `"retrieval"`, it is
    one whose log(sum(exp(W_c e))) is below a threshold, and its embedding is normalise(0.4^1/2 e_c + 0.6^1/2 e).

    All maps are fitted at the end of a training (`training/subspaces.py`). Until then, and for an attribute without
    two values, the embedding stays as it is.
    """

    projections: torch.Tensor
    offsets: torch.Tensor
    value_weights: torch.Tensor  # (A, most values, dim)
    value_biases: torch.Tensor  # (A, most values)
    frequencies: torch.Tensor  # (dim // 2, dim)
    signatures: torch.Tensor  # (A, dim): the factor of each number, 0 where the probabilities are
    thresholds: torch.Tensor  # (A,), below which an image resembles no value, for "retrieval"
    is_fitted: torch.Tensor  # (A,), bool

    def __init__(self, config: AttributeConfig):
        super().__init__()
        count, self.dim = max(1, len(config.attributes)), config.embedding_dim or config.hidden_size
        self.kind = config.map_kind
        if self.kind == "project":
            self.register_buffer("projections", torch.eye(self.dim).repeat(count, 1, 1))
            self.register_buffer("offsets", torch.zeros(count, self.dim))
        else:
            most = max((len(values) for values in (config.known_values or {}).values()), default=1)
            self.register_buffer("value_weights", torch.zeros(count, most, self.dim))
            self.register_buffer("value_biases", torch.zeros(count, most))
            self.register_buffer("frequencies", torch.zeros(self.dim // 2, self.dim))
            self.register_buffer("signatures", torch.zeros(count, self.dim))
            self.register_buffer("thresholds", torch.zeros(count))
            self.register_buffer("is_fitted", torch.zeros(count, dtype=torch.bool))

    @torch.no_grad()
    def init_weights(self) -> None:
        """As `reset`, but without a change of loaded values."""
        for name, buffer in self.named_buffers():
            if name == "projections":
                init.copy_(buffer, torch.eye(self.dim).expand_as(buffer))
            else:
                init.zeros_(buffer)

    @torch.no_grad()
    def reset(self) -> None:
        """Set the maps back: embeddings stay as they are."""
        if self.kind == "project":
            self.projections.copy_(torch.eye(self.dim))
            self.offsets.zero_()
        else:
            self.is_fitted.zero_()

    @torch.no_grad()
    def set(self, attribute_id: int, projection: torch.Tensor, offset: torch.Tensor) -> None:
        """Set `projection` (dim, dim) and `offset` (dim,) of one attribute, for `"project"`."""
        self.projections[attribute_id].copy_(projection)
        self.offsets[attribute_id].copy_(offset)

    @torch.no_grad()
    def set_values(
        self, attribute_id: int, weights: torch.Tensor, biases: torch.Tensor, threshold: float | torch.Tensor
    ) -> None:
        """Set `weights` (values, dim) and `biases` (values,) of the probabilities of one attribute.

        Args:
            threshold: log(sum(exp(weights @ e))) below which an image resembles no value.
        """
        count = len(weights)
        self.value_weights[attribute_id].zero_()
        self.value_weights[attribute_id, :count].copy_(weights)
        self.value_biases[attribute_id].fill_(_IMPOSSIBLE)
        self.value_biases[attribute_id, :count].copy_(biases)
        start = count + count % 2  # pairs of a cosine and a sine stay together
        stop = self.dim - self.dim % 2
        self.signatures[attribute_id].zero_()
        self.signatures[attribute_id, start:stop] = _SIGNATURE * (2 / max(1, stop - start)) ** 0.5
        self.thresholds[attribute_id] = threshold
        self.is_fitted[attribute_id] = True

    @torch.no_grad()
    def set_like(self, attribute_id: int, other: "AttributeSubspaces") -> None:
        """Copy the map of the only attribute of another model, which may have fewer values."""
        if self.kind == "project":
            self.set(attribute_id, other.projections[0], other.offsets[0])
        elif other.is_fitted[0]:
            self.frequencies.copy_(other.frequencies)
            count = int((other.value_biases[0] > _IMPOSSIBLE / 2).sum())
            fitted = other.value_weights[0, :count], other.value_biases[0, :count], other.thresholds[0]
            self.set_values(attribute_id, *fitted)

    def append(self) -> None:
        """Add an attribute, whose embeddings do not change."""
        for name, buffer in list(self.named_buffers()):
            if name == "projections":
                self.projections = torch.cat([buffer, torch.eye(self.dim).to(buffer)[None]])
            elif name != "frequencies":
                setattr(self, name, torch.cat([buffer, torch.zeros_like(buffer[:1])]))

    def forward(self, embeddings: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """(batch, dim) or (batch, k, dim) under ids (batch,) or (batch, k) -> the same, not normalised; in float32."""
        unit = nn.functional.normalize(embeddings.float(), dim=-1)
        if self.kind == "project":
            return of_attribute(self.projections, unit, attribute_ids) + self.offsets.float()[attribute_ids]
        biases = self.value_biases.float()[attribute_ids]
        scores = of_attribute(self.value_weights, unit, attribute_ids)
        values = (scores + biases).softmax(dim=-1)
        described = nn.functional.pad(values, (0, self.dim - values.shape[-1]))
        angles = nn.functional.linear(described if self.kind == "values" else unit, self.frequencies.float())
        signature = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)
        signature = nn.functional.pad(signature, (0, self.dim - signature.shape[-1]))
        doubt = (1 + _LEAST_DOUBT - values.square().sum(dim=-1, keepdim=True)).sqrt()
        described = described + doubt * signature * self.signatures.float()[attribute_ids]
        mapped = nn.functional.normalize(described, dim=-1)
        if self.kind == "retrieval":
            evidence = scores.masked_fill(biases < _IMPOSSIBLE / 2, _IMPOSSIBLE).logsumexp(dim=-1)
            below = self.thresholds.float()[attribute_ids] - evidence
            # above 0, where the gradient of the root is infinite
            as_trained = (_AS_TRAINED * (below / _SHARPNESS).sigmoid()[..., None]).clamp(min=1e-12)
            mapped = (1 - as_trained).sqrt() * mapped + as_trained.sqrt() * unit
        return torch.where(self.is_fitted[attribute_ids][..., None], mapped, unit)


def of_attribute(matrices: torch.Tensor, vectors: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
    """Matrices (A, n, dim) times vectors (..., dim), the matrix of the vector's attribute: (..., n)."""
    if attribute_ids.ndim == 2 and attribute_ids.stride(0) == 0:  # expanded: the same attributes for all images
        return torch.einsum("bkd,knd->bkn", vectors, matrices[attribute_ids[0]].float())
    # for all attributes, because gathering a matrix for each row would need far more memory
    products = torch.einsum("...d,and->...an", vectors, matrices.float())
    index = attribute_ids[..., None, None].expand(*attribute_ids.shape, 1, products.shape[-1])
    return products.gather(-2, index).squeeze(-2)


class ConditionalPreTrainedModel(ImagePreTrainedModel, PrototypeEncoder):
    config_class = AttributeConfig
    config: AttributeConfig
    base_model_prefix = "cca"
    modules_without_effect: ClassVar[frozenset[str]] = frozenset({"prototypes"})

    def __init__(self, config: AttributeConfig):
        super().__init__(config)
        self.subspaces = None if config.map_kind == "none" else AttributeSubspaces(config)
        self.prototypes = ValuePrototypes(config) if config.value_prototypes else None

    def set_attribute_map(self, kind: str) -> Self:
        """Replace the attribute map by one that is not fitted yet, so that embeddings are as trained.

        Args:
            kind: see `attribute_map` of the configuration.

        Raises:
            ValueError: if the kind does not exist, or an attribute has too many values for the embeddings' width.
        """
        self.config.check_map(kind, self.config.known_values or {})
        self.config.attribute_map, self.config.attribute_subspaces = kind, False
        self.subspaces = None if kind == "none" else AttributeSubspaces(self.config).to(self.device, self.dtype)
        return self

    def _map_prototypes(self, vectors: torch.Tensor, attribute_id: int) -> torch.Tensor:
        if self.subspaces is None:
            return vectors
        ids = torch.full((len(vectors),), attribute_id, device=vectors.device)
        return nn.functional.normalize(self.subspaces(vectors, ids), dim=-1)

    def parameters_without_effect(self) -> list[nn.Parameter]:
        """The parameters that no embedding depends on, such as those of a classifier."""
        modules = dict(self.named_children())
        return [p for name in self.modules_without_effect & set(modules) for p in modules[name].parameters()]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConditionEmbedding | AttributeSubspaces | ValuePrototypes):
            module.init_weights()

    @classmethod
    def usage_example(cls, model_id: str, config: AttributeConfig) -> str:
        dim, names = config.embedding_dim or config.hidden_size, list(config.attributes)
        return f"""```python
from transformers import AutoModel

model = AutoModel.from_pretrained({json.dumps(model_id)}, trust_remote_code=True)
embeddings = model.encode(["image.jpg", "other.jpg"], attributes={json.dumps(names[:2])})
print(embeddings.shape)  # (2, {len(names[:2])}, {dim}): images, attributes, numbers; L2-normalised
print(embeddings[0] @ embeddings[1].T)  # diagonal: similarity of the two images under each attribute
```
This code needs only `pip install torch transformers pillow`: the repository has the code of the model. The package
`cca_hf` adds an index and a search by attribute (`cca index`, `cca search`), export and evaluation. After
`pip install sentence-transformers`, this code works too:
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({json.dumps(model_id)}, trust_remote_code=True)
embeddings = model.encode(["image.jpg", "other.jpg"], attribute={json.dumps(names[0])})
print(model.similarity(embeddings, embeddings))  # similarity of the two images under this attribute
```
"""

    def get_image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the first half of the forward pass, which does not depend on the condition.

        Returns:
            Image tokens X, (batch, tokens, hidden_size); the first one summarises the image. For a ViT these are its
            hidden states before the last layer. They can be stored and passed to [`condition_tokens`] many times.
        """
        return self.project_features(self.get_backbone_features(pixel_values))

    def get_backbone_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Compute the part of [`get_image_tokens`] that depends only on parameters of the backbone.

        With a frozen backbone the features of an image never change, so they can be computed once and stored.

        Returns:
            Rows of cells (batch, cells, channels), the backbone's output first, then earlier levels.
        """
        return self.get_backbone_outputs(pixel_values).cells

    def get_backbone_outputs(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> ImageFeatures:
        """As [`get_backbone_features`], with the grids that the cells come from and, if asked for, hidden states."""
        raise NotImplementedError

    def project_features(self, backbone_features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the rest of [`get_image_tokens`]: (batch, tokens, hidden_size), from [`get_backbone_features`]."""
        raise NotImplementedError

    def tokens_and_grids(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """As [`get_image_tokens`], with the (height, width) of each grid that the tokens come from."""
        cells, grids, _ = self.get_backbone_outputs(pixel_values)
        return self.project_features(cells), grids

    def condition_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool = False
    ) -> ConditionalModelOutput:
        """Compute the second half of the forward pass: embeddings from the result of [`get_image_tokens`].

        Args:
            attribute_ids, output_attentions: as in `forward`.

        Raises:
            ValueError: if the ids have another shape or are no ids of attributes.
        """
        if attribute_ids.ndim not in (1, 2) or attribute_ids.shape[0] != image_tokens.shape[0]:
            raise ValueError(
                f"attribute_ids must be of shape (batch,) or (batch, k) with batch = {image_tokens.shape[0]}; "
                f"got {tuple(attribute_ids.shape)}"
            )
        # reading values would break a compiled graph and make a GPU wait; the lookup itself fails there
        if not torch.compiler.is_compiling() and attribute_ids.device.type == "cpu" and attribute_ids.numel():
            lowest, highest = int(attribute_ids.min()), int(attribute_ids.max())
            allowed = max(1, len(self.config.attributes))
            if lowest < 0 or highest >= allowed:
                raise ValueError(
                    f"attribute_ids must lie in 0..{allowed - 1}, the ids of {self.config.attributes}; "
                    f"got {lowest}..{highest}"
                )
        return self._make_output(*self._embed_tokens(image_tokens, attribute_ids, output_attentions), attribute_ids)

    def _make_output(
        self, embeddings: torch.Tensor, attentions: torch.Tensor | None, attribute_ids: torch.Tensor
    ) -> ConditionalModelOutput:
        """The attribute map and the normalisation of the result of [`_embed_tokens`]."""
        if self.subspaces is not None:
            with torch.autocast(embeddings.device.type, enabled=False):
                embeddings = self.subspaces(embeddings, attribute_ids)
        # float32 under autocast, which the similarities of a loss need
        embeddings = nn.functional.normalize(embeddings.float(), dim=-1).to(self.dtype)
        return ConditionalModelOutput(embeddings=embeddings, attentions=attentions)

    def _embed_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings before normalisation, and the attention weights: in the shapes of [`ConditionalModelOutput`].

        The embeddings are computed from the returned tensor of weights, so that gradients reach it.
        """
        raise NotImplementedError

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        attribute_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        backbone_features: Sequence[torch.Tensor] | None = None,
        micro_batch_size: int | None = None,
        output_hidden_states: bool | None = None,
        attribute: str | Sequence[str] | None = None,
        attributes: str | Sequence[str] | None = None,
    ) -> ConditionalModelOutput | tuple[torch.Tensor, ...]:
        """Embed images under conditions. The backbone runs once for all conditions of an image.

        Args:
            pixel_values: (batch, channels, height, width), from the image processor.
            attribute_ids: (batch,) for one condition per image, (batch, k) for k conditions; integers, see
                [`CCAConfig.attribute_id`]. By default all attributes, in the order of `config.attributes`.
            output_attentions: also return the weights of the conditional layer.
            return_dict: `False` for a plain tuple.
            backbone_features: the result of [`get_backbone_features`] in place of `pixel_values`, or that of
                [`CCAModel.get_early_features`].
            micro_batch_size: in training, compute the activations of this many images at a time, and again in the
                backward pass: the same gradients from less memory.
            output_hidden_states: also return the hidden states of the backbone.
            attribute: one name in place of `attribute_ids`, for all images: embeddings (batch, dim). A list of names
                means the same as `attributes`.
            attributes: one name or several in place of `attribute_ids`, for all images: embeddings (batch, k, dim).

        Raises:
            ValueError: if the ids have another shape or are no ids of attributes; for an unknown name; if more than
                one of `attribute_ids`, `attribute` and `attributes` is given; if both images and features are given,
                or neither; for hidden states of features; for attentions or hidden states in micro-batches, or a
                micro-batch size below 1.
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if return_dict is None:
            return_dict = self.config.return_dict
        if (pixel_values is None) == (backbone_features is None):
            raise ValueError("give either pixel_values or backbone_features, and not both")
        if output_hidden_states and pixel_values is None:
            raise ValueError("hidden states need pixel_values: the backbone does not run on backbone_features")
        inputs: list[Any] = [pixel_values] if backbone_features is None else list(backbone_features)
        if attribute_ids is None:
            attribute_ids = self._ids_of(attribute, attributes, inputs[0])
        elif attribute is not None or attributes is not None:
            raise ValueError("give either attribute_ids, or names as attribute or attributes, and not both")
        inputs.insert(0, attribute_ids)
        if micro_batch_size is None or not torch.is_grad_enabled():
            output = self._embed_inputs(backbone_features is None, output_attentions, output_hidden_states, *inputs)
        elif output_attentions or output_hidden_states:
            raise ValueError("micro_batch_size is for training on embeddings: it gives no attentions or hidden states")
        elif micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
        else:
            # A loss over pairs needs the embeddings of the whole batch. So each micro-batch is first embedded without
            # keeping activations, and again in the backward pass: the gradient cache of Gao et al. (2021,
            # https://arxiv.org/abs/2101.06983). PyTorch's activation checkpoints restore the random state and the
            # autocast of the first pass. The gradients are those of the whole batch, at the cost of another forward.
            parts = zip(*(tensor.split(micro_batch_size) for tensor in inputs), strict=True)
            embed = partial(self._embed_inputs, backbone_features is None, False, False)
            output = self._join([checkpoint(embed, *part, use_reentrant=False) for part in parts])
        return output if return_dict else output.to_tuple()

    def _join(self, outputs: Sequence[Any]) -> ConditionalModelOutput:
        """The outputs of micro-batches as that of one batch."""
        return ConditionalModelOutput(embeddings=torch.cat([output.embeddings for output in outputs]))

    def _ids_of(
        self, attribute: str | Sequence[str] | None, attributes: str | Sequence[str] | None, images: torch.Tensor
    ) -> torch.Tensor:
        """The ids of the same names for all images: (batch,) for one name as `attribute`, otherwise (batch, k)."""
        ids = self.config.attribute_ids(one_of(attribute, attributes)) or [0]  # without names there is one condition
        row = torch.tensor(ids, device=images.device)
        return row.expand(images.shape[0]) if isinstance(attribute, str) else row.expand(images.shape[0], -1)

    def _embed_inputs(
        self,
        are_images: bool,
        output_attentions: bool,
        output_hidden_states: bool,
        attribute_ids: torch.Tensor,
        *inputs: torch.Tensor,
    ) -> ConditionalModelOutput:
        hidden_states = None
        if are_images:
            cells, _, hidden_states = self.get_backbone_outputs(inputs[0], output_hidden_states)
        else:
            cells = [part.to(self.dtype) for part in inputs]  # features may be stored in half precision
        output = self.condition_tokens(self.project_features(cells), attribute_ids, output_attentions)
        return replace(output, hidden_states=hidden_states)

    def on_device(self, device: str | torch.device) -> Self:
        return self.to(device)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in ("get_image_features", "encode_image"):  # of CLIP in transformers and in open_clip
                raise
            raise AttributeError(f"{error}: use model.encode(images), or model(pixel_values).embeddings") from None

    def has_fingerprint(self, fingerprint: str) -> bool:
        # each hash reads all weights, so the next is computed only if the one before differs
        return (
            fingerprint == self.fingerprint()
            or fingerprint == self._fingerprint_of_version_0_1()
            or fingerprint == self._fingerprint_of_version_0_1(saved_names=True)
        )

    def shares_space(self, fingerprint: str) -> bool:
        if self.has_fingerprint(fingerprint):
            return True
        others = {torch.float32, torch.bfloat16, torch.float16} - {self.dtype}
        return any(copy.deepcopy(self).to(dtype).has_fingerprint(fingerprint) for dtype in others)

    def in_precision(self, precision: str) -> Self:
        return self if precision == "auto" else self.to(getattr(torch, precision))

    def _fingerprint_of_version_0_1(self, *, saved_names: bool = False) -> str:
        unread = {name for name in self.state_dict() if name.split(".")[0] in self.modules_without_effect}
        digest = digest_of_weights(self, saved_names=saved_names, without=unread)  # without the architecture
        described = {"attributes": self.config.attributes, "image_processor": self.image_processor.to_dict()}
        digest.update(json.dumps(described, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    @property
    def has_attention(self) -> bool:
        """Whether the model attends to places of the image, see [`attention_maps`]."""
        return True

    def attention_maps(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Compute the attention of each attribute on the image.

        Returns:
            (images, attributes, heads, height, width) float32 on the finest grid of image tokens. A map sums to the
            share of attention on the grid; the rest is on tokens without a place in the image, such as CLS.

        Raises:
            ValueError: for an unknown attribute, or no image. UnreadableImageError: if an image cannot be read.
        """
        ids = torch.tensor(self.config.attribute_ids(attributes), device=self.device)
        model = self.in_eval_mode()
        maps = [
            model._attend(batch.values, ids.expand(len(batch.values), -1))[: len(batch.rows)].cpu().numpy()
            for batch in pixel_batches(model, as_sequence(images), batch_size)
        ]
        if not maps:
            raise ValueError("no attention maps without images: images is empty")
        return np.concatenate(maps)

    @torch.inference_mode()
    def _attend(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        tokens, grids = self.tokens_and_grids(pixel_values)
        weights = self.condition_tokens(tokens, attribute_ids, output_attentions=True).attentions
        assert weights is not None  # for the type checker: the field is optional
        # the tokens are: summary or prefix, the output's grid, then the grids of earlier levels (see ImageTokens)
        place = max(1, self.config.num_prefix_tokens)
        height, width = max(grids, key=math.prod)
        total = torch.zeros(*weights.shape[:3], height, width, dtype=torch.float32, device=weights.device)
        for level, (rows, columns) in enumerate(grids):
            if level > 0:
                place += self.config.num_prefix_tokens
            cells = weights[..., place : place + rows * columns].float().unflatten(-1, (rows, columns))
            place += rows * columns
            total += _spread(cells, height, width)
        return total


def _spread(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(..., rows, columns) on a finer grid: the finer cells share the value of their coarse cell equally."""
    rows, columns = cells.shape[-2:]
    row = torch.arange(height, device=cells.device) * rows // height  # the coarse row of each finer row
    column = torch.arange(width, device=cells.device) * columns // width
    sharing = torch.bincount(row, minlength=rows)[:, None] * torch.bincount(column, minlength=columns)
    return (cells / sharing)[..., row[:, None], column]


# the names of version 0.1
CCAModelOutput = ConditionalModelOutput
CCAPreTrainedModel = ConditionalPreTrainedModel
