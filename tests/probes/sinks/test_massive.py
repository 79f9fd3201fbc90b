"""Massive activations: planted ones exactly, where they are born and erased, what setting them does, ties to sinks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import ragged, tiny

import interp
from interp.sites import Site
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import FirstTokenSink, MassiveActivation, MassiveActivationAt
from probes.sinks._massive_activations import permuted_overlap
from probes.sinks.massive import paths, setting, stages
from probes.sinks.removal import loss

QUICK = {"n_prompts": 8, "length": 32, "n_random": 2, "bos": "forced"}


def massive(result) -> set[tuple[int, int, int]]:
    """(layer, position, dimension) of the labelled rows."""
    rows = result.table[(result.table["variant"] == "ratio") & result.table["label"].fillna(False).astype(bool)]
    return set(zip(rows["layer"], rows["position"], rows["dimension"], strict=True))


@pytest.fixture(scope="module")
def under_a_sink():
    made = factory.plant([MassiveActivation(layer=0), FirstTokenSink(at=(1, 2))], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    return made, model, interp.analyze(model, "massive_activations", **QUICK)


@pytest.mark.parametrize(
    ("mechanism", "architecture"),
    [
        (MassiveActivation(layer=-1), "llama"),
        (MassiveActivation(layer=-1), "gpt2"),
        (MassiveActivationAt(position=8), "llama"),
        (None, "llama"),
    ],
)
def test_planted_ones_are_found_exactly_and_nothing_else(mechanism, architecture):
    made = factory.plant([] if mechanism is None else [mechanism], architecture=architecture, seed=0)
    found = interp.analyze(interp.load(made.model, tokenizer=made.tokenizer), "massive_activations", **QUICK)
    last = made.model.config.num_hidden_layers - 1
    truth = {(i, p, d) for layer, p, d, _ in made.truth.massive for i in range(layer, last + 1)}  # it stays
    assert massive(found) == truth
    rows = found.table
    if mechanism is None:
        assert not len(found.interventions)
        return
    born = rows[rows["role"] == "born"]
    assert set(zip(born["component"], born["dimension"], strict=True)) == {
        (f"M{layer}", d) for layer, _, d, _ in made.truth.massive
    }
    value = {d: size for _, _, d, size in made.truth.massive}
    written = {int(d): float(x) for d, x in zip(born["dimension"], born["value"], strict=True)}
    assert {d: abs(written[d] / value[d] - 1) < 0.1 for d in value} == dict.fromkeys(value, True)
    assert not (rows["role"] == "erased").any()


def test_sizes_are_those_of_the_whole_stream(under_a_sink):
    _, model, found = under_a_sink
    padded = ragged(20, "left")
    batch = replace(padded, ids=padded.ids % 60)
    stream = model.run(batch, capture=["L0.resid_post"])["L0.resid_post"]
    real = stream[batch.mask]
    stage = stages(model, batch)[1]
    assert_allclose(stage.median, real.abs().median(), rtol=1e-6)
    assert_allclose(stage.rms, real.pow(2).mean(1).sqrt().median(), rtol=1e-6)
    rows = found.table[(found.table["layer"] == 0) & (found.table["label"].fillna(False).astype(bool))]
    dimension = int(rows["dimension"].iloc[0])
    own = found.table[(found.table["dimension"] == dimension) & (found.table["layer"] == 0)]
    own = own[own["variant"] != "written"].set_index("variant")["value"]
    assert own["activation"] > 150
    assert own["ratio"] > own["rms_ratio"] > 50


def test_criteria_are_what_they_say():
    made = factory.plant([MassiveActivation(layer=0)], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    batch = model.batch(torch.tensor([[made.vocab.bos, *range(20, 40)]]))
    dimension = made.truth.massive[0][2]
    first, second = stages(model, batch)[1:3]
    size = float(model.run(batch, capture=["L0.resid_post"])["L0.resid_post"][0, 0, dimension].abs())
    assert first.absolute == {(dimension, 0): 1.0} == first.scale_free
    assert second.labelled((dimension, 0))
    assert first.massive[0].tolist() == [True] + [False] * (batch.ids.shape[1] - 1)
    above = {"absolute": size + 1}, {"times_median": size / first.median * 1.01}
    for options in above:
        assert stages(model, batch, **options)[1].absolute == {}
    assert stages(model, batch, times_rms=size / first.rms * 1.01)[1].scale_free == {}
    assert (dimension, 0) in stages(model, batch, times_rms=size / first.rms * 0.99)[1].scale_free


def test_zero_breaks_what_reads_it_and_the_mean_does_not(under_a_sink):
    made, model, found = under_a_sink
    rows = found.interventions.set_index("set_id")
    dimension = made.truth.massive[0][2]
    zero, mean = (rows.loc[f"{way}: L0 d{dimension} first"] for way in ("zero", "mean"))
    assert abs(zero["edited"] - zero["clean"]) > 100 * abs(mean["edited"] - mean["clean"])
    assert abs(zero["random_mean"] - zero["clean"]) < 0.1 * abs(zero["edited"] - zero["clean"])
    assert zero["n_random"] == 2
    batch = model.batch(torch.tensor([[made.vocab.bos, *range(20, 40)]]))
    path = paths(model, batch, [(dimension, 0)])[dimension, 0]
    edit = setting(Site("resid_post", 0), [path], [dimension], [0.0])
    after, before = (model.run(batch, capture=["L0.resid_post"], edits=e)["L0.resid_post"] for e in ([edit], []))
    assert float(after[0, 0, dimension]) == 0
    before[0, 0, dimension] = 0
    assert torch.equal(after, before)
    assert loss(model, batch, [edit]) != loss(model, batch)


def test_sinks_that_stand_on_massive_tokens(under_a_sink):
    _, _, found = under_a_sink
    ties = found.table[found.table["variant"] == "sinks_massive"].set_index(["component", "place"])
    row = ties.loc[("A1", "all")]
    assert row["value"] == 1
    assert row["n"] == 8
    assert row["null"] < 0.1
    assert row["q"] < 0.01
    assert ("A1", "after the first") not in ties.index
    share = found.table[found.table["variant"] == "massive_sinks"].set_index(["component", "place"])
    assert share.loc[("A1", "all"), "value"] == 1


def test_sinks_that_do_not(under_a_sink):
    made = factory.plant([MassiveActivation(layer=-1), FirstTokenSink()], seed=0)
    found = interp.analyze(interp.load(made.model, tokenizer=made.tokenizer), "massive_activations", **QUICK)
    ties = found.table[found.table["variant"] == "sinks_massive"]
    assert len(ties)
    assert (ties["value"] == 0).all()
    assert (ties["p"] == 1).all()


def test_permuted_overlap_is_by_chance_prompt_by_prompt():
    rng = np.random.default_rng(0)
    keys = np.ones((6, 20), bool)
    sink, there = rng.random((2, 6, 20)) < 0.3
    drawn = permuted_overlap(sink, there, keys, seed=0, draws=4000)
    assert_allclose(drawn.mean(), (sink.sum(1) * there.sum(1) / 20).sum(), rtol=0.02)
    assert drawn.max() <= np.minimum(sink.sum(1), there.sum(1)).sum()


def test_what_is_written_adds_up_and_what_takes_it_away_is_named():
    model, batch = tiny("llama"), ragged(20, "left")
    path = paths(model, batch, [(7, 2), (7, 0)])[7, 0]
    assert path.column.tolist() == batch.first.tolist()
    total = sum(path.written.values())
    assert_allclose(total, path.value[:, -1], atol=1e-4)
    value = np.array([[0.0, 10.0, 10.0, 1.0]])
    changed = type(path)(7, "first", path.rows[:1], path.column[:1], 0, value, {"embed": np.zeros(1)})
    changed.written.update({"M0": np.array([10.0]), "A2": np.array([-9.0]), "M2": np.zeros(1)})
    assert (changed.born(), changed.erased()) == ("M0", "A2")
    changed.written.update({"M0": np.array([4.0]), "A2": np.array([-4.0])})
    assert (changed.born(), changed.erased()) == (None, None)
