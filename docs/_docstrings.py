"""Docstrings of this project as reST, which Sphinx wants. They are plain text with Google's sections."""

from __future__ import annotations

import re
from typing import Any

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples|Note|Notes):$")
MARKUP = re.compile(r"(`[^`]*`)(?=(\w)?)|([\\*|]|_(?=\W|$))")
SEVERAL = re.compile(r"^    \w+(, \w+)+(?=:)")
ZERO_WIDTH_SPACE = "\u200b"
ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")


def plain_docstring(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with Google's sections: tables in them become literal blocks, and | and * letters.

    An indented run outside the sections is a table of variants, aligned by hand, and shown as it stands.
    """
    # An empty comment first, because napoleon reads "words: more" in the first line as a type and a description.
    out: list[str] = ["..", ""] if what in ("attribute", "property", "data") else []
    section = table = doctest = False
    for line in lines:
        indented = line.startswith(" ")
        if not line.strip():
            doctest = False
        elif SECTION.match(line):
            section, doctest = True, False
        elif line.startswith(">>>"):
            section, doctest = False, True
        elif not indented:
            section = False
        if indented and not section and not doctest:
            if not table:
                out += ["", "::", ""]
            table = True
            out.append(line)
            continue
        if table and line.strip():
            out.append("")
            table = False
        # "a, b, c: text" is three fields, not a field `c` of type "a, b,"
        fields = SEVERAL.sub(lambda m: m[0].replace(", ", f",{ZERO_WIDTH_SPACE}"), line) if section else line
        out.append(line if doctest or table else MARKUP.sub(_literal, fields))
    lines[:] = out


def _literal(match: re.Match[str]) -> str:
    """Names in backticks as they are, set apart from what follows them; other marks escaped."""
    if match[1]:
        return match[1] + ("\\ " if match[2] else "")
    return "\\" + match[3]


def what_callers_get(
    _app: Any, _what: str, _name: str, obj: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Signatures as callers meet them.

    An analysis is written to return `Findings`; `@analysis` makes a `Result` of it and annotates it so. Names that
    stand for several types (`autodoc_type_aliases`) are written as names within a union too, which Sphinx does not.
    """
    if hasattr(obj, "__wrapped__") and obj.__annotations__.get("return") == "Result":
        returned = "~interp.results.results.Result"
    signature, returned = (text and ALIAS.sub(r"\1", text) for text in (signature, returned))
    return signature, returned
