"""`CCATrainingArguments`: transformers' arguments, the settings of CCA, and defaults that need no tuning."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy

# for pretrained backbones: transformers, and networks of feature maps, whose early levels stay frozen;
# the help of --learning_rate names both
PRETRAINED_LEARNING_RATE = 1e-4
FEATURE_MAP_LEARNING_RATE = 3e-4

_AT_LEAST = {
    "proxy_weight": 0,
    "proxy_learning_rate": 0,
    "head_learning_rate": 0,
    "images_per_value": 2,
    "values_per_batch": 2,
    "micro_batch_size": 1,
    "cpu_threads": 1,
    "early_stopping_patience": 0,
    "collapse_patience": 0,
}


@dataclass
class CCATrainingArguments(TrainingArguments):
    """All of `TrainingArguments`; first the new arguments, then those with another default.

    Raises:
        ValueError: for a setting outside its range.
    """

    # The loss
    loss: Literal["soft_triplet", "triplet"] = field(
        default="soft_triplet",
        metadata={
            "help": "triplet: the conditional triplet loss, with --margin and --mining. soft_triplet: a smooth form "
            "of this loss, which compares each positive pair with all negatives of its anchor."
        },
    )
    temperature: float = field(
        default=0.1, metadata={"help": "Temperature of the soft_triplet loss, in units of cosine similarity."}
    )
    mining: Literal["all", "semihard", "hardest"] = field(
        default="all",
        metadata={
            "help": "Triplets that the triplet loss uses. all: triplets with a non-zero loss. semihard: triplets "
            "with a non-zero loss whose negative is farther away than the positive. hardest: for each anchor, the "
            "hardest positive and the hardest negative."
        },
    )
    margin: float = field(
        default=0.2,
        metadata={"help": "The cosine similarity of the positive must exceed that of the negative by this margin."},
    )
    proxy_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of a second loss. It learns one vector, the value proxy, for each value of an attribute. "
            "It pulls images towards the proxy of their value (normalised softmax with the same temperature). 0 turns "
            "it off."
        },
    )
    proxy_learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate of the value proxies."})

    # The optimizer
    head_learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Learning rate of all parameters outside the backbone. --learning_rate is for the backbone."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Do not train the backbone, but only the layers on top of it."}
    )
    frozen_levels: int | None = field(
        default=None,
        metadata={
            "help": "Number of early feature levels that are not trained. The later part of the backbone is trained. "
            "Default: all levels of a pretrained backbone, none of a backbone from scratch."
        },
    )
    cache_tokens: str | None = field(
        default=None,
        metadata={
            "help": "With --freeze_backbone: compute the backbone's features of all images once, store them in this "
            "folder, and train on them. Each further epoch computes only the layer. Features of flipped images are "
            "stored too (twice the size). Random crops are off."
        },
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "Precision of the features in --cache_tokens."}
    )

    # The batches
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of images whose activations are in memory at once. The batch and its gradient do not "
            "change, and a step takes about a third longer. Default: the whole batch."
        },
    )
    images_per_value: int = field(
        default=4,
        metadata={
            "help": "K of the P x K batches: a batch is built for one attribute, with K images of each of P values."
        },
    )
    values_per_batch: int = field(
        default=4,
        metadata={
            "help": "P of the P x K batches. The rest of a batch is drawn from the whole data set. A larger P favours "
            "rare values, a smaller P frequent values."
        },
    )
    horizontal_flip: float = field(
        default=0.5, metadata={"help": "Probability of a flip. Use 0 if an attribute distinguishes left and right."}
    )
    crop_scale: float = field(
        default=0.6,
        metadata={"help": "Smallest share of an image's area in a random crop; 1 turns cropping off."},
    )
    crop_ratio: float = field(
        default=4 / 3,
        metadata={"help": "Largest change of a crop's aspect ratio; 1 means no change."},
    )
    colour_jitter: float = field(
        default=0.0,
        metadata={"help": "Random change of brightness, contrast and saturation. It may change a colour attribute."},
    )

    # When to stop
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after this many evaluations without a better metric. 0 turns this off."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "Smallest increase of the metric that counts as better."}
    )
    collapse_patience: int = field(
        default=100,
        metadata={"help": "Stop after this many consecutive steps with equal embeddings. 0 turns this off."},
    )

    # Arguments of transformers with another default
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per batch on each device."})
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Images per evaluation batch on each device."}
    )
    num_train_epochs: float = field(default=8.0, metadata={"help": "Number of epochs."})
    max_steps: int = field(
        default=-1, metadata={"help": "Number of training steps. Above 0, it replaces --num_train_epochs."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed of the training."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the backbone. Default: 0.0001 for a pretrained transformer, 0.0003 for a "
            "pretrained network of feature maps, --head_learning_rate for a backbone from scratch."
        },
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Learning rate schedule, a value of transformers.SchedulerType."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warmup. A number below 1 is a share of all steps."}
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay, except for biases, normalisation and condition embeddings."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Mixed precision with bfloat16. Default: on if the GPU or CPU supports it, and --fp16 is off.",
            "nargs": "?",
            "const": True,
        },
    )
    dataloader_pin_memory: bool | None = field(
        default=None,
        metadata={"help": "Put batches into page-locked memory. Default: on with a GPU.", "nargs": "?", "const": True},
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Number of CPU threads of a process. Only scripts/train.py and cca train use it. Default: all "
            "cores for a single process, also under accelerate launch."
        },
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between logs. A number below 1 is a share of all steps."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep. The best and the last are always kept."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Load the best checkpoint at the end."})
    metric_for_best_model: str | None = field(
        default="map",
        metadata={"help": "Metric that selects the best checkpoint, such as map_macro or recall@1_colour."},
    )
    eval_accumulation_steps: int | None = field(
        default=16, metadata={"help": "Number of evaluation batches after which embeddings are moved to the CPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Has no effect."})
    hub_strategy: str = field(
        default="end",
        metadata={"help": "Only end is allowed: --push_to_hub makes one commit, after the evaluation."},
    )
    hub_always_push: bool = field(default=False, metadata={"help": "Has no effect."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository on the Hub, such as me/shoes. Default: the name of output_dir."}
    )
    hub_private_repo: bool | None = field(
        default=None,
        metadata={"help": "Make the repository private. If it exists and is public, nothing is pushed."},
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, created if needed. Default: the main branch."}
    )
    hub_token: str | None = field(
        default=None, metadata={"help": "Token for the Hub. Default: the token of `hf auth login`, or HF_TOKEN."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Push the model and its card to the Hub after the evaluation, in one commit."}
    )
    output_dir: str = field(
        default="trainer_output", metadata={"help": "Folder for checkpoints, model, report and model card."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder to resume from, or last: the last complete one in output_dir."},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Whether a resumed run continues its count for early stopping."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _hardware_has_bf16()
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise transformers refuses bfloat16 on a CPU
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        evaluates = IntervalStrategy(self.eval_strategy) is not IntervalStrategy.NO
        if not evaluates:
            self.load_best_model_at_end = False  # without a metric no checkpoint is the best
        strategy = HubStrategy(self.hub_strategy)
        allowed = "end: checkpoints stay in output_dir, and the repository gets one commit, with the evaluated model"
        _check("hub_strategy", strategy.value, strategy is HubStrategy.END, allowed)
        for name in ("temperature", "margin"):
            _check(name, vars(self)[name], vars(self)[name] > 0, "above 0")
        for name, least in _AT_LEAST.items():
            value = vars(self)[name]
            _check(name, value, value is None or value >= least, f"at least {least}")
        _check("horizontal_flip", self.horizontal_flip, 0 <= self.horizontal_flip <= 1, "between 0 and 1")
        _check("crop_scale", self.crop_scale, 0 < self.crop_scale <= 1, "above 0 and at most 1")
        _check("crop_ratio", self.crop_ratio, self.crop_ratio >= 1, "at least 1")
        _check("colour_jitter", self.colour_jitter, 0 <= self.colour_jitter < 1, "at least 0 and below 1")
        if self.cache_tokens is not None:
            _check("freeze_backbone", self.freeze_backbone, self.freeze_backbone, "True with cache_tokens")
            _check("colour_jitter", self.colour_jitter, self.colour_jitter == 0, "0 with cache_tokens")
            self.crop_scale = self.crop_ratio = 1.0  # the features are those of whole images
        if self.early_stopping_patience and not evaluates:
            raise ValueError("early_stopping_patience needs an evaluation: set eval_strategy to epoch or steps")
        super().__post_init__()


def _hardware_has_bf16() -> bool:
    """Whether bfloat16 is fast here: a CPU without units for it supports it, but is slower than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _check(name: str, value: float | str, valid: bool, allowed: str) -> None:
    if not valid:
        raise ValueError(f"{name} must be {allowed}, got {value}")
