"""Pages and tables made from the code, so that they cannot fall behind it.

    python docs/_generate.py

writes two kinds. `COMMITTED` are plain Markdown, kept in git because they are worth reading where they lie, and the
index of names that the command line reads; a test compares them with what this file makes. The rest is directives for
Sphinx, ignored by git: the API, the data sets.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import _gallery
from _lists import architectures, datasets, i_want_to, sites, where_things_are
from _markdown import DOCS, ROOT
from _reference import analyses, api, cli, families, index, tables


def table_in(text: str, name: str, table: str) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- end of name -->` replaced."""
    pattern = re.compile(rf"(<!-- {name}[^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text)


COMMITTED: dict[Path, Callable[[], str]] = {
    DOCS / "reference" / "cli.md": cli,
    DOCS / "reference" / "analyses.md": analyses,
    DOCS / "reference" / "tables.md": tables,
    DOCS / "reference" / "architectures.md": architectures,
    DOCS / "reference" / "sites.md": sites,
    DOCS / "reference" / "where-things-are.md": where_things_are,
    DOCS / "how-to" / "i-want-to.md": i_want_to,
    DOCS / "gallery.md": _gallery.page,
    ROOT / "interp" / "cli" / "index.json": index,
    ROOT / "README.md": lambda: table_in((ROOT / "README.md").read_text(encoding="utf-8"), "analyses", families()),
}


def main() -> None:
    """Write every page that differs from what stands there."""
    pages = {path: make() for path, make in COMMITTED.items()}
    pages |= {DOCS / "reference" / "api" / f"{name}.md": text for name, text in api().items()}
    pages[DOCS / "reference" / "datasets.md"] = datasets()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
