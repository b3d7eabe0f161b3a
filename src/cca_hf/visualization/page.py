"""HTML pages that need no other file: images are data: URIs, style and curves are inline.

The templates are beside this file. Their content security policy forbids loading anything else.
"""

from functools import cache, partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from cca_hf.data.html_table import data_uri
from cca_hf.evaluation.text_table import percent

_THUMBNAIL = 168  # pixels: twice the displayed size, so that it is sharp on screens of a high resolution
_LARGE = 380


def render(template: str, **values: object) -> str:
    """Fill in a template that is beside this file; values are escaped."""
    return templates("cca_hf.visualization").get_template(template).render(values)


@cache
def templates(package: str) -> Environment:
    """The Jinja templates in the folder of a package."""
    environment = Environment(loader=PackageLoader(package, ""), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"thumbnail": partial(data_uri, size=_THUMBNAIL), "large": partial(data_uri, size=_LARGE)}
    environment.filters["percent"] = percent
    return environment
