"""An analysis in somebody's own package: the how-to page, carried out in a folder that stands for an installed one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-analysis.md"
COMMAND = "from interp.cli.main import main; main"


@pytest.fixture
def installed(tmp_path):
    """The page's module with the metadata that installing it would leave behind, first on the path of a process."""
    text = PAGE.read_text(encoding="utf-8")
    code, toml = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "toml"))
    (tmp_path / "mass_on_self.py").write_text(code, encoding="utf-8")
    metadata = tmp_path / "mass_on_self-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mass-on-self\nVersion: 0.1\n", encoding="utf-8")
    group, entry = re.search(r'entry-points\."(.*?)"\]\n(\w+) = "(\w+)"', toml).group(1, 2)
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry} = {entry}\n", encoding="utf-8")

    def run(code):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found

    return run, tmp_path


def test_it_runs_by_name_and_is_in_the_report(installed):
    run, folder = installed
    # One process for both: it is the importing that takes time.
    found = run(
        "import interp; m = interp.load('zoo:planted-induction'); "
        "interp.report(m, analyses=['previous_token', 'mass_on_self'], path='page.html'); "
        f"{COMMAND}(['detect', 'zoo:planted-induction', '-a', 'mass_on_self', '--json'])"
    )
    document = json.loads(found.stdout)
    assert {row["analysis"] for row in document["rows"]} == {"mass_on_self"}
    assert document["provenance"]["call"]["analysis"] == "mass_on_self"
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "Self-looking heads" in page
    assert "A head with nothing better to look at does so too" in page


def test_a_package_that_does_not_import_leaves_the_others(installed):
    run, folder = installed
    (folder / "mass_on_self.py").write_text("import no_such_package\n", encoding="utf-8")
    found = run(f"{COMMAND}(['detect', 'zoo:planted-induction', '-a', 'previous_token'])")
    assert "Previous-token heads" in found.stdout
    assert "mass_on_self are left out" in found.stderr


def test_the_page_is_as_short_as_it_says():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    body = code[code.index("def mass_on_self") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
