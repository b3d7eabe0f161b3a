"""What `cca` answers before it imports torch: wrong flags, missing extras, and the pages of `cca docs`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cca_hf.cli.docs import find_pages
from cca_hf.cli.main import main
from cca_hf.extras import PACKAGES

HEAVY = ["accelerate", "datasets", "lancedb", "matplotlib", "sklearn", "torch", "transformers"]
# Runs commands without some modules. Prints their exit codes, and which of other modules were imported.
COMMANDS_WITHOUT = """
import json, sys
commands, missing, heavy = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(missing))  # importing them raises ImportError
from cca_hf.cli.main import main
codes = [main(words) for words in commands]
print(json.dumps([codes, [name for name in heavy if sys.modules.get(name)]]))
"""


def run_without(missing: list[str], commands: list[str], folder: Path) -> tuple[list[int], list[str], list[str]]:
    """The exit codes, the lines of errors, and the heavy modules that were imported."""
    arguments = [json.dumps(each) for each in ([line.split() for line in commands], missing, HEAVY)]
    command = [sys.executable, "-c", COMMANDS_WITHOUT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    codes, imported = json.loads(done.stdout)
    return codes, done.stderr.splitlines(), imported


WRONG_FLAGS = {
    "train --datset x": "cca train: error: unknown argument --datset: did you mean --dataset? See 'cca train --help'.",
    "evaluate --modle x": "--modle",
    "embed --modle x": "--modle",
    "export --modle x": "--modle",
    "index --stor x": "--stor",
    "search --stor x": "--stor",
    "card --modle x": "--modle",
    "push --modle x": "--modle",
    "check --fodler x": "--fodler",
    "serve --prot x": "--prot",
    "demo --stor x": "--stor",
    "docs --pgae x": "--pgae",
    "data push --datset x": "--datset",
    "serach --store x": "'serach'",
}


def test_a_wrong_flag_is_answered_at_once(tmp_path: Path) -> None:
    codes, lines, imported = run_without([], [*WRONG_FLAGS], tmp_path)
    assert codes == [2] * len(WRONG_FLAGS) and imported == []
    for line, wrong in zip(lines, WRONG_FLAGS.values(), strict=True):
        assert wrong in line


MISSING = {
    "train --dataset d --backbone b --output_dir o --condition_embedding text --text_encoder t": (
        'text conditions need sentence-transformers: pip install "cca_hf[text]"'
    ),
    "evaluate --model m --dataset d --output_dir o --report": 'figures need matplotlib: pip install "cca_hf[plot]"',
    "evaluate --model m --dataset d --entanglement": (
        'entanglement needs scikit-learn, scipy: pip install "cca_hf[analysis]"'
    ),
    "embed --model m --images i --output_dir o --engine ray": (
        'the engine "ray" needs ray: pip install "cca_hf[ray]"'
    ),
    "embed --model m --images i --output_dir o --store s": (
        'an index in a folder or a bucket needs lancedb, pylance: pip install "cca_hf[search]"'
    ),
    "export --model m --output_dir o": 'a graph for onnx needs onnx, onnxscript: pip install "cca_hf[onnx]"',
    "export --model m --output_dir o --int8": (
        'a graph for onnx needs onnx, onnxruntime, onnxscript: pip install "cca_hf[onnx]"'
    ),
    "export --model m --output_dir o --runtime openvino": (
        'a graph for openvino needs onnx, onnxscript, openvino: pip install "cca_hf[openvino]"'
    ),
    "index --model m --images i --store s": (
        'an index in a folder or a bucket needs lancedb, pylance: pip install "cca_hf[search]"'
    ),
    "index move http://localhost:6333/s s": (
        'an index on a Qdrant server needs qdrant-client: pip install "cca_hf[qdrant]"'
    ),
    "search --store s --image i --model m": (
        'an index in a folder or a bucket needs lancedb, pylance: pip install "cca_hf[search]"'
    ),
    "serve --model m": (
        'serving needs prometheus-client, starlette, uvicorn: pip install "cca_hf[serve]"'
    ),
    "demo": 'the Space needs gradio, lancedb, pylance: pip install "cca_hf[space]"',
    "demo --store s --export e": 'the Space needs gradio, lancedb, pylance: pip install "cca_hf[space]"',
}  # fmt: skip


def test_a_missing_extra_is_named_before_the_work(tmp_path: Path) -> None:
    """Without model and data, so an error that came later would name these."""
    modules = [module for packages in PACKAGES.values() for module in packages]
    codes, lines, imported = run_without(modules, [*MISSING], tmp_path)
    assert lines == [f"cca: error: {message}" for message in MISSING.values()]
    assert codes == [1] * len(MISSING) and imported == [] and not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of each command by its name, as the documentation has it."""
    from typer.core import TyperGroup
    from typer.main import get_command

    from cca_hf.cli.main import app

    def collect(command, name: str) -> dict[str, str]:
        with command.context_class(command, info_name=name) as context:
            texts = {name: command.get_help(context)}
        children = command.commands.items() if isinstance(command, TyperGroup) else ()
        for child_name, child in children:
            texts |= collect(child, f"{name} {child_name}")
        return texts

    return collect(get_command(app), "cca")


def test_help_names_pages_that_are_installed(helps: dict[str, str]) -> None:
    assert "cca docs serving" in helps["cca serve"]
    for name, text in helps.items():
        flat = " ".join(text.split())
        assert not re.search(r"docs/\S*\.md", flat), f"{name} --help names a file, which an installation lacks"
        assert set(re.findall(r"'cca docs ([\w/]+)'", flat)) <= set(find_pages())


def test_docs_lists_and_prints_pages(repository: Path, capsys) -> None:
    assert main(["docs"]) == 0
    listed = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed["serving"] == "Serve a model" and "tutorials/train" in listed
    files = {path.relative_to(repository / "docs") for path in (repository / "docs").rglob("*.md")}
    assert set(listed) == {path.with_suffix("").as_posix() for path in files}
    for name in ("serving", "docs/serving.md"):
        assert main(["docs", name]) == 0
        assert capsys.readouterr().out == (repository / "docs" / "serving.md").read_text(encoding="utf-8")
    assert main(["docs", "servign"]) == 2
    assert "there is no page 'servign': did you mean serving?" in capsys.readouterr().err


def test_no_error_promises_the_package_itself(repository: Path) -> None:
    """`cca_hf` is in no package index: only the extras of an installed `cca_hf` can be installed by name."""
    for path in sorted((repository / "src").rglob("*.*")):
        if path.suffix in (".py", ".md", ".txt", ".html"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"pip install [\"']?cca_hf(?!\[)", text), path
