"""How fast does CCA train? Every figure is a ratio of times measured in turns, as in `benchmark_speed.py`.

    python scripts/benchmark_training_speed.py                                   # half an hour on two cores
    python scripts/benchmark_training_speed.py --sections training --batch_size 16 --rounds 3
    python scripts/benchmark_training_speed.py --sections training --device cuda --bf16 --compile --batch_size 256
    python scripts/benchmark_training_speed.py --output docs/benchmarks          # writes speed_<machine>.json

On a ViT-B/16 with random weights, 224 x 224 pixels, 8 attributes:
- training: a step of `CCATrainer` (including loss, logged figures, clipping and AdamW), over a step of the same ViT in
  a plain loop with a dummy loss; the number of triplets that use the pass of an image, over a third, the number for a
  network that embeds anchor, positive and negative of each triplet separately;
- loss: mining and loss alone for a large batch, as a share of the step on this batch, and its memory; for a smaller
  batch, the loss and the miner of pytorch-metric-learning, one attribute after the other, over ours;
- micro_batches: a step in micro-batches over a plain step, and the memory of both;
- token_cache: an epoch of a frozen backbone on stored features, over the first epoch, which computes them.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
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
from transformers import MobileNetV2Config, PreTrainedConfig, TrainerCallback, ViTConfig, ViTModel

from cca_hf import AttributeDataset, CCAModel, CCATrainer, CCATrainingArguments, load_attribute_dataset
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.training.losses import ConditionalSoftTripletLoss, ConditionalTripletLoss, pair_masks

NUM_ATTRIBUTES, NUM_VALUES = 8, 8
TRIPLETS_OF_THREE_PASSES = 1 / 3  # triplets for each image that passes through the network


def draw_labels(count: int) -> np.ndarray:
    """Labels, (count, attributes), with all values of an attribute about equally often."""
    return np.random.default_rng(0).integers(0, NUM_VALUES, (count, NUM_ATTRIBUTES))


def make_data(paths: list[Path]) -> AttributeDataset:
    labels = draw_labels(len(paths))
    values = ClassLabel(names=[f"value {i}" for i in range(NUM_VALUES)])
    columns = {f"attribute {i}": labels[:, i].tolist() for i in range(NUM_ATTRIBUTES)}
    features = Features({"image": Image(), **dict.fromkeys(columns, values)})
    train = Dataset.from_dict({"image": [str(path) for path in paths], **columns}, features=features)
    return load_attribute_dataset(DatasetDict({"train": train, "validation": train}), make_splits=False)


def make_trainer(
    folder: Path, data: AttributeDataset, backbone: PreTrainedConfig, arguments: argparse.Namespace, **settings: Any
) -> CCATrainer:
    torch.manual_seed(0)
    args = CCATrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=arguments.batch_size,
        use_cpu=arguments.device.type == "cpu",
        bf16=arguments.bf16,
        torch_compile=arguments.compile,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        collapse_patience=0,
        attribute_map="none",  # a step after the training is one of the training
        **settings,
    )
    model = CCAModel.from_backbone(backbone, data.attributes, freeze_batch_norm=True)  # as for a pretrained backbone
    return CCATrainer(model, args, data)


class TrainingStep:
    """The step of `CCATrainer.train` for a batch of images in memory."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, **settings: Any) -> None:
        folder.mkdir()
        data = make_data(write_jpegs(folder, arguments.batch_size))
        # the optimiser after a complete run, with learning rates of 0; the time of a step is the same
        self.trainer = make_trainer(folder, data, make_vit(arguments), arguments, max_steps=1, **settings)
        self.trainer.train()
        self.model = self.trainer.model_wrapped
        self.batch = next(iter(self.trainer.get_train_dataloader()))

    def __call__(self) -> None:
        self.trainer.training_step(self.model, dict(self.batch))
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.trainer.loss.optimizer_step()
        self.model.zero_grad()


def make_vit(arguments: argparse.Namespace) -> ViTConfig:
    return ViTConfig(**arguments.vit)


def make_bare_step(arguments: argparse.Namespace, pixel_values: torch.Tensor) -> Callable[[], None]:
    vit = ViTModel(make_vit(arguments), add_pooling_layer=False).to(arguments.device).train()
    optimizer = torch.optim.AdamW(vit.parameters(), lr=0.0, fused=True)
    if arguments.compile:
        vit.compile()

    def step() -> None:
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16):
            states = vit(pixel_values).last_hidden_state
        states[:, 0].float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def benchmark_training(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        step = TrainingStep(Path(folder, "run"), arguments)
    with FlopCounterMode(display=False) as counter:
        # a compiled model would hide its products from the counter
        step.trainer.training_step(step.trainer.model, dict(step.batch))
    matmul, operations = matmul_at_peak(arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32)
    bare = make_bare_step(arguments, step.batch["pixel_values"])
    seconds = time_in_turns({"bare": bare, "ours": step, "matmul": matmul}, arguments.rounds)
    return {
        "batch_size": arguments.batch_size,
        "step_seconds": statistics.median(seconds["ours"]),
        "throughput_over_bare_loop": median_ratio(seconds["bare"], seconds["ours"]),
        "flops_over_matmul_peak": median_ratio(seconds["matmul"], seconds["ours"])
        * counter.get_total_flops()
        / operations,
        "triplets_per_pass_over_three_pass_recipe": {
            name: triplets_per_picture(labels, arguments.batch_size) / TRIPLETS_OF_THREE_PASSES
            for name, labels in {
                "all labels": draw_labels(10_000),
                "one label a picture": draw_one_label(10_000),
            }.items()
        },
    }


def draw_one_label(count: int) -> np.ndarray:
    """The same labels, but each image is labelled for one attribute only, as in FashionAI."""
    labels = draw_labels(count)
    labels[np.arange(NUM_ATTRIBUTES) != np.arange(count)[:, None] % NUM_ATTRIBUTES] = -1
    return labels


def triplets_per_picture(labels: np.ndarray, batch_size: int, batches: int = 20) -> float:
    """Triplets per image in training batches of such a data set; all triplets of a batch enter the loss."""
    defaults = {field.name: field.default for field in fields(CCATrainingArguments)}
    names = ("images_per_value", "values_per_batch")
    sampler = AttributeBatchSampler(labels, batch_size=batch_size, seed=0, **{name: defaults[name] for name in names})
    total = 0
    for batch in islice(sampler, batches):
        positives, negatives = pair_masks(torch.from_numpy(labels[[key.index for key in batch]]))
        total += (positives.sum(2) * negatives.sum(2)).sum().item()
    return total / (batches * batch_size)


def benchmark_loss(arguments: argparse.Namespace) -> dict[str, Any]:
    """The time of the step on the large batch is extrapolated from the step on the normal batch."""
    memory = in_new_process(memory_of_loss, arguments)
    with tempfile.TemporaryDirectory() as folder:
        step = TrainingStep(Path(folder, "run"), arguments)
    learn = make_loss_step(arguments.loss_batch_size, step.trainer.model.config.hidden_size, arguments.device)
    seconds = time_in_turns({"loss": learn, "step": step}, arguments.rounds)
    steps = arguments.loss_batch_size / arguments.batch_size
    return {
        "batch_size": arguments.loss_batch_size,
        "milliseconds": 1000 * statistics.median(seconds["loss"]),
        "share_of_step": median_ratio(seconds["loss"], seconds["step"]) / steps,
        "peak_memory_mib": memory,
        **compare_losses(arguments),
    }


def compare_losses(arguments: argparse.Namespace) -> dict[str, float]:
    """Compares the triplet loss over all active, or over semi-hard, triplets, including its gradient."""
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        print("left out: pytorch_metric_learning is not installed")
        return {}
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner

    distance = CosineSimilarity()
    theirs = TripletMarginLoss(margin=0.2, distance=distance)
    miner = TripletMarginMiner(margin=0.2, distance=distance, type_of_triplets="semihard")
    embeddings, labels = draw_embeddings(arguments.peer_batch_size, make_vit(arguments).hidden_size, arguments.device)

    def of_peer(mined: bool) -> torch.Tensor:
        losses = []
        for each, known in zip(embeddings.unbind(1), labels.unbind(1), strict=True):
            losses.append(theirs(each, known, miner(each, known) if mined else None))
        return torch.stack(losses).mean()

    ours = {False: ConditionalTripletLoss(margin=0.2), True: ConditionalTripletLoss(margin=0.2, mining="semihard")}
    figures: dict[str, float] = {"peer_batch_size": arguments.peer_batch_size}
    for mined, name in ((False, "loss"), (True, "loss_and_miner")):
        work = {
            "theirs": lambda mined=mined: torch.autograd.grad(of_peer(mined), embeddings),
            "ours": lambda mined=mined: torch.autograd.grad(ours[mined](embeddings, labels).loss, embeddings),
        }
        seconds = time_in_turns(work, arguments.rounds)
        figures[f"{name}_of_pytorch_metric_learning_over_ours"] = median_ratio(seconds["theirs"], seconds["ours"])
    return figures


def make_loss_step(batch_size: int, dim: int, device: torch.device) -> Callable[[], None]:
    """A function that computes the loss and its gradient for given embeddings."""
    embeddings, labels = draw_embeddings(batch_size, dim, device)
    loss = ConditionalSoftTripletLoss()

    def step() -> None:
        torch.autograd.grad(loss(embeddings, labels).loss, embeddings)

    return step


def draw_embeddings(batch_size: int, dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(batch_size, NUM_ATTRIBUTES, dim, generator=generator)
    embeddings = torch.nn.functional.normalize(vectors, dim=-1).to(device).requires_grad_()
    return embeddings, torch.from_numpy(draw_labels(batch_size)).to(device)


def memory_of_loss(arguments: argparse.Namespace) -> float:
    """Peak memory of the first step in MiB, without embeddings and labels."""
    device, dim = arguments.device, make_vit(arguments).hidden_size
    make_loss_step(NUM_ATTRIBUTES, dim, device)()  # loads the libraries that the first use loads
    step = make_loss_step(arguments.loss_batch_size, dim, device)
    return peak_memory_of(step, device)


def benchmark_micro_batches(arguments: argparse.Namespace) -> dict[str, Any]:
    size = max(1, arguments.batch_size // 8)
    settings = {"plain": {}, "micro_batches": {"micro_batch_size": size}}
    memory = {name: in_new_process(memory_of_step, arguments, each) for name, each in settings.items()}
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: TrainingStep(Path(folder, name), arguments, **each) for name, each in settings.items()}
    seconds = time_in_turns(steps, arguments.rounds)
    return {
        "batch_size": arguments.batch_size,
        "micro_batch_size": size,
        "time_over_plain": median_ratio(seconds["micro_batches"], seconds["plain"]),
        "peak_memory_mib": memory,
    }


def memory_of_step(arguments: argparse.Namespace, settings: dict[str, Any]) -> float:
    """Memory of a first step in MiB, including weights, optimiser and batch."""
    with tempfile.TemporaryDirectory() as folder:
        return peak_memory_of(lambda: TrainingStep(Path(folder, "run"), arguments, **settings), arguments.device)


class TimeEpochs(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def benchmark_token_cache(arguments: argparse.Namespace) -> dict[str, Any]:
    backbones: dict[str, PreTrainedConfig] = {
        "vit": make_vit(arguments), "mobilenet_v2": MobileNetV2Config(**arguments.mobilenet)
    }  # fmt: skip
    figures: dict[str, Any] = {"pictures": arguments.pictures}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pictures").mkdir()
        data = make_data(write_jpegs(Path(folder, "pictures"), arguments.pictures))
        for name, backbone in backbones.items():
            for flip in (0.5, 0.0):
                case = f"{name} {'with' if flip else 'without'} flips"
                figures[case] = _epochs_from_cache(Path(folder, case), data, backbone, flip, arguments)
    return figures


def _epochs_from_cache(
    folder: Path, data: AttributeDataset, backbone: PreTrainedConfig, flip: float, arguments: argparse.Namespace
) -> dict[str, float]:
    cache = {"freeze_backbone": True, "cache_tokens": str(folder), "horizontal_flip": flip}
    epochs = TimeEpochs()
    start = time.perf_counter()
    trainer = make_trainer(folder, data, backbone, arguments, num_train_epochs=1 + arguments.rounds, **cache)
    trainer.add_callback(epochs)
    trainer.train()
    first, *later = np.diff([start, *epochs.ends])
    return {"first_epoch_seconds": first, "later_epochs_over_first": float(np.median(later)) / first}


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "training": benchmark_training,
    "loss": benchmark_loss,
    "micro_batches": benchmark_micro_batches,
    "token_cache": benchmark_token_cache,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of each section; for token_cache, epochs after the first"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--loss_batch_size", type=int, default=512)
    parser.add_argument(
        "--peer_batch_size", type=int, default=128, help="batch size of the comparison with other losses"
    )
    parser.add_argument("--pictures", type=int, default=512, help="images of token_cache")
    parser.add_argument(
        "--vit", type=json.loads, default={}, help="fields of ViTConfig that differ from ViT-B/16, as JSON"
    )
    parser.add_argument(
        "--mobilenet", type=json.loads, default={"image_size": 224}, help="fields of MobileNetV2Config, as JSON"
    )
    parser.add_argument(
        "--output", type=Path, help="folder for speed_<machine>.json; other sections of the file are kept"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = {"device": str(arguments.device), "bf16": arguments.bf16, "compiled": arguments.compile}
    run_sections({name: partial(SECTIONS[name], arguments) for name in arguments.sections}, setting, arguments.output)


if __name__ == "__main__":
    main()
