"""What a reader sees of a page in Markdown: the cells of its tables, its words, and what these became."""

from collections import Counter
from typing import NamedTuple

from markdown_it import MarkdownIt

_PLAIN = ("text", "text_special", "softbreak")


class Rendered(NamedTuple):
    tables: list[list[list[str]]]  # table, row, cell
    text: str
    marks: Counter[str]  # how often the words became more than words: a link, an image, a tag, emphasis, code


def render(markdown: str) -> Rendered:
    """Reads a page as GitHub does, by CommonMark with tables and strikethrough."""
    rendered = Rendered([], "", Counter())
    words, before = [], ""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        inline = token.children or []
        rendered.marks.update(child.type for child in inline if child.type not in _PLAIN)
        rendered.marks.update([token.type] if token.type == "html_block" else [])
        text = "".join(child.content for child in inline)
        words.append(text)
        if token.type == "table_open":
            rendered.tables.append([])
        elif token.type == "tr_open":
            rendered.tables[-1].append([])
        elif before in ("th_open", "td_open"):
            rendered.tables[-1][-1].append(text)
        before = token.type
    return rendered._replace(text="\n".join(words))
