"""Words of others in Markdown: they stay words, in a line and in a table."""

import pytest

from cca_hf.evaluation.text_table import markdown_table, markdown_text

from ..rendered import render

WORDS = [
    "a|b",
    "two\nlines\r\nand\u2028more",
    "*bold* **very** _under_ __lines__ heel_height",
    "[link](https://evil.example) ![image](.env) [ref]: x",
    "<script>alert(1)</script> <b>",
    "`code` ``` fence",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "~~gone~~ \\| \\* C:\\new",
    "https://evil.example www.evil.example me@evil.example <https://evil.example>",
    "# heading #",
    "- item",
    "1. first",
    "2) second",
    "> quote",
    "+ plus",
    "",
]


@pytest.mark.parametrize("words", WORDS)
def test_words_stay_words(words):
    flat = " ".join(words.split())
    found = render(f"# {markdown_text(words)}\n\n{markdown_text(words)}\n\n- {markdown_text(words)}\n")
    assert [line for line in found.text.split("\n") if line] == [flat] * 3 * bool(flat)
    assert not found.marks
    assert "://" not in markdown_text(words) and "@" not in markdown_text(words)  # GitHub makes links of addresses


def test_a_table_keeps_its_cells():
    rows = [WORDS, WORDS[::-1], ["this model", *WORDS[1:]]]
    text = markdown_table(rows, bold_title=-1)
    flat = [[" ".join(words.split()) for words in row] for row in rows]
    found = render(text)
    assert found.tables == [flat]
    assert found.marks == {"strong_open": 1, "strong_close": 1}
