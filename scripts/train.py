"""Trains CCA on a data set with attribute columns, evaluates the best checkpoint once on the test split, and reports.

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --output_dir out

The baseline with a single space, on the same budget:

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --condition_embedding none --output_dir out-one-space

Attributes by their names, see docs/text_conditions.md:

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --condition_embedding text \
        --text_encoder sentence-transformers/all-MiniLM-L6-v2 --output_dir out

A small ViT from scratch:

    accelerate launch scripts/train.py --dataset me/shoes --output_dir out --image_size 96 --backbone_config \
        '{"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 7, "num_attention_heads": 3,
          "intermediate_size": 768, "patch_size": 8, "image_size": 96}'

Another task, see docs/manipulation.md:

    accelerate launch scripts/train.py --task manipulate --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --output_dir out-manipulation

Flags from a file, one of them changed; an interrupted run is resumed:

    accelerate launch scripts/train.py settings.yaml --num_train_epochs 30 --resume_from_checkpoint last

With a push to the Hub at the end, in one commit, see docs/publishing.md:

    accelerate launch scripts/train.py settings.yaml --push_to_hub --hub_model_id me/cca-shoes --hub_private_repo true

Several GPUs: `accelerate launch --multi_gpu scripts/train.py ...`. Several processes on CPUs:

    python -m torch.distributed.run --nproc_per_node 2 scripts/train.py --use_cpu --ddp_backend gloo ...

All flags: `python scripts/train.py --help`.
"""

from cca_hf.cli.train import run_task
from cca_hf.recipes.command_line import parse_command
from cca_hf.training.process import let_waiting_threads_sleep

if __name__ == "__main__":
    let_waiting_threads_sleep()
    run_task(*parse_command())
