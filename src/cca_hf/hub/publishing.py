"""A trained checkpoint as a repository on the Hub: all that it needs there, made beside it, pushed in one commit.

    config.json  model.safetensors  preprocessor_config.json    the checkpoint, loaded and saved once more
    *.py  modules.json                                          its code, for transformers and sentence-transformers
    handler.py  requirements.txt                                for Inference Endpoints
    README.md  *.png  examples/                                 the card, and what it shows
    run.json  test_evaluation.json  ...                         what the card's figures come from

Nothing else goes: no `checkpoint-*`, no state of an optimiser, no pickles, no paths of this machine.
"""

import re
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoModel

from cca_hf.data.new_folder import check_new
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.modeling_conditional import CCAPreTrainedModel
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.visualization.report import EXAMPLES

from .commit import commit_folder
from .model_card import draw_training, write_model_card

_BESIDE = ("handler.py", "requirements.txt")  # files of this folder that go under their own names
_MEASURED = ("run.json", "test_evaluation.json", "all_results.json", "entanglement.json")
_PICTURES = ("report.png", "entanglement.png")
_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")  # of an earlier push in other shards
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
    """Puts a checkpoint on the Hub, with its code and its card, in one commit.

    Args:
        folder: the output folder of a training, or what `save_pretrained` wrote.
        repo_id: such as `me/cca-shoes`.
        private: make the repository private; one that is there and public is left alone, with an error.
        revision: a branch, made where there is none. Default: the main one.
        token: default: of `hf auth login`, or `HF_TOKEN`.
        licence, baselines: for the card, see `write_model_card`.
        message: the commit's.

    Returns:
        The commit's address.

    Raises:
        PushError: the Hub was not reached, or refused; the repository is as it was.
        FileNotFoundError, ValueError: see [`stage_model`].
    """
    with TemporaryDirectory(prefix="cca-push-") as parent:
        staged = stage_model(folder, Path(parent) / "repository", repo_id, licence=licence, baselines=baselines)
        return commit_folder(
            staged,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            message=message,
            replaces=_WEIGHTS,
        )


def push_run(args: CCATrainingArguments) -> str:
    """What `--push_to_hub` asks for: [`push_model`] of the output folder, as the `hub_*` arguments say."""
    return push_model(
        args.output_dir,
        args.hub_model_id or Path(args.output_dir).absolute().name,
        private=args.hub_private_repo,
        revision=args.hub_revision,
        token=args.hub_token,
    )


def stage_model(
    folder: str | PathLike[str],
    output: str | PathLike[str],
    repo_id: str,
    *,
    licence: str | None = None,
    baselines: Mapping[str, EvaluationResult] | None = None,
) -> Path:
    """Writes what [`push_model`] pushes into a new folder: the dry run.

    The card is the folder's own where that names `repo_id` in its code, as after `cca card --name`; otherwise it is
    written for it.

    Raises:
        FileNotFoundError: there is no checkpoint in `folder`, or a picture that its card shows.
        FileExistsError: if `output` holds something.
        ValueError: the checkpoint is of another kind, or lacks weights.
    """
    folder, output = Path(folder), Path(output)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"there is no checkpoint in {folder}: it has no config.json")
    check_new(output)
    model = _load_whole(folder)
    model.config.backbone_name = _without_place(model.config.backbone_name)
    model.save_pretrained(output)
    for name in (*_MEASURED, *_PICTURES):
        if (folder / name).is_file():
            shutil.copy(folder / name, output)
    draw_training(folder, output / "training.png")
    if (folder / EXAMPLES).is_dir():
        shutil.copytree(folder / EXAMPLES, output / EXAMPLES)
    for name in _BESIDE:
        shutil.copy(Path(__file__).with_name(name), output)
    own = folder / "README.md"
    if own.is_file() and f'"{repo_id}"' in own.read_text(encoding="utf-8"):
        _copy_card(own, output)
    else:
        write_model_card(output, model_id=repo_id, licence=licence, baselines=baselines)
    return output


def _load_whole(folder: Path) -> CCAPreTrainedModel:
    model, loaded = AutoModel.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if not isinstance(model, CCAPreTrainedModel):
        raise ValueError(f"{folder} holds a checkpoint of type {model.config.model_type!r}, not of CCA")
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise ValueError(f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}: not published")
    return model


def _without_place(backbone: str | None) -> str | None:
    """The name alone of a backbone that was a folder: where it lay is nobody's business."""
    if backbone is None:
        return None
    return Path(backbone).name if Path(backbone).is_absolute() or Path(backbone).exists() else backbone


def _copy_card(card: Path, output: Path) -> None:
    for name in _SHOWN.findall(card.read_text(encoding="utf-8")):
        if "://" in name:
            continue
        picture = card.parent / name
        if ".." in Path(name).parts or not picture.is_file():
            raise FileNotFoundError(f"{card} shows {name}, which is not in {card.parent}")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, output / name)
    shutil.copy(card, output)
