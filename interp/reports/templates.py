"""Where the templates are and how they are filled: everything is escaped, and a name that is missing is an error."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


@lru_cache
def environment() -> jinja2.Environment:
    """The one environment of all pages."""
    import jinja2

    filled = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filled.filters["code"] = code
    return filled


def code(text: str) -> str:
    """Text of a docstring as HTML: escaped, with what stands between backticks set as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
