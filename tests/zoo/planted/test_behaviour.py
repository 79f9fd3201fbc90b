"""A slice of the sweep over planted models, the closed-form effects, and what else their truth says."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import interp
from interp import zoo
from interp.errors import InterpError
from interp.zoo.planted.behaviour import behaviour, failed, summary
from interp.zoo.planted.factory import ALL, ARCHITECTURES, Induction, ShiftedInduction, plant
from interp.zoo.planted.mechanisms import MassiveActivationAt
from interp.zoo.trained.measure import head_scores, repeated_tokens, second_copy_scores, streams, zeroed

ANSWERING = (*(m for m in ALL if m.name != "massive_activation"), ShiftedInduction())


def effects(planted, name, roles, *, n=24):
    """Measured fall of the task's logit difference, role by role."""
    task = planted.task(name, seed=5, n=n)

    def difference(role=None):
        heads, neurons = (role.heads, role.neurons) if role else ((), ())
        with torch.no_grad(), zeroed(planted.model, heads, neurons=neurons):
            logits = planted.model(task.tokens, use_cache=False).logits
        return task.logit_difference(logits, planted.vocab.words)

    clean = difference()
    return {role.name: clean - difference(role) for role in roles}


@pytest.fixture(scope="module")
def table():
    names = ["induction", "successor", "massive_activation", "shifted_induction"]
    return behaviour(seeds=1, architectures=["llama-gqa"], mechanisms=names, n=12)


def test_a_slice_of_the_sweep_keeps_every_promise(table):
    assert len(table) == 7  # four alone, all but the shifted one together
    assert not failed(table)
    assert (table["clean"] >= 0.95).all()
    assert (table["ablated"] <= table["ceiling"]).all()
    short = summary(table)
    assert short["kept"].sum() == short["models"].sum() == len(table)


def test_one_broken_promise_fails_the_table(table):
    assert failed(table.assign(kept=[False, *table["kept"].iloc[1:]]))


def test_a_mechanism_that_does_not_work_is_seen(monkeypatch):
    from interp.zoo.planted import behaviour as module

    real = module.plant

    def broken(*arguments, **options):
        planted = real(*arguments, **options)
        with torch.no_grad():
            planted.model.lm_head.weight.zero_()
        return planted

    monkeypatch.setattr(module, "plant", broken)
    table = behaviour(seeds=1, architectures=["llama"], mechanisms=["copy"], n=8)
    assert failed(table) and not table["kept"].any()


def test_unknown_names_are_refused():
    with pytest.raises(InterpError, match="did you mean 'induction'"):
        behaviour(mechanisms=["inducton"])
    with pytest.raises(InterpError, match="did you mean 'llama'"):
        behaviour(architectures=["lama"])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mechanism", ANSWERING, ids=lambda m: m.name)
def test_effects_are_those_derived_and_inert_ones_nothing(mechanism, seed):
    planted = plant([mechanism], architecture="llama-nonorm", seed=seed, noise=0.0)
    wanted = planted.truth.effects[mechanism.name]
    assert {role.name for role in planted.roles(mechanism.name)} == set(wanted)
    measured = effects(planted, mechanism.name, planted.roles(mechanism.name))
    for role, value in wanted.items():
        assert value >= 1.0
        assert_close(measured[role], value, rtol=0.01, atol=0)
    least = 1e-3 * min(wanted.values())
    for value in effects(planted, mechanism.name, planted.inert(seed=seed)).values():
        assert abs(value) <= least


def test_effects_hold_beside_all_other_mechanisms_and_noise():
    planted = plant(ALL, architecture="llama-nonorm", seed=0)
    for mechanism in ANSWERING[:-1]:
        measured = effects(planted, mechanism.name, planted.roles(mechanism.name), n=10)
        for role, value in planted.truth.effects[mechanism.name].items():
            assert_close(measured[role], value, rtol=0.05, atol=0)


def test_effects_are_claimed_without_norms_alone():
    assert not plant([Induction()], architecture="llama").truth.effects


def test_shifted_induction_copies_and_has_no_stripe():
    planted = plant([ShiftedInduction()], seed=1)
    generator = torch.Generator().manual_seed(0)
    tokens = repeated_tokens(batch=8, period=32, repeats=2, n_words=48, generator=generator)
    assert second_copy_scores(planted.model, tokens, period=32)["accuracy"] >= 0.97
    assert head_scores(planted.model, tokens, period=32)["induction"].max() <= 0.08
    for role in planted.roles("shifted_induction"):
        with zeroed(planted.model, role.heads):
            assert second_copy_scores(planted.model, tokens, period=32)["accuracy"] <= 0.2
    assert "stays empty" in planted.truth.docs


def test_the_induction_analysis_does_not_label_the_shifted_head():
    model = interp.load("zoo:planted-shifted-induction")
    table = interp.analyze(model, "induction", causal=False, n_prompts=16).top("induction", k=10**9)
    assert not table["label"].fillna(False).any()
    assert table["value"].max() <= 0.1
    ((layer, head),) = zoo.truth("planted-shifted-induction").roles["shifted_induction"]
    assert layer < model.info.n_layers and head < model.info.n_heads


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("position", "layer"), [(1, 0), (7, 1), (40, 2)])
def test_a_massive_activation_stands_at_the_position_asked_for(architecture, position, layer):
    mechanisms = [MassiveActivationAt(position=position, layer=layer), Induction()]
    planted = plant(mechanisms, architecture=architecture, seed=position, n_layers=3)
    words = planted.vocab.draw(4, 48, generator=torch.Generator().manual_seed(0))
    states = streams(planted.model, torch.cat([torch.full((4, 1), planted.vocab.bos), words], 1))
    wanted = torch.zeros_like(states)
    for after, where, dimension, size in planted.truth.massive:
        assert (after, where) == (layer, position)
        wanted[after:, :, where, dimension] = size
    assert_close(states, wanted, rtol=0.1, atol=5.0)
    ((neuron_layer, neuron),) = planted.truth.neurons["massive_neuron"]
    with zeroed(planted.model, neurons=[(neuron_layer, neuron)]):
        gone = streams(planted.model, torch.cat([torch.full((4, 1), planted.vocab.bos), words], 1))
    assert gone.abs().max() <= 5.0


@pytest.mark.parametrize("position", [0, 96])
def test_positions_that_cannot_be_marked_are_refused(position):
    with pytest.raises(ValueError, match="position must be between"):
        MassiveActivationAt(position=position)
    with pytest.raises(ValueError, match="shift must be between"):
        ShiftedInduction(shift=1)
