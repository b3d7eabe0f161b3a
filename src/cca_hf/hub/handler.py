"""The `handler.py` of a repository on the Hub: serves a checkpoint as a Hugging Face Inference Endpoint.

    {"inputs": image, "parameters": {"attribute": "colour"}}    ->  {"colour": [...]}
    {"inputs": [image, image]}                                  ->  [{"colour": [...], "closure": [...]}, {...}]
    {"inputs": image, "parameters": {"add": {"colour": "red"}, "remove": ["pattern"]}}      # "this one, but red"

An image is base64 text, a `data:` URL or, if URLs are allowed, an http URL; in Python also bytes or a PIL image. Text
is never read as a file name. `attribute` is a name or a list of names; the default is all attributes. `add` and
`remove` change the embeddings as the model's `manipulate` does. A request that cannot be answered raises a
`RequestError`, and the endpoint sends its message as {"error": message}.

`cca serve` reads requests with the same classes, and decodes images in processes that load this file: therefore only
the endpoint itself imports torch and transformers. It also serves models without attributes, whose answer for an image
is a list of numbers. This file imports nothing of cca_hf. It takes what it shares with
the model's code from the modules that were loaded with the model.
"""

import base64
import importlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from PIL import Image

if TYPE_CHECKING:
    import torch

Readable: TypeAlias = bytes | Image.Image
Vectors: TypeAlias = dict[str, list[float]] | list[float]  # of an image, by attribute if the model has any
Answer: TypeAlias = Vectors | list[Vectors]

STATUS_OF = {  # kind of a RequestError -> HTTP status; only `cca serve` uses broken_off, too_slow and 415
    "invalid_request": 400,
    "unknown_attribute": 400,
    "unknown_parameter": 400,
    "url_not_allowed": 400,
    "broken_off": 400,
    "too_slow": 408,
    "too_large": 413,
    "too_many_pictures": 413,
    "unsupported_media_type": 415,
    "unreadable_picture": 422,
    "unreachable_url": 422,
}
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # for some other formats PIL starts other programs
_MAX_SIDE = 65_535  # pixels, the most in a JPEG: a row takes time of its own, whatever its length
_MAX_SCANS = 64  # a JPEG has one or about ten; decoding a scan takes as long as decoding a whole image
_BLANKS = b" \t\n\r\f\v"  # which base64 text may be wrapped with
_MAX_DECODED = 16  # times `max_pixels`, in all scans of a JPEG together
_NO_HOST = "the URL gives no image: its host must be public, and answer in time"
_KIND_OF_PART = {"url": "url_not_allowed", "size": "too_large"}  # of a URL that cannot be fetched
_LONGEST_NAME = 1000  # characters of an attribute or a value; the search for the closest name takes longer for more
_FORMS_OF_CHANGES = {
    "add": "an object of attributes and values, such as {'colour': 'red'}",
    "remove": "a list of attributes, or an object of attributes and values",
}
_DECIMALS = 8  # the precision of float32 in a vector of length 1; more digits would be noise, and half of the answer


class RequestError(ValueError):
    """A request that cannot be answered. The message names the input and the allowed inputs."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind
        self.status = STATUS_OF[kind]


@dataclass(frozen=True)
class Limits:
    """Limits of one request."""

    max_pictures: int = 32  # images in a request
    max_bytes: int = 10_000_000  # of an image file
    max_pixels: int = 25_000_000  # of an image, read from its header before it is decoded
    allow_urls: bool = False  # whether an image may be an http URL, which this machine then fetches
    url_seconds: float = 10.0  # to fetch one URL, including redirects

    def __post_init__(self) -> None:
        if min(self.max_pictures, self.max_bytes, self.max_pixels) < 1 or not self.url_seconds > 0:
            raise ValueError(f"limits must be at least 1, url_seconds above 0; got {self}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """Limits from variables such as `CCA_ALLOW_URLS=1`: `CCA_` and the name of a field in capitals."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            variable, kind = f"CCA_{field.name.upper()}", cast(type, type(field.default))
            given: Any = environment.get(variable, field.default)
            try:
                values[field.name] = kind(float(given))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{variable} must be a number, 0 or 1 for a switch; got {given!r}") from error
        return cls(**values)


class RequestReader:
    """Reads the requests of clients for a model.

    Args:
        attributes: of the model; empty if it has one embedding of an image.
        images: the module `images` of the model's code, which has `check_header`, `fetch` and `FetchError`.
        model: changes embeddings with its `manipulate`; None if no request may change them.
    """

    def __init__(self, attributes: Sequence[str], limits: Limits, images: Any, model: Any = None):
        self.attributes = list(attributes)
        self.limits = limits
        self._images = images
        self._model = model
        Image.init()
        self.formats = [name for name in _FORMATS if name in Image.OPEN]

    def parse(self, data: Any) -> "Request":
        """Checks the form of a request, whose images are read later; RequestError if it is not valid."""
        if not isinstance(data, Mapping):
            raise RequestError("invalid_request", f"a request must be an object; got {type(data).__name__}")
        _refuse_unknown(data, ("inputs", "parameters"), "the request")
        if "inputs" not in data:
            message = "the request has no 'inputs', which must be an image or a list of images"
            raise RequestError("invalid_request", message)
        parameters = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(parameters, Mapping):
            raise RequestError("invalid_request", f"'parameters' must be an object; got {type(parameters).__name__}")
        _refuse_unknown(parameters, ("attribute", "add", "remove"), "'parameters'")
        attributes = self._names(parameters.get("attribute"))
        change = self._change(parameters, attributes)
        inputs = data["inputs"]
        if not isinstance(inputs, list | tuple):
            return Request([inputs], attributes, self, is_list=False, change=change)
        if not 1 <= len(inputs) <= self.limits.max_pictures:
            message = f"'inputs' is a list of {len(inputs)} images; 1 to {self.limits.max_pictures} are allowed"
            raise RequestError("too_many_pictures" if inputs else "invalid_request", message)
        return Request(inputs, attributes, self, is_list=True, change=change)

    def _names(self, attribute: Any) -> list[str]:
        if attribute is None:
            return self.attributes
        if not self.attributes:
            message = "this model has one embedding of an image, and no attributes"
            raise RequestError("unknown_attribute", f"{message}: leave out 'attribute', 'add' and 'remove'")
        names = [attribute] if isinstance(attribute, str) else attribute
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            allowed = f"a name or a list of names from {self.attributes}"
            raise RequestError("invalid_request", f"'attribute' must be {allowed}; got {type(attribute).__name__}")
        for name in names:
            if name not in self.attributes:
                message = f"unknown attribute {name[:100]!r}.{_closest(name, self.attributes)}"
                raise RequestError("unknown_attribute", f"{message} The model's attributes are {self.attributes}.")
        return list(dict.fromkeys(names))

    def _change(self, parameters: Mapping[str, Any], attributes: list[str]) -> dict[str, Any]:
        """The arguments of the model's `manipulate`; empty if the request changes nothing."""
        change = {name: parameters[name] for name in _FORMS_OF_CHANGES if parameters.get(name) not in (None, [], {})}
        for name, given in change.items():
            texts = [*given, *given.values()] if isinstance(given, Mapping) else given if name == "remove" else None
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise RequestError("invalid_request", f"{name!r} must be {_FORMS_OF_CHANGES[name]}")
            if any(len(text) > _LONGEST_NAME for text in texts):
                raise RequestError("invalid_request", f"a name in {name!r} has more than {_LONGEST_NAME} characters")
            for attribute in self._names(list(given)):
                if attribute not in attributes:
                    message = f"{name!r} changes {attribute!r}, which 'attribute' leaves out of the answer"
                    raise RequestError("invalid_request", message)
        if not change:
            return {}
        if self._model is None:
            raise RequestError("invalid_request", "'add' and 'remove' need a checkpoint; this is an exported model")
        import torch

        try:  # with any embedding, so that a wrong value is refused before an image is read
            self._model.manipulate(torch.ones(len(self.attributes), self._model.get_embedding_dimension()), **change)
        except ValueError as error:
            raise RequestError("invalid_request", str(error)) from error
        return change

    def changed(self, rows: "torch.Tensor", attributes: list[str], change: Mapping[str, Any]) -> "torch.Tensor":
        """Embeddings (images, k, dim) under k attributes, with a change."""
        places = [self.attributes.index(name) for name in attributes]
        whole = rows.new_zeros(len(rows), len(self.attributes), rows.shape[-1])
        whole[:, places] = rows
        return self._model.manipulate(whole, **change)[:, places]

    def read(self, image: Any) -> Readable:
        """The bytes of a JPEG, for which faster decoders than PIL exist, or an image decoded by PIL; fetches a URL.

        Raises:
            RequestError: if the image cannot be read, or exceeds a limit.
        """
        if isinstance(image, str):
            image = self._read_text(image.strip())
        if isinstance(image, bytes):
            return self._open(image)
        if not isinstance(image, Image.Image):
            raise RequestError("invalid_request", f"{self._expected()}; got {type(image).__name__}")
        self._check_size(image)
        return image

    def _read_text(self, text: str) -> bytes:
        if is_url(text):
            if not self.limits.allow_urls:
                raise RequestError("url_not_allowed", f"URLs are not allowed here: {self._expected()}")
            return self._fetch(text)
        start, _, encoded = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
        if start and not start.lower().endswith(";base64"):
            raise RequestError("invalid_request", f"a data: URL must be in base64; got {start[:100]!r}")
        try:
            return base64.b64decode(encoded.encode("ascii").translate(None, _BLANKS), validate=True)
        except ValueError as error:
            raise RequestError("invalid_request", f"{self._expected()}; got {text[:40]!r}") from error

    def _fetch(self, url: str) -> bytes:
        limits = self.limits
        try:
            return cast(
                bytes,
                self._images.fetch(url, seconds=limits.url_seconds, max_bytes=limits.max_bytes, for_strangers=True),
            )
        except self._images.FetchError as error:
            # one message for all hosts, so that nobody learns which names exist in the network of this machine
            message = _NO_HOST if error.part in ("private", "host") else f"the URL gives no image: {error}"
            raise RequestError(_KIND_OF_PART.get(error.part, "unreachable_url"), message) from error

    def _open(self, content: bytes) -> Readable:
        if len(content) > self.limits.max_bytes:
            allowed = f"at most {self.limits.max_bytes:,} bytes per image are allowed"
            raise RequestError("too_large", f"a file of {len(content):,} bytes; {allowed}")
        file = io.BytesIO(content)
        try:
            self._images.check_header(file)
        except ValueError as error:
            raise RequestError("too_large", str(error)) from error
        try:
            image = Image.open(file, formats=self.formats)
            self._check_size(image)
            if image.format not in ("JPEG", "MPO"):
                image.load()  # in these formats only; `Image.open` of the bytes might recognise another one
                return image
        except RequestError:
            raise
        except Image.DecompressionBombError as error:  # above PIL's own limit
            raise RequestError("too_large", str(error)) from error
        except Exception as error:  # PIL raises errors of many types for broken files
            message = f"{len(content):,} bytes are not a complete image in a supported format"
            raise RequestError("unreadable_picture", f"{message} ({', '.join(self.formats)})") from error
        scans = content.count(b"\xff\xda")
        allowed_scans = min(_MAX_SCANS, _MAX_DECODED * self.limits.max_pixels // (image.width * image.height))
        if scans > allowed_scans:
            allowed = f"at most {allowed_scans} are allowed at {image.width} x {image.height} pixels"
            raise RequestError("too_large", f"a JPEG with {scans:,} scans; {allowed}")
        return content

    def _check_size(self, image: Image.Image) -> None:
        if image.width * image.height > self.limits.max_pixels:
            allowed = f"at most {self.limits.max_pixels:,} are allowed"
            raise RequestError("too_large", f"an image of {image.width} x {image.height} pixels; {allowed}")
        if max(image.size) > _MAX_SIDE:
            allowed = f"at most {_MAX_SIDE:,} a side are allowed"
            raise RequestError("too_large", f"an image of {image.width} x {image.height} pixels; {allowed}")

    def _expected(self) -> str:
        return f"an image must be base64 text,{' an http URL' if self.limits.allow_urls else ''} or a data: URL"


class Request(Sequence[Readable]):
    """Images and attributes. An image is read at each access, in any thread, and is not stored.

    Args:
        change: the arguments of `manipulate`, with which the embeddings are changed.
    """

    def __init__(
        self,
        images: Sequence[Any],
        attributes: list[str],
        reader: RequestReader,
        *,
        is_list: bool,
        change: Mapping[str, Any],
    ):
        self.images = images  # as the client sent them
        self.attributes = attributes
        self._reader = reader
        self._is_list = is_list
        self._change = change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: Any) -> Any:
        try:
            return self._reader.read(self.images[row])
        except RequestError as error:
            raise RequestError(error.kind, f"{self.place(row)}: {error}") from error

    def place(self, row: int) -> str:
        """The name of an image in error messages."""
        return f"inputs[{row}]" if self._is_list else "inputs"

    def answer(self, rows: Sequence["torch.Tensor"]) -> Answer:
        """The answer to the request; `rows` has embeddings (attributes, dim) of each image."""
        if self._change:
            import torch

            rows = list(self._reader.changed(torch.stack(list(rows)), self.attributes, self._change))
        rounded = [row.double().round(decimals=_DECIMALS).tolist() for row in rows]
        vectors: list[Vectors]
        if self.attributes:
            vectors = [dict(zip(self.attributes, row, strict=True)) for row in rounded]
        else:
            vectors = [row for (row,) in rounded]
        return vectors if self._is_list else vectors[0]


class EndpointHandler:
    """The class that Inference Endpoints load from `handler.py`: created once, called for each request."""

    def __init__(self, path: str = "", limits: Limits | None = None):
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(path, trust_remote_code=True)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.model = model.to(accelerator or "cpu").eval()
        limits = Limits.from_environment() if limits is None else limits
        images = importlib.import_module(".images", type(model).__module__.rpartition(".")[0])
        self.reader = RequestReader(model.config.attributes, limits, images, self.model)

    def __call__(self, data: Any) -> Answer:
        """Computes the L2-normalised embeddings of the images by attribute, as a list if the request has a list.

        Raises:
            RequestError: if the request cannot be answered. The endpoint sends status 400 and the message.
        """
        request = self.reader.parse(data)
        rows: list[torch.Tensor] = []
        for batch in self.model.encode_batches(request, request.attributes, on_unreadable="skip"):
            for row, error in batch.unreadable.items():
                raise RequestError("unreadable_picture", f"{request.place(row)}: {error}")
            rows.extend(batch.values)
        return request.answer(rows)


def is_url(image: Any) -> bool:
    """Whether an image is given as an http URL."""
    return isinstance(image, str) and image.strip()[:8].lower().startswith(("http://", "https://"))


def _refuse_unknown(given: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            message = f"unknown key {str(key)[:100]!r} in {where}.{_closest(str(key), known)}"
            raise RequestError("unknown_parameter", f"{message} Allowed: {', '.join(known)}.")


def _closest(name: str, known: Sequence[str]) -> str:
    closest = get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f" Did you mean {closest[0]!r}?" if closest else ""
