"""The list of exceptions itself."""

import unittest

import pytest

from .conftest import SAME_VERSION, listed
from .exceptions import FAILS, SKIPS, SKIPS_WITHOUT

test_models = pytest.importorskip("tests.transformers_common.test_models")
LINES = [*FAILS, *SKIPS, *SKIPS_WITHOUT]


@pytest.mark.skipif(not SAME_VERSION, reason="the list is for another version of transformers")
@pytest.mark.parametrize("line", LINES)
def test_every_line_names_a_test(line: str) -> None:
    classes = [value for value in vars(test_models).values() if isinstance(value, type)]
    names = [
        f"test_models.py::{tests.__name__}::{name}"
        for tests in classes
        if issubclass(tests, unittest.TestCase)
        for name in dir(tests)
        if name.startswith("test_")
    ]
    assert [name for name in names if listed(name, {line: "reason"})]
