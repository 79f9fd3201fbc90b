"""Every Python block of the how-to pages runs, in order, as one script."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "how-to"
# "own-analysis" is a package rather than a script: tests/measurement/test_plugin.py; "i-want-to": tests/curriculum
ELSEWHERE = {"own-analysis", "i-want-to"}


def snippets(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.M | re.S)


PAGES = {path.stem: snippets(path) for path in sorted(FOLDER.glob("*.md")) if path.stem not in ELSEWHERE}


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_every_snippet_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / f"{page}.py"  # a file, because nnsight reads the source of a trace's block
    script.write_text("\n".join(PAGES[page]), encoding="utf-8")
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), {"__name__": page})


def test_pages_have_snippets():
    assert {page for page, blocks in PAGES.items() if len(blocks) >= 4} >= {
        "from-transformer-lens",
        "from-nnsight",
        "new-architecture",
    }
