"""How fast is CCA? Every figure is a ratio of times that were measured in turns, so that a slow machine cancels out.

    python scripts/benchmark_speed.py                                   # all sections; half an hour on two cores
    python scripts/benchmark_speed.py --sections one_pass encode --rounds 3
    python scripts/benchmark_speed.py --sections one_pass --device cuda --dtype bfloat16 --compile --batch_sizes 256
    python scripts/benchmark_speed.py --output docs/benchmarks          # writes speed_<machine>.json

On a ViT-B/16 with random weights, 224 x 224 pixels, in inference mode:
- one_pass: one pass that embeds 8 (64) attributes, over one plain `ViTModel` pass; eight passes over one; its floating
  point operations per second over those of a large matrix product;
- encode: from JPEG files, over reading alone, the model alone, the same model with the default attribute map, and
  libraries that compute one embedding without a condition: the transformers pipeline with its default arguments (one
  image at a time) and in batches of the same size, and sentence-transformers;
- runtimes: exported models over the model, and the similarity of their embeddings;
- growth: time per image and memory of `encode` for an increasing number of images (with a tiny model);
- evaluation: exact mAP over the matrix product alone, and over other libraries.

`benchmark_training_speed.py` measures training. Packages that are not installed (onnxruntime, openvino,
sentence-transformers, scikit-learn, torchmetrics, pytorch-metric-learning) are left out, with a message.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from speed_measures import (
    in_new_process,
    matmul_at_peak,
    median_ratio,
    peak_memory_of,
    run_sections,
    time_in_turns,
    write_jpegs,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, pipeline

from cca_hf import CCAModel, ExportedModel, export_model, retrieval_metrics
from cca_hf.models.images import ImageReader

NUM_ATTRIBUTES = 8
NUM_VALUES = 50  # of each attribute in an attribute map


def make_model(num_attributes: int, arguments: argparse.Namespace) -> CCAModel:
    torch.manual_seed(0)
    model = CCAModel.from_backbone(ViTConfig(), [f"attribute {i}" for i in range(num_attributes)])
    return model.to(arguments.device, arguments.dtype).eval()


def add_attribute_map(model: CCAModel) -> CCAModel:
    """Gives the model the default map, with random numbers in place of fitted ones."""
    names = [f"value {value}" for value in range(NUM_VALUES)]
    model.config.known_values = dict.fromkeys(model.config.attributes, names)
    subspaces = model.set_attribute_map("values").subspaces
    subspaces.frequencies.normal_()
    for attribute_id in range(NUM_ATTRIBUTES):
        weights = torch.randn(NUM_VALUES, subspaces.dim)
        subspaces.set_values(attribute_id, weights, torch.zeros(NUM_VALUES), threshold=0.0)
    return model


def benchmark_one_pass(arguments: argparse.Namespace) -> dict[str, Any]:
    return {str(size): _one_pass(size, arguments) for size in arguments.batch_sizes}


@torch.inference_mode()
def _one_pass(batch_size: int, arguments: argparse.Namespace) -> dict[str, float]:
    vit = ViTModel(ViTConfig(), add_pooling_layer=False).to(arguments.device, arguments.dtype).eval()
    model, many = make_model(NUM_ATTRIBUTES, arguments), make_model(64, arguments)
    pixel_values = torch.randn(batch_size, 3, 224, 224, device=arguments.device, dtype=arguments.dtype)
    every = torch.arange(NUM_ATTRIBUTES, device=arguments.device).expand(batch_size, -1)
    of_64 = torch.arange(64, device=arguments.device).expand(batch_size, -1)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values, attribute_ids=every)
    if arguments.compile:
        for each in (vit, model, many):
            each.compile()

    def one_by_one() -> list[torch.Tensor]:
        return [model(pixel_values, attribute_ids=every[:, i]).embeddings for i in range(NUM_ATTRIBUTES)]

    matmul, operations = matmul_at_peak(arguments.device, arguments.dtype)
    seconds = time_in_turns(
        {
            "plain ViT": lambda: vit(pixel_values),
            "all attributes": lambda: model(pixel_values, attribute_ids=every),
            "64 attributes": lambda: many(pixel_values, attribute_ids=of_64),
            "one by one": one_by_one,
            "matmul": matmul,
        },
        arguments.rounds,
    )
    difference = torch.stack(one_by_one(), dim=1) - model(pixel_values, attribute_ids=every).embeddings
    share = median_ratio(seconds["matmul"], seconds["all attributes"]) * counter.get_total_flops() / operations
    return {
        "plain_vit_ms_per_image": 1000 * statistics.median(seconds["plain ViT"]) / batch_size,
        "all_attributes_over_plain_vit": median_ratio(seconds["all attributes"], seconds["plain ViT"]),
        "64_attributes_over_plain_vit": median_ratio(seconds["64 attributes"], seconds["plain ViT"]),
        "one_by_one_over_all_attributes": median_ratio(seconds["one by one"], seconds["all attributes"]),
        "flops_over_matmul_peak": share,
        "matmul_peak_gflops": operations / statistics.median(seconds["matmul"]) / 1e9,
        "largest_difference": difference.abs().max().item(),
    }


def benchmark_encode(arguments: argparse.Namespace) -> dict[str, float]:
    batch_size, count = arguments.encode_batch_size, arguments.pictures
    model = make_model(NUM_ATTRIBUTES, arguments)
    mapped = add_attribute_map(make_model(NUM_ATTRIBUTES, arguments))
    vit = ViTModel(ViTConfig(), add_pooling_layer=False).to(arguments.device, arguments.dtype).eval()
    extract = pipeline(
        "image-feature-extraction", model=vit, image_processor=ViTImageProcessorPil(), device=arguments.device
    )
    reader = ImageReader(model.image_processor)
    workers = arguments.num_workers or max(1, torch.get_num_threads())
    pixel_values = torch.randn(batch_size, 3, 224, 224, device=arguments.device, dtype=arguments.dtype)
    every = torch.arange(NUM_ATTRIBUTES, device=arguments.device).expand(batch_size, -1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), count)

        def read_only() -> None:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(reader.read, paths):
                    pass

        @torch.inference_mode()
        def model_only() -> None:
            for _ in range(count // batch_size):
                model(pixel_values, attribute_ids=every)

        options = {"batch_size": batch_size, "show_progress": False, "num_workers": arguments.num_workers}
        names = list(map(str, paths))
        work: dict[str, Callable[[], object]] = {
            "read": read_only,
            "model": model_only,
            "encode": lambda: model.encode(paths, **options),
            "encode_with_attribute_map": lambda: mapped.encode(paths, **options),
            "transformers_pipeline": lambda: extract(names),
            "transformers_pipeline_in_batches": lambda: extract(names, batch_size=batch_size),
        }
        if _installed("sentence_transformers"):
            embedder = make_sentence_transformer(vit, Path(folder, "vit"))
            work["sentence_transformers"] = lambda: embedder.encode(names, batch_size=batch_size)
        seconds = time_in_turns(work, arguments.rounds)
    slower = [max(pair) for pair in zip(seconds["read"], seconds["model"], strict=True)]
    ours = ("read", "model", "encode", "encode_with_attribute_map")
    peers = [name for name in work if name not in ours]
    return {
        "pictures_per_second": count / statistics.median(seconds["encode"]),
        "read_pictures_per_second": count / statistics.median(seconds["read"]),
        "model_pictures_per_second": count / statistics.median(seconds["model"]),
        "encode_over_the_slower_of_both": median_ratio(slower, seconds["encode"]),
        "attribute_map_over_none": median_ratio(seconds["encode_with_attribute_map"], seconds["encode"]),
        **{f"encode_over_{name}": median_ratio(seconds[name], seconds["encode"]) for name in peers},
    }


def make_sentence_transformer(vit: ViTModel, folder: Path) -> Any:
    """The same network in sentence-transformers, with mean pooling."""
    from sentence_transformers import SentenceTransformer

    vit.save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return SentenceTransformer(str(folder), device=str(vit.device), model_kwargs={"dtype": vit.dtype})


@torch.inference_mode()
def benchmark_runtimes(arguments: argparse.Namespace) -> dict[str, Any]:
    model = make_model(NUM_ATTRIBUTES, argparse.Namespace(device=torch.device("cpu"), dtype=torch.float32))
    half = make_model(NUM_ATTRIBUTES, argparse.Namespace(device=torch.device("cpu"), dtype=torch.bfloat16))
    ids = torch.arange(NUM_ATTRIBUTES)
    runners: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "eager": lambda pixels: model(pixels, attribute_ids=ids.expand(len(pixels), -1)).embeddings,
        "eager bfloat16": lambda pixels: half(pixels.bfloat16(), attribute_ids=ids.expand(len(pixels), -1)).embeddings,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, runtime, int8 in (
            ("onnx", "onnx", False), ("onnx int8", "onnx", True), ("openvino", "openvino", False)
        ):  # fmt: skip
            if not _installed({"onnx": "onnxruntime", "openvino": "openvino"}[runtime], "onnxscript"):
                continue
            export_model(model, Path(folder, name), runtime, int8=int8)
            exported = ExportedModel.from_pretrained(Path(folder, name), num_threads=torch.get_num_threads())
            runners[name] = lambda p, exported=exported: exported(p, ids.expand(len(p), -1)).embeddings
        figures: dict[str, Any] = {}
        for batch_size in (1, 8):
            pixels = torch.randn(batch_size, 3, 224, 224)
            want = runners["eager"](pixels)
            work = {name: lambda run=run, pixels=pixels: run(pixels) for name, run in runners.items()}
            seconds = time_in_turns(work, arguments.rounds)
            figures[str(batch_size)] = {
                name: {
                    "throughput_over_eager": median_ratio(seconds["eager"], seconds[name]),
                    "least_cosine": (run(pixels).float() * want).sum(dim=-1).min().item(),
                }
                for name, run in runners.items()
                if name != "eager"
            }
    return figures


class Repeated(Sequence):
    """A long sequence that repeats a few images."""

    def __init__(self, pictures: Sequence[Path], length: int):
        self.pictures, self.length = pictures, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> Path:
        return self.pictures[place % len(self.pictures)]


def benchmark_growth(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, measured in turns, and peak memory of a separate process."""
    counts = arguments.growth
    seconds = {str(count): [] for count in counts}
    memory = {str(count): in_new_process(memory_of_encoding, count) for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        encode = make_tiny_encoder(Path(folder))
        encode(counts[0])
        for _ in range(arguments.growth_rounds):
            for count in counts:
                start = time.perf_counter()
                encode(count)
                seconds[str(count)].append((time.perf_counter() - start) / count)
    few = str(counts[0])
    return {
        count: {
            "microseconds_per_picture": 1e6 * statistics.median(seconds[count]),
            f"time_over_that_of_{few}": median_ratio(seconds[count], seconds[few]),
            "peak_memory_mib": memory[count],
        }
        for count in map(str, counts)
    }


def make_tiny_encoder(folder: Path) -> Callable[[int], None]:
    """A function that encodes a number of images of 64 x 64 pixels and discards the embeddings."""
    backbone = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    model = CCAModel.from_backbone(backbone, ["a", "b"], embedding_dim=8).eval()
    paths = write_jpegs(folder, 16)
    for path in paths:
        Image.open(path).resize((64, 64)).save(path)

    def encode(count: int) -> None:
        for _ in model.encode_batches(Repeated(paths, count)):
            pass

    return encode


def memory_of_encoding(count: int) -> float:
    """Memory in MiB, beyond that of the first 1,000 images."""
    with tempfile.TemporaryDirectory() as folder:
        encode = make_tiny_encoder(Path(folder))
        encode(1000)
        return peak_memory_of(lambda: encode(count), torch.device("cpu"))


def benchmark_evaluation(arguments: argparse.Namespace) -> dict[str, Any]:
    """With 100 or 10 values of an attribute, a hundredth or a tenth of the gallery is relevant."""
    generator = np.random.default_rng(0)
    queries, gallery = arguments.queries, arguments.gallery
    embeddings = generator.normal(size=(queries + gallery, 128)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    asked, answers = embeddings[:queries], embeddings[queries:]
    chunk = max(1, 128 * 2**20 // (4 * gallery))  # as in the package

    similarities, tensors = torch.empty(chunk, gallery), [torch.from_numpy(each) for each in (asked, answers)]

    def matmul() -> None:
        for some in tensors[0].split(chunk):
            torch.mm(some, tensors[1].T, out=similarities[: len(some)])

    figures: dict[str, Any] = {"queries": queries, "gallery": gallery}
    for num_values in (100, 10):
        labels = generator.integers(0, num_values, queries + gallery)
        few, few_labels = asked[: arguments.peer_queries], labels[: arguments.peer_queries]
        work: dict[str, Callable[[], object]] = {
            "matmul": matmul,
            "ours": partial(retrieval_metrics, asked, labels[:queries], answers, labels[queries:]),
            "ours, few": partial(retrieval_metrics, few, few_labels, answers, labels[queries:]),
        }
        work |= _peers(few, few_labels, answers, labels[queries:])
        seconds = time_in_turns(work, arguments.evaluation_rounds)
        figures[f"{num_values} values"] = {
            "map_over_matmul": median_ratio(seconds["ours"], seconds["matmul"]),
            **{
                f"{name}_over_ours_for_{len(few)}_queries": median_ratio(seconds[name], seconds["ours, few"])
                for name in work
                if name not in ("matmul", "ours", "ours, few")
            },
        }
    return figures


def _peers(asked: np.ndarray, wanted: np.ndarray, answers: np.ndarray, labels: np.ndarray) -> dict[str, Callable]:
    found: dict[str, Callable[[], object]] = {}
    if _installed("sklearn"):
        from sklearn.metrics import average_precision_score

        def by_sklearn() -> float:
            rows = zip(asked @ answers.T, wanted, strict=True)
            return float(np.mean([average_precision_score(labels == value, row) for row, value in rows]))

        found["scikit-learn"] = by_sklearn
    if _installed("torchmetrics"):
        from torchmetrics.functional.retrieval import retrieval_average_precision

        def by_torchmetrics() -> float:
            rows = zip(torch.from_numpy(asked @ answers.T), wanted, strict=True)
            relevant = [torch.from_numpy(labels == value) for value in range(labels.max() + 1)]
            return float(np.mean([retrieval_average_precision(row, relevant[value]) for row, value in rows]))

        found["torchmetrics"] = by_torchmetrics
    if _installed("pytorch_metric_learning"):
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        from pytorch_metric_learning.utils.inference import CustomKNN

        calculator = AccuracyCalculator(
            include=("mean_average_precision",),
            k=len(answers),
            device=torch.device("cpu"),
            knn_func=CustomKNN(CosineSimilarity()),
        )
        tensors = [torch.from_numpy(each) for each in (asked, wanted, answers, labels)]
        found["pytorch-metric-learning"] = lambda: calculator.get_accuracy(*tensors)["mean_average_precision"]
    return found


def _installed(*names: str) -> bool:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: {', '.join(missing)} is not installed")
    return not missing


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "one_pass": benchmark_one_pass,
    "encode": benchmark_encode,
    "runtimes": benchmark_runtimes,
    "growth": benchmark_growth,
    "evaluation": benchmark_evaluation,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cpu"), help="device of one_pass and encode"
    )
    parser.add_argument("--dtype", type=lambda name: vars(torch)[name], default=torch.float32)
    parser.add_argument("--compile", action="store_true", help="compile the models in one_pass")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32], help="batch sizes of one_pass")
    parser.add_argument("--encode_batch_size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=64, help="images of encode, a multiple of its batch size")
    parser.add_argument("--num_workers", type=int, help="reading threads of encode")
    parser.add_argument("--growth", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--growth_rounds", type=int, default=1)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument(
        "--peer_queries", type=int, default=1000, help="queries for the other libraries, which are slow"
    )
    parser.add_argument("--evaluation_rounds", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, help="folder for speed_<machine>.json; other sections of the file are kept"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    setting = {"device": str(arguments.device), "dtype": str(arguments.dtype), "compiled": arguments.compile}
    run_sections({name: partial(SECTIONS[name], arguments) for name in arguments.sections}, setting, arguments.output)


if __name__ == "__main__":
    main()
