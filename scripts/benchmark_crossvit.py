"""How fast is CrossViT, and how much memory does it need? Every figure is a ratio of two measurements in turns.

    python scripts/benchmark_crossvit.py                              # some minutes on two cores
    python scripts/benchmark_crossvit.py --sections forward --rounds 3 --threads 1
    python scripts/benchmark_crossvit.py --output docs/benchmarks     # writes speed_<machine>.json

On crossvit_15_240 with random weights and a batch of 8 images, in float32:
- crossvit_forward: a forward pass of the model (sdpa) over plain functions of the same weights, which compute
  attention as timm does (`plain_crossvit.py`); the largest difference of the logits; and that of both from float64;
- crossvit_memory: the peak memory of a training step with gradient checkpointing over that of a plain step.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from plain_crossvit import logits_of
from speed_measures import in_new_process, median_ratio, peak_memory_of, run_sections, time_in_turns

from cca_hf.models.modeling_crossvit import CrossViTConfig, CrossViTForImageClassification


def make_model(arguments: argparse.Namespace) -> CrossViTForImageClassification:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    config = CrossViTConfig.from_variant(arguments.variant, attn_implementation="sdpa")
    return CrossViTForImageClassification(config).to(arguments.device).eval()


def make_images(model: CrossViTForImageClassification, arguments: argparse.Namespace) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(arguments.batch_size, 3, side, side, device=arguments.device)


@torch.inference_mode()
def measure_forward(arguments: argparse.Namespace) -> dict[str, Any]:
    model = make_model(arguments)
    images, weights, config = make_images(model, arguments), model.to_timm(), model.config
    sizes = tuple(config.size_in_branch(branch, config.image_size, config.image_size)[0] for branch in (0, 1))
    plain_settings = {"sizes": sizes, "num_heads": config.num_attention_heads[0]}
    work = {"ours": lambda: model(images).logits, "plain": lambda: logits_of(weights, images, **plain_settings)}
    difference = (work["ours"]() - work["plain"]()).abs().max().item()
    doubled = {name: weight.double() for name, weight in weights.items()}
    exact = logits_of(doubled, images.double(), **plain_settings)
    seconds = time_in_turns(work, arguments.rounds)
    return {
        "ours_over_plain": round(median_ratio(seconds["ours"], seconds["plain"]), 3),
        "largest_difference_of_logits": difference,
        "largest_difference_from_float64": {name: (each() - exact).abs().max().item() for name, each in work.items()},
        "images_per_second": round(arguments.batch_size / statistics.median(seconds["ours"]), 2),
    }


def memory_of_step(arguments: argparse.Namespace, checkpointing: bool) -> float:
    """MiB of a training step, without the weights."""
    model = make_model(arguments).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    images = make_images(model, arguments)
    labels = torch.zeros(arguments.batch_size, dtype=torch.long, device=arguments.device)

    def step() -> None:
        model(images, labels=labels).loss.backward()

    return peak_memory_of(step, torch.device(arguments.device))


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    plain, checkpointed = (in_new_process(memory_of_step, arguments, each) for each in (False, True))
    return {
        "checkpointing_over_plain": round(checkpointed / plain, 3),
        "plain_mib": round(plain),
        "checkpointing_mib": round(checkpointed),
    }


def main() -> None:
    sections = {"crossvit_forward": measure_forward, "crossvit_memory": measure_memory}
    short_names = [name.removeprefix("crossvit_") for name in sections]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=short_names, default=short_names)
    parser.add_argument("--variant", default="crossvit_15_240")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the result file")
    arguments = parser.parse_args()
    setting = {name: vars(arguments)[name] for name in ("variant", "batch_size", "rounds", "threads", "device")}
    torch.set_num_threads(arguments.threads)
    chosen = {name: measure for name, measure in sections.items() if name[len("crossvit_") :] in arguments.sections}
    run_sections({name: lambda each=each: each(arguments) for name, each in chosen.items()}, setting, arguments.output)


if __name__ == "__main__":
    main()
