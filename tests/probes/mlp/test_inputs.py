"""What feeds an MLP: parts taken out, attention knocked out, shares of tokens; closed forms where the MLP is linear."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from mlp_written import D_HEAD, HALF, HEADS, WIDTH, amplifier, linear_mlp, prompts
from tiny_models import SPANNING, tiny

import interp
from interp import tasks
from interp.decompose import decompose
from interp.edits import KnockOut
from interp.errors import BackendError
from interp.measurement.answers import AnswerDirections
from interp.measurement.sources import source_masks
from interp.patching.case import Case
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Dated
from probes.mlp import mlp_inputs, mlp_mixing, mlp_sources
from probes.mlp._inputs import idle_mlps
from probes.mlp.inputs import LoneMLP, removals


def values(result, variant):
    rows = result.table[result.table["variant"] == variant]
    return rows.set_index(rows["component"].str.partition(" -> ")[0])["value"]


def direction(model, task):
    parts = decompose(model, task.clean)
    return parts, AnswerDirections.of(Case.of(model, task), parts.residual, draws=0, seed=0).own


def test_of_a_linear_mlp_every_way_says_the_same():
    model, task = amplifier(), prompts(amplifier(), 16)
    found = mlp_inputs(model, task=task, n_orders=2)
    parts, w = direction(model, task)
    centred = {h: parts[f"L0H{h}"] - parts[f"L0H{h}"].mean(0) for h in range(HEADS)}
    expected = [float((k * centred[h] * w).sum(-1).mean()) for h, k in enumerate((2, -1, 0, 0))]
    for variant in ("shapley", "marginal", "gradient"):
        np.testing.assert_allclose(values(found, variant)[[f"L0H{h}" for h in range(HEADS)]], expected, atol=1e-4)
    assert values(found, "total")["M0"] == pytest.approx(sum(expected), abs=1e-4)
    whole = mlp_inputs(model, task=task, n_orders=2, base="zero")
    assert values(whole, "output").sum() < 1  # the constant is no component's
    strong = found.table.set_index("component").query("variant == 'shapley'")["label"].astype(bool)
    assert not strong[["embed -> M0", "L0H2 -> M0", "L0H3 -> M0"]].any()


def test_two_inputs_are_shared_out_as_shapley_says():
    mlp = LoneMLP.of(tiny("gpt2"), 1)
    a, b = torch.randn(2, 3, 64)
    zero = torch.zeros(2, 3, 64)
    with torch.no_grad():
        none, one, two, both = (mlp(x) for x in (zero[0], a, b, a + b))
    found = removals(mlp, torch.stack([a, b]), zero, orders=2, seed=0)
    torch.testing.assert_close(found.shapley[0], (one - none + both - two) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.marginal[1], both - one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.shapley.sum(0), both - none, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SPANNING)
def test_shapley_values_sum_in_every_architecture(name):
    """The MLP run by itself writes what it wrote in the model: it is refused otherwise."""
    found = mlp_inputs(tiny(name), task=prompts(tiny(name), 6), n_orders=2, n_draws=5, layers=(1,))
    assert 0 < found.provenance["data"]["sum_rule_error"]["M1"] <= 1e-4
    assert values(found, "shapley").sum() == pytest.approx(values(found, "total")["M1"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("renormalise", [False, True])
def test_knock_out_is_that_of_whole_runs(renormalise):
    model = tiny("gemma2")
    task = prompts(model, 6)
    found = mlp_sources(model, task=task, renormalise=renormalise, n_draws=5).table
    _, w = direction(model, task)
    edit = KnockOut("L1.pattern", queries=-1, keys=3, renormalise=renormalise)
    out = [model.run(task.clean, capture=["L1.mlp_out"], edits=e)["L1.mlp_out"][:, -1] for e in ((), (edit,))]
    row = found[(found["variant"] == "knockout") & (found["role"] == "s") & (found["layer"] == 1)].iloc[0]
    assert row["value"] == pytest.approx(float(((out[0] - out[1]) * w).sum(-1).mean()), abs=1e-5)


def test_a_linear_mlp_passes_on_what_attention_brings():
    model, task = amplifier(), prompts(amplifier(), 16)
    found = mlp_sources(model, task=task).table.set_index(["variant", "role"])["value"]
    parts, w = direction(model, task)
    by_source = decompose(model, task.clean, sources=True)
    brought = [(by_source[f"L0H{h}<3"] * w).sum(-1).mean() for h in range(HEADS)]
    assert found["lens", "s"] == pytest.approx(float(sum(brought)), abs=1e-4)
    assert found["knockout", "s"] == pytest.approx(float(2 * brought[0] - brought[1]), abs=1e-4)
    assert set(source_masks(task)) == {"s", "start", "others", "own"}
    assert sum(m.sum() for m in source_masks(task).values()) == task.clean.mask.sum()


def test_an_mlp_beside_attention_is_not_fed_by_it():
    model = tiny("gpt_neox")
    found = mlp_sources(model, task=prompts(model, 6), n_draws=5).table
    knockout = found[found["variant"] == "knockout"]["value"]
    lens = found[found["variant"] == "lens"]["value"]
    assert float(knockout.abs().max()) < 1e-6 < float(lens.abs().max())


def test_mixing_by_a_linear_mlp_is_known():
    level = linear_mlp(torch.full((WIDTH,), 0.5))
    task = prompts(level, 8)
    found = mlp_mixing(level, task=task, n_draws=5)
    assert values(found, "mixing_change")["M0"] == pytest.approx(0, abs=1e-6)
    assert values(found, "rank_change")["M0"] == pytest.approx(0, abs=1e-6)
    scale = torch.cat([torch.zeros(HALF), torch.full((HEADS * D_HEAD,), 2.0)])  # of what heads write alone
    model = linear_mlp(scale)
    found = mlp_mixing(model, task=task, n_draws=5)
    parts = decompose(model, task.clean, sources=True)
    terms = {t.name: t for t in parts.terms}
    brought = {j: sum(parts[f"L0H{h}<{j}"] for h in range(HEADS)) for j in range(9)}
    assert "L0H0<8" in terms
    other, own = sum(brought[j] for j in range(8)), parts["embed"] + brought[8]
    sizes = [(3 * other).norm(dim=-1), (parts["embed"] + 3 * brought[8]).norm(dim=-1)]
    after = (sizes[0] / sum(sizes)).mean()
    before = (other.norm(dim=-1) / (other.norm(dim=-1) + own.norm(dim=-1))).mean()
    assert values(found, "mixing_before")["M0"] == pytest.approx(float(before), abs=1e-5)
    assert values(found, "mixing_after")["M0"] == pytest.approx(float(after), abs=1e-5)
    assert values(found, "mixing_mlp")["M0"] > values(found, "mixing_before")["M0"]


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_shares_of_tokens_sum_to_what_the_mlp_writes(name):
    found = mlp_mixing(tiny(name), task=prompts(tiny(name), 4), n_draws=5)
    assert max(found.provenance["data"]["missed"].values()) < 1e-4


def test_an_mlp_that_jumps_has_no_shares():
    with pytest.raises(BackendError, match="experts change"):
        mlp_mixing(tiny("gpt_oss"), task=prompts(tiny("gpt_oss"), 4), n_draws=5)


@pytest.mark.parametrize(("seed", "heads", "tokens"), [(0, "same", {"SUBJECT", "TIME"}), (1, "other", {"TIME"})])
def test_planted_dated_facts_name_what_feeds_their_mlp(seed, heads, tokens):
    """Subject and time are the inputs, and the tokens of those whose head stands in the MLP's own layer."""
    made = factory.plant([Dated()], seed=seed)
    model, task = (
        interp.load(made.model, tokenizer=made.tokenizer),
        tasks.planted_task(made, "dated", n=24, corruption="minimal"),
    )
    (subject, time), layer = [made.truth.roles[role][0] for role in ("dated_subject", "dated_time")], 1
    assert (subject[0] == time[0]) is (heads == "same") and max(subject[0], time[0]) == layer
    inputs = {"L{}H{} -> M{}".format(*place, layer) for place in (subject, time)}
    expected = {"shapley": inputs, "knockout": {f"M{layer}<{role}" for role in tokens}}
    assert set(made.truth.parts("dated_input")) == inputs
    assert set(made.truth.parts("dated_source")) == expected["knockout"]
    for result in (mlp_inputs(model, task=task, n_orders=2), mlp_sources(model, task=task)):
        rows = result.table[result.table["variant"] == result.table["variant"].iloc[0]]
        found = set(rows.loc[rows["label"].fillna(False).astype(bool), "component"])
        assert found == expected[rows["variant"].iloc[0]]


def test_an_mlp_that_writes_a_hundredth_of_another_is_idle():
    rows = pd.DataFrame({"mlp": ["M0", "M0", "M1", "M1", "M2"], "value": [0.004, -0.004, 1.0, -1.0, 0.03]})
    assert idle_mlps(rows) == ["M0"]
