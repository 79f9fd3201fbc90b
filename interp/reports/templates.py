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
    filled.filters["counted"] = counted
    return filled


def code(text: str) -> str:
    """Text of a docstring as HTML: escaped, with what stands between backticks set as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


TABLE = re.compile(
    r'(<table)(?: data-of="(\d+)")?([^>]*>)\s*(?:<caption class="hidden">(.*?)</caption>)?(.*?</table>)', re.DOTALL
)


def counted(html: str) -> str:
    """Part of a page with the number of rows written under each table: "10 rows", "10 of 48 rows" with `data-of`.

    It stands in the table's caption, behind what the caption says to those who do not see the page.
    """
    from markupsafe import Markup

    return Markup(TABLE.sub(_captioned, str(html)))


def _captioned(table: re.Match[str]) -> str:
    start, of, rest, title, content = table.groups()
    bodies = re.findall(r"<tbody.*?</tbody>", content, re.DOTALL)
    rows = "".join(bodies or [content]).count("<tr")
    count = f"{rows} of {of} rows" if of and int(of) > rows else f"{rows} row{'s' if rows != 1 else ''}"
    if "<caption>" in content:
        return f"{start}{rest}{content.replace('</caption>', f', {count}</caption>', 1)}"
    hidden = f'<span class="hidden">{title}: </span>' if title else ""
    return f"{start}{rest}<caption>{hidden}{count}</caption>{content}"
