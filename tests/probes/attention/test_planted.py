"""Attention as science on planted heads: what is found, and the cases that mislead."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose
from probe_cases import column, named, variant

import interp
from interp.edits import Uniform
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import DuplicateToken, FirstTokenSink, Induction, Retrieval
from probes.attention import _text_induction as text_matching
from probes.attention import spans
from probes.relevance import agreement, divergence_map, flow, occlusion, rollout


def test_heads_are_found_at_their_lags_and_offsets(planted):
    made, model = planted
    lags = variant(interp.analyze(model, "lag_profile", n_prompts=24, n_lengths=4), "best")
    labelled = lags[lags["label"]]
    assert dict(labelled["position"]) == {named(made, "induction")[0]: 1, named(made, "duplicate_token")[0]: 0}
    assert (labelled["value"] > 0.95).all()
    assert lags["value"].drop(labelled.index).max() < 0.1
    assert lags["null"].max() < 0.06
    peaks = variant(interp.analyze(model, "offset_profile", n_prompts=24), "peak")
    assert dict(peaks[peaks["label"]]["position"]) == {
        named(made, "previous_token")[0]: 1,
        named(made, "duplicate_token")[0]: 0,  # without a duplicate it looks at the token itself
    }


def test_a_stripe_that_the_induction_test_overlooks_is_found(monkeypatch):
    from interp.zoo.planted.mechanisms.sketch import HeadPen

    original = HeadPen.offset
    monkeypatch.setattr(HeadPen, "offset", lambda self, distance, **how: original(self, 2, **how))
    made = factory.plant([Induction()], seed=1)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    (name,) = named(made, "induction")
    induction = interp.analyze(model, "induction", n_prompts=16, n_lengths=4, causal=False)
    assert not variant(induction, "prefix_matching")["label"].any()
    found = variant(interp.analyze(model, "lag_profile", n_prompts=16, n_lengths=4), "best")
    assert found.loc[name, "position"] == 2
    assert found.loc[name, "label"]
    assert found.loc[name, "value"] > 0.9


def test_induction_is_forward_and_far_from_no_curve(planted):
    made, model = planted
    found = interp.analyze(model, "lag_profile", n_prompts=24, n_lengths=4)
    (induction,), (duplicate,) = named(made, "induction"), named(made, "duplicate_token")
    asymmetry, cmr = variant(found, "asymmetry"), variant(found, "cmr_distance")
    assert asymmetry.loc[induction, "value"] > 0.9
    assert abs(asymmetry.loc[duplicate, "value"]) < 0.05
    assert (cmr.loc[[induction, duplicate], "value"] < 0.05).all()
    assert_allclose(cmr.loc[[induction, duplicate], "gamma"], [0, 1], atol=0.02)
    assert (cmr.loc[[induction, duplicate], "null"] > 0.4).all()


def test_a_sink_is_focused_and_its_rest_tells_it_apart(planted):
    made, model = planted
    found = interp.analyze(model, "entropy", n_prompts=24)
    (sink,), (previous,) = named(made, "sink"), named(made, "previous_token")
    focus, rest = variant(found, "focus"), variant(found, "focus_without_first")
    assert focus.loc[[sink, previous], "label"].all()
    assert focus["label"].sum() == 3  # the duplicate-token head looks at the token itself
    assert rest.loc[previous, "value"] > 0.9
    assert rest.loc[sink, "value"] < 0.1 or np.isnan(rest.loc[sink, "value"])


def test_two_heads_of_one_kind_are_alike_and_position_alone_is_not_content():
    made = factory.plant([Induction(), Induction(), DuplicateToken(), FirstTokenSink(), FirstTokenSink()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    words = torch.tensor(made.vocab.words)[torch.randint(12, (8, 40), generator=torch.Generator().manual_seed(0))]
    prompts = torch.cat([torch.full((8, 1), made.vocab.bos), words], 1)
    found = divergence_map(model, prompts=prompts, n_rows=30)
    table = found.table()
    pairs = {frozenset(row) for row in table[table["label"]][["component", "other"]].to_numpy()}
    assert frozenset(named(made, "induction")) in pairs
    assert frozenset(named(made, "sink")) not in pairs  # equal, and no less so on unrelated prompts
    sinks = table[[set(row) == set(named(made, "sink")) for row in table[["component", "other"]].to_numpy()]]
    assert_allclose(sinks["value"], 0, atol=1e-3)
    points = found.embedding()
    near = {name: point for name, point in zip(found.components, points, strict=True)}
    a, b = (near[name] for name in named(made, "sink"))
    assert np.linalg.norm(a - b) < 0.05 < np.linalg.norm(a - near[named(made, "duplicate_token")[0]])


def test_rollout_goes_to_the_sink_and_occlusion_to_the_token_that_is_copied():
    """What misleads in rollout: the first token draws most of it and does nothing."""
    made = factory.plant([Induction(), FirstTokenSink()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    task = made.task("induction", seed=0, n=6)
    rolled, flowed = rollout(model, task.tokens), flow(model, task.tokens)
    removed = occlusion(model, task.tokens, answers=task.answers[:, None], n_draws=2)
    copied = [int((row[:-1] == answer).nonzero()[0, 0]) for row, answer in zip(task.tokens, task.answers, strict=True)]
    others = [np.argsort(-row[0][:-1])[0] for row in removed.value]
    assert set(zip(range(6), others, strict=True)) <= {(i, k) for i, c in enumerate(copied) for k in (c, c - 1)}
    for found in (rolled, flowed):
        assert (found.value[:, 0, :-1].argmax(-1) == 0).all()
        assert "not importance" in found.caution
    assert_allclose(removed.value[:, 0, 0], 0, atol=0.3)
    table = agreement(rolled, removed)
    assert len(table) == 6
    assert table["p"].between(0, 1).all()
    itself = agreement(removed, removed)
    assert_allclose(itself["value"], 1)
    assert (itself["p"] <= 0.01).all()


def test_undifferentiated_finds_what_the_prompts_need(planted):
    made, model = planted
    found = interp.analyze(model, "undifferentiated", n_prompts=6)
    ships, scaled = variant(found, "ships"), variant(found, "scaled")
    needed = {*named(made, "induction"), *named(made, "previous_token")}
    assert set(ships[ships["label"]].index) == needed
    assert (ships.loc[list(needed), "value"] > 1).all()
    assert (scaled.loc[list(needed), "value"] > 1).all()
    assert ships["value"].drop(list(needed)).max() < 0.1


def test_the_head_that_answers_is_found_against_a_control():
    made = factory.plant([Retrieval(), Induction()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    own, other = made.task("retrieval", seed=0, n=8), made.task("induction", seed=1, n=8)
    ships = variant(interp.analyze(model, "undifferentiated", prompts=own.tokens, control=other.tokens), "ships")
    assert set(ships[ships["label"]].index) == set(named(made, "retrieval"))
    assert ships["value"].idxmax() == named(made, "retrieval")[0]


def test_ships_is_the_effect_of_uniform_attention(planted):
    made, model = planted
    ids = made.task("induction", seed=0, n=5).tokens
    control = made.task("induction", seed=1, n=4).tokens
    scored = variant(interp.analyze(model, "undifferentiated", prompts=ids, control=control), "ships")["value"]
    clean = model.run(ids).logits[:, -1].double().log_softmax(-1)
    for name in (*named(made, "induction"), *named(made, "duplicate_token")):
        edited = model.run(ids, edits=[Uniform(f"{name}.pattern")]).logits[:, -1].double().log_softmax(-1)
        assert_allclose(scored[name], (clean.exp() * (clean - edited)).sum(-1).mean(), atol=1e-5)


def test_making_a_parked_head_uniform_is_not_removing_it():
    """What misleads in ships: a head parked on the first token writes nothing there, but much when it looks around."""
    made = factory.plant([Induction(), FirstTokenSink()], seed=0)
    ((layer, head),), ((source, copies),) = made.truth.roles["sink"], made.truth.roles["induction"]
    parked, copying = (made.model.model.layers[i].self_attn for i in (layer, source))
    size = parked.head_dim
    to, of = slice(head * size, (head + 1) * size), slice(copies * size, (copies + 1) * size)
    with torch.no_grad():  # it looks at the first token as before, and would copy any word it looked at
        parked.v_proj.weight[to] = copying.v_proj.weight[of]
        parked.o_proj.weight[:, to] = 1.6 * copying.o_proj.weight[:, of]
    model = interp.load(made.model, tokenizer=made.tokenizer)
    words = made.vocab.draw(24, 3, generator=torch.Generator().manual_seed(0))
    prompts = torch.cat([torch.full((24, 1), made.vocab.bos), words], 1)
    answered = made.task("induction", seed=0, n=24).tokens  # a strong answer, which the same change hardly moves
    found = interp.analyze(model, "undifferentiated", prompts=prompts, control=answered)
    ships, scaled = (variant(found, name).loc[f"L{layer}H{head}"] for name in ("ships", "scaled"))
    assert ships["value"] > 0.1
    assert ships["q"] < 0.01
    assert scaled["value"] < 0.01
    assert not ships["label"]


def test_a_head_that_matches_tokens_is_drawn_away(planted):
    made, model = planted
    found = interp.analyze(model, "distraction", n_prompts=24)
    auroc = found.table[found.table["variant"] == "auroc"].set_index("component")
    (induction,) = named(made, "induction")
    assert set(auroc[auroc["label"]].index) == {induction}
    assert auroc.loc[induction, "value"] > 0.99
    (detector,) = found.table[found.table["variant"] == "detector"].to_dict("records")
    assert detector["value"] > 0.99
    assert abs(detector["null"] - 0.5) < 0.2


def test_spans_mark_instruction_and_data(planted):
    made, model = planted
    words = [made.tokenizer.convert_ids_to_tokens(i) for i in made.vocab.words[:6]]
    marked = spans(model, [(" ".join(words[:2]), " " + " ".join(words[2:5]))] * 2, ask=f" {words[5]}")
    assert marked.instruction.sum(1).tolist() == [2, 2]
    assert marked.data.sum(1).tolist() == [3, 3]
    assert not (marked.instruction & marked.data).any()
    assert not (marked.instruction | marked.data)[:, -1].any()


def test_text_induction_matches_words_whatever_their_case(planted):
    made, model = planted
    names = [made.tokenizer.convert_ids_to_tokens(i) for i in made.vocab.words]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(names, 90)) for _ in range(6)]
    found = interp.analyze(model, "text_induction", texts=texts, n_prompts=8, length=90)
    (induction,) = named(made, "induction")
    fuzzy = variant(found, "fuzzy_pm")
    assert set(fuzzy[fuzzy["label"]].index) == {induction}
    assert_allclose(column(found, "fuzzy_pm"), column(found, "exact_pm"), atol=1e-9)  # one spelling per word here
    others = fuzzy.drop([induction, *named(made, "duplicate_token"), *named(made, "sink")])
    assert_allclose(others["value"].median(), fuzzy["null"].iloc[0], rtol=0.2)


def test_spellings_of_one_word_are_one_class():
    names = [None, "ĠThe", "the", "▁THE", "Ċ", "cat"]
    assert text_matching.spellings(names, 7).tolist() == [-1, 0, 0, 0, -1, 1, -1]
