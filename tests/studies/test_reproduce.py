"""The comparison with published scores; the runs on the hub's models need HF_HUB_OFFLINE=0 -m network."""

import json

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


def test_every_table_is_whole():
    for name in reproduce.names():
        entry = reproduce.published(name)
        assert entry["scores"] or entry["heads"]
        for asked in (*entry["scores"], *entry["heads"]):
            assert asked["analysis"] in registry.analyses()
        for asked in entry["scores"]:
            table = pd.read_csv(data.path("published", entry["file"]))
            assert table[asked["column"]].between(-1, 1).all()
            assert not table.duplicated(["layer", "head"]).any()
    assert len(pd.read_csv(data.path("published", "gpt2-small.csv"))) == 144
    with pytest.raises(SchemaError, match="gpt2-small"):
        reproduce.published("gpt2-smal")


def test_a_model_against_its_own_scores(tmp_path, monkeypatch):
    """The whole way on a planted model, with a table made of its own scores."""
    model = interp.load("zoo:planted-induction")
    rows = interp.analyze(model, "induction", causal=False).top("induction", k=100)
    rows[["layer", "head", "value"]].rename(columns={"value": "pm"}).to_csv(tmp_path / "own.csv", index=False)
    score = {"column": "pm", "analysis": "induction", "variant": "prefix_matching", "options": {"causal": False}}
    named = {"role": "previous", "analysis": "previous_token", "variant": "score", "source": "us"}
    (previous,) = interp.zoo.truth("planted-induction").roles["previous_token"]
    mute = {"role": "mover", "analysis": "movers", "variant": "mover", "heads": ["L0H0"], "source": "us"}
    entry = {"model": "zoo:planted-induction", "revision": None, "source": "us", "file": "own.csv", "scores": [score]}
    entry["heads"] = [{**named, "heads": ["L{}H{}".format(*previous)]}, mute]
    (tmp_path / "tables.json").write_text(json.dumps({"tables": {"own": entry}}))
    shipped = data.path
    monkeypatch.setattr(data, "path", lambda f, name: tmp_path / name if f == "published" else shipped(f, name))
    found = reproduce.reproduce("own", model, k=2).table.set_index("what")
    assert_allclose(found.loc["pm", ["spearman", "overlap"]].astype(float), 1)
    assert found.loc["previous", "overlap"] == 1
    assert isinstance(found.loc["mover", "why"], str)  # this model knows no names
    (tmp_path / "own.csv").write_text("layer,head,pm\n0,0,1.0\n")
    with pytest.raises(SchemaError, match="1 heads were published"):
        reproduce.reproduce("own", model)


def test_the_command_lists_tables_and_knows_their_names(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce"])
    assert ended.value.code == 0
    assert "openai-community/gpt2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "gpt3"])
    assert ended.value.code == 2
    assert "gpt2-small" in capsys.readouterr().err


@pytest.mark.network
@pytest.mark.parametrize("name", ["gpt2-small", "pythia-70m", "pythia-410m"])
def test_published_scores_are_reproduced(name):
    table = reproduce.reproduce(name).table.set_index("what")
    assert table.loc["prefix_matching", "spearman"] > 0.5
    assert table.loc["prefix_matching", "overlap"] >= 0.5
