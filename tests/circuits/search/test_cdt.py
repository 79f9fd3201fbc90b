"""Contextual decomposition: what must hold of any split, and what it finds in planted models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import D_VOCAB, SPANNING, tiny
from torch.testing import assert_close

import interp
from circuits.evaluation.truth import judge_nodes
from circuits.graph.layout import Layout
from circuits.search.beta_rules import bias_part
from circuits.search.cdt import Relevance, contextual_decomposition
from circuits.wiring.case import Case
from interp.errors import SchemaError, TaskError
from interp.tasks import planted_task
from interp.tasks.prompt import collate
from interp.zoo.planted import factory


def pairs(lengths=(7, 5)):
    rng = np.random.default_rng(0)
    clean = [rng.integers(3, D_VOCAB, n).tolist() for n in lengths]
    corrupt = [[*row[:1], (row[1] + 9) % D_VOCAB, *row[2:-1], (row[-1] + 5) % D_VOCAB] for row in clean]
    return collate(
        "random",
        list(zip(clean, corrupt, strict=True)),
        answers=[[4 + i] for i in range(len(clean))],
        wrong=[[9 + i] for i in range(len(clean))],
        roles=[{"A": 1}] * len(clean),
        templates=["random"] * len(clean),
        corruption="two tokens",
        metric="logit_diff",
    )


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("name", SPANNING)
def test_everything_is_the_whole_output_and_nothing_is_none_of_it(name, normalise):
    model, task = tiny(name), pairs()
    senders = Case.of(model, task).layout.senders
    found = contextual_decomposition(
        model, task, sources=[list(senders), ["embed"], ["embed@A", "M1@A"], []], reference="zero", normalise=normalise
    )
    np.testing.assert_allclose(found.to_logits[0], found.whole, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(found.to_slots[0], 1.0, atol=1e-3)
    assert (found.to_logits[3] == 0).all()
    assert np.isnan(found.to_slots[3]).all()
    # a token of its own can be told from the whole, and nothing is read before it is written
    assert (np.abs(found.to_logits[2] - found.whole) > 1e-4).all()
    alone = contextual_decomposition(model, task, sources=["M1"], reference="zero")
    readers = ~np.isnan(alone.to_slots[0, :, 0])
    np.testing.assert_array_equal(readers, alone.layout.exists[alone.layout.sender_index["M1"]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss"])
def test_the_whole_is_the_difference_of_logits_before_a_cap(name):
    model, task = tiny(name), pairs()
    found = contextual_decomposition(model, task, sources=[[]])
    case = Case.of(model, task)
    exact = case.clean
    if name == "gemma2":  # logits are capped at 30
        raw = 30 * torch.atanh(model.run(task.clean).logits / 30)
        exact = case.value(raw)
    biases = model.weights().b_u
    exact = exact - (biases[task.answers[:, 0]] - biases[task.wrong[:, 0]])
    assert_close(torch.from_numpy(found.whole).float(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_what_is_written_last_counts_as_it_stands(name):
    model, task = tiny(name), pairs()
    case = Case.of(model, task)
    found = contextual_decomposition(model, task, sources=["M1"], reference="resample", normalise=False)
    gap = (case.sent_clean - case.sent_corrupt)[case.layout.sender_index["M1"]]
    rows = torch.arange(len(task))
    last = model.run(task.clean, capture=["L1.resid_post"])["L1.resid_post"][rows, task.end]
    norm, w_u = case.ports.final_norm, model.weights().w_u
    frozen = norm.linear(gap[rows, task.end]) / norm.divisor(last)
    expected = (frozen * (w_u[:, task.answers[:, 0]] - w_u[:, task.wrong[:, 0]]).T).sum(-1)
    np.testing.assert_allclose(found.to_logits[0], expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_batch_size_and_padding_change_nothing(name):
    model, task = tiny(name), pairs()
    one, many = (contextual_decomposition(model, task, reference="resample", batch_size=n) for n in (1, 64))
    np.testing.assert_allclose(one.to_logits, many.to_logits, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(one.to_slots, many.to_slots, atol=1e-5, rtol=1e-4)
    alone = contextual_decomposition(model, task.select([1]), reference="resample")
    np.testing.assert_allclose(alone.to_logits[:, 0], many.to_logits[:, 1], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(alone.to_slots[:, :, 0], many.to_slots[:, :, 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalise", [False, True])
def test_attention_is_split_into_queries_keys_and_values_of_the_source(normalise):
    """A source at one token, by hand: other queries see only zeros of it, and attend uniformly to what they see.

    Where its part and the rest have opposite signs behind attention, the larger gets the sum.
    """
    model, task = tiny("llama"), pairs().select([0])
    found = contextual_decomposition(model, task, sources=["embed@A"], reference="zero", normalise=normalise)
    run, own, reads = (
        model.run(task.clean, capture=["L0.resid_pre", "L0.resid_mid", "L0.resid_post"]),
        *layer_of(model, task),
    )
    (x,), (middle,), at = run["L0.resid_pre"], run["L0.resid_mid"], 1
    q, k, v = (torch.einsum("m,hmd->hd", reads.attn(x[at]), w) for w in (own.w_q, own.w_k, own.w_v))
    k, v = k.repeat_interleave(own.group, 0), v.repeat_interleave(own.group, 0)
    itself = (own.scale * (q * k).sum(-1)).exp()
    beta = torch.zeros_like(x)
    beta[at] = x[at]
    for i in range(at, len(x)):
        weight = itself / (itself + at) if i == at else torch.full_like(itself, 1 / (i + 1))
        beta[i] += torch.einsum("h,hd,hdm->m", weight, v, own.w_o)
    beta = settled(beta, middle) if normalise else beta
    share = size_of(reads.mlp.linear(beta) / reads.mlp.divisor(middle), reads.mlp(middle))
    assert 0.01 < share < 0.99
    slots = found.layout.slot_index
    np.testing.assert_allclose(found.to_slots[0, slots["M0", "in"], 0], share, rtol=1e-3)
    # the MLP: what it writes less what it would write of the rest; then what the values of the next layer read
    rest = reads.mlp(middle) - reads.mlp.linear(beta) / reads.mlp.divisor(middle)
    mlp, (after,) = model.torch_module.model.layers[0].mlp, run["L0.resid_post"]
    beta = beta + (mlp(reads.mlp(middle)) - mlp(rest)).detach()
    beta = settled(beta, after) if normalise else beta
    above, values = Case.of(model, task).ports.reads[1].attn, model.weights()[1].w_v[0]
    share = size_of(above.linear(beta) / above.divisor(after) @ values, above(after) @ values)
    first = next(i for i, (name, port) in enumerate(found.layout.slots) if port == "v" and name.startswith("L1"))
    np.testing.assert_allclose(found.to_slots[0, first, 0], share, rtol=1e-3)


def settled(beta, x):
    """Of two parts with opposite signs the larger gets the sum."""
    gamma = x - beta
    return torch.where(beta * gamma >= 0, beta, torch.where(beta.abs() >= gamma.abs(), x, 0.0))


def size_of(beta, x):
    """sum |beta| / (sum |beta| + sum |x - beta|)."""
    return float(beta.abs().sum() / (beta.abs().sum() + (x - beta).abs().sum()))


def test_a_bias_is_shared_out_by_size():
    bias, beta, gamma = torch.tensor([6.0, 6.0, 6.0]), torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-2.0, 4.0, 0.0])
    assert_close(bias_part(bias, beta, gamma), torch.tensor([2.0, 2.0, 0.0]))


def layer_of(model, task):
    return model.weights()[0], Case.of(model, task).ports.reads[0]


def test_the_search_ranks_within_layers_or_not():
    """Of three layers the last has the three largest; as shares of their layer's largest every layer has a 1."""
    layout = Layout(3, 4, 4)
    to_logits = np.zeros((len(layout.senders), 1))
    for name, value in {"L0H1": 0.1, "L0H2": 0.05, "L1H3": -1.0, "L2H0": 9.0, "L2H1": 8.0, "M1": 99.0}.items():
        to_logits[layout.sender_index[name]] = value
    found = Relevance(
        layout.senders, layout, to_logits, np.ones(1), np.where(layout.exists, 0.5, np.nan)[..., None], {}
    )

    def kept(k, **options):
        return {edge.sender for edge in found.search(k=k, depth=0, **options).edges}

    assert kept(2) == {"L2H0", "L1H3"}
    assert kept(3) == {"L2H0", "L1H3", "L0H1"}
    assert kept(4) == {"L2H0", "L1H3", "L0H1", "L2H1"}
    assert kept(2, per_layer=False) == {"L2H0", "L2H1"}
    assert kept(1, heads=False) == {"M1"}


def test_tables():
    model, task = tiny("llama"), pairs()
    found = contextual_decomposition(model, task)
    table = found.table()
    assert set(table["source"]) == set(found.layout.senders)
    assert (table["ci_low"] <= table["value"]).all()
    slots = found.slots()
    assert len(slots) == found.layout.n_edges
    assert slots["share"].between(0, 1).all()
    assert found.graph().n_edges == found.layout.n_edges
    with pytest.raises(SchemaError, match="every sender"):
        contextual_decomposition(model, task, sources=["embed"]).graph()


@pytest.mark.parametrize("architecture", ["llama", "llama-gqa"])
def test_planted_heads_are_the_relevant_ones(architecture):
    built = factory.plant([factory.Induction()], architecture=architecture, seed=0, noise=0.0)
    model = interp.load(built.model, tokenizer=built.tokenizer)
    found = contextual_decomposition(model, planted_task(built, "induction", n=8))
    scores = dict(zip(found.sources, found.to_logits.mean(1), strict=True))
    heads = [name for name in found.sources if name.startswith("L")]
    inside = {f"L{layer}H{head}" for role in ("induction", "previous_token") for layer, head in built.truth.roles[role]}
    judged = judge_nodes(scores, inside, among=heads)
    assert judged["auroc"] == 1.0
    chosen = found.search(k=1, depth=1)
    assert {e.sender for e in chosen.edges} == inside
    (looked,) = (e for e in chosen.edges if e.receiver == "logits")
    assert looked.sender in {f"L{layer}H{head}" for layer, head in built.truth.roles["induction"]}
    assert found.search(k=1, depth=0).n_edges == 1
    with pytest.raises(SchemaError, match="k = 0"):
        found.search(k=0)


def test_refusals():
    model, task = tiny("gpt2"), pairs()
    with pytest.raises(SchemaError, match="no sender 'L9H0'"):
        contextual_decomposition(model, task, sources=["L9H0"])
    with pytest.raises(TaskError, match="no role 'B'"):
        contextual_decomposition(model, task, sources=["L0H0@B"])
    with pytest.raises(TaskError, match="ablation 'means'"):
        contextual_decomposition(model, task, reference="means")
