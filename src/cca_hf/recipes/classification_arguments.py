"""The flags of `cca train classify`: the data, the model and the training of a classifier."""

from dataclasses import MISSING, dataclass
from typing import Literal

import torch
from transformers import TrainingArguments

from .command_line import flag

# by name, for the record of a training
DATA = (
    "label_column",
    "dataset_config",
    "dataset_revision",
    "image_column",
    "group_column",
    "split_seed",
    "on_unreadable",
)
_SHARES = ("label_smoothing", "mixup", "cutmix", "random_erasing", "horizontal_flip", "drop_path")


@dataclass(kw_only=True)
class ClassificationArguments(TrainingArguments):
    """The data, the model and the training of a classifier; further arguments are those of transformers.

    Raises:
        ValueError: for a setting outside its range, or settings that exclude each other.
    """

    # The data
    dataset: str = flag(MISSING, "An id on the Hub, a folder, or a table (CSV, TSV, Excel, JSON lines, parquet).")
    label_column: str | None = flag(
        None, "Column with the class of an image. Default: label, or the only column that can be one."
    )
    dataset_config: str | None = flag(None, "Configuration of a data set on the Hub.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the data set.")
    image_column: str | None = flag(None, "Column with the images. Default: image, or the only column of images.")
    group_column: str | None = flag(
        None, "Column with one value for near copies, such as an item number. Near copies are in one split."
    )
    split_seed: int = flag(0, "Seed for cutting the splits that the data set does not have.")
    on_unreadable: Literal["error", "skip"] = flag(
        "error", "Whether an image that cannot be read is an error before the training, or is skipped."
    )

    # The model
    backbone: str | None = flag(None, "Pretrained vision model: an id on the Hub or a local folder.")
    backbone_config: str | None = flag(
        None,
        "Configuration of a model that is trained from scratch, instead of --backbone: the name of a variant of "
        "CrossViT such as crossvit_tiny_240, JSON with a model_type such as vit, a JSON file, an id on the Hub or a "
        "folder.",
    )
    backbone_revision: str | None = flag(None, "Branch, tag or commit of the backbone.")
    image_size: list[int] | None = flag(
        None, "Size of the images in pixels: one number for squares, or height and width. Default: that of the model."
    )
    freeze_backbone: bool = flag(False, "Train only the classifier on top of the backbone (a linear probe).")
    freeze_batch_norm: bool = flag(
        True, "Training does not change the statistics of batch normalisation in a pretrained backbone."
    )
    drop_path: float | None = flag(
        None,
        "Probability in training that an image skips the last layer of the backbone; it rises from layer to layer.",
    )
    dcal: bool = flag(
        False, "Train DCAL on the backbone, a plain vision transformer: it also looks at its most attended patches."
    )
    local_share: float | None = flag(None, "Share of the patches that DCAL looks at a second time. Default: 0.1.")
    local_attention: bool = flag(True, "With --dcal: the second look (GLCA).")
    pairwise_attention: bool = flag(True, "With --dcal: in training, an image also attends to another one (PWCA).")

    # The loss
    label_smoothing: float = flag(0.1, "Share of the probability of a label that all classes divide equally.")
    mixup: float = flag(
        0.0, "Share of the batches in which each image is blended with another one. It needs the extra augmentation."
    )
    cutmix: float = flag(
        0.0,
        "Share of the batches in which a rectangle of each image is that of another one. It needs the extra "
        "augmentation.",
    )

    # The augmentation
    horizontal_flip: float = flag(0.5, "Probability of a flip. Use 0 if a class distinguishes left and right.")
    crop_scale: float = flag(0.6, "Smallest share of an image's area in a random crop; 1 turns cropping off.")
    crop_ratio: float = flag(4 / 3, "Largest change of a crop's aspect ratio; 1 means no change.")
    colour_jitter: float = flag(0.0, "Random change of brightness, contrast and saturation.")
    rand_augment: float | None = flag(
        None,
        "Magnitude of rand-augment, above 0 and below 30: two random operations on each image. It needs the extra "
        "augmentation.",
    )
    random_erasing: float = flag(
        0.0, "Probability with which a rectangle of an image is erased. It needs the extra augmentation."
    )

    # The optimizer
    head_learning_rate: float = flag(1e-3, "Learning rate of the classifier and of all other new layers.")
    layer_decay: float | None = flag(
        None, "Learning rate of a layer of the backbone over that of the next one. Default: the same rate."
    )
    ema_decay: float | None = flag(
        None,
        "Evaluate and save the moving average of the weights, such as 0.999: the average of about the last 1,000 "
        "steps. Default: the weights of the last step.",
    )

    # arguments of transformers with another default
    output_dir: str | None = flag("trainer_output", "Folder for checkpoints, model, report and model card.")
    per_device_train_batch_size: int = flag(64, "Images per batch on each device.")
    per_device_eval_batch_size: int = flag(64, "Images per evaluation batch on each device.")
    num_train_epochs: float = flag(20.0, "Number of epochs.")
    learning_rate: float | None = flag(
        None,
        "Learning rate of the backbone. Default: 0.0001 for a pretrained one, --head_learning_rate for one from "
        "scratch.",
    )
    lr_scheduler_type: str = flag("cosine", "Learning rate schedule, a value of transformers.SchedulerType.")
    warmup_steps: float = flag(0.05, "Steps of linear warmup. A number below 1 is a share of all steps.")
    weight_decay: float = flag(0.05, "Weight decay, except for biases and normalisation.")
    logging_steps: float = flag(10, "Steps between logs. A number below 1 is a share of all steps.")
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = flag("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = flag(2, "Number of checkpoints to keep. The best one is always kept.")
    load_best_model_at_end: bool = flag(True, "Load the best checkpoint at the end.")
    metric_for_best_model: str | None = flag(
        "accuracy", "Metric that selects the best checkpoint, such as macro_recall or top_5_accuracy."
    )
    dataloader_pin_memory: bool | None = flag(None, "Put batches into page-locked memory. Default: on with a GPU.")
    report_to: str | None = flag("none", "Where to log, such as tensorboard.")

    def __post_init__(self) -> None:
        if (self.backbone is None) == (self.backbone_config is None):
            raise ValueError("give either --backbone (pretrained) or --backbone_config (from scratch), and not both")
        if isinstance(self.image_size, int):  # from Python
            self.image_size = [self.image_size]
        if self.image_size is not None and (len(self.image_size) not in (1, 2) or min(self.image_size) < 1):
            raise ValueError(f"--image_size must be a positive number, or height and width; got {self.image_size}")
        if not self.dcal and (self.local_share is not None or not (self.local_attention and self.pairwise_attention)):
            raise ValueError("--local_share, --no_local_attention and --no_pairwise_attention need --dcal")
        if self.freeze_backbone and (self.backbone is None or self.layer_decay is not None):
            raise ValueError("--freeze_backbone needs --backbone, a pretrained one, and no --layer_decay")
        for name in _SHARES:
            value = vars(self)[name]
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        for name in ("layer_decay", "ema_decay"):
            value = vars(self)[name]
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {value}")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is for other trainers: give label_smoothing")
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False  # without a metric no checkpoint is the best
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        super().__post_init__()

    @property
    def height_and_width(self) -> int | list[int] | None:
        """`image_size` as models take it."""
        return self.image_size[0] if self.image_size is not None and len(self.image_size) == 1 else self.image_size

    @property
    def needs_kornia(self) -> bool:
        """Whether the augmentation is more than flips, crops and jitter."""
        return bool(self.mixup or self.cutmix or self.random_erasing) or self.rand_augment is not None
