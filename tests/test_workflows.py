"""The files under .github: the workflows call existing make targets and test the Python versions of setup.cfg."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = ("checks", "transformers-main")
FORMS = ("bug", "feature")


def read(path: str) -> dict:
    # BaseLoader keeps every scalar as text: YAML 1.1 would read the key `on` as True and the version 3.10 as 3.1.
    return yaml.load((GITHUB / path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def jobs(workflow: str) -> dict[str, dict]:
    return read(f"workflows/{workflow}.yml")["jobs"]


def commands(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_every_workflow_is_tested() -> None:
    assert {path.stem for path in (GITHUB / "workflows").iterdir()} == set(WORKFLOWS)
    assert {path.stem for path in (GITHUB / "ISSUE_TEMPLATE").iterdir()} == set(FORMS)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_steps_call_make_targets(workflow: str) -> None:
    for name, job in jobs(workflow).items():
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name
        assert commands(job), f"{name} runs nothing"
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), f"{name}: a step either runs a command or uses an action"
        for command in commands(job):
            target = re.fullmatch(r"make ([a-z-]+)", command)
            assert target, f"{name}: {command!r} is not a call of one make target"
            done = subprocess.run(["make", "--dry-run", target[1]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_checks_are_those_of_the_local_script() -> None:
    """The workflow and .ci/run run the same targets; the documentation's site is built in the workflow only."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    local = set(re.findall(r"^make ([a-z-]+)$", script, re.MULTILINE))
    remote = {command.removeprefix("make ") for job in jobs("checks").values() for command in commands(job)}
    assert local == {"environment", "lint", "types", "lowest", "transformers-tests", "fuzz", "test"}
    assert remote == local - {"environment"} | {"docs"}


def test_matrix_covers_the_python_versions_of_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    classified = re.findall(r"Python :: (3\.\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    test = jobs("checks")["test"]
    assert test["strategy"]["matrix"]["python"] == classified == ["3.11", "3.12", "3.13"]
    (python,) = (step["with"]["python-version"] for step in test["steps"] if "setup-python" in step.get("uses", ""))
    assert python == "${{ matrix.python }}"


def test_checks_run_for_every_pull_request() -> None:
    assert {"push", "pull_request"} <= read("workflows/checks.yml")["on"].keys()


def test_transformers_main_is_tested_every_week() -> None:
    """A cron line with a day of the week; transformers is installed after the environment and before the tests."""
    (schedule,) = read("workflows/transformers-main.yml")["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", schedule["cron"])
    (job,) = jobs("transformers-main").values()
    assert commands(job) == ["make environment", "make transformers-main", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^transformers-main:.*\n\t(.*)$", makefile, re.MULTILINE)
    assert recipe and "git+https://github.com/huggingface/transformers" in recipe[1]


@pytest.mark.parametrize("form", FORMS)
def test_issue_forms(form: str) -> None:
    """GitHub shows a form only if it has these keys, and ids that do not repeat."""
    content = read(f"ISSUE_TEMPLATE/{form}.yml")
    assert {"name", "description", "body"} <= content.keys()
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields and {field["type"] for field in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_pull_request_template_names_make_targets() -> None:
    text = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    named = [target for call in re.findall(r"`make ([a-z -]+)`", text) for target in call.split()]
    targets = re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"lint", "types", "test", "lowest"} == set(named) <= set(targets)
    assert "CHANGELOG.md" in text


def test_security_page_names_a_private_way_to_report() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for word in ("private advisory", "safetensors", "weights_only", "trust_remote_code", "`docs/serving.md`"):
        assert word in text
