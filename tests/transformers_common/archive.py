"""The common tests of the installed version of transformers, from its source archive, and an example script.

An installed transformers has no tests. The package index has the source archive of the same version, which pip
downloads once into a cache. The archive contains `tests/test_modeling_common.py`, but not the two modules that it
imports from subfolders of `tests/`; empty ones take their place.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import types
import urllib.request
from pathlib import Path

import transformers

PACKAGE = "transformers_archive_tests"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cca_hf_tests"
EXAMPLE = "examples/pytorch/image-classification/run_image_classification.py"
EXAMPLE_COMMIT = "0419ff881d7bb503f4fc0f0a7a5aac3d012c9b91"
EXAMPLE_SHA256 = "fb01e5a66be005ef3e18ff516d7124215229913e4d673ec8f5953483ed5d61fd"


class NoArchiveError(Exception):
    """The source archive cannot be downloaded."""


def common_tests() -> types.ModuleType:
    """The module `tests/test_modeling_common.py` of the installed version.

    Raises:
        NoArchiveError: if the archive is not in the cache and cannot be downloaded.
    """
    folder = _unpacked(transformers.__version__)
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder / "tests")]
    sys.modules[PACKAGE] = package
    for module, name in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        absent = types.ModuleType(f"{PACKAGE}.{module}")
        setattr(absent, name, type(name, (), {}))
        sys.modules[f"{PACKAGE}.{module.partition('.')[0]}"] = types.ModuleType(module.partition(".")[0])
        sys.modules[absent.__name__] = absent
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


def _unpacked(version: str) -> Path:
    folder = CACHE / f"transformers-{version}"
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", "transformers", "--dest", str(CACHE), f"transformers=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        archive = CACHE / f"transformers-{version}.tar.gz"
        if done.returncode or not archive.is_file():
            reason = (done.stderr.strip().splitlines() or ["no source archive"])[-1]
            raise NoArchiveError(f"the source archive of transformers {version} cannot be downloaded: {reason}")
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE, filter="data")
    return folder


def example_script() -> Path:
    """transformers' example script of image classification, unchanged.

    The source archive has no examples. GitHub has the script of every commit; this one is of version 5.

    Raises:
        NoArchiveError: if the script is not in the cache and cannot be downloaded.
    """
    path = CACHE / f"transformers-{EXAMPLE_COMMIT[:10]}" / EXAMPLE
    if not path.is_file():
        url = f"https://raw.githubusercontent.com/huggingface/transformers/{EXAMPLE_COMMIT}/{EXAMPLE}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                content = answer.read()
        except OSError as error:
            raise NoArchiveError(f"{url} cannot be downloaded: {error}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path
