"""How fast is CCA? Every figure is a ratio within one run, measured in turns, so that the machine's mood cancels out.

    python scripts/benchmark_speed.py
    python scripts/benchmark_speed.py --batch_sizes 8 32 --rounds 9 --output docs/benchmarks/speed.json

Measured on a ViT-B/16 with random weights, 224 x 224 pixels, fp32, inference mode:
- one pass that embeds 8 attributes, over one plain `ViTModel` forward;
- eight passes of one attribute each, over the one pass of all 8;
- the largest difference between their embeddings.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

from cca_hf import CCAModel

NUM_ATTRIBUTES = 8


def time_in_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, a round after a round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios of the rounds: each compares two runs that followed one another."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


@torch.inference_mode()
def benchmark_one_pass(batch_size: int, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(), add_pooling_layer=False).eval()
    model = CCAModel.from_backbone(ViTConfig(), [f"attribute {i}" for i in range(NUM_ATTRIBUTES)]).eval()
    pixel_values = torch.randn(batch_size, 3, 224, 224)
    every = torch.arange(NUM_ATTRIBUTES).expand(batch_size, -1)

    def one_by_one() -> list[torch.Tensor]:
        return [model(pixel_values, attribute_ids=every[:, i]).embeddings for i in range(NUM_ATTRIBUTES)]

    seconds = time_in_turns(
        {
            "plain ViT": lambda: vit(pixel_values),
            "all attributes": lambda: model(pixel_values, attribute_ids=every),
            "one by one": one_by_one,
        },
        rounds,
    )
    difference = torch.stack(one_by_one(), dim=1) - model(pixel_values, attribute_ids=every).embeddings
    return {
        "batch_size": batch_size,
        "plain_vit_ms_per_image": 1000 * statistics.median(seconds["plain ViT"]) / batch_size,
        "all_attributes_over_plain_vit": median_ratio(seconds["all attributes"], seconds["plain ViT"]),
        "one_by_one_over_all_attributes": median_ratio(seconds["one by one"], seconds["all attributes"]),
        "largest_difference": difference.abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "one_pass": [benchmark_one_pass(size, arguments.rounds) for size in arguments.batch_sizes],
    }
    for row in results["one_pass"]:
        print(
            f"batch {row['batch_size']:>3}: all {NUM_ATTRIBUTES} attributes / plain ViT "
            f"{row['all_attributes_over_plain_vit']:.2f}, one by one / all "
            f"{row['one_by_one_over_all_attributes']:.2f}, largest difference {row['largest_difference']:.1e}, "
            f"plain ViT {row['plain_vit_ms_per_image']:.0f} ms an image"
        )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
