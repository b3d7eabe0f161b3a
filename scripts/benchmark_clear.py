"""What does the channel-aware attention of CLEAR cost? Every figure is a ratio of two measurements in turns.

    python scripts/benchmark_clear.py                              # some minutes on two cores
    python scripts/benchmark_clear.py --rounds 3 --threads 1
    python scripts/benchmark_clear.py --projection linear          # the other reading
    python scripts/benchmark_clear.py --output docs/benchmarks     # writes speed_<machine>.json

On the local branch, a tiny Swin with random weights, and images of 256 x 128 pixels, in float32:
- clear_forward: a forward pass with channel-aware attention over one without it;
- clear_training: a training step with it over one without it.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed_measures import median_ratio, run_sections, time_in_turns
from transformers import SwinConfig

from cca_hf.models.modeling_clear import CLEARConfig, CLEARModel


def make_branch(arguments: argparse.Namespace, with_channel_attention: bool) -> CLEARModel:
    """The local branch alone."""
    torch.manual_seed(0)
    config = CLEARConfig(
        use_global=False,
        use_channel_attention=with_channel_attention,
        channel_projection=arguments.projection,
        local_backbone_config=SwinConfig(depths=arguments.depths, embed_dim=arguments.embed_dim),
        image_size=[256, 128],
    )
    return CLEARModel(config).to(arguments.device).eval()


def compare(
    arguments: argparse.Namespace, make_work: Callable[[CLEARModel, torch.Tensor], Callable[[], object]]
) -> dict[str, Any]:
    images = torch.randn(arguments.batch_size, 3, 256, 128, device=arguments.device)
    models = {name: make_branch(arguments, name == "with") for name in ("with", "without")}
    work = {name: make_work(model, images) for name, model in models.items()}
    seconds = time_in_turns(work, arguments.rounds)
    return {
        "with_over_without": round(median_ratio(seconds["with"], seconds["without"]), 3),
        "images_per_second": round(arguments.batch_size / statistics.median(seconds["with"]), 2),
    }


@torch.inference_mode()
def measure_forward(arguments: argparse.Namespace) -> dict[str, Any]:
    return compare(arguments, lambda model, images: lambda: model(images).pooler_output)


def measure_training(arguments: argparse.Namespace) -> dict[str, Any]:
    def make_step(model: CLEARModel, images: torch.Tensor) -> Callable[[], object]:
        model.train()
        return lambda: model(images).pooler_output.square().sum().backward()

    return compare(arguments, make_step)


def main() -> None:
    sections = {"clear_forward": measure_forward, "clear_training": measure_training}
    short_names = [name.removeprefix("clear_") for name in sections]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=short_names, default=short_names)
    parser.add_argument("--projection", choices=["depthwise", "linear"], default="depthwise")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 2, 6, 2], help="layers of each stage")
    parser.add_argument("--embed_dim", type=int, default=96, help="channels of the first stage")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for the result file")
    arguments = parser.parse_args()
    names = ("projection", "depths", "embed_dim", "batch_size", "rounds", "threads", "device")
    setting = {name: vars(arguments)[name] for name in names}
    torch.set_num_threads(arguments.threads)
    chosen = {name: measure for name, measure in sections.items() if name[len("clear_") :] in arguments.sections}
    run_sections({name: lambda each=each: each(arguments) for name, each in chosen.items()}, setting, arguments.output)


if __name__ == "__main__":
    main()
