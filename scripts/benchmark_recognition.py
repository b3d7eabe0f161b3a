"""Recognition of 35 attributes on PETA, split by person: CLEAR and its parts, a frozen backbone, and a head on CCA.

    python scripts/benchmark_recognition.py --dataset data/peta --backbone data/mobilenet_v2_imagenet \
        --output out-recognition                                     # all models, seeds 0 1 2
    python scripts/benchmark_recognition.py ... --models "ViT branch" CLEAR --seeds 0 --settings all

The folder of the data set has parquet files with `image`, `labels` (lists of 0 and 1), `group` and `subset`, and
`names.json` with the names of the labels. Every model is trained on all subsets, and again without the subsets
`--held_out`, whose test images are then images of other cameras. Both are measured on the test split and on the test
images of the held-out subsets. The branches and CLEAR are trained from scratch; the heads on features of a frozen
MobileNetV2, and on the embeddings of a CCA model that is trained on the same features.

A finished training is stored in `--output` as JSON, and is not repeated. At the end, two tables are printed, with the
mean and the range of the seeds, and the 95 % interval over the persons of the first seed. The epoch of a training, its
temperatures and its thresholds are chosen on validation. Images of persons are for research only: the script publishes
nothing, and writes no image.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, load_dataset
from torch import nn
from transformers import AutoModel, set_seed

from cca_hf.data.image_column import IMAGE_COLUMN, with_undecoded_images
from cca_hf.data.recognition import RecognitionDataset, load_recognition_dataset, with_indicator_columns
from cca_hf.evaluation.calibration import choose_thresholds, fit_temperatures
from cca_hf.evaluation.recognition import evaluate_recognition, recognised
from cca_hf.evaluation.recognition_result import RecognitionResult
from cca_hf.evaluation.text_table import Table
from cca_hf.models.attribute_recognition import positive_shares, recognition_loss
from cca_hf.models.backbones import load_backbone_processor, make_image_processor
from cca_hf.models.configuration_clear import CLEARConfig
from cca_hf.models.configuration_images import RecognitionConfig
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_cca_recognition import CCAForAttributeRecognition
from cca_hf.recipes.attribute_recognition import calibrate, make_trainer
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.recipes.recognisers import make_recogniser
from cca_hf.recipes.recognition_arguments import RecognitionArguments
from cca_hf.recipes.recognition_evaluation import logits_of
from cca_hf.training.arguments import CCATrainingArguments

SPLITS = ("train", "validation", "test")
SIZE = [128, 64]
MAX_ERROR = 0.1
VIT = {
    "model_type": "vit",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "patch_size": 8,
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 24,
    "depths": [1, 1, 2],
    "num_heads": [2, 4, 8],
    "window_size": 4,
    "patch_size": 4,
    "drop_path_rate": 0.0,
}
BRANCHES: dict[str, dict[str, Any]] = {
    "ViT branch": {"backbone_config": json.dumps(VIT)},
    "Swin branch": {"local_backbone_config": json.dumps(SWIN)},
    "CLEAR without fusion": {
        "backbone_config": json.dumps(VIT),
        "local_backbone_config": json.dumps(SWIN),
        "fusion": False,
    },
    "CLEAR": {"backbone_config": json.dumps(VIT), "local_backbone_config": json.dumps(SWIN)},
}
MODELS = ("majority", "MobileNetV2 + linear head", *BRANCHES, "CCA + head")
SETTINGS = ("all", "held_out")


@dataclass(frozen=True)
class Logits:
    """What a model says about the validation and the test images, with its configuration."""

    config: RecognitionConfig
    validation: np.ndarray
    test: np.ndarray


def load_peta(folder: str) -> RecognitionDataset:
    """The 35 labels as attributes, with the columns `group` and `subset`."""
    names = json.loads((Path(folder) / "names.json").read_text(encoding="utf-8"))["labels (35, evaluated)"]
    files = {split: str(Path(folder) / "data" / f"{split}-*.parquet") for split in SPLITS}
    loaded = load_dataset("parquet", data_files=files)
    splits = DatasetDict()
    for split, rows in loaded.items():
        rows = with_undecoded_images(rows.select_columns([IMAGE_COLUMN, "labels", "group", "subset"]), IMAGE_COLUMN)
        splits[split] = with_indicator_columns(rows, "labels", names)
    return load_recognition_dataset(splits, names, group_column="group", make_splits=False)


def without_subsets(data: RecognitionDataset, subsets: Sequence[str]) -> RecognitionDataset:
    """The training and validation images of the other subsets, and the same test images."""
    splits = DatasetDict(data.splits)
    for split in ("train", "validation"):
        splits[split] = splits[split].select(np.flatnonzero(~np.isin(splits[split]["subset"][:], subsets)))
    return replace(data, splits=splits)


def make_config(data: RecognitionDataset) -> CLEARConfig:
    """Only attributes and shares: what the loss and the metrics of a head read."""
    config = CLEARConfig(
        attributes=list(data.attributes), attribute_values=data.attributes, attribute_kinds=dict(data.kinds)
    )
    config.positive_shares = positive_shares(config, torch.from_numpy(data.targets("train")))
    return config


def majority(options: argparse.Namespace, data: RecognitionDataset, folder: Path, seed: int) -> Logits:
    """The more frequent answer of each attribute, with its share as the probability."""
    config = make_config(data)
    assert config.positive_shares is not None  # make_config has set them
    shares = np.array([config.positive_shares[name][0] for name in config.attributes])
    config.positive_shares = None
    logits = np.log(shares / (1 - shares)).astype(np.float32)
    validation, test = (np.tile(logits, (data.splits[split].num_rows, 1)) for split in SPLITS[1:])
    return Logits(config, validation, test)


def train_branches(
    name: str, options: argparse.Namespace, data: RecognitionDataset, folder: Path, seed: int
) -> Logits:
    """CLEAR, or a part of it, trained from scratch."""
    args = RecognitionArguments(
        dataset=options.dataset,
        image_size=SIZE,
        padding=5,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        head_learning_rate=1e-3,
        weight_decay=0.05,
        output_dir=str(folder / "training"),
        save_total_limit=1,
        seed=seed,
        disable_tqdm=True,
        **BRANCHES[name],
    )
    set_seed(seed)
    model = make_recogniser(args, data)
    trainer = make_trainer(model, args, data)
    trainer.train()
    calibrate(trainer, trainer.images_of("validation"), MAX_ERROR)
    trained = trainer.unwrapped_model().eval()
    validation, test = (logits_of(trained, data.splits[split][IMAGE_COLUMN]) for split in SPLITS[1:])
    return Logits(trained.config, validation, test)


def linear_head(options: argparse.Namespace, data: RecognitionDataset, folder: Path, seed: int) -> Logits:
    """A linear layer on the pooled features of a frozen MobileNetV2."""
    features = features_of(options, data)
    scale = features["train"].std(dim=0).clamp(min=1e-6)
    features = {split: each / scale for split, each in features.items()}
    config = make_config(data)
    set_seed(seed)
    return train_head(nn.Linear(features["train"].shape[1], config.num_logits), config, features, data, seed)


def features_of(options: argparse.Namespace, data: RecognitionDataset) -> dict[str, torch.Tensor]:
    """(images, channels) of each split, from a file of an earlier call if there is one."""
    features = {}
    for split in SPLITS:
        count = data.splits[split].num_rows
        path = Path(options.output) / f"features-{split}-{count}.npy"
        if not path.exists():
            model: Any = AutoModel.from_pretrained(options.backbone, dtype=torch.float32).eval()
            processor = load_backbone_processor(options.backbone, {"trust_remote_code": False})
            model.image_processor = make_image_processor(SIZE, processor)
            found = []
            with torch.inference_mode():
                for batch in pixel_batches(model, data.splits[split][IMAGE_COLUMN], 64):
                    found.append(model(batch.values).pooler_output.flatten(1).numpy())
            np.save(path, np.concatenate(found))
        features[split] = torch.from_numpy(np.load(path))
    return features


def cca_head(options: argparse.Namespace, data: RecognitionDataset, folder: Path, seed: int) -> Logits:
    """A linear layer for each attribute on the embeddings of a CCA model with a frozen MobileNetV2."""
    set_seed(seed)
    cca = CCAModel.from_backbone(
        options.backbone, attributes=data.attributes, image_size=SIZE, hidden_size=128, embedding_dim=32
    )
    args = CCATrainingArguments(
        output_dir=str(folder / "training"),
        freeze_backbone=True,
        cache_tokens=str(Path(options.output) / f"tokens-{data.splits['train'].num_rows}"),
        attribute_map="none",
        num_train_epochs=options.cca_epochs,
        eval_strategy="no",
        save_strategy="no",
        measure_entanglement=False,
        seed=seed,
        disable_tqdm=True,
    )
    CCATrainer(cca, args, data).train()
    cca = cca.eval()
    features = {split: torch.from_numpy(np.asarray(cca.encode(data.splits[split][IMAGE_COLUMN]))) for split in SPLITS}
    model = CCAForAttributeRecognition.from_cca(cca, attribute_values=data.attributes, attribute_kinds=data.kinds)
    config = make_config(data)
    return train_head(model.classifiers, config, features, data, seed)


def train_head(
    head: nn.Module,
    config: RecognitionConfig,
    features: Mapping[str, torch.Tensor],
    data: RecognitionDataset,
    seed: int,
    *,
    epochs: int = 30,
    batch_size: int = 256,
) -> Logits:
    """A head on fixed features; the epoch with the best mA on validation is kept."""
    targets = {split: torch.from_numpy(data.targets(split)) for split in SPLITS[:2]}
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    generator, best = torch.Generator().manual_seed(seed), (-1.0, {})
    for _ in range(epochs):
        head.train()
        for rows in torch.randperm(len(targets["train"]), generator=generator).split(batch_size):
            optimizer.zero_grad()
            recognition_loss(config, head(features["train"][rows]), targets["train"][rows]).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            found = recognised(config, head(features["validation"]).numpy())
        score = mean_accuracy(found, targets["validation"].numpy())
        if score > best[0]:
            best = (score, {name: weights.clone() for name, weights in head.state_dict().items()})
    head.load_state_dict(best[1])
    with torch.no_grad():
        validation, test = (head(features[split]) for split in SPLITS[1:])
    config.temperatures = fit_temperatures(config, validation, targets["validation"])
    config.thresholds = choose_thresholds(config, validation, targets["validation"], MAX_ERROR)
    return Logits(config, validation.numpy(), test.numpy())


def mean_accuracy(found: np.ndarray, labels: np.ndarray) -> float:
    """The mA of binary attributes that all images are labelled with, without the intervals of the evaluation."""
    has = labels == 1
    with np.errstate(invalid="ignore"):
        rates = ((found & has).sum(0) / has.sum(0) + (~found & ~has).sum(0) / (~has).sum(0)) / 2
    return float(np.nanmean(rates))


def measure(options: argparse.Namespace, data: RecognitionDataset, logits: Logits) -> dict[str, Any]:
    """The results of the validation split, of the test split, and of the test images of the held-out subsets."""
    targets, groups = data.targets("test"), data.groups("test")
    assert groups is not None  # PETA has a group column
    rows = np.flatnonzero(np.isin(data.splits["test"]["subset"][:], options.held_out))
    validation = evaluate_recognition(logits.config, logits.validation, data.targets("validation"), split="validation")
    test = evaluate_recognition(logits.config, logits.test, targets, groups=groups)
    held_out = evaluate_recognition(
        logits.config, logits.test[rows], targets[rows], split="held out", groups=groups[rows]
    )
    return {
        name: each.to_dict() for name, each in (("validation", validation), ("test", test), ("held_out", held_out))
    }


def row_of(name: str, results: list[RecognitionResult]) -> list[str]:
    """Mean and range of the seeds in percent, and the interval of the first seed."""
    row = [name]
    for metric in ("mean_accuracy", "f1", "instance_accuracy"):
        values, figure = [100 * each.figures[metric].value for each in results], results[0].figures[metric]
        row.append(f"{spread(values)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]")
    for metric in ("ece", "answered", "error"):
        row.append(f"{np.mean([100 * each.metrics().get(metric, np.nan) for each in results]):.1f}")
    return row


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")


def drop_of(name: str, with_subsets: list[RecognitionResult], without: list[RecognitionResult]) -> list[str]:
    """mA and F1 on the held-out subsets, trained with and without them, and the drop of each seed."""
    row = [name]
    for metric in ("mean_accuracy", "f1"):
        seen, unseen = ([100 * each.figures[metric].value for each in results] for results in (with_subsets, without))
        drops = [first - second for first, second in zip(seen, unseen, strict=True)]
        row += [spread(seen), spread(unseen), spread(drops)]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder with the parquet files and names.json")
    parser.add_argument("--backbone", required=True, help="MobileNetV2, for the heads")
    parser.add_argument("--output", default="out-recognition")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--held_out", nargs="+", default=["PRID", "GRID"], help="subsets")
    parser.add_argument("--epochs", type=int, default=6, help="of the branches and of CLEAR")
    parser.add_argument("--cca_epochs", type=int, default=3)
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    everything = load_peta(options.dataset)
    data = {"all": everything, "held_out": without_subsets(everything, options.held_out)}
    train: dict[str, Callable[[argparse.Namespace, RecognitionDataset, Path, int], Logits]] = {
        "majority": majority,
        "MobileNetV2 + linear head": linear_head,
        **{name: partial(train_branches, name) for name in BRANCHES},
        "CCA + head": cca_head,
    }
    results: dict[tuple[str, str, str], list[RecognitionResult]] = {}
    for name in options.models:
        for setting in options.settings:
            for seed in options.seeds[:1] if name == "majority" else options.seeds:
                folder = Path(options.output) / f"{name.replace(' ', '_')}-{setting}-{seed}"
                path = folder / "results.json"
                if not path.exists():
                    folder.mkdir(exist_ok=True)
                    begin = time.monotonic()
                    found = measure(options, data[setting], train[name](options, data[setting], folder, seed))
                    found["minutes"] = round((time.monotonic() - begin) / 60, 1)
                    path.write_text(json.dumps(found), encoding="utf-8")
                content = json.loads(path.read_text(encoding="utf-8"))
                for split in ("test", "held_out"):
                    results.setdefault((name, setting, split), []).append(RecognitionResult.from_dict(content[split]))
                print(f"{name}, {setting}, seed {seed}: {content['minutes']} minutes", flush=True)
    if "all" in options.settings:
        header = ["% on test", "mA", "F1", "instance accuracy", "calibration error", "answered", "wrong answers"]
        print(Table(header, [[row_of(name, results[name, "all", "test"]) for name in options.models]]).text())
    if set(options.settings) == set(SETTINGS):
        title = f"% on {', '.join(options.held_out)}"
        header = [title, "mA, trained with", "without", "drop", "F1, trained with", "without", "drop"]
        rows = [
            drop_of(name, results[name, "all", "held_out"], results[name, "held_out", "held_out"])
            for name in options.models
        ]
        print(Table(header, [rows]).text())


if __name__ == "__main__":
    main()
