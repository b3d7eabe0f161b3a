"""What does DCAL cost over its backbone? Every figure is a ratio of two measurements in turns.

    python scripts/benchmark_dcal.py                              # some minutes on two cores
    python scripts/benchmark_dcal.py --sections forward --rounds 3 --threads 1
    python scripts/benchmark_dcal.py --output docs/benchmarks     # writes speed_<machine>.json

On a ViT of the size of DeiT-S with random weights, 200 classes and images of 448 pixels, in float32:
- dcal_forward: an inference pass with GLCA over one of transformers' ViT with SDPA, and over one with eager attention;
- dcal_step: a training step with PWCA over one without, both with GLCA;
- dcal_parameters: parameters with GLCA over those of the ViT, for the widths of DeiT-T, DeiT-S and ViT-B.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed_measures import median_ratio, run_sections, time_in_turns
from transformers import ViTConfig, ViTForImageClassification

from cca_hf.models.modeling_dcal import DCALConfig, DCALForImageClassification

WIDTHS = {"deit_t": (192, 3), "deit_s": (384, 6), "vit_b": (768, 12)}  # hidden size, heads
NUM_CLASSES = 200


def backbone_config(variant: str, image_size: int, **fields: Any) -> ViTConfig:
    width, heads = WIDTHS[variant]
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return ViTConfig(image_size=image_size, **shape, **fields)


def make_vit(arguments: argparse.Namespace, attn_implementation: str) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = backbone_config(arguments.variant, arguments.image_size, num_labels=NUM_CLASSES)
    config._attn_implementation = attn_implementation
    return ViTForImageClassification(config).to(arguments.device).eval()


def make_dcal(arguments: argparse.Namespace, **fields: Any) -> DCALForImageClassification:
    torch.manual_seed(0)
    backbone = backbone_config(arguments.variant, arguments.image_size)
    model = DCALForImageClassification(DCALConfig(backbone_config=backbone, num_labels=NUM_CLASSES, **fields))
    return model.to(arguments.device).eval()


def make_images(arguments: argparse.Namespace) -> torch.Tensor:
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    return torch.randn(*shape, device=arguments.device)


@torch.inference_mode()
def measure_forward(arguments: argparse.Namespace) -> dict[str, Any]:
    models = {"sdpa": make_vit(arguments, "sdpa"), "dcal": make_dcal(arguments), "eager": make_vit(arguments, "eager")}
    images = make_images(arguments)
    seconds = time_in_turns(
        {name: lambda model=model: model(images).logits for name, model in models.items()}, arguments.rounds
    )
    return {
        "glca_over_vit": round(median_ratio(seconds["dcal"], seconds["sdpa"]), 3),
        "glca_over_eager_vit": round(median_ratio(seconds["dcal"], seconds["eager"]), 3),
        "images_per_second": round(arguments.batch_size / statistics.median(seconds["dcal"]), 2),
    }


def measure_step(arguments: argparse.Namespace) -> dict[str, Any]:
    images = make_images(arguments)
    labels = torch.arange(arguments.batch_size, device=arguments.device) % NUM_CLASSES

    def step_of(model: DCALForImageClassification) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            model(images, labels=labels).loss.backward()
            optimizer.step()

        return step

    pairwise, plain = (step_of(make_dcal(arguments, use_pairwise_attention=use)) for use in (True, False))
    seconds = time_in_turns({"pairwise": pairwise, "plain": plain}, arguments.rounds)
    return {
        "pwca_over_without": round(median_ratio(seconds["pairwise"], seconds["plain"]), 3),
        "seconds_of_a_step": round(statistics.median(seconds["pairwise"]), 3),
    }


def measure_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    measured = {}
    for variant in WIDTHS:
        config = DCALConfig(
            backbone_config=backbone_config(variant, arguments.image_size),
            num_labels=NUM_CLASSES,
            use_pairwise_attention=False,
        )
        with torch.device("meta"):
            model = DCALForImageClassification(config)
        added = sum(p.numel() for part in (model.dcal.local_layer, model.classifiers[1]) for p in part.parameters())
        total = sum(parameter.numel() for parameter in model.parameters()) - model.loss_weights.numel()
        measured[variant] = {"vit": total - added, "glca": added, "ratio": round(total / (total - added), 4)}
    return measured


def main() -> None:
    sections = {"dcal_forward": measure_forward, "dcal_step": measure_step, "dcal_parameters": measure_parameters}
    short_names = [name.removeprefix("dcal_") for name in sections]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=short_names, default=short_names)
    parser.add_argument("--variant", choices=list(WIDTHS), default="deit_s")
    parser.add_argument("--image_size", type=int, default=448)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the result file")
    arguments = parser.parse_args()
    names = ("variant", "image_size", "batch_size", "rounds", "threads", "device")
    setting = {name: vars(arguments)[name] for name in names}
    torch.set_num_threads(arguments.threads)
    chosen = {name: measure for name, measure in sections.items() if name[len("dcal_") :] in arguments.sections}
    run_sections({name: lambda each=each: each(arguments) for name, each in chosen.items()}, setting, arguments.output)


if __name__ == "__main__":
    main()
