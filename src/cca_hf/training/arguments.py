"""`CCATrainingArguments`: transformers' arguments, the settings of CCA, and defaults that need no tuning."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy

# for pretrained backbones: transformers, and networks of feature maps, whose early levels stay frozen;
# the help of --learning_rate names both
PRETRAINED_LEARNING_RATE = 1e-4
FEATURE_MAP_LEARNING_RATE = 3e-4

_AT_LEAST = {
    0: "proxy_weight proxy_learning_rate head_learning_rate early_stopping_patience collapse_patience",
    1: "micro_batch_size cpu_threads crop_ratio",
    2: "images_per_value values_per_batch",
}


# arguments of transformers with which evaluations fail, or that the training would not follow
_UNSUPPORTED = {
    "batch_eval_metrics": (False, "the metrics of retrieval need all images of a split"),
    "eval_do_concat_batches": (True, "the metrics of retrieval need all images of a split"),
    "dataloader_in_order": (True, "groups and sets of values belong to the rows of a split in their order"),
    "include_for_metrics": ([], "an evaluator gets predictions and labels"),
    "train_sampling_strategy": ("random", "the order of the training images is that of the task"),
    "label_smoothing_factor": (0.0, "it is for the cross-entropy of classes"),
    "neftune_noise_alpha": (None, "it is for embeddings of tokens in models of text"),
}


def check_supported(args: TrainingArguments) -> None:
    """Raises `ValueError` for an argument of transformers that trainings of this package cannot follow."""
    for name, (supported, reason) in _UNSUPPORTED.items():
        value = vars(args)[name]
        if value != supported:
            raise ValueError(f"{name} must be {supported}, got {value}: {reason}")


def _option(default: Any, help: str, **settings: Any) -> Any:
    """A field with its text in `--help`; `settings` are those of `add_argument`."""
    return field(default=default, metadata={"help": help, **settings})


@dataclass
class CCATrainingArguments(TrainingArguments):
    """All of `TrainingArguments`; first the new arguments, then those with another default.

    Raises:
        ValueError: for a setting outside its range.
    """

    # The loss
    loss: Literal["soft_triplet", "triplet"] = _option(
        "soft_triplet",
        "triplet: the conditional triplet loss, with --margin and --mining. soft_triplet: a smooth form of "
        "this loss, which compares each positive pair with all negatives of its anchor.",
    )
    temperature: float = _option(0.1, "Temperature of the soft_triplet loss, in units of cosine similarity.")
    mining: Literal["all", "semihard", "hardest"] = _option(
        "all",
        "Triplets that the triplet loss uses. all: triplets with a non-zero loss. semihard: triplets with a "
        "non-zero loss whose negative is farther away than the positive. hardest: for each anchor, the "
        "hardest positive and the hardest negative.",
    )
    margin: float = _option(
        0.2, "The cosine similarity of the positive must exceed that of the negative by this margin."
    )
    proxy_weight: float = _option(
        1.0,
        "Weight of a second loss. It learns one vector, the value proxy, for each value of an attribute. It "
        "pulls images towards the proxy of their value (normalised softmax with the same temperature). 0 "
        "turns it off.",
    )
    proxy_learning_rate: float = _option(1e-2, "Learning rate of the value proxies.")

    # After the training
    attribute_map: Literal["values", "retrieval", "project", "none"] | None = _option(
        None,
        "Last step of the model, fitted at the end of the training. values: the probabilities of the attribute's "
        "values; an embedding then contains no other attribute. retrieval: the same with the place of the image among "
        "similar images; it ranks best, and contains other attributes. project: the directions that separate the "
        "values. none: the embeddings as trained. Default: values, or the map that the model has already; none for "
        "one space for all attributes and for adapters. See 'cca docs entanglement'.",
    )

    # The optimizer
    head_learning_rate: float = _option(
        1e-3, "Learning rate of all parameters outside the backbone. --learning_rate is for the backbone."
    )
    freeze_backbone: bool = _option(False, "Do not train the backbone, but only the layers on top of it.")
    frozen_levels: int | None = _option(
        None,
        "Number of early feature levels that are not trained. The later part of the backbone is trained. "
        "Default: all levels of a pretrained backbone, none of a backbone from scratch.",
    )
    cache_tokens: str | None = _option(
        None,
        "Compute the features of what is frozen of the backbone once for all images, store them in this folder, "
        "and train on them. With --freeze_backbone, each further epoch computes only the layer; with "
        "--frozen_levels, also the later part of the backbone. Features of flipped images are stored too (twice "
        "the size). With --freeze_backbone, random crops are off; otherwise half of the batches are cut by one row "
        "and column of the output's cells, which --crop_scale 1 turns off.",
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = _option(
        "float16", "Precision of the features in --cache_tokens."
    )

    # The batches
    micro_batch_size: int | None = _option(
        None,
        "Number of images whose activations are in memory at once. The batch and its gradient do not change, "
        "and a step takes about a third longer. Default: the whole batch.",
    )
    images_per_value: int = _option(
        4, "K of the P x K batches: a batch is built for one attribute, with K images of each of P values."
    )
    values_per_batch: int = _option(
        4,
        "P of the P x K batches. The rest of a batch is drawn from the whole data set. A larger P favours "
        "rare values, a smaller P frequent values.",
    )
    horizontal_flip: float = _option(0.5, "Probability of a flip. Use 0 if an attribute distinguishes left and right.")
    crop_scale: float = _option(0.6, "Smallest share of an image's area in a random crop; 1 turns cropping off.")
    crop_ratio: float = _option(4 / 3, "Largest change of a crop's aspect ratio; 1 means no change.")
    colour_jitter: float = _option(
        0.0, "Random change of brightness, contrast and saturation. It may change a colour attribute."
    )

    # When to stop
    early_stopping_patience: int = _option(
        0, "Stop after this many evaluations without a better metric. 0 turns this off."
    )
    early_stopping_threshold: float = _option(0.0, "Smallest increase of the metric that counts as better.")
    collapse_patience: int = _option(
        100, "Stop after this many consecutive steps with equal embeddings. 0 turns this off."
    )

    # What is measured at the end
    measure_entanglement: bool = _option(
        True,
        "After the evaluation, measure how much each attribute's embeddings reveal about the other attributes. "
        "This needs scikit-learn and 200 labelled test images, and takes up to a minute.",
    )

    # Arguments of transformers with another default
    per_device_train_batch_size: int = _option(64, "Images per batch on each device.")
    per_device_eval_batch_size: int = _option(64, "Images per evaluation batch on each device.")
    num_train_epochs: float = _option(
        8.0,
        "Number of epochs. An epoch has about as many images as the training split, and more if the values are many: "
        "each value of each attribute occurs.",
    )
    max_steps: int = _option(-1, "Number of training steps. Above 0, it replaces --num_train_epochs.")
    seed: int = _option(42, "Random seed of the training.")
    learning_rate: float | None = _option(
        None,
        "Learning rate of the backbone. Default: 0.0001 for a pretrained transformer, 0.0003 for a pretrained"
        " network of feature maps, --head_learning_rate for a backbone from scratch.",
    )
    lr_scheduler_type: str = _option("cosine", "Learning rate schedule, a value of transformers.SchedulerType.")
    warmup_steps: float = _option(0.05, "Steps of linear warmup. A number below 1 is a share of all steps.")
    weight_decay: float = _option(0.05, "Weight decay, except for biases, normalisation and condition embeddings.")
    bf16: bool | None = _option(
        None,
        "Mixed precision with bfloat16. Default: on if the GPU or CPU supports it, and --fp16 is off.",
        nargs="?",
        const=True,
    )
    dataloader_pin_memory: bool | None = _option(
        None, "Put batches into page-locked memory. Default: on with a GPU.", nargs="?", const=True
    )
    cpu_threads: int | None = _option(
        None,
        "Number of CPU threads of a process. Only scripts/train.py and cca train use it. Default: all cores "
        "for a single process, also under accelerate launch.",
    )
    logging_steps: float = _option(10, "Steps between logs. A number below 1 is a share of all steps.")
    eval_strategy: str = _option("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = _option("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = _option(2, "Number of checkpoints to keep. The best and the last are always kept.")
    load_best_model_at_end: bool = _option(True, "Load the best checkpoint at the end.")
    metric_for_best_model: str | None = _option(
        "map", "Metric that selects the best checkpoint, such as map_macro or recall@1_colour."
    )
    eval_accumulation_steps: int | None = _option(
        16, "Number of evaluation batches after which embeddings are moved to the CPU."
    )
    remove_unused_columns: bool = _option(False, "Has no effect.")
    hub_strategy: str = _option("end", "Only end is allowed: --push_to_hub makes one commit, after the evaluation.")
    hub_always_push: bool = _option(False, "Has no effect.")
    hub_model_id: str | None = _option(
        None, "Repository on the Hub, such as me/shoes. Default: the name of output_dir."
    )
    hub_private_repo: bool | None = _option(
        None, "Make the repository private. If it exists and is public, nothing is pushed."
    )
    hub_revision: str | None = _option(None, "Branch to push to, created if needed. Default: the main branch.")
    hub_token: str | None = _option(None, "Token for the Hub. Default: the token of `hf auth login`, or HF_TOKEN.")
    push_to_hub: bool = _option(False, "Push the model and its card to the Hub after the evaluation, in one commit.")
    output_dir: str = _option("trainer_output", "Folder for checkpoints, model, report and model card.")
    resume_from_checkpoint: str | None = _option(
        None, "Checkpoint folder to resume from, or last: the last complete one in output_dir."
    )
    restore_callback_states_from_checkpoint: bool = _option(
        True, "Whether a resumed run continues its count for early stopping."
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
        _check("temperature", self.temperature, self.temperature > 0, "above 0")
        _check("margin", self.margin, self.margin > 0, "above 0")
        for least, names in _AT_LEAST.items():
            for name in names.split():
                value = vars(self)[name]
                _check(name, value, value is None or value >= least, f"at least {least}")
        _check("horizontal_flip", self.horizontal_flip, 0 <= self.horizontal_flip <= 1, "between 0 and 1")
        _check("crop_scale", self.crop_scale, 0 < self.crop_scale <= 1, "above 0 and at most 1")
        _check("colour_jitter", self.colour_jitter, 0 <= self.colour_jitter < 1, "at least 0 and below 1")
        if self.cache_tokens is not None:
            learns = self.frozen_levels == 0 and not self.freeze_backbone
            allowed = "at least 1 with cache_tokens, or freeze_backbone True"
            _check("frozen_levels", 0, not learns, allowed)
            _check("colour_jitter", self.colour_jitter, self.colour_jitter == 0, "0 with cache_tokens")
            if self.freeze_backbone:
                self.crop_scale = self.crop_ratio = 1.0  # the features are those of whole images
        if self.early_stopping_patience and not evaluates:
            raise ValueError("early_stopping_patience needs an evaluation: set eval_strategy to epoch or steps")
        super().__post_init__()
        check_supported(self)


def _hardware_has_bf16() -> bool:
    """Whether bfloat16 is fast here: a CPU without units for it supports it, but is slower than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _check(name: str, value: float | str, valid: bool, allowed: str) -> None:
    if not valid:
        raise ValueError(f"{name} must be {allowed}, got {value}")
