"""Every circuit method: what is saved is listed, with run id, seed, device, date and seconds.

Of analyses it is among the promises of `check_analysis`.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest

import circuits
import interp
from circuits import methods
from interp.cli.main import main
from interp.results.runs import runs
from interp.tasks import planted_task
from interp.zoo.planted import factory

SEED = 3


@pytest.fixture(scope="module")
def asked():
    planted = factory.plant([factory.TwoHop()], architecture="llama-gqa", seed=2, noise=0.0)
    tasks = [planted_task(planted, "two_hop", n=2, seed=seed) for seed in (0, 1)]
    return interp.load(planted.model, tokenizer=planted.tokenizer), *tasks


def outcome(asked, name):
    model, finding, judging = asked
    method = methods.find(name)
    held_out = {} if method.gives == "table" else {"held_out": judging, "n_random": 1}
    sized = {"edges": 20} if method.gives == "scores" else {}
    return circuits.circuit(model, finding, method=name, seed=SEED, **held_out, **sized, **method.quick)


def check(row):
    assert len(row["run"]) == 16
    assert row["seed"] == SEED
    assert row["device"] == "cpu"
    assert pd.Timestamp(row["created"]).tz is not None
    assert row["seconds"] >= 0
    assert row["rows"] > 0


@pytest.mark.parametrize("name", methods.names())
def test_every_circuit_method_is_listed(asked, tmp_path, name):
    found = outcome(asked, name)
    if methods.find(name).gives == "table":
        found.save(tmp_path / "table.parquet")
        found.save(tmp_path / "table.json")
    else:
        found.save(tmp_path)
    listed = runs(tmp_path)
    assert set(listed.table["analyses"]) == {name}
    for _, row in listed.table.iterrows():
        check(row)
        assert row["run"] == found.provenance["run_id"]
    back = listed.load(listed.table["path"].iloc[0])
    rows = (
        found.table if methods.find(name).gives == "table" else found.graph.table().rename(columns={"score": "value"})
    )
    assert sorted(back.table["value"].round(6)) == sorted(rows["value"].round(6))
    assert runs(tmp_path, analysis=name).table["path"].tolist() == listed.table["path"].tolist()


def test_the_same_call_has_the_same_id_and_another_has_another(asked):
    first, again = (outcome(asked, "eap").provenance for _ in range(2))
    assert first["run_id"] == again["run_id"]
    assert first["scores"]["run_id"] == again["scores"]["run_id"]
    model, finding, judging = asked
    other = circuits.circuit(model, finding, method="eap", held_out=judging, n_random=1, edges=19, seed=SEED)
    assert other.provenance["run_id"] != first["run_id"]
    swapped = circuits.circuit(model, judging, method="eap", held_out=finding, n_random=1, edges=20, seed=SEED)
    assert swapped.provenance["run_id"] != first["run_id"]


def test_json_of_others_is_passed_over(tmp_path, capsys):
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path)])
    assert capsys.readouterr().out == "nothing found\n"
