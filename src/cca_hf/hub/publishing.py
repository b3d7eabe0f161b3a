"""Publish a trained checkpoint on the Hub: its files are collected in a folder and pushed in one commit.

The repository gets the checkpoint, loaded and saved again, with its code; the model card with its images; and the
figures of the card. A model with attributes also gets `handler.py` for Inference Endpoints, which run other models by
the pipelines of transformers. Checkpoints of the training and its states are left out.

`HfApi.upload_folder` splits a large folder into several commits, so this uses `HfApi.create_commit`: large files are
uploaded first and are invisible until the commit refers to them. After a failure, uploaded files are not sent again.
"""

import fnmatch
import importlib.metadata
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import unquote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # from httpx or httpx2, depending on its version

from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.configuration_images import AttributeConfig
from cca_hf.models.loading import load_saved
from cca_hf.models.modeling_images import ImagePreTrainedModel, remove_path_of_text_encoder
from cca_hf.models.whole_checkpoints import load_image_processor, save_whole
from cca_hf.models.whole_files import check_new, may_leave
from cca_hf.visualization.report import EXAMPLES

from .model_card import draw_training, one_licence, read_results, write_model_card

_BESIDE = ("handler.py", "requirements.txt")  # files of this folder, for a model with attributes
# All that leaves the folder of a training, by name. The checkpoint is loaded and saved again; and the results with a
# section of the card, their figures and the images of the card leave too. Hidden files and links never do.
_OF_THE_RUN = ("run.json", "all_results.json", "report.png", f"{EXAMPLES}/?.jpg", f"{EXAMPLES}/?-neighbours.png")
_IMAGES_OF_A_CARD = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")
_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")  # deleted if an earlier push had other shards
_SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")

logger = logging.getLogger(__name__)


class PushError(OSError):
    """A push failed. The repository on the Hub is unchanged."""


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
    license: str | None = None,
) -> str:
    """Push a checkpoint to the Hub with its code and its model card, in one commit.

    It can be of any vision model: with attributes, a classifier, or one without a head.

    Args:
        folder: the output folder of a training, or a folder written by `save_pretrained`.
        repo_id: such as `me/cca-shoes`; without an owner, the repository belongs to the user of the token.
        private: create a private repository. An existing public repository is an error.
        revision: a branch, created if it does not exist. Default: the main branch.
        token: default: the token of `hf auth login`, or `HF_TOKEN`.
        licence, license, baselines: for the card, see `write_model_card`.
        message: the commit message.

    Returns:
        The URL of the commit.

    Raises:
        PushError: if the Hub cannot be reached or refuses the push; the repository is then unchanged.
        FileNotFoundError, ValueError: see [`stage_model`].
    """
    licence = one_licence(licence, license)
    repo_id = _with_owner(repo_id, token)
    with TemporaryDirectory(prefix="cca-push-") as parent:
        staged = stage_model(folder, Path(parent) / "repository", repo_id, licence=licence, baselines=baselines)
        return commit_folder(staged, repo_id, "model", private, revision, token, message, _WEIGHTS)


def _with_owner(repo_id: str, token: str | bool | None) -> str:
    """The full id, which the snippets of the card need."""
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except (OSError, HTTPError) as error:
        raise PushError(
            f"could not push to {repo_id}: the owner is unknown. Write owner/{repo_id} ({error})"
        ) from error


def stage_model(
    folder: str | PathLike[str],
    output: str | PathLike[str],
    repo_id: str,
    *,
    licence: str | None = None,
    baselines: Mapping[str, EvaluationResult] | None = None,
    license: str | None = None,
) -> Path:
    """Write the files that [`push_model`] pushes into a new folder: the dry run.

    The folder's `README.md` is kept if its code names `repo_id`, as after `cca card --name`. Otherwise a new card is
    written.

    Raises:
        FileNotFoundError: if `folder` contains no checkpoint, or an image of its card is missing.
        FileExistsError: if `output` is not empty.
        ValueError: if the checkpoint is of another type, or lacks weights or an image processor; or if its card shows
            a file that is no image.
    """
    folder, output = Path(folder), Path(output)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} contains no checkpoint: it has no config.json")
    check_new(output)
    model = load_saved(folder)
    if isinstance(model, ImagePreTrainedModel):
        model.save_pretrained(output)
        remove_path_of_text_encoder(output)
    else:
        save_whole(model, load_image_processor(folder), output)
    results = read_results(folder)
    figures = [result.image for result in results if result.image is not None]
    of_the_run = [path for name in _OF_THE_RUN for path in sorted(folder.glob(name))]
    for path in (*of_the_run, *(result.path for result in results), *figures):
        if may_leave(path, folder):
            _copy(path, folder, output)
        else:
            logger.warning("%s is hidden or a link, and is not published", path)
    draw_training(folder, output / "training.png")
    for name in _BESIDE if isinstance(model.config, AttributeConfig) else ():
        shutil.copy(Path(__file__).with_name(name), output)
    card = folder / "README.md"
    if may_leave(card, folder) and f'"{repo_id}"' in card.read_text(encoding="utf-8"):
        _copy_card(card, output)
    else:
        write_model_card(output, model_id=repo_id, licence=licence, license=license, baselines=baselines)
    return output


def _copy_card(card: Path, output: Path) -> None:
    for name in _SHOWN.findall(card.read_text(encoding="utf-8")):
        if "://" in name:
            continue
        name = unquote(name)
        image = card.parent / name
        if ".." in Path(name).parts or not image.is_file():
            raise FileNotFoundError(f"{card} shows {name}, which is not in {card.parent}")
        if image.suffix.lower() not in _IMAGES_OF_A_CARD or not may_leave(image, card.parent):
            raise ValueError(
                f"{card} shows {name}, which is not published: an image of a card is a file that is neither hidden "
                f"nor a link, and ends in {', '.join(_IMAGES_OF_A_CARD)}"
            )
        _copy(image, card.parent, output)
    shutil.copy(card, output)


def _copy(file: Path, folder: Path, output: Path) -> None:
    target = output / file.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def commit_folder(
    folder: Path,
    repo_id: str,
    repo_type: Literal["model", "dataset"],
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
    message: str,
    replaces: Sequence[str],
) -> str:
    """Commit all files of `folder` but hidden ones and links, and return the URL of the commit.

    The repository is created if it does not exist.

    Files that match a pattern in `replaces` are deleted if `folder` does not contain them; see `push_model`.

    Raises:
        PushError: if the Hub cannot be reached or refuses the push.
        ValueError: if the repository is public although `private` is set, or the metadata of the card are not valid.
    """
    api = HfApi(token=token, library_name="cca_hf", library_version=importlib.metadata.version("cca_hf"))
    try:
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            remedy = "make it private on the Hub, or choose another name"
            raise ValueError(f"{repo_id} already exists and is public: {remedy}")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        files = [path for path in sorted(folder.rglob("*")) if may_leave(path, folder)]
        added = {path.relative_to(folder).as_posix(): path for path in files}
        present = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
        stale = {name for pattern in replaces for name in fnmatch.filter(present, pattern)} - added.keys()
        deletions = [CommitOperationDelete(name) for name in sorted(stale)]
        additions = [CommitOperationAdd(name, path) for name, path in added.items()]
        commit = api.create_commit(
            repo_id, [*deletions, *additions], commit_message=message, repo_type=repo_type, revision=revision
        )
        return commit.commit_url
    except (OSError, HTTPError, RuntimeError) as error:
        # a failed upload of a large file is a RuntimeError; only its cause has the reason
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        reason = str(cause) or type(cause).__name__
        raise PushError(
            f"could not push to {repo_id}: {reason}. The repository is unchanged. Run the same command again to "
            "continue: uploaded files are not sent again. (The token comes from 'hf auth login' or HF_TOKEN.)"
        ) from error
