"""A training run that can be killed: `python interrupted.py DATA OUTPUT [--resume] [--die-while-saving STEP]`.

Prints each step, so that a parent process knows when to kill it. Dropout and augmentation draw random numbers in every
step; step 14 lies within an epoch of 10 steps and between checkpoints every 4.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback, ViTConfig

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.arguments import CCATrainingArguments

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}


class PrintSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(f"step {state.global_step}", flush=True)


def run(data_folder: Path, output_dir: Path, *, resume: bool = False) -> CCATrainer:
    data = load_attribute_dataset(data_folder)
    torch.manual_seed(0)
    model = CCAModel.from_backbone(ViTConfig(image_size=32, **VIT), data.attributes, hidden_dropout_prob=0.2)
    args = CCATrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        per_device_train_batch_size=16,
        images_per_value=2,
        num_train_epochs=3,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        logging_steps=1,
        early_stopping_patience=4,  # after step 20,
        early_stopping_threshold=1.0,  # for nothing can be better by this
    )
    trainer = CCATrainer(model, args, data, callbacks=[PrintSteps()])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def die_while_saving(step: int) -> None:
    """The process is killed when half of the optimizer of this step is on the disk."""
    save = torch.save

    def save_or_die(content, path, *args, **kwargs):
        save(content, path, *args, **kwargs)
        if os.path.basename(path) == "optimizer.pt" and f"checkpoint-{step}" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_or_die


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die-while-saving", type=int)
    options = parser.parse_args(sys.argv[1:])
    if options.die_while_saving is not None:
        die_while_saving(options.die_while_saving)
    trainer = run(options.data, options.output, resume=options.resume)
    trainer.save_model(str(options.output / "final"))
