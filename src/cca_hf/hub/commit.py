"""Push a folder to a repository on the Hub in one commit: readers get the whole folder, or the previous state.

`HfApi.upload_folder` splits a large folder into several commits, so this uses `HfApi.create_commit`: large files are
uploaded first and are invisible until the commit refers to them. After a failure, uploaded files are not sent again.
"""

import fnmatch
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # from httpx or httpx2, depending on its version


class PushError(OSError):
    """A push failed. The repository on the Hub is unchanged."""


def commit_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: Literal["model", "dataset"] = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str,
    replaces: Sequence[str] = (),
) -> str:
    """Commit all files of `folder`; creates the repository if it does not exist.

    Args:
        repo_id, private, revision, token, message: as in `push_model`.
        replaces: patterns of files that are deleted from the repository if `folder` does not contain them.

    Returns:
        The URL of the commit.

    Raises:
        PushError: if the Hub cannot be reached or refuses the push.
        ValueError: if the repository is public although `private` is set, or the metadata of the card are not valid.
    """
    api = HfApi(token=token, library_name="cca_hf", library_version=importlib.metadata.version("cca_hf"))
    try:
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(
                f"{repo_id} already exists and is public: make it private on the Hub, or choose another name"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        added = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        present = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
        stale = {name for pattern in replaces for name in fnmatch.filter(present, pattern)} - added.keys()
        return api.create_commit(
            repo_id,
            [CommitOperationDelete(name) for name in sorted(stale)]
            + [CommitOperationAdd(name, path) for name, path in added.items()],
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
        ).commit_url
    except (OSError, HTTPError, RuntimeError) as error:
        # a failed upload of a large file is a RuntimeError; only its cause has the reason
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        reason = str(cause) or type(cause).__name__
        raise PushError(
            f"could not push to {repo_id}: {reason}. The repository is unchanged. Run the same command again to "
            "continue: uploaded files are not sent again. (The token comes from 'hf auth login' or HF_TOKEN.)"
        ) from error
