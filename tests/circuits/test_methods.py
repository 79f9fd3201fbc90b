"""The registry of circuit methods: what is announced, what is refused, what an outsider's method gets."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import circuits
import interp
from circuits import methods
from circuits.evaluation.scoreboard import scoreboard
from circuits.graph.graph import Graph
from interp.cli.main import main
from interp.environment import CIRCUIT_METHODS
from interp.errors import SchemaError, TaskError
from interp.reports import report
from interp.results.results import Result
from interp.tasks import planted_task
from interp.zoo.planted import factory

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def asked():
    planted = factory.plant([factory.Induction()], seed=0)
    tasks = [planted_task(planted, "induction", n=2, seed=seed) for seed in (0, 1)]
    return interp.load(planted.model, tokenizer=planted.tokenizer), *tasks


def test_what_is_announced_is_registered():
    announced = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][CIRCUIT_METHODS]
    assert set(methods.names()) == set(announced)
    known = methods.circuit_methods()
    assert set(known) == set(announced)
    orders = [method.order for method in known.values()]
    assert orders == sorted(set(orders))
    for method in known.values():
        assert method.gives in methods.GIVES
        assert method.run.__module__ == announced[method.name]
        assert all((method.title, method.costs, method.means, method.misleads, method.reference))
        assert set(method.quick) <= set(method.options)
        assert method.goal is None or method.judged == "edges"
        assert {"metric", "batch_size", "seed"}.isdisjoint(method.options)


def test_names_are_known_without_the_methods(fork, tmp_path):
    names = """
import sys
from interp.cli import main
from interp.environment import CIRCUIT_METHODS, plugin_names
assert "eap-ig" in plugin_names(CIRCUIT_METHODS)
assert not {"torch", "pandas", "circuits.search._acdc", "circuits.methods"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", names], cwd=ROOT, check=True)
    one = """
import sys
import circuits.methods
circuits.methods.find("acdc")
assert "circuits.search._acdc" in sys.modules
assert "circuits.search.cdt" not in sys.modules
"""
    found = fork(one, tmp_path)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "eap_ig"}, "unknown method 'eap_ig'; did you mean 'eap-ig'"),
        ({"method": "eap-ig", "stepz": 3}, "'eap-ig' has no option 'stepz'; did you mean 'steps'"),
        ({"method": "atp", "steps": 3}, "'atp' has no option 'steps'; it has none of its own"),
        ({"method": "tracing", "edges": 5}, "'tracing' chooses its edges itself; leave `edges` out"),
        ({"method": "atp", "edges": 5}, "'atp' gives a table of components and no circuit; leave `edges` out"),
        ({"method": "atp", "ablation": "mean"}, "leave `ablation` out"),
        ({"method": "hisp", "n_random": 3}, "leave `n_random` out"),
        ({"method": "eap", "edges": 0}, "0 edges asked for"),
    ],
)
def test_what_does_not_go_together_is_refused(asked, options, said):
    model, finding, judging = asked
    held_out = None if options["method"] in ("atp", "hisp") else judging
    with pytest.raises(SchemaError, match=said):
        circuits.circuit(model, finding, held_out=held_out, **options)


def test_refused_before_the_model_runs(asked):
    with pytest.raises(SchemaError, match="chooses its edges itself"):
        circuits.circuit(None, "ioi", method="tracing", edges=5)
    with pytest.raises(TaskError, match="none to judge on"):
        circuits.circuit(asked[0], asked[1])


def test_a_table_is_that_of_the_function(asked):
    model, finding, _ = asked
    table = circuits.circuit(model, finding, method="atp", seed=4)
    scores = circuits.node_attribution(model, finding, method="atp", metric=None, batch_size=16)
    rows = table.table.set_index(["variant", "component"])["value"]
    assert isinstance(table, Result)
    assert rows["z"].to_dict() == pytest.approx(scores.of("z"))
    assert rows["k"].to_dict() == pytest.approx(scores.of("k"))
    assert table.table["variant"].iloc[0] == "z"
    assert table.provenance["seed"] == 4
    assert table.provenance["method"] == "atp"
    assert table.provenance["scores"]["run_id"] == scores.provenance["run_id"]
    assert table.provenance["data"] == json.loads(json.dumps(finding.provenance()))


def test_a_size_reaches_the_method_that_takes_one(asked):
    model, finding, judging = asked
    found = circuits.circuit(model, finding, held_out=judging, method="edge-pruning", edges=30, steps=2, n_random=1)
    assert found.graph.n_edges == 30


def test_the_command_and_the_report(tmp_path, capsys, asked):
    def said(*arguments, code=0):
        with pytest.raises(SystemExit) as done:
            main(["circuit", "zoo:default", "--task", "ioi", "--n-prompts", "4", *arguments])
        assert done.value.code == code
        return capsys.readouterr()

    folder = tmp_path / "atp"
    printed = said("--method", "atp", "--out", str(folder), "--top", "2")
    assert printed.out.startswith("atp on ioi: logit_diff")
    assert "more" in printed.out
    document = json.loads(said("--method", "atp", "--json").out)
    assert document["provenance"]["method"] == "atp"
    assert {"component", "value", "variant"} <= set(document["rows"][0])
    back = Result.load(folder / "table.parquet")
    assert back.provenance["run_id"] == document["provenance"]["run_id"]
    assert "has no option 'step'" in said("--method", "eap-ig", "--option", "step=3", code=2).err
    assert "written NAME=VALUE" in said("--method", "eap-ig", "--option", "steps", code=2).err
    assert "leave `edges` out" in said("--method", "atp", "--edges", "5", code=1).err
    model, finding, _ = asked
    table = circuits.circuit(model, finding, method="atp")
    page = report(model, analyses=["previous_token"], tasks=[table], path=tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    assert "Attribution patching of nodes on induction" in text
    assert table.provenance["run_id"] in text


def test_tables_are_judged_on_planted_components():
    judged = ["activation-patching", "atp-ig", "path-patching", "tracing"]
    board = scoreboard(methods=judged, mechanisms=["two_hop"], architectures=["llama-gqa"], seeds=1, n=2)
    board = board.set_index("method")
    assert (board.loc[["activation-patching", "atp-ig"], "auroc"] > 0.9).all()
    assert board["found"].isna().tolist() == [True, True, True, False]
    assert (board["planted"] > 0.9).all()
    with pytest.raises(SchemaError, match="'sparse-attention' ranks neither edges nor components"):
        scoreboard(methods=["sparse-attention"])


def test_an_outsider_joins(asked, monkeypatch):
    monkeypatch.setattr(methods, "_registry", dict(methods._registry))

    @circuits.circuit_method(
        name="by-name",
        title="The alphabet",
        gives="scores",
        costs="nothing",
        means="The sender's name is long.",
        misleads="Names say nothing.",
        reference="none",
    )
    def by_name(model, task, *, metric=None, batch_size=16, seed=0, factor=1.0):
        layout = circuits.Case.of(model, task).layout
        places = zip(*layout.exists.nonzero(), strict=True)
        return Graph.of(layout, {layout.edge(row, slot): factor * len(layout.senders[row]) for row, slot in places})

    model, finding, judging = asked
    assert "by-name" in circuits.circuit_methods()
    found = circuits.circuit(model, finding, method="by-name", held_out=judging, edges=60, n_random=1, factor=2.0)
    assert found.provenance["method"] == "by-name"
    assert found.scored.scores[found.scored.mask].max() == 10.0  # embed


def test_a_method_that_is_announced_and_not_registered(monkeypatch):
    entry = type("Entry", (), {"load": lambda self: None})()
    monkeypatch.setattr(methods.metadata, "entry_points", lambda **_: [entry])
    with pytest.raises(SchemaError, match="announces the circuit method 'ghost' and does not register it"):
        methods.find("ghost")
