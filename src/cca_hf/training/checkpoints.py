"""Checkpoints that are complete or absent: written beside their place, and moved into it when they are complete.

transformers' Trainer writes file by file into `checkpoint-40`. A full disk or a kill in between would leave a folder
that looks like a checkpoint, and cannot be loaded.
"""

import contextlib
import copy
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import rotate_checkpoints, sort_checkpoints

from cca_hf.models.whole_files import staged

from .adapters import MERGE_FIRST, has_adapter, load_adapter

logger = logging.getLogger(__name__)

_STAGING = ".incomplete"  # a folder in the output directory, which nothing mistakes for a checkpoint
_REPLACED = ".replaced-"
_FULL = 2**20  # bytes


class CheckpointError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are untouched."""


class TrainingFailedError(RuntimeError):
    """Training cannot continue: loss or weights are NaN or infinite, or all embeddings have become equal."""


class WholeCheckpointTrainer(Trainer):
    """A Trainer whose checkpoints are complete or absent, and never contain NaN."""

    args: TrainingArguments
    publish: Callable[..., str] | None = None  # called by `push_to_hub`
    resumed_from: Path | None = None  # the checkpoint from which the training continues
    _saving_checkpoint = False

    def _get_output_dir(self, trial: Any) -> str:
        output_dir = super()._get_output_dir(trial)
        return str(Path(output_dir) / _STAGING) if self._saving_checkpoint else output_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staged_checkpoint = run_dir / _STAGING / name
        self._check_weights()
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
            best = f"checkpoint-{self.state.best_global_step}"
            if self.state.best_global_step and (best == name or (run_dir / best).exists()):
                # the Trainer has named the best checkpoint by the staging folder
                self.state.best_model_checkpoint = str(run_dir / best)
                if self.args.should_save:
                    self.state.save_to_json(str(staged_checkpoint / TRAINER_STATE_NAME))
        except (OSError, RuntimeError, SafetensorError) as error:
            # the message of torch does not mention the disk
            reason = f"the disk is full ({error})" if shutil.disk_usage(run_dir).free < _FULL else str(error)
            remove_leftovers(run_dir)
            last = last_checkpoint(run_dir)
            usable = "there was no earlier one" if last is None else f"{last.name} is complete and can be resumed from"
            raise CheckpointError(
                f"could not write {name} to {run_dir}: {reason}. Nothing was overwritten; {usable}."
            ) from error
        finally:
            self._saving_checkpoint = False
        self.accelerator.wait_for_everyone()  # the checkpoint includes the random states of the other processes
        if self.args.should_save:
            _publish(staged_checkpoint, run_dir / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            kept = self.state.best_model_checkpoint
            rotate_checkpoints(str(run_dir), self.args.save_total_limit, kept, use_mtime=True)

    def push_to_hub(self, repo_id: str | None = None, *, commit_message: str | None = None) -> str:
        """Saves the model into `output_dir`, publishes the folder in one commit, and returns the commit's address.

        The `hub_*` arguments apply; by default the repository has the name of `output_dir`. Nothing else pushes:
        neither the training nor `save_model`.

        Raises:
            ValueError: if the trainer has no `publish`, or the model has an adapter.
        """
        if self.publish is None:
            raise ValueError("to push, make the trainer with publish=cca_hf.push_model, or run 'cca push'")
        if has_adapter(self.model):
            raise ValueError(MERGE_FIRST)
        self.save_model()
        message = {} if commit_message is None else {"message": commit_message}
        return self.publish(
            self.args.output_dir,
            repo_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            private=self.args.hub_private_repo,
            revision=self.args.hub_revision,
            token=self.args.hub_token,
            **message,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: a repository gets one commit, with model and card, through `push_to_hub`."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or model is not None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_weights(self.state.best_model_checkpoint)

    def find_best_checkpoint(self) -> None:
        """Updates the place of the best checkpoint in the state of a resumed training.

        The state has its path at the time of the saving. The output folder may have been moved or copied since.
        """
        if self.resumed_from is None:
            return
        recorded = TrainerState.load_from_json(str(self.resumed_from / TRAINER_STATE_NAME)).best_model_checkpoint
        if recorded is None:
            return
        output_dir, folder = Path(self.args.output_dir), self.resumed_from.parent
        if output_dir.is_dir() and output_dir.samefile(folder):
            folder = output_dir  # so that paths can be compared with those of new checkpoints
        places = [folder / Path(recorded).name, Path(recorded)]
        best = next((place for place in places if place.is_dir()), None)
        self.state.best_model_checkpoint = None if best is None else str(best)
        if best is None and self.args.load_best_model_at_end:
            logger.warning(
                "%s, the best checkpoint so far, is missing in %s: the best of the remaining steps is selected",
                places[0].name,
                folder,
            )
            self.state.best_metric, self.state.best_global_step = None, None
        elif best == places[0] and not Path(recorded).is_dir():
            logger.warning("the output folder was moved: the best checkpoint so far is %s", best)

    def _load_weights(self, checkpoint: str) -> None:
        """Loads with `from_pretrained`, which converts old names of weights; the Trainer would skip them."""
        logger.info("loading weights from %s", checkpoint)
        if has_adapter(self.model):
            load_adapter(self.model, checkpoint)
            return
        weights = self._read_checkpoint(checkpoint).state_dict()
        self.model.load_state_dict({name: weights[name] for name in self.model.state_dict()})

    def _read_checkpoint(self, checkpoint: str) -> nn.Module:
        """The model of a checkpoint. It may have a part that the trained model was made without, such as a pooler."""
        loaded, report = type(self.model).from_pretrained(checkpoint, output_loading_info=True)
        missing = sorted(set(report["missing_keys"]) & set(self.model.state_dict()))
        if missing:
            raise ValueError(f"{checkpoint} has no weights for {', '.join(missing)}")
        return loaded

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`, but never pushes; a full disk leaves an earlier model in `output_dir` as it was.

        Raises:
            TrainingFailedError: if weights are NaN or infinite.
        """
        self._check_weights()
        super().save_model(output_dir, _internal_call=True)  # otherwise the Trainer would push

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        args = self.args
        self.args = copy.copy(args)
        self.args.hub_token = None  # transformers would write it into training_args.bin
        try:
            with staged(output_dir or args.output_dir) as folder:
                super()._save(str(folder), state_dict)
        finally:
            self.args = args
        return None

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self._failed(f"weights of {name} are NaN or infinite")

    def _failed(self, reason: str) -> TrainingFailedError:
        last = last_checkpoint(self.args.output_dir)
        kept = f"The last good checkpoint is {last}" if last else "No checkpoint had been saved yet"
        return TrainingFailedError(f"training stopped at step {self.state.global_step}: {reason}. {kept}.")


def last_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The latest complete checkpoint in `output_dir`, or None."""
    if not Path(output_dir).is_dir():
        return None
    _restore_replaced(Path(output_dir))
    for path in reversed([Path(each) for each in sort_checkpoints(str(output_dir))]):
        # a checkpoint of this package is always complete; a folder of another origin may not be
        if (path / TRAINER_STATE_NAME).is_file() and any(path.glob("*.safetensors*")):
            return path
    return None


def remove_leftovers(output_dir: str | os.PathLike[str]) -> None:
    """Removes what a killed or failed run has left unfinished, and restores a checkpoint that it was replacing."""
    _restore_replaced(Path(output_dir))
    shutil.rmtree(Path(output_dir) / _STAGING, ignore_errors=True)
    for path in Path(output_dir).glob(f"{_REPLACED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _restore_replaced(output_dir: Path) -> None:
    """Puts back a checkpoint that `_publish` had moved aside when its process was killed."""
    for replaced in output_dir.glob(f"{_REPLACED}*"):
        final = output_dir / replaced.name.removeprefix(_REPLACED)
        if not final.exists():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                replaced.rename(final)


def _publish(staged_checkpoint: Path, final: Path) -> None:
    """Moves a complete checkpoint to its place, and replaces an earlier one of the same step."""
    replaced = final.with_name(_REPLACED + final.name)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staged_checkpoint.rename(final)
    staged_checkpoint.parent.rmdir()
    shutil.rmtree(replaced, ignore_errors=True)
