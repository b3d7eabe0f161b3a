"""Trains CCA on a data set with attribute columns, evaluates the best checkpoint once on test, and writes a report.

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --output_dir out

The baseline, one space for all attributes, on the same budget:

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --condition_embedding none --output_dir out-one-space

Attributes given by their names, see docs/text_conditions.md:

    accelerate launch scripts/train.py --dataset me/shoes --attributes colour heel_height closure \
        --backbone google/vit-base-patch16-224-in21k --condition_embedding text \
        --text_encoder sentence-transformers/all-MiniLM-L6-v2 --output_dir out

A small ViT from scratch:

    accelerate launch scripts/train.py --dataset me/shoes --output_dir out --image_size 96 --backbone_config \
        '{"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 7, "num_attention_heads": 3,
          "intermediate_size": 768, "patch_size": 8, "image_size": 96}'

The same flags from a file, with a change, and an interrupted run resumed:

    accelerate launch scripts/train.py settings.yaml --num_train_epochs 30 --resume_from_checkpoint last

To push the result to the Hub in one commit, see docs/publishing.md:

    accelerate launch scripts/train.py settings.yaml --push_to_hub --hub_model_id me/cca-shoes --hub_private_repo true

Several GPUs: `accelerate launch --multi_gpu scripts/train.py ...`. Several processes on CPUs:

    python -m torch.distributed.run --nproc_per_node 2 scripts/train.py --use_cpu --ddp_backend gloo ...

All flags: `python scripts/train.py --help`.
"""

import os

# Waiting threads sleep: if they spun, they would slow down every other process of the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported

from cca_hf.hub.model_card import write_model_card  # noqa: E402
from cca_hf.hub.publishing import push_run  # noqa: E402
from cca_hf.recipes.attribute_retrieval import parse_arguments, run_training  # noqa: E402
from cca_hf.training.process import prepare_process  # noqa: E402
from cca_hf.visualization.report import write_report  # noqa: E402


def main() -> None:
    model_args, data_args, training_args = parse_arguments()
    prepare_process(training_args.device, training_args.cpu_threads)
    run = run_training(model_args, data_args, training_args)
    if run.result is None:  # only the main process has the result
        return
    name = "one space" if run.model.config.condition_embedding == "none" else "CCA"
    try:
        page = write_report(run.model, run.data, "test", {name: run.result}, run.output_dir, history=run.history)
    except ImportError as error:  # everything else is saved
        print(f"no report.html: {error}")
    else:
        print(f"Report: {page}")
    print(f"Model card: {write_model_card(run.output_dir)}")
    if training_args.push_to_hub:
        print(f"Pushed: {push_run(training_args)}")


if __name__ == "__main__":
    main()
