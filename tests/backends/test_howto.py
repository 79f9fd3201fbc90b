"""Every Python block of the how-to pages runs, in order, as one script."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "how-to"
PAGES = ("from-transformer-lens", "from-nnsight", "new-architecture")


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page, tmp_path):
    text = (FOLDER / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) >= 4
    script = tmp_path / f"{page}.py"  # a file, because nnsight reads the source of a trace's block
    script.write_text("\n".join(blocks))
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": page})
