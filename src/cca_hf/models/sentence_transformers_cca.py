"""A CCA checkpoint in sentence-transformers. The checkpoint's `modules.json` names this file; nothing else imports it.

    model = SentenceTransformer("me/cca-shoes", trust_remote_code=True)
    embeddings = model.encode(images, attribute="colour")

sentence-transformers returns one vector for one input, so each call names one attribute. Code that calls `encode`
itself, such as an evaluator, cannot name one: `model_kwargs={"attribute": "colour"}` sets a default at loading, which
is saved with the model.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
from transformers import AutoModel, PreTrainedModel

from .configuration_images import one_of
from .images import ImageInput, ImageReader

# under `try`, so that transformers does not require sentence-transformers to load a checkpoint
try:
    from sentence_transformers.base.modules import InputModule
except ImportError:  # before version 6
    from sentence_transformers.models import InputModule


class CCAInputModule(InputModule):
    """The only module of a `SentenceTransformer`: one L2-normalised embedding of an image, under one attribute."""

    forward_kwargs = {"attribute", "attributes"}
    save_in_root = True
    config_file_name = "sentence_transformers_cca.json"
    config_keys: ClassVar[list[str]] = ["attribute"]

    def __init__(self, model: PreTrainedModel, attribute: str | None = None) -> None:
        """`attribute` is the default for calls without one."""
        super().__init__()
        if attribute is not None:
            model.config.attribute_id(attribute)  # raises for an unknown attribute
        self.model = model
        self.attribute = attribute

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        cache_folder: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **others: Any,
    ) -> "CCAInputModule":
        """Load a checkpoint, as sentence-transformers does; `others` are arguments that differ between its versions.

        Raises:
            ValueError: for another backend than torch, an unknown attribute, or settings that have no effect.
        """
        if backend != "torch":
            raise ValueError(f"a CCA checkpoint runs on backend='torch' here, not on {backend!r}: see 'cca export'")
        for name, value in others.items():
            if name.endswith("_kwargs") and value:
                raise ValueError(f"a CCA checkpoint takes only model_kwargs; got {name}={value}")
        names = ("trust_remote_code", "token", "revision", "local_files_only")
        loading = {name: others[name] for name in names if name in others}
        loading |= {"cache_dir": cache_folder, **(model_kwargs or {})}
        places = ("token", "revision", "local_files_only")
        hub_kwargs = {name: others[name] for name in places if name in others}
        saved = cls.load_config(model_name_or_path, cache_folder=cache_folder, **hub_kwargs)
        attribute = loading.pop("attribute", saved.get("attribute"))
        return cls(AutoModel.from_pretrained(model_name_or_path, **loading), attribute)

    @property
    def modalities(self) -> list[str]:
        return ["image"]

    def get_embedding_dimension(self) -> int:
        """Length of each vector."""
        return self.model.get_embedding_dimension()

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before version 6

    def preprocess(
        self,
        inputs: Sequence[ImageInput],
        prompt: str | None = None,
        attribute: str | Sequence[str] | None = None,
        attributes: str | Sequence[str] | None = None,
        task: str | None = None,
        **unknown: Any,
    ) -> dict[str, torch.Tensor]:
        """Read images: paths, URLs, PIL images or arrays -> `pixel_values` (batch, 3, height, width).

        Args:
            inputs: images, also as dicts `{"image": image}` as sentence-transformers and mteb pass them.
            attribute, attributes: not used here; `encode` passes them to this method as well as to `forward`.
            task: "query" or "document", which are embedded alike.

        Raises:
            ValueError: for a prompt or other settings, which need a text; for a dict with something else.
            UnreadableImageError: for an input that is not an image.
        """
        if prompt or unknown:
            given = ", ".join(sorted([*unknown, *(["prompt"] if prompt else [])]))
            raise ValueError(f"this model embeds images under an attribute and knows no {given}; it knows `attribute`")
        reader = ImageReader(self.model.image_processor)
        pixels = torch.stack([reader.read(_image_of(given)) for given in inputs])
        return {"pixel_values": reader.scale(pixels, torch.device("cpu"), self.model.dtype)}

    tokenize = preprocess  # its name before version 6

    def forward(
        self,
        features: dict[str, torch.Tensor],
        attribute: str | Sequence[str] | None = None,
        attributes: str | Sequence[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Adds `sentence_embedding` (batch, dim).

        Args:
            attribute, attributes: one name, also as a list of one.

        Raises:
            ValueError: for an unknown attribute (naming the closest), several, or none.
        """
        given = one_of(attribute, attributes)
        name = self.attribute if given is None else given
        if isinstance(name, (list, tuple)) and len(name) == 1:
            (name,) = name
        if not isinstance(name, str):
            known = self.model.config.attributes
            raise ValueError(
                f"one vector for one image: name one attribute, such as encode(images, attribute={known[0]!r}); got "
                f"{name!r}. This model knows {known}; AutoModel.from_pretrained(...).encode returns several at once."
            )
        pixel_values = features["pixel_values"]
        ids = torch.full((len(pixel_values),), self.model.config.attribute_id(name), device=pixel_values.device)
        return {**features, "sentence_embedding": self.model(pixel_values, attribute_ids=ids).embeddings}

    def save(self, output_path: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """The whole checkpoint, as `CCAModel.save_pretrained`, and the default attribute; always safetensors."""
        self.model.save_pretrained(output_path)
        self.save_config(str(output_path))


def _image_of(given: ImageInput) -> ImageInput:
    if not isinstance(given, dict) or "image" not in given:
        return given
    if len(given) > 1:
        others = ", ".join(sorted(map(repr, set(given) - {"image"})))
        raise ValueError(f"this model embeds images under an attribute and knows no {others} beside 'image'")
    return given["image"]
