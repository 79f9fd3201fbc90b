"""Filters over numbers, controls of mediation and tuning of mediators, on the shipped adder and on a written one."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

import interp
from interp import tasks
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.decoder import HookedDecoder
from interp.tasks.modular import Addition
from probes import mlp
from probes.arithmetic import arithmetic_mediation, mediator_tuning, number_filters
from probes.arithmetic import mediation_controls as controls
from probes.arithmetic._number_filters import filtered

P, HEADS = 5, 7
KEYS = (1, 5, 8, 10, 12)


@cache
def adder():
    return interp.load("zoo:modular-addition")


def rows(table, variant):
    return table[table["variant"] == variant].set_index("component")


def test_filters_keep_waves_and_the_mean():
    n = 20
    x = torch.stack([torch.arange(n) % 2 * 2.0 - 1, torch.cos(2 * torch.pi * torch.arange(n) / n), torch.ones(n)], 1)
    low, high = filtered(x, [1, 2]), filtered(x, range(3, 11))
    assert_close(low, x * torch.tensor([0.0, 1, 1]), atol=1e-5, rtol=0)
    assert_close(high, x * torch.tensor([1.0, 0, 1]), atol=1e-5, rtol=0)
    order = torch.randperm(n)
    mixed = torch.empty_like(x)
    mixed[order] = x
    assert_close(filtered(mixed, [1, 2], order)[order], low, atol=1e-5, rtol=0)


def test_sums_need_the_key_frequencies_and_slow_waves_know_the_size_alone():
    every = range(1, 19)
    filters = {"keys": KEYS, "others": [k for k in every if k not in KEYS], "low": [1, 2, 3], "all": list(every)}
    task = tasks.task("modular_addition", adder(), n=64)
    result = number_filters(adder(), task=task, filters=filters, n_shuffles=5)
    exact, error, parity = (rows(result.table, v) for v in ("exact", "error", "mod 2"))
    place = "L0.resid_pre at x y"
    assert exact.loc[f"{place}: keys", "value"] == exact.loc[f"{place}: all", "value"] == 1.0
    assert exact.loc[f"{place}: keys", "null"] < 0.3 and exact.loc[f"{place}: keys", "label"]
    assert exact.loc[f"{place}: others", "value"] < 0.2 < exact.loc[f"{place}: others", "null"]
    assert error.loc[f"{place}: low", "value"] < 2.5
    assert error.loc[f"{place}: low", "null"] > 6
    assert abs(parity.loc[f"{place}: low", "value"] - 0.5) < 0.2
    assert_allclose(exact["clean"], 1.0)
    assert exact.loc[f"{place}: low", "waves"] == 30
    assert exact.loc["mlp_out at END: others", "value"] < 0.3
    assert result.provenance["data"]["takes_all"] == [
        f"{kind}: {name}" for kind in ("attn_out", "mlp_out") for name in ("keys", "low")
    ]
    logits = adder().run(task.clean).logits[:, -1]
    ids = tasks.addition(adder()).answers
    off = (logits[:, ids].argmax(1) - torch.tensor([ids.tolist().index(i) for i in task.answers[:, 0].tolist()])).abs()
    assert_allclose(error.loc[f"{place}: all", "value"], float(torch.minimum(off, 37 - off).double().mean()))
    with pytest.raises(SchemaError, match="no frequency 19"):
        number_filters(adder(), filters={"odd": [19]})


def test_the_distance_of_a_cycle_is_the_shorter_way():
    from probes.arithmetic._number_filters import Numbers

    task = tasks.task("modular_addition", adder(), n=8)
    numbers = Numbers.of(adder(), task)
    other = replace(numbers, right=(numbers.right + 36) % 37)
    assert_allclose(other.measure(())[1], 1)
    assert_allclose(replace(other, cycle=None).measure(())[1].max(), np.where(numbers.right == 0, 36, 1).max())


def test_operands_that_are_no_numbers_have_no_filter():
    task = tasks.task("ioi", interp.load("zoo:default"), n=8)
    with pytest.raises(NotApplicable, match="no operands x and y"):
        number_filters(interp.load("zoo:default"), task=task)


def test_the_same_result_and_exchanged_operands_cost_nothing():
    task = tasks.task("modular_addition", adder(), n=20)
    result = arithmetic_mediation(adder(), task=task, retrieval=task, n_random=0)
    for variant in ("same_result", "exchanged"):
        row = rows(result.table, variant).loc["M0 at END"]
        assert abs(row["value"]) < 0.1 and row["null"] > 5
    effect, copied = (rows(result.table, v) for v in ("effect", "retrieval"))
    assert_allclose(copied["value"], effect["value"], rtol=1e-5)
    shares = [rows(result.table, v)["value"] for v in ("share", "retrieval_share")]
    assert_allclose(*shares, rtol=1e-5)
    assert "operator" in result.provenance["data"]["controls_left_out"]


def test_twins_of_controls_are_what_they_are_called():
    task, rng = tasks.task("modular_addition", adder(), n=20), np.random.default_rng(0)
    other, own = controls.same_result(adder(), task, rng)
    logits = adder().run(other.corrupt).logits[:, -1]
    assert_close(logits.argmax(1), own.answers[:, 0])
    assert (other.corrupt.ids != own.clean.ids).any(1).all()
    other, own = controls.exchanged(adder(), task, rng)
    assert_close(other.corrupt.ids[:, [1, 3]], own.clean.ids[:, [3, 1]])
    assert_close(other.corrupt.ids[:, [0, 2, 4]], own.clean.ids[:, [0, 2, 4]])
    with pytest.raises(NotApplicable, match="fewer than 4"):
        controls.same_result(adder(), task.select(slice(0, 3)), rng)


class Signs:
    """A tokenizer of digits and signs, one character a token."""

    unk_token_id = 14
    table = "0123456789+-*="

    def decode(self, ids):
        return self.table[ids[0]]

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [self.table.index(c) if c in self.table else self.unk_token_id for c in text]}


def test_another_operator_stands_between_the_same_operands():
    class Reader:
        tokenizer = Signs()

    clean = [[i, 10, 9 - i, 13] for i in range(6)]
    task = tasks.pair(interp.load(written()), clean, [[1, 10, 1, 13]] * 6, 1, 2, roles={"x": 0, "y": 2})
    other, own = controls.other_operator(Reader(), task, np.random.default_rng(0))
    assert set(other.corrupt.ids[:, 1].tolist()) <= {11, 12} and own.clean.ids[:, 1].eq(10).all()
    assert_close(other.corrupt.ids[:, [0, 2, 3]], own.clean.ids[:, [0, 2, 3]])


def written(*, strength=1.0):
    """A HookedTransformer that adds modulo 5 by heart: head 0 counts operands, a neuron for each pair; prompts a b =.

    The other heads are weak and random. `strength` is of what head 0 writes.
    """
    pairs = [(a, b) for a in range(P) for b in range(a, P)]
    config = HookedConfig(
        vocab_size=14, output_size=14, hidden_size=28, intermediate_size=len(pairs), num_hidden_layers=1,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=P, max_position_embeddings=4, norm=None,
        scales=[1.0], activation="relu", is_causal=True,
    )  # fmt: skip
    model = HookedDecoder._from_config(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    generator, state, eye = torch.Generator().manual_seed(0), dict(model.named_parameters()), torch.eye(14)
    state["embed.weight"].data[:, :14] = eye
    for name in ("v_proj", "o_proj"):
        weight = state[f"blocks.0.attn.{name}.weight"]
        weight.data.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    state["blocks.0.attn.v_proj.weight"].data[:P] = 0
    state["blocks.0.attn.v_proj.weight"].data[:P, :P] = 3 * eye[:P, :P]
    state["blocks.0.attn.o_proj.weight"].data[:, :P] = 0
    state["blocks.0.attn.o_proj.weight"].data[14 : 14 + P, :P] = strength * eye[:P, :P]
    for i, (a, b) in enumerate(pairs):
        state["blocks.0.mlp.in_proj.weight"].data[i, 14 + a] = 1
        state["blocks.0.mlp.in_proj.weight"].data[i, 14 + b] = 1
        state["blocks.0.mlp.in_proj.bias"].data[i] = -1 if a != b else -1.5
        state["blocks.0.mlp.out_proj.weight"].data[(a + b) % P, i] = 4 if a != b else 80
    state["unembed.weight"].data[:14, :14] = eye
    return model.eval()


def sums(model, n=25):
    layout = Addition(("a", "b", 13), torch.arange(P), torch.arange(P))
    return tasks.modular_task(model, layout, n=n, one_in=10**9)


def test_the_head_that_adds_learns_it_again_and_others_do_not():
    model = interp.load(written(strength=0.5))
    whole = interp.load(written())
    task = sums(whole, 25)
    assert (whole.run(task.clean).logits[:, -1].argmax(1) == task.answers[:, 0]).all()
    result = mediator_tuning(model, task=task, n_heads=1, n_neurons=1, n_steps=15, n_sets=5)
    assert result.provenance["data"]["heads"] == ["L0H0"]
    row = rows(result.table, "gain").loc["heads"]
    assert row["label"] and row["value"] > 0.3 and row["null"] < 0.1 * row["value"]
    judged = np.random.default_rng(0).permutation(25)[13:]
    log_p = model.run(task.clean).logits[:, -1].log_softmax(-1).gather(1, task.answers)[judged, 0]
    assert_allclose(row["clean"], float(log_p.mean()), rtol=1e-5)
    assert rows(result.table, "elsewhere").loc["heads", "value"] > 0
    with pytest.raises(NotApplicable, match="take smaller sets"):
        mediator_tuning(model, task=task, n_heads=HEADS - 1, n_steps=1)
    with pytest.raises(NotApplicable, match="four at least"):
        mediator_tuning(model, task=sums(whole, 3))


def test_a_set_without_enough_others_has_no_row():
    task = tasks.task("modular_addition", adder(), n=8)
    few = mediator_tuning(adder(), task=task, n_heads=1, n_neurons=2, n_steps=1)
    assert few.provenance["data"]["too_few_others"] == ["heads"]  # three others
    table = rows(few.table, "gain")
    assert table["k"].to_dict() == {"neurons": 2, "heads and neurons": 3}
    assert len(few.provenance["data"]["neurons"]) == 2


def test_a_mean_over_next_tokens_is_one_over_all_tokens():
    module = written()
    model = interp.load(module)
    prompts = torch.randint(14, (5, 4), generator=torch.Generator().manual_seed(1))
    task = tasks.next_tokens(model, prompts)
    logits = module(prompts).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), prompts[:, 1:])
    assert_close(task.value(model.run(task.clean).logits).mean(), expected)
    assert len(task) == 15 and (task.clean.ids != task.corrupt.ids).any(1).float().mean() > 0.8
    assert len(tasks.next_tokens(model, prompts, skip=3)) == 5
    with pytest.raises(TaskError, match="2 at least"):
        tasks.next_tokens(model, [[3]])
    table = mlp.neurons(model, task=task, how="zero", n_best=15, n_random=5).table
    removed = rows(table, "removal")["value"]
    module.blocks[0].mlp.out_proj.weight.data[:, 0] = 0
    without = torch.nn.functional.cross_entropy(module(prompts).logits[:, :-1].transpose(1, 2), prompts[:, 1:])
    assert_allclose(removed["M0N0"], float((expected - without).detach()), atol=1e-5)


def test_a_layout_has_to_beat_guessing_in_all_that_were_tried():
    lucky = Addition(("a", "b"), torch.arange(3), torch.arange(3), accuracy=7 / 9, n_tried=9)
    once, often = lucky.chance(1), lucky.chance(155)
    expected = sum(c * 2 ** (9 - k) for k, c in ((7, 36), (8, 9), (9, 1))) / 3**9
    assert_allclose([once, often], [expected, min(1.0, 155 * expected)])
    own = Addition((0, "a", "b"), torch.arange(37), torch.arange(37))
    assert own.n_at_once(adder()) == 4096


def test_logits_and_activations_of_all_pairs_come_of_one_run():
    layout = tasks.addition(adder())
    from interp.sites import Site

    logits, acts = layout.table_with(adder(), [Site("mlp_post", 0)])
    a, b = torch.tensor([3, 36]), torch.tensor([5, 0])
    run = adder().run(layout.prompts(a, b), capture=["L0.mlp_post"])
    assert_close(logits[a, b], run.logits[:, -1][:, layout.answers], atol=1e-4, rtol=1e-4)
    assert_close(acts[Site("mlp_post", 0)][a, b], run["L0.mlp_post"][:, -1], atol=1e-4, rtol=1e-4)
