"""The flags of `cca train recognise`: the data, the model and the training of a model that recognises attributes."""

from dataclasses import MISSING, dataclass
from typing import Literal

import torch
from transformers import SchedulerType, TrainingArguments

from .command_line import flag

# by name, for the record of a training
DATA = (
    "attributes",
    "dataset_config",
    "dataset_revision",
    "image_column",
    "group_column",
    "split_seed",
    "on_unreadable",
)
_BRANCHES = ("backbone", "backbone_config", "local_backbone", "local_backbone_config")


@dataclass(kw_only=True)
class RecognitionArguments(TrainingArguments):
    """The data, the model and the training; further arguments are those of transformers.

    Raises:
        ValueError: for a setting outside its range, or settings that exclude each other.
    """

    # The data
    dataset: str = flag(MISSING, "An id on the Hub, a folder, or a table (CSV, TSV, Excel, JSON lines, parquet).")
    attributes: list[str] | None = flag(
        None,
        "The attribute columns. A column of lists has any number of values, and a column of no and yes, false and "
        "true, or 0 and 1 is binary. Default: all ClassLabel columns, or else those whose values repeat.",
    )
    dataset_config: str | None = flag(None, "Configuration of a data set on the Hub.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the data set.")
    image_column: str | None = flag(None, "Column with the images. Default: image, or the only column of images.")
    group_column: str | None = flag(
        None, "Column with one value for all images of a person or an item. They are in one split."
    )
    split_seed: int = flag(0, "Seed for cutting the splits that the data set does not have.")
    on_unreadable: Literal["error", "skip"] = flag(
        "error", "Whether an image that cannot be read is an error before the training, or is skipped."
    )

    # The model
    backbone: str | None = flag(
        None, "Global branch of CLEAR: a pretrained vision transformer, an id on the Hub or a local folder."
    )
    local_backbone: str | None = flag(
        None,
        "Local branch of CLEAR: a pretrained Swin, Swin v2, ConvNeXt or ConvNeXt v2. With one branch only, the model "
        "is this backbone with a classifier.",
    )
    backbone_config: str | None = flag(
        None,
        "Configuration of a global branch that is trained from scratch, instead of --backbone: JSON with a "
        "model_type such as vit, a JSON file, an id on the Hub or a folder.",
    )
    local_backbone_config: str | None = flag(None, "The same for the local branch, instead of --local_backbone.")
    fusion: bool = flag(True, "The summary of each branch attends to the other branch.")
    channel_attention: bool = flag(True, "Channel-aware attention before the stages of the local branch.")
    model: str | None = flag(
        None,
        "Instead of backbones, a trained CCA model: a classifier on its embeddings. With --freeze_backbone the "
        "embeddings do not change.",
    )
    image_size: list[int] | None = flag(
        None,
        "Size of the images in pixels: one number for squares, or height and width, such as 256 128 for persons. "
        "Default: that of the model.",
    )
    freeze_backbone: bool = flag(False, "Train only the new layers on top of what was pretrained.")

    # The augmentation
    horizontal_flip: float = flag(0.5, "Probability of a flip. Use 0 if a value distinguishes left and right.")
    padding: int = flag(
        10, "Black pixels on each side before an image is cropped to its size at a random place; 0 for no crop."
    )

    # The optimizer
    head_learning_rate: float = flag(1e-3, "Learning rate of everything that was not pretrained.")

    # After the training
    max_error: float = flag(
        0.1,
        "The share of wrong values among those that the model gives, on validation. Below the threshold that follows "
        "from it, a value is unknown.",
    )

    # arguments of transformers with another default
    output_dir: str | None = flag("trainer_output", "Folder for checkpoints, model and model card.")
    per_device_train_batch_size: int = flag(64, "Images per batch on each device.")
    per_device_eval_batch_size: int = flag(64, "Images per evaluation batch on each device.")
    num_train_epochs: float = flag(20.0, "Number of epochs.")
    learning_rate: float = flag(1e-5, "Learning rate of what was pretrained.")
    lr_scheduler_type: str = flag(
        "cosine", "Learning rate schedule, a value of transformers.SchedulerType, such as reduce_lr_on_plateau."
    )
    lr_scheduler_kwargs: dict | str | None = flag(
        None, 'Settings of the schedule as JSON, such as {"patience": 2} for reduce_lr_on_plateau.'
    )
    warmup_steps: float = flag(0.05, "Steps of linear warmup. A number below 1 is a share of all steps.")
    weight_decay: float = flag(0.0, "Weight decay, except for biases and normalisation.")
    max_grad_norm: float = flag(10.0, "Largest norm of the gradient.")
    logging_steps: float = flag(10, "Steps between logs. A number below 1 is a share of all steps.")
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = flag("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = flag(2, "Number of checkpoints to keep. The best one is always kept.")
    load_best_model_at_end: bool = flag(True, "Load the best checkpoint at the end.")
    metric_for_best_model: str | None = flag(
        "mean_accuracy", "Metric that selects the best checkpoint, such as f1 or mean_accuracy_hair."
    )
    dataloader_pin_memory: bool | None = flag(None, "Put batches into page-locked memory. Default: on with a GPU.")
    report_to: str | None = flag("none", "Where to log, such as tensorboard.")

    def __post_init__(self) -> None:
        given = [name for name in _BRANCHES if vars(self)[name] is not None]
        if (self.model is None) == (not given):
            raise ValueError(
                "give --backbone or --local_backbone, or both (pretrained), or --backbone_config or "
                "--local_backbone_config (from scratch), or --model (a trained CCA model)"
            )
        for name in ("backbone", "local_backbone"):
            if name in given and f"{name}_config" in given:
                raise ValueError(f"give either --{name} (pretrained) or --{name}_config (from scratch), and not both")
        if self.model is not None and self.image_size is not None:
            raise ValueError("--image_size is not for --model: the images have the size of the trained model")
        if not self.has_both_branches and not self.fusion:
            raise ValueError("--no_fusion needs both branches")
        if not self.has_local_branch and not self.channel_attention:
            raise ValueError("--no_channel_attention needs a local branch")
        if self.freeze_backbone and not {"backbone", "local_backbone"} & {*given} and self.model is None:
            raise ValueError("--freeze_backbone needs something that was pretrained: --backbone, or --model")
        if isinstance(self.image_size, int):  # from Python
            self.image_size = [self.image_size]
        if self.image_size is not None and (len(self.image_size) not in (1, 2) or min(self.image_size) < 1):
            raise ValueError(f"--image_size must be a positive number, or height and width; got {self.image_size}")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be between 0 and 1, got {self.horizontal_flip}")
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0, got {self.padding}")
        if not 0 < self.max_error < 1:
            raise ValueError(f"max_error must be above 0 and below 1, got {self.max_error}")
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False  # without a metric no checkpoint is the best
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        super().__post_init__()
        if self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU:  # a higher metric is better
            schedule = self.lr_scheduler_kwargs
            self.lr_scheduler_kwargs = {"mode": "max", **(schedule if isinstance(schedule, dict) else {})}

    @property
    def has_local_branch(self) -> bool:
        """Whether the model has the local branch of CLEAR."""
        return self.local_backbone is not None or self.local_backbone_config is not None

    @property
    def has_both_branches(self) -> bool:
        """Whether the model has both branches of CLEAR."""
        return self.has_local_branch and (self.backbone is not None or self.backbone_config is not None)

    @property
    def height_and_width(self) -> int | list[int] | None:
        """`image_size` as models take it."""
        return self.image_size[0] if self.image_size is not None and len(self.image_size) == 1 else self.image_size
