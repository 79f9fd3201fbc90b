"""An analysis in somebody's own package: the how-to page, carried out in a folder that stands for an installed one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from interp import zoo

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-analysis.md"
HEADS = [f"L{layer}H{head}" for layer, head in zoo.truth("planted-induction").heads("induction")]
COMMAND = "from interp.cli.main import main; main"


@pytest.fixture(scope="module")
def installed(tmp_path_factory, fork):
    """The page's module with the metadata that installing it would leave behind, first on the path of a process."""
    folder = tmp_path_factory.mktemp("site")
    text = PAGE.read_text(encoding="utf-8")
    code, toml = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "toml"))
    (folder / "answer_gaze.py").write_text(code, encoding="utf-8")
    metadata = folder / "answer_gaze-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: answer-gaze\nVersion: 0.1\n", encoding="utf-8")
    group, entry = re.search(r'entry-points\."(.*?)"\]\n(\w+) = "(\w+)"', toml).group(1, 2)
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entry} = {entry}\n", encoding="utf-8")

    def run(code):
        found = fork(code, folder)
        assert found.returncode == 0, found.stderr
        return found

    return run, folder


SERVED = """
import json, interp
from interp.measurement.checks import check_analysis
from interp.studies import scoreboard

model = interp.load("zoo:planted-induction")
result = interp.detect(model, ["previous_token", "answer_gaze"])
interp.report(model, results=result, path="page.html")
board = scoreboard.scoreboard(names=["answer_gaze"], seeds=1, architectures=["llama"])
print(json.dumps({
    "detected": "answer_gaze" in interp.analyses() and interp.analyses()["answer_gaze"].unit == "head",
    "document": json.loads(result.to_json()),
    "roles": interp.atlas(result).roles().to_dict("records"),
    "board": board[["analysis", "setting", "auroc", "missed", "false_labels"]].fillna(-1).to_dict("records"),
    "failed": scoreboard.failed(board),
    "held": check_analysis("answer_gaze"),
}))
"""


@pytest.fixture(scope="module")
def served(installed):
    """What the package gets in five places, from one process: it is the importing that takes time."""
    run, folder = installed
    return json.loads(run(SERVED).stdout), (folder / "page.html").read_text(encoding="utf-8")


def test_it_is_detected(served):
    found, _ = served
    assert found["detected"]
    rows = [row for row in found["document"]["rows"] if row["analysis"] == "answer_gaze"]
    assert len(rows) == 16
    assert [row["component"] for row in rows if row["label"]] == HEADS
    calls = found["document"]["provenance"]["calls"]
    assert [call["call"]["analysis"] for call in calls] == ["previous_token", "answer_gaze"]


def test_the_atlas_knows_its_role_and_stage(served):
    roles = {(r["component"], r["role"], r["stage"]) for r in served[0]["roles"] if r["analysis"] == "answer_gaze"}
    assert roles == {(head, "answer reading", "latent reasoning") for head in HEADS}


def test_the_report_has_its_section_and_figure(served):
    page = served[1]
    assert "Answer-reading heads" in page
    assert "the head may carry something else from there" in page
    assert "Map of Answer-reading heads scores by layer and head" in page
    assert 'id="map-1"' in page and '"map-1": {' in page


def test_the_scoreboard_judges_it_on_its_own_planted_task(served):
    board = {row["setting"]: row for row in served[0]["board"]}
    assert set(board) == {"alone", "together", "inert"}
    assert board["alone"]["auroc"] == board["together"]["auroc"] == 1.0
    assert all(row["missed"] == row["false_labels"] == 0 for row in board.values())
    assert not served[0]["failed"]


def test_it_keeps_every_promise(served):
    from interp.measurement.checks.analysis import DEMANDS

    assert served[0]["held"] == list(DEMANDS)


def test_the_command_runs_it_by_name(installed):
    found = installed[0](f"{COMMAND}(['detect', 'zoo:planted-induction', '-a', 'answer_gaze', '--json'])")
    assert {row["analysis"] for row in json.loads(found.stdout)["rows"]} == {"answer_gaze"}


def test_a_package_that_does_not_import_leaves_the_others(installed):
    run, folder = installed
    module = folder / "answer_gaze.py"
    whole = module.read_text(encoding="utf-8")
    module.write_text("import no_such_package\n", encoding="utf-8")
    try:
        found = run(f"{COMMAND}(['detect', 'zoo:planted-induction', '-a', 'previous_token'])")
    finally:
        module.write_text(whole, encoding="utf-8")
    assert "Previous-token heads" in found.stdout
    assert "answer_gaze are left out" in found.stderr


def test_the_page_is_as_short_as_it_says():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
