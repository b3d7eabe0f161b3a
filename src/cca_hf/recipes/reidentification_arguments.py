"""The flags of `cca train reidentify`: the data, the model and the training of re-identification."""

from dataclasses import MISSING, dataclass
from typing import Literal

import torch
from transformers import TrainingArguments

from .command_line import flag

# by name, for the record of a training
DATA = (
    "identity_column",
    "camera_column",
    "role_column",
    "within_column",
    "dataset_config",
    "dataset_revision",
    "image_column",
    "split_seed",
    "on_unreadable",
)


@dataclass(kw_only=True)
class ReidentificationArguments(TrainingArguments):
    """The data, the model and the training of re-identification; further arguments are those of transformers.

    Raises:
        ValueError: for a setting outside its range, or settings that exclude each other.
    """

    # The data
    dataset: str = flag(MISSING, "An id on the Hub, a folder, or a table (CSV, TSV, Excel, JSON lines, parquet).")
    identity_column: str = flag("identity", "Column with the identity: one value for all images of a person or car.")
    camera_column: str = flag(
        "camera", "Column with the camera. A query does not search images of its identity by its own camera."
    )
    role_column: str | None = flag(
        None,
        "Column with query or gallery for the images of a split that is evaluated. Default, or where the column is "
        "empty: the images of an identity's first camera are the queries.",
    )
    within_column: str | None = flag(
        None, "A query searches only images with its value in this column, such as the place of a recording."
    )
    dataset_config: str | None = flag(None, "Configuration of a data set on the Hub.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the data set.")
    image_column: str | None = flag(None, "Column with the images. Default: image, or the only column of images.")
    split_seed: int = flag(0, "Seed for cutting the splits that the data set does not have, by identities.")
    on_unreadable: Literal["error", "skip"] = flag(
        "error", "Whether an image that cannot be read is an error before the training, or is skipped."
    )

    # The model
    backbone: str | None = flag(None, "Pretrained vision model: an id on the Hub or a local folder.")
    backbone_config: str | None = flag(
        None,
        "Configuration of a model that is trained from scratch, instead of --backbone: JSON with a model_type such as "
        "vit, a JSON file, an id on the Hub or a folder.",
    )
    image_size: list[int] = flag(
        (256, 128), "Size of the images in pixels: height and width, or one number for squares. 256 for vehicles."
    )
    dcal: bool = flag(
        False, "Train DCAL on the backbone, a plain vision transformer: it also looks at its most attended patches."
    )
    local_share: float | None = flag(None, "Share of the patches that DCAL looks at a second time. Default: 0.3.")
    local_attention: bool = flag(True, "With --dcal: the second look (GLCA).")
    pairwise_attention: bool = flag(True, "With --dcal: in training, an image also attends to another one (PWCA).")

    # The loss and the batches
    label_smoothing: float = flag(0.1, "Share of the probability of an identity that all identities divide equally.")
    margin: float | None = flag(
        None, "Margin of the triplets, in units of the Euclidean distance. Default: a smooth loss without a margin."
    )
    images_per_identity: int = flag(4, "K of the P x K batches. An identity with fewer images gives all it has.")
    horizontal_flip: float = flag(0.5, "Probability of a flip.")
    padding: int = flag(
        10, "Black pixels on each side of an image before it is cropped to its size. 0 turns this off."
    )
    random_erasing: float = flag(
        0.5, "Probability with which a rectangle of an image is erased. Above 0 it needs the extra augmentation."
    )
    head_learning_rate: float = flag(
        1e-3, "Learning rate of the classifier of identities, and of the layers that DCAL adds."
    )

    # arguments of transformers with another default
    output_dir: str | None = flag("trainer_output", "Folder for checkpoints, model and model card.")
    per_device_train_batch_size: int = flag(64, "Images per batch on each device.")
    per_device_eval_batch_size: int = flag(128, "Images per evaluation batch on each device.")
    num_train_epochs: float = flag(60.0, "Number of epochs. An epoch has about as many images as the training split.")
    learning_rate: float | None = flag(
        None,
        "Learning rate of the backbone. Default: 0.0001 for a pretrained one, --head_learning_rate for one from "
        "scratch.",
    )
    lr_scheduler_type: str = flag("cosine", "Learning rate schedule, a value of transformers.SchedulerType.")
    warmup_steps: float = flag(0.1, "Steps of linear warmup. A number below 1 is a share of all steps.")
    weight_decay: float = flag(0.05, "Weight decay, except for biases and normalisation.")
    logging_steps: float = flag(10, "Steps between logs. A number below 1 is a share of all steps.")
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = flag("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = flag(2, "Number of checkpoints to keep. The best one is always kept.")
    load_best_model_at_end: bool = flag(True, "Load the best checkpoint at the end.")
    metric_for_best_model: str | None = flag("map", "Metric that selects the best checkpoint, such as cmc@1 or minp.")
    dataloader_pin_memory: bool | None = flag(None, "Put batches into page-locked memory. Default: on with a GPU.")
    report_to: str | None = flag("none", "Where to log, such as tensorboard.")

    def __post_init__(self) -> None:
        if (self.backbone is None) == (self.backbone_config is None):
            raise ValueError("give either --backbone (pretrained) or --backbone_config (from scratch), and not both")
        self.image_size = [self.image_size] if isinstance(self.image_size, int) else [*self.image_size]
        if len(self.image_size) not in (1, 2) or min(self.image_size) < 1:
            raise ValueError(f"--image_size must be a positive number, or height and width; got {self.image_size}")
        if not self.dcal and (self.local_share is not None or not (self.local_attention and self.pairwise_attention)):
            raise ValueError("--local_share, --no_local_attention and --no_pairwise_attention need --dcal")
        for name in ("horizontal_flip", "random_erasing"):
            if not 0 <= vars(self)[name] <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {vars(self)[name]}")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is for other trainers: give label_smoothing")
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False  # without a metric no checkpoint is the best
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()
        super().__post_init__()

    @property
    def height_and_width(self) -> list[int]:
        return self.image_size * 2 if len(self.image_size) == 1 else self.image_size
