"""A training of ADDE that may be killed: `python manipulation.py DATA OUTPUT --die-at out/3`.

`--die-at` names the folder of a stage, `out` for the last one, and a step of it. Dropout and augmentation draw random
numbers in every step.
"""

import argparse
import os
import signal
from pathlib import Path

import torch
from transformers import TrainerCallback, ViTConfig

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.recipes.manipulation_trainer import ADDETrainer, ManipulationArguments

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
ATTRIBUTES = ["size", "background"]


class Steps(TrainerCallback):
    """The steps of each stage, by the name of its folder; kills the process at one of them."""

    def __init__(self, die_at: str | None = None) -> None:
        self.die_at = die_at
        self.done: list[str] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.done.append(f"{Path(args.output_dir).name}/{state.global_step}")
        if self.done[-1] == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(data_folder: Path, output_dir: Path, steps: Steps, **changes) -> ADDETrainer:
    data = load_attribute_dataset(data_folder, ATTRIBUTES)
    settings = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "per_device_train_batch_size": 16,
        "images_per_value": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": None,
        "logging_steps": 1,
        "attribute_map": "none",
        "encoder": "cross_attention",
    }
    args = ManipulationArguments(**(settings | changes))
    torch.manual_seed(0)
    vit = ViTConfig(image_size=32, **VIT)
    dropout = {"hidden_dropout_prob": 0.2} if args.encoder == "cross_attention" else {}
    model = ADDEModel.from_backbone(vit, data.attributes, encoder=args.encoder, embedding_dim=24, **dropout)
    return ADDETrainer(model, args, data, callbacks=[steps])


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--die-at")
    options = parser.parse_args()
    make_trainer(options.data, options.output, Steps(options.die_at)).train()
