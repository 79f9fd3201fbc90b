"""Every planted mechanism does its task, needs its heads, and is the only one of its kind."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from tolerance import assert_equal_to_rounding, rounding
from torch.testing import assert_close

import interp
from interp import zoo
from interp.edits import ablate_heads
from interp.zoo.planted import factory
from interp.zoo.planted.factory import ALL, plant
from interp.zoo.planted.mechanisms import (
    Dated,
    DuplicateToken,
    Fact,
    FirstTokenSink,
    Induction,
    MassiveActivation,
    PreviousToken,
    Successor,
    Told,
    TwoHop,
)
from interp.zoo.planted.mechanisms.render import ARCHITECTURES
from interp.zoo.trained.measure import patterns, streams

ANSWERING = [m for m in ALL if m.name != "massive_activation"]
TINY = {"n_heads": 4, "d_mlp": 8, "context": 64}
HEAD_ANALYSES = ("induction", "previous_token", "duplicate_token", "sink")


@lru_cache(maxsize=4)
def built(mechanisms, architecture, seed, **sizes):
    planted = plant(mechanisms, architecture=architecture, seed=seed, **sizes)
    return planted, interp.load(planted.model, tokenizer=planted.tokenizer)


def inert(planted, model, seed):
    """A head that no role names, in a layer and at a place that the seed draws."""
    named = {place for places in planted.truth.roles.values() for place in places}
    pool = [(i, h) for i in range(model.info.n_layers) for h in range(model.info.n_heads) if (i, h) not in named]
    return pool[int(torch.randint(len(pool), (), generator=torch.Generator().manual_seed(seed)))]


def accuracy(model, task, heads=()):
    return task.accuracy(model.run(task.tokens, edits=ablate_heads(heads)).logits)


def check_task(planted, model, name, *, seed, n=48):
    """As published: at least 0.95 with the mechanism, chance without any one of its heads, unmoved by another."""
    task = planted.task(name, seed=100 + seed, n=n)
    clean = accuracy(model, task)
    assert clean >= 0.95
    spread = 3 * (task.chance * (1 - task.chance) / n) ** 0.5  # of a guesser's accuracy over n prompts
    for head in planted.heads(name):
        assert accuracy(model, task, [head]) <= task.chance + spread + 0.02
    assert_close(accuracy(model, task, [inert(planted, model, seed)]), clean, atol=0.02, rtol=0)


def grid():
    """Every mechanism in every architecture; half of them, with all of both, are no slow tests."""
    for i, mechanism in enumerate(ANSWERING):
        for j, architecture in enumerate(ARCHITECTURES):
            marks = [pytest.mark.slow] if (i + j) % 2 else []
            yield pytest.param(mechanism, architecture, marks=marks, id=f"{mechanism.name}-{architecture}")


@pytest.mark.parametrize(("mechanism", "architecture"), list(grid()))
def test_alone_it_does_its_task_and_needs_its_heads(mechanism, architecture):
    seed = ANSWERING.index(mechanism)  # twelve mechanisms, twelve seeds
    planted, model = built((mechanism,), architecture, seed, **TINY)
    check_task(planted, model, mechanism.name, seed=seed, n=96)


def test_together_each_does_its_task_and_needs_its_heads():
    """One architecture: `test_behaviour` has others, and `docs/behaviour.csv` all, ten seeds each."""
    planted, model = built(ALL, "llama", 3)
    for mechanism in ANSWERING:
        check_task(planted, model, mechanism.name, seed=3, n=10)


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_head_analyses_find_the_planted_heads_and_label_no_other(architecture):
    planted, model = built(ALL, architecture, 0)
    for name in HEAD_ANALYSES:
        options = {"causal": False, "n_lengths": 4} if name == "induction" else {}
        table = interp.analyze(model, name, n_prompts=4, **options).table
        rows = table[table["label"].fillna(False).astype(bool)]
        ((layer, head),) = planted.truth.roles[name]
        assert rows["component"].tolist() == [f"L{layer}H{head}"]
        assert rows["value"].item() >= 0.95
        assert_close(rows["value"].item(), planted.truth.expected[name], atol=0.01, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "llama-gqa", "llama-nonorm"])
def test_heads_that_answer_attend_as_derived(architecture):
    planted, _ = built(ALL, architecture, 1)
    targets = {"retrieval": "retrieval", "successor": "successor", "fact_mover": "fact", "name_mover": "two_hop"}
    for role, mechanism in targets.items():
        task = planted.task(mechanism, seed=7, n=6)
        ((layer, head),) = planted.truth.roles[role]
        row = patterns(planted.model, task.tokens)[layer, :, head, -1]
        score = row.max(-1).values.mean().item()
        assert_close(score, planted.truth.expected[role], atol=0.02, rtol=0)
        if mechanism in ("retrieval", "two_hop"):  # the others attend to what is asked about, not to the answer
            found = task.tokens.gather(1, row.argmax(-1, keepdim=True))[:, 0]
            assert_close(found, task.answers, atol=0, rtol=0)


@pytest.mark.parametrize("dimension", [None, 7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_massive_activation_stands_where_it_was_put_and_the_rest_still_works(architecture, dimension):
    mechanisms = (Induction(), FirstTokenSink(at=(2, 1)), MassiveActivation(layer=1, dimension=dimension))
    planted, model = built(mechanisms, architecture, 0, n_layers=3, **TINY)
    (layer, position, at, size), *twins = planted.truth.massive
    assert len(twins) == (architecture == "gpt2")
    assert (layer, position, size) == (1, 0, 200.0)
    assert dimension in (None, at)
    task = planted.task("sink", seed=0, n=16)
    with_bos = task.tokens[::2]
    for i, state in enumerate(streams(planted.model, with_bos)):
        massive = state[:, 0, at]
        assert_close(massive, torch.full_like(massive, size if i >= layer else 0.0), rtol=0.1, atol=1.0)
        assert state[:, 1:].abs().max() <= 10.0
    for name in ("induction", "sink"):
        check_task(planted, model, name, seed=0, n=24)


def test_same_seed_same_bytes_and_the_global_generator_is_untouched():
    for architecture in ARCHITECTURES:
        state = torch.random.get_rng_state()
        several = (Induction(), Successor(), MassiveActivation())
        first, second, other = (plant(several, architecture=architecture, seed=s).model.state_dict() for s in (3, 3, 4))
        assert_close(torch.random.get_rng_state(), state, rtol=0, atol=0)
        assert all(torch.equal(weight, second[name]) for name, weight in first.items())
        assert any(not torch.equal(weight, other[name]) for name, weight in first.items() if "weight" in name)


def test_places_are_those_asked_for_and_otherwise_hidden_by_seed():
    planted = plant([Induction(at=(3, 5)), PreviousToken(at=(1, 2))], n_layers=4)
    assert planted.truth.roles == {"induction": ((3, 5),), "previous_token": ((1, 2),)}
    drawn = {str(plant([Induction()], n_layers=4, seed=seed).truth.roles) for seed in range(8)}
    assert len(drawn) >= 6
    for seed in range(8):
        roles = plant([Induction()], n_layers=4, seed=seed).truth.roles
        assert roles["previous_token"][0][0] < roles["induction"][0][0]


def test_two_heads_of_a_kind_stand_in_for_each_other():
    planted, model = built((Induction(), Induction()), "llama", 0)
    task = planted.task("induction", seed=0, n=16)
    pair = planted.heads("induction")
    assert len(pair) == 2
    for head in pair:
        assert accuracy(model, task, [head]) >= 0.95
    assert accuracy(model, task, pair) <= 0.2


def test_edges_are_the_circuit():
    planted = plant([TwoHop(at=((0, 1), (1, 2), (2, 3)))])
    among_heads = {e for e in planted.truth.edges if e.sender != "embed"}
    assert among_heads == {
        ("L0H1", "L1H2", "k"),
        ("L0H1", "L1H2", "v"),
        ("L1H2", "L2H3", "q"),
        ("L2H3", "logits", "in"),
    }
    assert set(planted.truth.nodes) == {"embed", "L0H1", "L1H2", "L2H3", "logits"}


@pytest.mark.parametrize(
    ("mechanisms", "options", "said"),
    [
        ([Induction(at=(0, 0)), PreviousToken(at=(1, 0))], {}, r"cannot work: it has to stand"),
        ([Induction(at=(1, 0)), DuplicateToken(at=(1, 1))], {"architecture": "llama-gqa"}, "keys and values"),
        ([DuplicateToken(at=(2, 0))], {"n_layers": 2}, "2 layers"),
        ([TwoHop()], {"n_layers": 2}, "no place is left"),
        ([TwoHop(at=(0, 0))], {}, "3 heads"),
        ([Fact()], {"n_words": 16}, "word 16 does not exist"),
        ([MassiveActivation(), MassiveActivation()], {}, "2 massive activations"),
    ],
)
def test_what_cannot_be_planted_is_refused_with_the_reason(mechanisms, options, said):
    with pytest.raises(ValueError, match=said):
        plant(mechanisms, **options)


def test_ambiguous_mechanisms_are_refused():
    with pytest.raises(ValueError, match="stands twice"):
        Successor(classes=((0, 1), (1, 2)))
    with pytest.raises(ValueError, match="two attributes"):
        Fact(facts=((0, 1), (0, 2)))
    with pytest.raises(ValueError, match="stands twice in Dated"):
        Dated(subjects=(0,), times=(1, 2), answers=((3, 1),))
    with pytest.raises(ValueError, match="each of 1 subjects and 2 times"):
        Dated(subjects=(0,), times=(1, 2), answers=((3,),))


def test_the_vocabulary_has_as_many_words_as_the_mechanisms_speak_of():
    assert plant([]).vocab.n_words == plant([Fact()]).vocab.n_words == factory.WORDS
    planted = plant([Successor()])
    assert planted.vocab.n_words == 1 + max(i for c in Successor().classes for i in c)
    assert [len(c) for c in planted.tokenizer.init_kwargs["ordinal_classes"].values()] == [12, 26, 31]
    assert plant([Fact(facts=((0, 60),))]).vocab.n_words == 61
    with pytest.raises(ValueError, match="word 48 does not exist"):
        plant([Successor()], n_words=48)


def test_position_turns_as_fast_in_a_large_vocabulary():
    """The fast planes of a head are those of a small vocabulary; its slow ones hold the words."""
    small, large = (plant([PreviousToken()], n_words=n).model for n in (48, 105))
    first, second = (m.model.rotary_emb.inv_freq for m in (small, large))
    assert len(second) == len(first) + 29
    assert_close(second[:48], first, rtol=1e-4, atol=0)
    assert second[23:].max() <= first[23] * 1.0001


def test_kinds_join_the_heads_of_roles():
    truth = plant(ALL).truth
    assert set(truth.kinds) == {"copying", "repeats", "conflict"}
    assert truth.heads("repeats") == (*truth.roles["previous_token"], *truth.roles["induction"])
    assert truth.heads("conflict") == (*truth.roles["fact_mover"], *truth.roles["told"])
    assert len(truth.heads("copying")) == 6
    assert truth.heads("sink") == truth.roles["sink"]
    assert truth.heads("nothing of the kind") == ()


def test_what_is_told_is_said_and_what_is_known_without_it():
    """`Told` writes twice what `Fact` does: with both the context's word wins, without the first the known one."""
    planted, model = built((Fact(), Told()), "llama", 0)
    facts, told = (planted.task(name, seed=3, n=16) for name in ("fact", "told"))
    assert accuracy(model, facts) >= 0.95
    assert accuracy(model, told) >= 0.95
    assert accuracy(model, facts, planted.heads("told")) >= 0.95
    assert accuracy(model, told, planted.heads("told")) <= 0.2


@pytest.mark.parametrize("name", [n for n in zoo.names() if n.startswith("planted-")])
def test_catalogue_entries_name_heads_that_exist(name):
    model, _ = zoo.load(name)
    known = zoo.truth(name)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    places = [place for role in known.roles.values() for place in role]
    assert places
    assert all(layer < layers and head < heads for layer, head in places)
    assert set(known.expected) == set(known.roles)


def test_no_norm_is_the_identity_to_float_precision():
    planted = plant([Induction()], architecture="llama-nonorm")
    x = torch.randn(4, planted.model.config.hidden_size)
    assert_equal_to_rounding(planted.model.model.norm(x), x)


def test_layer_norm_takes_no_mean_away():
    planted = plant([Induction()], architecture="gpt2")
    state = planted.model.transformer.wte.weight + planted.model.transformer.wpe.weight[3]
    assert state.mean(-1).abs().max() <= rounding(state)
    assert factory.SUPPLIERS["previous_token"] in planted.mechanisms
