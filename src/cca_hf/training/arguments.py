"""`CCATrainingArguments`: transformers' own, with the settings of CCA and defaults that need no tuning."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

# of a pretrained backbone: of transformers, and of networks of feature maps, whose early levels stay frozen
PRETRAINED_LEARNING_RATE = 1e-4
FEATURE_MAP_LEARNING_RATE = 3e-4


@dataclass
class CCATrainingArguments(TrainingArguments):
    """Everything `TrainingArguments` has; below is what is new, then what has another default here.

    Raises:
        ValueError: for a setting outside its range.
    """

    # The loss
    loss: Literal["soft_triplet", "triplet"] = field(
        default="soft_triplet",
        metadata={
            "help": "The conditional triplet loss of the family with its margin and mining, or its smooth form, in "
            "which each positive pair is set against all negatives of its anchor at once."
        },
    )
    temperature: float = field(default=0.1, metadata={"help": "Of soft_triplet, in cosine."})
    mining: Literal["all", "semihard", "hardest"] = field(
        default="all",
        metadata={
            "help": "Triplets that are learned from: all with a non-zero loss, those of them whose negative is still "
            "farther than the positive, or the hardest positive and negative of each anchor."
        },
    )
    margin: float = field(
        default=0.2, metadata={"help": "How much nearer (in cosine) the positive has to be than the negative."}
    )

    proxy_weight: float = field(
        default=1.0,
        metadata={
            "help": "Of a second loss beside it: one learned vector for each value of each attribute, which its "
            "pictures are drawn to (normalised softmax, with the temperature above). 0 leaves it out."
        },
    )
    proxy_learning_rate: float = field(default=1e-2, metadata={"help": "Learning rate of these vectors."})

    # The optimiser
    head_learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Learning rate of everything that is not the backbone; --learning_rate is the backbone's."},
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "Train the conditional layer alone."})
    frozen_levels: int | None = field(
        default=None,
        metadata={
            "help": "How many of the earlier feature levels that the model asks stay as they were pretrained; the "
            "backbone learns behind them. Default: all of a pretrained backbone, none from scratch."
        },
    )

    cache_tokens: str | None = field(
        default=None,
        metadata={
            "help": "With --freeze_backbone: compute what the backbone makes of the pictures once, keep it in this "
            "folder, and train from there; each further epoch costs only the layer. Horizontal flips are kept as well "
            "(twice the size); random crops are off."
        },
    )
    cache_dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "Of the numbers in --cache_tokens."}
    )

    # The batches
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Pictures whose activations are kept at once: the batch and its gradient stay what they are, in "
            "the memory of the smaller number, for about a third more time. Default: the whole batch."
        },
    )
    images_per_value: int = field(
        default=4,
        metadata={"help": "K of the P x K batches: images of each value of the attribute that a batch is built for."},
    )
    values_per_batch: int = field(
        default=4,
        metadata={
            "help": "P of the P x K batches; the rest of a batch is drawn from the whole set. More of them favour the "
            "rare values, fewer the frequent ones."
        },
    )
    horizontal_flip: float = field(
        default=0.5, metadata={"help": "Probability of a flip; 0 where left and right are what an attribute is about."}
    )
    crop_scale: float = field(
        default=0.6,
        metadata={"help": "Smallest share of a picture's area that a random crop keeps; 1 crops nothing."},
    )
    crop_ratio: float = field(
        default=4 / 3,
        metadata={"help": "Largest change of a crop's aspect ratio; 1 keeps the picture's own."},
    )
    colour_jitter: float = field(
        default=0.0,
        metadata={"help": "Random change of brightness, contrast and saturation. Mind that colour is an attribute."},
    )

    # When to stop
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after so many evaluations without a better metric; 0 trains to the end."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much the metric has to rise to count as better."}
    )
    collapse_patience: int = field(
        default=100,
        metadata={"help": "Stop after so many steps in a row in which all embeddings are equal; 0 never does."},
    )

    # What has another default here
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images of a batch on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images of an evaluation batch."})
    num_train_epochs: float = field(default=8.0, metadata={"help": "Number of epochs."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": f"Of the backbone. Default: {PRETRAINED_LEARNING_RATE}, for one of feature maps "
            f"{FEATURE_MAP_LEARNING_RATE}, from scratch that of the head."
        },
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "See transformers.SchedulerType."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warmup, or below 1 their share of all steps."}
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Not applied to biases, normalisation and condition embeddings."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Mixed precision with bfloat16. Default: where the hardware has it, CPUs included, unless --fp16.",
            "nargs": "?",
            "const": True,
        },
    )
    dataloader_pin_memory: bool | None = field(
        default=None,
        metadata={"help": "Page-locked batches. Default: where there is a GPU.", "nargs": "?", "const": True},
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads of a process that trains on a CPU. Default: all cores for a single process, also where "
            "accelerate launch would leave it one."
        },
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps, below 1 their share."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch, best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep, the best and the last always among them."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(
        default="map", metadata={"help": "Any figure of the evaluation, such as map_macro or recall@1_colour."}
    )
    eval_accumulation_steps: int | None = field(
        default=16, metadata={"help": "Move the embeddings of an evaluation off the device every so many batches."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Of no use here: batches come ready made."})
    hub_strategy: str = field(
        default="end",
        metadata={"help": "Only end: with --push_to_hub the repository gets one commit, the measured model's."},
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run goes on counting towards early stopping."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _hardware_has_bf16()
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers wants to be told before it lets a CPU use bfloat16
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        if str(self.eval_strategy) == "no":
            self.load_best_model_at_end = False  # there is no figure to tell the best by
        strategy = HubStrategy(self.hub_strategy)
        allowed = "end: checkpoints stay in output_dir, and the repository gets one commit, the measured model's"
        _check("hub_strategy", strategy.value, strategy is HubStrategy.END, allowed)
        _check("temperature", self.temperature, self.temperature > 0, "above 0")
        _check("margin", self.margin, self.margin > 0, "above 0")
        _check("proxy_weight", self.proxy_weight, self.proxy_weight >= 0, "at least 0")
        _check("proxy_learning_rate", self.proxy_learning_rate, self.proxy_learning_rate >= 0, "at least 0")
        _check("head_learning_rate", self.head_learning_rate, self.head_learning_rate >= 0, "at least 0")
        _check("images_per_value", self.images_per_value, self.images_per_value >= 2, "at least 2")
        _check("values_per_batch", self.values_per_batch, self.values_per_batch >= 2, "at least 2")
        if self.micro_batch_size is not None:
            _check("micro_batch_size", self.micro_batch_size, self.micro_batch_size >= 1, "at least 1")
        if self.cpu_threads is not None:
            _check("cpu_threads", self.cpu_threads, self.cpu_threads >= 1, "at least 1")
        _check("horizontal_flip", self.horizontal_flip, 0 <= self.horizontal_flip <= 1, "between 0 and 1")
        _check("crop_scale", self.crop_scale, 0 < self.crop_scale <= 1, "above 0 and at most 1")
        _check("crop_ratio", self.crop_ratio, self.crop_ratio >= 1, "at least 1")
        _check("colour_jitter", self.colour_jitter, 0 <= self.colour_jitter < 1, "at least 0 and below 1")
        if self.cache_tokens is not None:
            _check("freeze_backbone", self.freeze_backbone, self.freeze_backbone, "True with cache_tokens")
            _check("colour_jitter", self.colour_jitter, self.colour_jitter == 0, "0 with cache_tokens")
            self.crop_scale = self.crop_ratio = 1.0  # what is kept is of whole pictures
        patience = self.early_stopping_patience
        _check("early_stopping_patience", patience, patience >= 0, "at least 0")
        _check("collapse_patience", self.collapse_patience, self.collapse_patience >= 0, "at least 0")
        if patience and str(self.eval_strategy) == "no":
            raise ValueError("early_stopping_patience needs an evaluation: set eval_strategy to epoch or steps")
        super().__post_init__()


def _hardware_has_bf16() -> bool:
    """On a CPU without units for it bfloat16 is slower than float32, so that being able to is not enough."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _check(name: str, value: float | str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value}")
