"""Outfit completion on rooms of the IKEA set: CSA-Net's form and attributes, against three baselines.

    python scripts/benchmark_outfits.py --items data/ikea --outfits data/ikea_sets \
        --backbone data/mobilenet_v2_imagenet --output out-outfits

With a model with attributes too, trained on the same items:

    cca train --dataset data/ikea --attributes type_group colour --backbone ... --freeze_backbone \
        --output_dir out-ikea
    python scripts/benchmark_outfits.py ... --attribute_model out-ikea

Writes `results.json` and prints one table: the figures of the test split, with the mean and the range of the seeds,
and the 95 % interval over the outfits of the first seed. Every choice was made on validation, see docs/outfits.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from cca_hf.data.outfit_loading import load_outfits
from cca_hf.data.outfits import OutfitDataset
from cca_hf.evaluation.outfit_result import OutfitResult
from cca_hf.evaluation.outfits import Distance, category_frequency, chance, evaluate_outfits, similarity
from cca_hf.evaluation.text_table import Table
from cca_hf.models.modeling_outfit import OutfitModel
from cca_hf.recipes.outfit_completion import OutfitArguments, make_trainer
from cca_hf.training.outfit_batches import StoredFeatures


def train_cell(
    options: argparse.Namespace, data: OutfitDataset, backbone: str, features: StoredFeatures, seed: int, **fields: str
) -> dict[str, OutfitResult]:
    """The results of validation and test of one seed; the best epoch is chosen on validation."""
    args = OutfitArguments(
        items=options.items,
        outfits=options.outfits,
        backbone=backbone,
        output_dir=str(Path(options.output) / f"{Path(backbone).name}-{fields['subspaces']}-{seed}"),
        num_train_epochs=options.epochs,
        save_total_limit=1,
        seed=seed,
        disable_tqdm=True,
    )
    set_seed(seed)
    model = OutfitModel.from_backbone(backbone, data.categories, freeze_backbone=True, **fields)
    trainer = make_trainer(model, args, data, features)
    trainer.train()
    results = {}
    for split in ("validation", "test"):
        trainer.evaluate(split)
        assert isinstance(trainer.evaluation_result, OutfitResult)
        results[split] = trainer.evaluation_result
    return results


def features_of(folder: Path, backbone: str, data: OutfitDataset) -> StoredFeatures:
    """The features of all items, from a file of an earlier call if there is one."""
    path = folder / f"features-{Path(backbone).name}.npy"
    if not path.exists():
        model = OutfitModel.from_backbone(backbone, data.categories)
        np.save(path, StoredFeatures.of(model, data.items).features.numpy())
    return StoredFeatures(torch.from_numpy(np.load(path)))


def row_of(name: str, results: list[OutfitResult]) -> list[str]:
    """Mean and range of the seeds in percent, and the interval of the first seed."""
    row = [name]
    for metric, figure in results[0].figures.items():
        values = [100 * result.figures[metric].value for result in results]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        row.append(f"{np.mean(values):.1f}{spread} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", required=True)
    parser.add_argument("--outfits", required=True)
    parser.add_argument("--category_column", default="type_group")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--attribute_model", help="a checkpoint with attributes, trained on the same items")
    parser.add_argument("--output", default="out-outfits")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    data = load_outfits(options.items, options.outfits, category_column=options.category_column)
    plain = features_of(folder, options.backbone, data)

    baselines: dict[str, Distance] = {
        "chance": chance,
        "frequency of categories": category_frequency(data),
        "similarity, frozen backbone": similarity(plain.features.numpy()),
    }
    results = {name: [evaluate_outfits(data, "test", distance)] for name, distance in baselines.items()}
    cells = {"CSA-Net, frozen backbone": (options.backbone, plain, "masks")}
    if options.attribute_model is not None:
        of_attributes = features_of(folder, options.attribute_model, data)
        cells["masks on attributes"] = (options.attribute_model, of_attributes, "masks")
        cells["weights of attributes"] = (options.attribute_model, of_attributes, "attributes")
    for name, (backbone, features, subspaces) in cells.items():
        trained = [train_cell(options, data, backbone, features, seed, subspaces=subspaces) for seed in options.seeds]
        results[name] = [each["test"] for each in trained]
        chosen = [each["validation"].metrics()["fill_in_the_blank"] for each in trained]
        print(f"{name}: fill in the blank on validation {', '.join(f'{100 * value:.1f}' for value in chosen)}")
    stored = {name: [result.to_dict() for result in seeds] for name, seeds in results.items()}
    (folder / "results.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")
    names = [name.replace("_", " ") for name in next(iter(results.values()))[0].figures]
    print(Table(["% on test", *names], [[row_of(name, seeds) for name, seeds in results.items()]]).text())


if __name__ == "__main__":
    main()
