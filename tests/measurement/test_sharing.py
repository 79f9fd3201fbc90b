"""Passes that analyses share inside `detect`: the same numbers for less, and nothing shared that differs."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import build

import interp
from interp.attention import Entropy, KeyMass, Mean, Offset, Received
from interp.attention.shared import Memory, shared_memory, sharing
from interp.edits import Ablate, ablate_heads
from interp.measurement import registry
from interp.measurement.registry import BY_NAME, analyses, beside, detect

SHARED = ["induction", "previous_token", "duplicate_token", "sink", "entropy"]
QUESTIONS = {"previous": Mean(Offset(1)), "received": Received(), "entropy": Entropy()}


def tokens(*, rows=3, n=10, seed=0):
    return torch.randint(2, 60, (rows, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return interp.load(build(request.param))


class Counter:
    """Tokens that go through the MLPs of a model's layers, by layer."""

    def __init__(self, model):
        self.blocks = model.anatomy.blocks
        self.tokens = [0] * len(self.blocks)
        self.handles = [b.mlp.register_forward_pre_hook(self.hook(i)) for i, b in enumerate(self.blocks)]

    def hook(self, layer):
        def count(module, args):
            self.tokens[layer] += args[0][..., 0].numel()

        return count

    def taken(self):
        before, self.tokens = self.tokens, [0] * len(self.blocks)
        return before


@pytest.fixture
def counter(model):
    counter = Counter(model)
    yield counter
    for handle in counter.handles:
        handle.remove()


def test_the_same_prompts_are_run_once(model, counter):
    alone = model.attention(tokens(), QUESTIONS)
    with sharing():
        counter.taken()
        model.attention(tokens(), {"previous": QUESTIONS["previous"]})
        assert sum(counter.taken()) > 0
        again = model.attention(tokens(), QUESTIONS)
        assert sum(counter.taken()) == 0
        model.attention(tokens(seed=1), QUESTIONS)
        assert sum(counter.taken()) > 0
    for name in QUESTIONS:
        assert torch.equal(alone[name], again[name])


def test_values_are_read_off_a_kept_pass(model, counter):
    last = model.info.n_layers - 1
    alone = model.run(tokens(), capture=["v", "q"], stop=last).acts
    with sharing():
        model.attention(tokens(), QUESTIONS)
        counter.taken()
        kept = model.run(tokens(), capture=["v", "q"], stop=last)
        assert sum(counter.taken()) == 0
    assert kept.logits is None
    assert alone.keys() == kept.acts.keys()
    for site, value in alone.items():
        assert torch.allclose(value, kept.acts[site], atol=1e-6)


def test_logits_start_at_the_last_kept_layer_and_parts_of_the_prompts_too(model, counter):
    alone = model.run(tokens()[1:]).logits
    with sharing() as memory:
        model.attention(tokens(), QUESTIONS)
        model.run(tokens())
        assert all(memory.exact.values())
        counter.taken()
        shared = model.run(tokens()[1:]).logits
        passed = counter.taken()
    assert passed[0] == 0 and passed[-1] == 20
    assert torch.allclose(alone, shared, atol=1e-5)


def test_an_edited_pass_starts_below_its_edit_and_is_not_kept(model, counter):
    last = model.info.n_layers - 1
    edits = ablate_heads([(last, 1)])
    alone, logits = model.attention(tokens(), QUESTIONS, edits=edits), model.run(tokens(), edits=edits).logits
    plain = model.attention(tokens(), QUESTIONS)
    with sharing():
        model.attention(tokens(), QUESTIONS)
        model.attention(tokens(), QUESTIONS, edits=edits)  # the first one tries whether passes may start in the middle
        counter.taken()
        edited = model.attention(tokens(), QUESTIONS, edits=edits)
        assert counter.taken()[0] == 0
        assert torch.allclose(logits, model.run(tokens(), edits=edits).logits, atol=1e-5)
        assert counter.taken()[0] == 0
        after = model.attention(tokens(), QUESTIONS)
        first = model.attention(tokens(), QUESTIONS, edits=ablate_heads([(0, 1)]))
    for name in QUESTIONS:
        assert torch.allclose(alone[name], edited[name], atol=1e-6)
        assert torch.equal(plain[name], after[name])
    assert not torch.allclose(first["previous"][1:], plain["previous"][1:])


def test_nothing_is_shared_under_edits_that_stand_or_with_other_weights(model):
    plain = model.attention(tokens(), QUESTIONS)
    with sharing():
        model.attention(tokens(), QUESTIONS)
        with model.editing([Ablate("L0.z")]):
            edited = model.attention(tokens(), QUESTIONS)
        assert not torch.allclose(plain["previous"][1:], edited["previous"][1:])
        parameter = next(p for n, p in model.torch_module.named_parameters() if "embed" in n or "wte" in n)
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(torch.linspace(0.5, 2, parameter.shape[1]))
        changed = model.attention(tokens(), QUESTIONS)
        with torch.no_grad():
            parameter.copy_(before)
    assert not torch.allclose(plain["previous"], changed["previous"])


def test_another_model_and_another_dtype_have_their_own(model):
    other = interp.load(build("llama", seed=3) if model.info.family.startswith("Llama") else build("llama"))
    ids = tokens()
    alone = other.attention(ids, QUESTIONS)
    with sharing():
        model.attention(ids, QUESTIONS)
        assert torch.equal(other.attention(ids, QUESTIONS)["entropy"], alone["entropy"])


def test_padded_prompts_are_their_own(model):
    ragged = [tokens()[0, :6].tolist(), tokens()[1].tolist()]
    alone = model.attention(ragged, QUESTIONS)
    with sharing():
        model.attention(tokens()[:2], QUESTIONS)
        model.attention(ragged, QUESTIONS)
        again = model.attention(ragged, QUESTIONS)
    for name in QUESTIONS:
        assert torch.equal(alone[name].nan_to_num(-1), again[name].nan_to_num(-1))


def test_what_is_kept_stays_within_its_budget_and_is_freed(model):
    with sharing() as memory:
        model.attention(tokens(), QUESTIONS)
        one = sum(x.nbytes for x in memory._passes.values())
        assert one > 0
    assert shared_memory() is None and not memory._passes
    with sharing(budget=int(one * 1.5)) as memory:
        for seed in range(3):
            model.attention(tokens(seed=seed), QUESTIONS)
            assert len(memory._passes) == 1
            assert sum(x.nbytes for x in memory._passes.values()) <= memory.budget
    with sharing(budget=one // 2) as memory:
        model.attention(tokens(), QUESTIONS)
        assert not memory._passes


def test_inside_another_it_is_the_other():
    with sharing() as outer, sharing() as inner:
        assert inner is outer and isinstance(inner, Memory)


def test_detect_gives_the_table_that_it_gives_without(monkeypatch):
    model = interp.load("zoo:planted-induction")
    options = {name: {"n_prompts": 8} for name in SHARED}
    options["induction"] |= {"n_random": 2}
    counter = Counter(model)
    shared = detect(model, SHARED, options=options)
    few = sum(counter.taken())
    monkeypatch.setattr(registry, "sharing", contextlib.nullcontext)
    alone = detect(model, SHARED, options=options)
    assert few <= 0.7 * sum(counter.taken())
    assert list(alone.table["analysis"].unique()) == list(shared.table["analysis"].unique())
    for name, column in alone.table.items():
        other = shared.table[name]
        if pd.api.types.is_float_dtype(column):
            ours, theirs = (x.to_numpy(float, na_value=np.nan) for x in (other, column))
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
        else:
            assert column.equals(other), name
    plain, ours = alone.provenance, shared.provenance
    assert [c["call"] for c in plain["calls"]] == [c["call"] for c in ours["calls"]]


def test_analyses_of_the_same_prompts_run_one_behind_the_other():
    specs = [a for a in analyses().values() if a.unit == "head"]
    names = [a.name for a in beside(specs)]
    assert sorted(names) == sorted(a.name for a in specs)
    for group in ({"induction", "duplicate_token", "lag_profile"}, {"previous_token", "sink", "entropy"}):
        places = sorted(names.index(name) for name in group)
        assert places[-1] - places[0] <= len(group)


def test_dear_analyses_run_by_name_or_on_prompts_of_ones_own():
    model = interp.load("zoo:planted-induction")
    dear = {a.name for a in analyses().values() if a.unit == "head" and not a.default}
    assert {"sink_calibration", "chunk_selection"} <= dear
    few = [a for a in analyses().values() if a.name == "previous_token"]
    left_out = detect(model, progress=lambda specs: few).provenance["left_out"]
    assert {name for name, why in left_out.items() if why == BY_NAME} == dear
    named = detect(model, ["span_attention"], options={"span_attention": {"n_prompts": 4}})
    assert set(named.table["analysis"]) == {"span_attention"}
    own = detect(model, prompts=tokens(n=40), progress=lambda specs: [a for a in specs if a.name == "distance_profile"])
    assert BY_NAME not in own.provenance["left_out"].values()


def test_key_mass_is_that_of_the_batch_asked():
    """A statistic with rows of its own is answered for those, whoever ran the prompts first."""
    model = interp.load(build("gpt2"))
    ids, keys = tokens(), torch.zeros(3, 10, dtype=torch.bool)
    keys[:, 2] = True
    alone = model.attention(ids, {"mass": Mean(KeyMass(keys))})
    with sharing():
        model.attention(ids, QUESTIONS)
        assert torch.equal(alone["mass"], model.attention(ids, {"mass": Mean(KeyMass(keys))})["mass"])
