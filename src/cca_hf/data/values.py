"""One reading of the values of attributes, whatever type a file or an index stores them in."""

import re

# 007 is no number: it may be a code, whose zeros count.
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")
_BOOLEANS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}


def same_value(value: object) -> str | int:
    """A key that is equal for one value in several types: 1 for 1, 1.0, "1" and "1.0"; "true" for True and "True"."""
    text = str(value)
    if _WHOLE_NUMBER.fullmatch(text):
        return int(text.partition(".")[0])
    return _BOOLEANS.get(text, text)


def value_name(value: object) -> str:
    """The name of a value: "38" for 38 and 38.0, "true" for True; a text is its name."""
    return value if isinstance(value, str) else str(same_value(value))
