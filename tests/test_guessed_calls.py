"""Forty calls that users of transformers, sentence-transformers and the Trainer would guess.

The list was written before the code was changed for it. 36 calls work; each of the others ends in an error that names
the right call. One of these is a pipeline without `trust_remote_code=True`; who has read its error gives it from then
on, and so do the calls after it. The calls share their names, and run in this order.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from transformers import ViTConfig

from cca_hf import AttributeIndex, CCAModel, CCATrainer, CCATrainingArguments, load_attribute_dataset
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.models.images import load_image

from .hub.conftest import hub, run_on_hub  # noqa: F401  (fixtures)

pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class Call(NamedTuple):
    """`is_right` is about `result`, the value of the call, and `expected`, which is `model.encode(images)`."""

    text: str
    is_right: str


class Refused(NamedTuple):
    text: str
    error: type[Exception]
    message: str


CALLS: list[Call | Refused] = [
    # transformers
    Call("AutoConfig.from_pretrained(folder)", "result.model_type == 'cca'"),
    Call("AutoModel.from_pretrained(folder)", "type(result) is CCAModel"),
    Call("processor = AutoImageProcessor.from_pretrained(folder)", "processor.size['height'] == 32"),
    Call("CCAModel.from_pretrained(folder, torch_dtype=torch.float16)", "result.dtype == torch.float16"),
    Call("model.float(); model.to('cpu'); model.eval(); model.device, model.dtype", "result[1] == torch.float32"),
    Call("model(pixel_values)", "close(result.embeddings, expected)"),
    Call("model(**processor(images=images, return_tensors='pt'))", "close(result.embeddings, expected)"),
    Call("model(pixel_values, attribute='colour')", "close(result.embeddings, expected[:, 0])"),
    Call("model(pixel_values).pooler_output", "close(result, expected)"),
    Refused("model.get_image_features(pixel_values)", AttributeError, r"use model\.encode\(images\), or model\(pixel"),
    Call("model.config.id2label", "result is None"),
    Call("model.config.num_labels", "result is None"),
    Call("model.save_pretrained('saved'); model.push_to_hub('me/shoes')", "'model.safetensors' in pushed['me/shoes']"),
    Refused(
        "pipeline('image-feature-extraction', model=folder)(image)", ValueError, "option `trust_remote_code=True`"
    ),
    Call("extract(image, attribute='colour')", "close(result, expected[0, 0])"),
    Call(
        "extract(images, attributes=['colour', 'shape'], batch_size=2)",
        "list(result[1]) == ['colour', 'shape'] and close(result[1]['shape'], expected[1, 1])",
    ),
    Call("extract(image, return_tensors=True)", "close(result['shape'], expected[0, 1])"),
    # sentence-transformers
    Call("model.encode(image)", "close(result, expected[:1])"),
    Call("model.encode('query.jpg', attribute='colour')", "result.shape == (32,)"),
    Call("model.encode(images, attributes='colour')", "close(result, expected[:, :1])"),
    Call("model.encode(images, batch_size=2, show_progress_bar=True)", "close(result, expected)"),
    Call("model.encode(images, convert_to_tensor=True)", "torch.is_tensor(result) and close(result, expected)"),
    Call(
        "model.encode(images, normalize_embeddings=True, convert_to_numpy=True, device='cpu')",
        "isinstance(result, np.ndarray) and close(result, expected)",
    ),
    Refused("model.encode(images, attribute='color')", ValueError, "unknown attribute 'color'. Did you mean 'colour'"),
    Call("model.similarity(expected[:2, 0], expected[:, 0])", "close(result, expected[:2, 0] @ expected[:, 0].T)"),
    Call(
        "util.semantic_search(model.encode(image, attribute='colour'), "
        "model.encode(images, attribute='colour'), top_k=5)",
        "result[0][0]['corpus_id'] == 0 and len(result[0]) == 4",
    ),
    Call("model.get_sentence_embedding_dimension()", "result == 32"),
    Call("embedder.encode(images, attribute='colour')", "close(result, expected[:, 0])"),
    Call("embedder.encode(images, attributes='colour', normalize_embeddings=True)", "close(result, expected[:, 0])"),
    # the Trainer
    Call(
        "trainer = CCATrainer(model=model, args=args, train_dataset=data['train'], eval_dataset=data['validation'])",
        "trainer.model is model",
    ),
    Call("trainer.train(resume_from_checkpoint=True)", "result.global_step == 2"),
    Call("trainer.evaluate()", "0 < result['eval_map'] <= 1"),
    Call("trainer.predict(data['test'])", "result.predictions.shape == (20, 5, 32)"),
    Call("trainer.save_model()", "Path('my-run', 'model.safetensors').is_file()"),
    Call("trainer.push_to_hub()", "{'model.safetensors', 'handler.py', 'run-card'} <= set(pushed['me/my-run'])"),
    # the index and the data
    Call("data['train'][0]['image']", "result.size == (32, 32)"),
    Call("index = AttributeIndex.open('shoes.index')", "index.schema.attributes[0] == 'colour'"),
    Call("index.search(image, attribute='colour', top_k=3)", "result[0].item_id == '0' and len(result) == 3"),
    Refused("index.search(image, attribute='colour', k=5, where=\"colour = 'red'\")", TypeError, "top or top_k"),
    Call("len(index); str(index)", "\"AttributeIndex('shoes.index': 4 items; attributes: colour, shape\" in result"),
]

# what the two pushes need; in a process whose Hub is a stand-in
PUSHES = """
import json, sys
from huggingface_hub import HfApi, ModelCard
from cca_hf import CCAModel, CCATrainer, CCATrainingArguments, load_attribute_dataset
from cca_hf.data.shapes import generate_shapes_dataset

data = load_attribute_dataset(generate_shapes_dataset(num_images=100, image_size=32))
model = CCAModel.from_pretrained(sys.argv[1])
model.push_to_hub("me/shoes")
args = CCATrainingArguments("my-run", use_cpu=True, bf16=False, eval_strategy="no", load_best_model_at_end=False)
address = CCATrainer(model, args, data).push_to_hub()
pushed = {name: HfApi().list_repo_files(name) for name in ("me/shoes", "me/my-run")}
if 'from_pretrained("me/my-run"' in ModelCard.load("me/my-run").text and "/me/my-run/" in address:
    pushed["me/my-run"].append("run-card")
print(json.dumps(pushed))
"""


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory, run_on_hub: Any) -> Iterator[dict[str, Any]]:  # noqa: F811
    """What a script would have imported, loaded and trained before; the working directory is a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guessed"))
        data = load_attribute_dataset(generate_shapes_dataset(num_images=100, image_size=32))
        torch.manual_seed(0)
        made = CCAModel.from_backbone(ViTConfig(**VIT, image_size=32, patch_size=8), data.attributes)
        made.save_pretrained("shoes")
        images = [load_image(image) for image in data["test"][:4]["image"]]
        images[0].save("query.jpg")
        with AttributeIndex.create(
            "shoes.index", CCAModel.from_pretrained("shoes"), columns={"colour": "text"}
        ) as new:
            new.add(range(4), images=images, columns={"colour": ["red", "blue", "red", None]})
        settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "report_to": "none"}
        settings |= {"eval_strategy": "no", "load_best_model_at_end": False, "attribute_map": "none"}
        settings |= {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 16}
        CCATrainer(made, CCATrainingArguments("my-run", **settings, max_steps=1), data).train()
        model = CCAModel.from_pretrained("shoes")
        options = {"trust_remote_code": True, "device": "cpu"}
        yield {
            "AttributeIndex": AttributeIndex,
            "AutoConfig": transformers.AutoConfig,
            "AutoImageProcessor": transformers.AutoImageProcessor,
            "AutoModel": transformers.AutoModel,
            "CCAModel": CCAModel,
            "CCATrainer": CCATrainer,
            "Path": Path,
            "args": CCATrainingArguments("my-run", **settings, max_steps=2),
            "close": lambda given, right: np.allclose(torch.as_tensor(given).detach(), right, atol=1e-4),
            "data": data,
            "embedder": sentence_transformers.SentenceTransformer("shoes", **options),
            "expected": model.encode(images),
            "extract": transformers.pipeline("image-feature-extraction", model="shoes", trust_remote_code=True),
            "folder": "shoes",
            "image": images[0],
            "images": images,
            "model": model,
            "np": np,
            "pipeline": transformers.pipeline,
            "pixel_values": model.image_processor(images, return_tensors="pt")["pixel_values"],
            "pushed": run_on_hub(PUSHES, Path("shoes").resolve()),
            "torch": torch,
            "util": sentence_transformers.util,
        }


def run(text: str, names: dict[str, Any]) -> Any:
    """The value of the last statement."""
    *first, last = ast.parse(text).body
    exec(compile(ast.Module(first, []), text, "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), text, "eval"), names)
    exec(compile(ast.Module([last], []), text, "exec"), names)
    return None


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.text)
def test_call(call: Call | Refused, names: dict[str, Any]) -> None:
    if isinstance(call, Refused):
        with pytest.raises(call.error, match=call.message):
            run(call.text, names)
        return
    # PUSHES have run before, in a process of its own
    result = None if "push_to_hub" in call.text else run(call.text, names)
    assert eval(call.is_right, {**names, "result": result}), repr(result)


def test_forty_calls_of_which_36_work() -> None:
    assert len(CALLS) == 40
    assert sum(isinstance(call, Call) for call in CALLS) == 36
