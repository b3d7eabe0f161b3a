"""Hard negatives of the whole training set, by the current model, looked for before each epoch.

What is found goes into every checkpoint, so that an epoch that was broken off goes on with the batches it had: they
could not be found again, for the model that they were found by has learned since.
"""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cca_hf.data.hard_negatives import HardNegatives, find_hard_negatives
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.data.schema import AttributeDataset

from .arguments import CCATrainingArguments

IMAGES_PER_VALUE = 64  # that are kept: a batch takes a random part of them


class HardNegativeMining(TrainerCallback):
    """Tells a batch sampler before each epoch what the model confuses. Not before the first: it knows nothing yet.

    Args:
        args: what to look for, and in how many images, drawn anew for each epoch.
        data: their labels.
        embed: rows of the training set -> (rows, attributes, dim), on all processes together.
    """

    def __init__(
        self, args: CCATrainingArguments, data: AttributeDataset, embed: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.kind = args.hard_negatives
        self.num_images = args.hard_negatives_images
        self.seed = args.seed if args.data_seed is None else args.data_seed
        self.labels = data.labels("train")
        self.num_values = [len(values) for values in data.attributes.values()]
        self.embed = embed
        self.sampler: AttributeBatchSampler | None = None
        self.found: HardNegatives | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        if epoch == 0:
            self.found = None
        elif self.found is None or self.found.epoch != epoch:
            self.found = self._find(epoch)
        if self.sampler is not None:
            self.sampler.hard_negatives = self.found

    def _find(self, epoch: int) -> HardNegatives:
        draw = np.random.default_rng([self.seed, epoch, 2])
        labelled = np.flatnonzero((self.labels >= 0).any(axis=1))
        rows = np.sort(draw.choice(labelled, min(self.num_images, len(labelled)), replace=False))
        # a data loader draws a seed: the random numbers of the training must not depend on what was looked at before
        with torch.random.fork_rng(devices=[]):
            embeddings = self.embed(rows)
        found = find_hard_negatives(
            embeddings,
            self.labels[rows],
            rows,
            num_values=self.num_values,
            most=IMAGES_PER_VALUE,
            epoch=epoch,
        )
        found = replace(
            found,
            values=found.values if self.kind == "values" else None,
            images=found.images if self.kind == "images" else None,
        )
        same_on_all = [found]  # whatever the last bits of each process's embeddings
        broadcast_object_list(same_on_all)
        return same_on_all[0]

    def save(self, folder: str | PathLike[str]) -> None:
        """What this epoch's batches are drawn by, into a checkpoint."""
        if self.found is not None:
            self.found.save(folder)

    def load(self, folder: str | PathLike[str]) -> None:
        """The same, to go on from a checkpoint."""
        self.found = HardNegatives.load(folder)
