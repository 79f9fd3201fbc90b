"""The comparison with published scores; the runs on the hub's models need HF_HUB_OFFLINE=0 -m network."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import interp
from interp import data
from interp.cli.main import main
from interp.errors import SchemaError
from interp.measurement import registry
from interp.studies import reproduce
from interp.studies.published import Ours, likes


def heads(values):
    n = len(values)
    return pd.DataFrame(
        {"layer": np.arange(n) // 4, "head": np.arange(n) % 4, "value": values, "published": values}
    ).assign(component=lambda t: [f"L{a}H{b}" for a, b in zip(t["layer"], t["head"], strict=True)])


def test_equal_rankings_agree_and_reversed_ones_do_not():
    values = np.random.default_rng(0).random(40)
    same = reproduce.compare(heads(values).assign(value=values**3), k=5)
    assert_allclose([same["spearman"], same["overlap"], same["chance"]], [1, 1, 5 / 40])
    reversed_ = reproduce.compare(heads(values).assign(value=-values), k=5)
    assert_allclose([reversed_["spearman"], reversed_["overlap"]], [-1, 0])
    unrelated = reproduce.compare(heads(values).assign(value=np.random.default_rng(1).random(40)), k=5)
    assert abs(unrelated["spearman"]) < 0.4


def test_named_heads_are_sought_among_as_many():
    ours = heads(np.arange(20.0))
    found = reproduce.head_overlap(ours, ["L4H3", "L4H2", "L0H0"])
    assert_allclose([found["overlap"], found["chance"], found["k"]], [2 / 3, 3 / 20, 3])
    with pytest.raises(SchemaError, match="L9H0"):
        reproduce.head_overlap(ours, ["L9H0"])


def test_named_heads_are_of_analyses_there_are():
    for name in reproduce.names():
        entry = reproduce.named(name)
        assert entry["heads"]
        for asked in entry["heads"]:
            assert asked["analysis"] in registry.analyses()
    with pytest.raises(SchemaError, match="gpt2-small"):
        reproduce.named("gpt2-smal")
    for name in likes():
        assert reproduce.like(name).analysis in registry.analyses()


@pytest.fixture(scope="module")
def planted():
    return interp.load("zoo:planted-induction")


@pytest.fixture(scope="module")
def scores(planted):
    """What the model scores itself, as others would publish it beside another model's."""
    own = interp.analyze(planted, "induction", causal=False).top("induction", k=100)
    rows = own[["layer", "head", "value"]].assign(score="prefix_matching", model="planted", source="us")
    return pd.concat([rows, rows.assign(model="other", value=-rows["value"])], ignore_index=True)


def test_a_model_against_its_own_scores(planted, scores, tmp_path, monkeypatch):
    """The whole way on a planted model, with a table made of its own scores, and heads that are on record."""
    scores.to_parquet(tmp_path / "own.parquet")
    found = reproduce.reproduce(planted, published=tmp_path / "own.parquet", where={"model": "planted"}, k=2).table
    (row,) = found.to_dict(orient="records")
    assert_allclose([row["spearman"], row["overlap"], row["heads"]], [1, 1, len(scores) / 2])
    assert row["source"] == "us"
    (previous,) = interp.zoo.truth("planted-induction").roles["previous_token"]
    named = {"role": "previous", "analysis": "previous_token", "variant": "score", "source": "us"}
    mute = {"role": "mover", "analysis": "movers", "variant": "mover", "heads": ["L0H0"], "source": "us"}
    heads = [{**named, "heads": ["L{}H{}".format(*previous)]}, mute]
    entry = {"model": "zoo:planted-induction", "revision": None, "heads": heads}
    (tmp_path / "heads.json").write_text(json.dumps({"models": {"own": entry}}))
    shipped = data.path
    monkeypatch.setattr(data, "path", lambda f, name: tmp_path / name if f == "published" else shipped(f, name))
    found = reproduce.reproduce("own").table.set_index("what")
    assert found.loc["previous", "overlap"] == 1
    assert isinstance(found.loc["mover", "why"], str)  # this model knows no names


def test_copying_is_compared_with_what_heads_write(planted):
    """Their score of activations beside ours of activations; the head that copies is first in it."""
    ours = reproduce.like("copying")
    assert (ours.analysis, ours.variant) == ("copying", "activation")
    table = interp.analyze(planted, "copying").table
    rows = table[table["variant"] == "activation"].set_index("component")
    (copier,) = (f"L{a}H{b}" for a, b in interp.zoo.truth("planted-induction").roles["induction"])
    place = list(rows.index).index(copier)
    value, null = rows["value"].to_numpy(float), rows["null"].to_numpy(float)
    assert np.nanargmax(value) == place
    assert value[place] > 0.6
    assert np.nanmax(np.delete(value, place)) < 0.15
    assert abs(null[place]) < 0.1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.drop(columns="value"), "no column 'value'"),
        (lambda t: t.assign(value="high"), "no numbers"),
        (lambda t: t.assign(layer=t["layer"] + 0.5), "whole numbers"),
        (lambda t: t, "several values of prefix_matching for L0H0; say which rows by 'model'"),
        (lambda t: t[t["model"] == "other"].head(1), "1 heads were published"),
        (lambda t: t[t["model"] == "other"].assign(layer=lambda r: r["layer"] + 1), "is no head of this model"),
        (lambda t: t[t["model"] == "other"].assign(score="glow"), "glow=analysis.variant"),
    ],
)
def test_tables_of_another_form_are_refused(planted, scores, change, why):
    with pytest.raises(SchemaError, match=re.escape(why)):
        reproduce.reproduce(planted, published=change(scores.sort_values(["layer", "head"])))


def test_a_score_of_ones_own_choice(planted, scores):
    theirs = scores[scores["model"] == "planted"].assign(score="glow")
    choice = {"glow": "induction.argmax_hit"}
    row = reproduce.reproduce(planted, published=theirs, scores=choice).table.iloc[0]
    assert (row["what"], row["variant"]) == ("glow", "argmax_hit")
    for wrong, why in (("induction", "analysis.variant"), ("inductoin.x", "induction"), ("sink.x", "no variant")):
        with pytest.raises(SchemaError, match=why):
            reproduce.reproduce(planted, published=theirs, scores={"glow": wrong})
    with pytest.raises(SchemaError, match="gpt2-small"):
        reproduce.reproduce(planted)


def test_removal_is_measured_for_a_variant_of_it_alone(planted, monkeypatch):
    asked = []

    def analyze(model, name, *, seed, causal=True):
        asked.append(causal)
        variants = ["argmax_hit", "lost"] if causal else ["argmax_hit"]
        table = heads(np.arange(8.0)).drop(columns="published")
        return SimpleNamespace(table=pd.concat([table.assign(variant=v) for v in variants]))

    monkeypatch.setattr(reproduce, "analyze", analyze)
    for variant, runs in (("argmax_hit", [False]), ("lost", [False, True])):
        asked.clear()
        assert len(reproduce._ours(planted, Ours("induction", variant), seed=0)) == 8
        assert asked == runs


def test_the_command_lists_names_compares_a_file_and_refuses_what_it_cannot_read(scores, tmp_path, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["reproduce", *map(str, words)])
        return ended.value.code, capsys.readouterr()

    code, said = run()
    assert (code, "openai-community/gpt2" in said.out) == (0, True)
    code, said = run("gpt3")
    assert (code, "gpt2-small" in said.err) == (2, True)
    file = tmp_path / "scores.csv"
    scores.to_csv(file, index=False)
    code, said = run("zoo:planted-induction", "--published", file, "--where", "model=planted", "--top", 2)
    assert (code, "Spearman 1.000" in said.out, "100% of the 2 best" in said.out) == (0, True, True)
    for words, why in (
        (("--where", "model=plant"), "planted"),
        (("--where", "model"), "NAME=VALUE"),
        ((), "several values"),
        (("--where", "model=planted", "--score", "prefix_matching=x"), "analysis.variant"),
    ):
        code, said = run("zoo:planted-induction", "--published", file, *words)
        assert (code, why in " ".join(said.err.split())) == (2, True)
    for name in ("no.csv", "scores.txt"):
        assert run("zoo:planted-induction", "--published", tmp_path / name)[0] == 2


@pytest.mark.network
def test_named_heads_are_found_on_the_hub():
    table = reproduce.reproduce("gpt2-small").table.set_index("what")
    assert table.loc["previous token", "overlap"] == 1
