"""A folder into a repository on the Hub in one commit: whoever loads it finds all of the folder, or what was before.

`HfApi.upload_folder` commits large folders in several batches, so this is `HfApi.create_commit`: large files go first
and lie unseen until the commit names them. What has arrived of an upload that failed is not sent again.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, by its version


class PushError(OSError):
    """A push did not reach the Hub. Nothing there is half-written."""


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
    """Commits all files of `folder`, and makes the repository where there is none.

    Args:
        repo_id: such as `me/cca-shoes`; without an owner, of whoever the token belongs to.
        private: make the repository private.
        revision: a branch; made from the main one where there is none. Default: the main one.
        token: as everywhere in huggingface_hub; default: of `hf auth login`, or `HF_TOKEN`.
        replaces: patterns of files that go from the repository, where `folder` does not have them any more.

    Returns:
        The commit's address.

    Raises:
        PushError: the Hub was not reached, or refused.
        ValueError: the repository is public although `private` was asked for, or the card's metadata are not valid.
    """
    api = HfApi(token=token, library_name="cca_hf", library_version=importlib.metadata.version("cca_hf"))
    with _told_as_push_error(repo_id):
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(f"{repo_id} is there already, and public: make it private on the Hub, or name another")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        added = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        stale = [
            name
            for name in api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
            if name not in added and any(fnmatch(name, pattern) for pattern in replaces)
        ]
        return api.create_commit(
            repo_id,
            [CommitOperationDelete(name) for name in stale]
            + [CommitOperationAdd(name, path) for name, path in added.items()],
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
        ).commit_url


@contextmanager
def _told_as_push_error(repo_id: str) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPError, RuntimeError) as error:
        # a large file's upload that failed is a RuntimeError, and says why in its cause alone
        told = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        reason = str(told) or type(told).__name__
        raise PushError(
            f"could not push to {repo_id}: {reason}. Nothing there is half-written. The same command goes on: large "
            "files that have arrived are not sent again. (A token is had by 'hf auth login', or from HF_TOKEN.)"
        ) from error
