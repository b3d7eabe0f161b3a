"""Compares the outcome of every common test with the list in `exceptions.py`.

A failed or skipped test that the list does not name fails. A listed test that passes fails too, and so does a line of
the list that names no test. The list holds for one version of transformers: with another version, tests that are not
listed are reported as expected failures, because a new release must not break the checks of this project.
"""

from collections.abc import Generator
from fnmatch import fnmatch

import pytest
import transformers

from .exceptions import FAILS, SKIPS, SKIPS_WITHOUT, VERSION

MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "slow",
    "torch_compile_test",
)
AS_LISTED = pytest.StashKey[bool]()  # of a test that failed or was skipped, or of which a subtest did
SAME_VERSION = transformers.__version__ == VERSION


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: a marker of transformers' tests")


def listed(nodeid: str, exceptions: dict[str, str]) -> str | None:
    """The reason that a list gives for a test, or `None`."""
    _, _, name = nodeid.partition("::")
    lines = (line for line in exceptions if fnmatch(name, line) or fnmatch(name, f"*::{line}"))
    return next((exceptions[line] for line in lines), None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport]:
    outcome = yield
    report = outcome.get_result()
    if "test_models.py::" not in report.nodeid or (report.when != "call" and report.passed):
        return
    is_subtest = call.start == 0  # as unittest's subtests are reported, before their test
    if is_subtest and report.passed:
        return
    fails, skips = listed(report.nodeid, FAILS), listed(report.nodeid, SKIPS)
    reason = skips or listed(report.nodeid, SKIPS_WITHOUT)
    if report.failed and fails:
        report.outcome, report.wasxfail = "skipped", fails
        item.stash[AS_LISTED] = True
    elif report.skipped and reason:
        report.longrepr = (*report.longrepr[:2], f"Skipped: {reason}")
        item.stash[AS_LISTED] = True
    elif not SAME_VERSION:
        if not report.passed:
            report.outcome, report.wasxfail = "skipped", f"not in the list, which is of transformers {VERSION}"
    elif report.skipped:
        report.outcome, report.longrepr = "failed", f"skipped, but not listed in exceptions.py: {report.longrepr[2]}"
    elif report.passed and (fails or skips) and AS_LISTED not in item.stash:
        report.outcome, report.longrepr = "failed", f"passed, but listed in exceptions.py as {fails or skips!r}"
