"""Trains CCA on a data set with attribute columns, measures the best checkpoint once on the test split, and shows it.

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --output_dir out

The single space that CCA is compared with, on the same budget:

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --condition_embedding none --output_dir out-one-space

Attributes asked by what they are called, see docs/text_conditions.md:

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --condition_embedding text \
        --text_encoder sentence-transformers/all-MiniLM-L6-v2 --output_dir out

A small ViT from scratch:

    accelerate launch scripts/train.py --dataset me/shoes --output_dir out --image_size 96 --backbone_config \
        '{"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 7, "num_attention_heads": 3,
          "intermediate_size": 768, "patch_size": 8, "image_size": 96}'

The same flags from a file, some of them changed; an interrupted run goes on:

    accelerate launch scripts/train.py settings.yaml --num_train_epochs 30 --resume_from_checkpoint last

Onto the Hub when it is done, in one commit, see docs/publishing.md:

    accelerate launch scripts/train.py settings.yaml --push_to_hub --hub_model_id me/cca-shoes --hub_private_repo true

Several GPUs: `accelerate launch --multi_gpu scripts/train.py ...`. Several processes on CPUs:

    python -m torch.distributed.run --nproc_per_node 2 scripts/train.py --use_cpu --ddp_backend gloo ...

All flags: `python scripts/train.py --help`.
"""

import os

# Threads that wait sleep: spinning, they would slow each other down many times over as soon as anything runs beside.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported

from cca_hf.hub.model_card import write_model_card  # noqa: E402
from cca_hf.hub.publishing import push_run  # noqa: E402
from cca_hf.recipes.attribute_retrieval import parse_arguments, run_training  # noqa: E402
from cca_hf.visualization.report import write_report  # noqa: E402


def main() -> None:
    model_args, data_args, training_args = parse_arguments()
    run = run_training(model_args, data_args, training_args)
    if run.result is None:  # the main process alone has it
        return
    name = "one space" if run.model.config.condition_embedding == "none" else "CCA"
    try:
        page = write_report(run.model, run.data, "test", {name: run.result}, run.output_dir, history=run.history)
    except ImportError as error:  # all else is done and saved
        print(f"no report.html: {error}")
    else:
        print(f"To look at: {page}")
    print(f"Model card: {write_model_card(run.output_dir)}")
    if training_args.push_to_hub:
        print(f"Pushed: {push_run(training_args)}")


if __name__ == "__main__":
    main()
