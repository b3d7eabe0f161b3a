"""Publish a trained checkpoint on the Hub: its files are collected in a folder and pushed in one commit.

The repository gets the checkpoint, loaded and saved again, with its code; `handler.py` for Inference Endpoints; the
model card with its images; and the figures of the card. Checkpoints of the training and its states are left out.
"""

import re
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.loading import load_model
from cca_hf.models.whole_files import check_new
from cca_hf.visualization.page import public_name
from cca_hf.visualization.report import EXAMPLES

from .commit import commit_folder
from .model_card import draw_training, read_results, write_model_card

_BESIDE = ("handler.py", "requirements.txt")  # files of this folder, copied as they are
_OF_THE_RUN = ("run.json", "all_results.json", "report.png")
_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")  # deleted if an earlier push had other shards
_SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def push_model(
    folder: str | PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    licence: str | None = None,
    baselines: Mapping[str, EvaluationResult] | None = None,
    message: str = "Push the model by cca_hf",
) -> str:
    """Push a checkpoint to the Hub with its code and its model card, in one commit.

    Args:
        folder: the output folder of a training, or a folder written by `save_pretrained`.
        repo_id: such as `me/cca-shoes`.
        private: create a private repository. An existing public repository is an error.
        revision: a branch, created if it does not exist. Default: the main branch.
        token: default: the token of `hf auth login`, or `HF_TOKEN`.
        licence, baselines: for the card, see `write_model_card`.
        message: the commit message.

    Returns:
        The URL of the commit.

    Raises:
        PushError: if the Hub cannot be reached or refuses the push; the repository is then unchanged.
        FileNotFoundError, ValueError: see [`stage_model`].
    """
    with TemporaryDirectory(prefix="cca-push-") as parent:
        staged = stage_model(folder, Path(parent) / "repository", repo_id, licence=licence, baselines=baselines)
        return commit_folder(
            staged, repo_id, private=private, revision=revision, token=token, message=message, replaces=_WEIGHTS
        )


def stage_model(
    folder: str | PathLike[str],
    output: str | PathLike[str],
    repo_id: str,
    *,
    licence: str | None = None,
    baselines: Mapping[str, EvaluationResult] | None = None,
) -> Path:
    """Write the files that [`push_model`] pushes into a new folder: the dry run.

    The folder's `README.md` is kept if its code names `repo_id`, as after `cca card --name`. Otherwise a new card is
    written.

    Raises:
        FileNotFoundError: if `folder` contains no checkpoint, or an image of its card is missing.
        FileExistsError: if `output` is not empty.
        ValueError: if the checkpoint is of another type, or lacks weights.
    """
    folder, output = Path(folder), Path(output)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} contains no checkpoint: it has no config.json")
    check_new(output)
    model = load_model(str(folder), "cpu")
    if model.config.backbone_name is not None:
        model.config.backbone_name = public_name(model.config.backbone_name)
    model.save_pretrained(output)
    results = read_results(folder)
    figures = [result.image for result in results if result.image is not None]
    for path in (*(folder / name for name in _OF_THE_RUN), *(result.path for result in results), *figures):
        if path.is_file():
            shutil.copy(path, output)
    draw_training(folder, output / "training.png")
    if (folder / EXAMPLES).is_dir():
        shutil.copytree(folder / EXAMPLES, output / EXAMPLES)
    for name in _BESIDE:
        shutil.copy(Path(__file__).with_name(name), output)
    card = folder / "README.md"
    if card.is_file() and f'"{repo_id}"' in card.read_text(encoding="utf-8"):
        _copy_card(card, output)
    else:
        write_model_card(output, model_id=repo_id, licence=licence, baselines=baselines)
    return output


def _copy_card(card: Path, output: Path) -> None:
    for name in _SHOWN.findall(card.read_text(encoding="utf-8")):
        if "://" in name:
            continue
        image = card.parent / name
        if ".." in Path(name).parts or not image.is_file():
            raise FileNotFoundError(f"{card} shows {name}, which is not in {card.parent}")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, output / name)
    shutil.copy(card, output)
