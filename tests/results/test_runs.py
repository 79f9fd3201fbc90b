"""Stored results: listed, asked, compared."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from numpy.testing import assert_allclose

import interp
from interp.cli.main import main
from interp.errors import SchemaError
from interp.results import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    model = interp.load("zoo:planted-induction")
    (root / "deep").mkdir()
    for name, seed in (("a.parquet", 0), ("deep/b.parquet", 1)):
        interp.analyze(model, "previous_token", n_prompts=12, seed=seed).save(root / name)
    interp.analyze(model, "sink", n_prompts=12).save(root / "sink.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(root / "other.parquet")
    (root / "broken.parquet").write_text("no parquet at all")
    return root


def test_what_is_there(folder):
    found = runs.runs(folder)
    assert set(found.table["path"]) == {"a.parquet", "deep/b.parquet", "sink.parquet"}
    assert set(found.skipped) == {"other.parquet", "broken.parquet"}
    assert found.table["model"].unique().tolist() == ["zoo:planted-induction"]
    assert runs.runs(folder, analysis="sink").table["path"].tolist() == ["sink.parquet"]
    assert not len(runs.runs(folder, model="gpt2").table)
    with pytest.raises(SchemaError, match="is no folder"):
        runs.runs(folder / "none")


def test_a_run_is_found_by_its_beginning(folder):
    found = runs.runs(folder)
    run = found.table["run"].iloc[0]
    assert found.path(run[:8]) == found.path(run) == folder / found.table["path"].iloc[0]
    assert found.load("sink.parquet").table["analysis"].unique().tolist() == ["sink"]
    with pytest.raises(SchemaError, match="no run 'sink.parque' in .*; did you mean 'sink.parquet'"):
        found.path("sink.parque")
    with pytest.raises(SchemaError, match="beginning of 3 runs"):
        found.path("")


def test_questions_in_sql(folder):
    found = runs.runs(folder)
    rows = found.query("SELECT analysis, count(*) AS n FROM results GROUP BY analysis ORDER BY analysis")
    assert rows["analysis"].tolist() == ["previous_token", "sink"]
    joined = found.query(
        "SELECT seed, max(value) AS best FROM results JOIN runs USING (run) GROUP BY seed ORDER BY seed"
    )
    assert joined["seed"].tolist() == [0, 1]
    assert joined["best"].min() > 0.9
    assert "set_id" in found.query("SELECT * FROM interventions LIMIT 1").columns
    for sql in ("SELECT nonsense FROM results", "SELECT * FROM read_csv('/etc/hostname')"):
        with pytest.raises(SchemaError, match="DuckDB"):
            found.query(sql)


def test_two_runs_side_by_side(folder):
    found = runs.runs(folder)
    a, b = found.load("a.parquet"), found.load("deep/b.parquet")
    rows = runs.compare(a, b)
    assert len(rows) == len(a.table)
    assert_allclose(rows["change"], rows["value_b"] - rows["value_a"])
    assert rows["changed"].mean() < 0.5  # the same model with other prompts
    assert not runs.compare(a, a)["changed"].any()
    assert runs.differences(a, b)["seed"] == (0, 1)
    assert "packages.torch" not in runs.differences(a, b)
    lonely = runs.compare(a, found.load("sink.parquet"))
    assert lonely["value_a"].isna().any()
    assert lonely["value_b"].isna().any()


def test_the_command(folder, capsys):
    def said(*arguments, code=0):
        with pytest.raises(SystemExit) as done:
            main(["runs", str(folder), *arguments])
        assert done.value.code == code
        return capsys.readouterr()

    assert "deep/b.parquet" in said().out
    assert "skipped broken.parquet" in said().err
    listed = json.loads(said("--analysis", "sink", "--json").out)
    assert [row["path"] for row in listed] == ["sink.parquet"]
    assert "previous_token" in said("--sql", "SELECT DISTINCT analysis FROM results").out
    both = said("--compare", "a.parquet", "deep/b.parquet", "--top", "3")
    assert "seed: 0 -> 1" in both.err
    assert len(both.out.strip().splitlines()) == 4
    assert "nothing found" in said("--model", "gpt2").out
    assert "one at a time" in said("--sql", "SELECT 1", "--compare", "a", "b", code=2).err
    assert "no run 'zzz'" in said("--compare", "zzz", "a.parquet", code=1).err
