"""Attention as science: closed forms, agreement with eager patterns, planted truth, and the cases that mislead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import ARCHITECTURES, D_VOCAB, WINDOW, WINDOWED, build, ragged, tiny

import interp
from interp import plots_attention
from interp.errors import NotApplicable, SchemaError, SiteError, TaskError
from interp.registry import analyses
from interp.zoo import factory
from interp.zoo.mechanisms import DuplicateToken, FirstTokenSink, Induction, Retrieval
from probes.attention import (
    agreement,
    divergence_map,
    flow,
    gradient_relevance,
    occlusion,
    rollout,
    spans,
    temporal_context,
    text_matching,
)
from probes.attention._shared import T0, p_above, visible_keys
from probes.attention.divergence import jensen_shannon
from probes.attention.flow import max_flows, rolled_out
from probes.attention.undifferentiated import uniform_outputs

LENGTH = 40
HEADLINES = {"entropy": "focus", "offset_profile": "peak", "lag_profile": "best", "distraction": "auroc"}


def variant(result, name):
    return result.table[result.table["variant"] == name].set_index("component")


def column(result, name, field="value"):
    return variant(result, name)[field].to_numpy(dtype=float)


def eager(model, batch):
    """[layer prompt head query key] as transformers itself computes it."""
    with torch.no_grad():
        found = model.torch_module(
            batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, output_attentions=True
        )
    return torch.stack(found.attentions).double().numpy()


def blind(architecture="llama", **changes):
    """A model whose queries are zero: every row is uniform over what it may see."""
    module = build(architecture, **changes)
    for name, parameter in module.named_parameters():
        if "q_proj" in name or "q_norm" in name:
            parameter.data.zero_()
    return interp.load(module)


@pytest.fixture(scope="module")
def prompts():
    return torch.stack([torch.randperm(D_VOCAB, generator=torch.Generator().manual_seed(i))[:LENGTH] for i in range(4)])


@pytest.fixture(scope="module")
def planted():
    made = factory.plant([Induction(), DuplicateToken(), FirstTokenSink()], seed=0)
    return made, interp.load(made.model, tokenizer=made.tokenizer)


def named(made, role):
    return ["L{}H{}".format(*at) for at in made.truth.roles[role]]


# closed forms


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_uniform_attention_has_the_closed_forms(architecture, prompts):
    model = blind(architecture)
    batch = model.batch(prompts)
    seen = np.arange(1, LENGTH + 1) if architecture == "llama" else np.minimum(np.arange(1, LENGTH + 1), WINDOW)
    found = interp.analyze(model, "entropy", prompts=prompts)
    assert_allclose(column(found, "focus"), 0, atol=1e-5)
    assert_allclose(column(found, "focus_without_first"), 0, atol=1e-4)
    assert_allclose(column(found, "nats"), np.log(seen[T0:]).mean(), atol=1e-4)
    assert_allclose(column(found, "nats", "null"), np.log(seen[T0:]).mean(), atol=1e-9)
    assert not variant(found, "focus")["label"].any()

    profile = interp.analyze(model, "offset_profile", prompts=prompts, furthest=8)
    assert_allclose(column(profile, "profile"), (1 / seen[8:]).mean(), atol=1e-6)
    assert_allclose(column(profile, "profile"), column(profile, "profile", "null"), atol=1e-6)
    assert_allclose(column(profile, "beyond"), column(profile, "beyond", "null"), atol=1e-5)

    alike = divergence_map(model, prompts=prompts, n_rows=5)
    assert_allclose(alike.value, 0, atol=1e-6)
    assert_allclose(alike.null, 0, atol=1e-6)
    assert (alike.q == 1).all()

    for method in (rollout, flow):
        map_ = method(model, batch, rows=[-1, 12])
        assert_allclose(map_.value, map_.null, atol=1e-5)
        assert_allclose(np.nansum(map_.value, -1), 1, atol=1e-5)


def test_no_attention_moves_nothing(prompts):
    """With the residual alone, rollout and flow are the identity."""
    for method in (rollout, flow):
        found = method(tiny("llama"), prompts, rows=[7], residual=1.0)
        expected = np.zeros((4, LENGTH))
        expected[:, 7] = 1
        assert_allclose(np.nan_to_num(found.value[:, 0]), expected, atol=1e-12)
        assert np.isnan(found.value[:, 0, 8:]).all()


def test_rollout_and_flow_of_three_tokens_by_hand():
    first = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    second = np.array([[1, 0, 0], [0.2, 0.8, 0], [0.3, 0.3, 0.4]])
    assert_allclose(rolled_out(np.stack([first, second]))[2], [0.3 + 0.15 + 0.1, 0.15 + 0.1, 0.2], atol=1e-12)
    # to token 0: 0.3 by itself, 0.3 through token 1 (which passes on 0.5), 0.25 of 0.4 through token 2
    expected = np.array([0.3 + 0.3 + 0.25, 0.3 + 0.25, 0.4])
    assert_allclose(max_flows(np.stack([first, second]), 2), expected / expected.sum(), atol=1e-6)


def test_divergence_of_equal_and_of_disjoint_rows():
    p = np.eye(4)[None, :2].repeat(2, 0)
    p[1] = np.eye(4)[2:]
    assert_allclose(jensen_shannon(p, p), [[0, math.log(2)], [math.log(2), 0]], atol=1e-12)


def test_the_temporal_context_curve_is_its_series():
    for beta_enc, beta_rec, gamma in np.random.default_rng(0).uniform(0.2, 1, (5, 3)):
        rho, drift = math.sqrt(1 - beta_enc**2), math.sqrt(1 - beta_rec**2)

        def match(lag, rho=rho, beta=beta_enc, gamma=gamma):
            return (1 - gamma) * beta * rho ** (lag - 1) * (lag >= 1) + gamma * rho ** abs(lag)

        series = [sum(drift**k * match(lag + k) for k in range(3000)) for lag in range(-5, 6)]
        assert_allclose(temporal_context.crp(*map(np.array, (beta_enc, beta_rec, gamma)), 5), series, rtol=1e-9)


def test_the_fit_returns_what_a_curve_was_made_of():
    made = temporal_context.crp(np.array([0.43]), np.array([0.71]), np.array([0.37]), 5)
    found = temporal_context.fit(3 * made + 1)
    assert_allclose([found.beta_enc[0], found.beta_rec[0], found.gamma[0]], [0.43, 0.71, 0.37], atol=2e-3)
    assert found.distance[0] < 1e-6
    assert temporal_context.distance(made)[0] < 0.02
    assert np.isnan(temporal_context.fit(np.ones((1, 11))).distance).all()


def test_a_single_peak_fits_the_temporal_context_model_only_at_lags_zero_and_one():
    """What misleads in cmr_distance: a pure stripe, without any of the graded flanks of memory, fits perfectly."""
    found = temporal_context.fit(np.eye(11))
    assert_allclose(found.distance[5:7], 0, atol=1e-9)
    assert (np.delete(found.distance, [5, 6]) > 0.7).all()
    assert_allclose(found.gamma[5:7], [1, 0])
    noise = temporal_context.distance(np.random.default_rng(0).normal(size=(500, 11)))
    assert 0.02 < (noise < 0.5).mean() < 0.2


def test_p_above():
    same = np.full((5, 2), 0.3)
    same[:, 1] = np.nan
    assert_allclose(p_above(same, margin=0.2), [0, 1])
    assert_allclose(p_above(same, margin=0.3), [1, 1])
    with pytest.raises(TaskError, match="at least 3"):
        p_above(same[:2])


# agreement with the model's own dense patterns


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


def slotted(pattern):
    return np.concatenate([pattern, np.maximum(1 - pattern.sum(-1, keepdims=True), 0)], -1)


def test_entropy_and_offsets_are_those_of_dense_patterns(model, prompts):
    batch = model.batch(prompts)
    pattern = eager(model, batch)
    full = slotted(pattern)
    nats = -np.where(full > 0, full * np.log(np.maximum(full, 1e-300)), 0).sum(-1)[..., T0:].mean((1, 3))
    found = interp.analyze(model, "entropy", prompts=prompts)
    assert_allclose(column(found, "nats"), nats.ravel(), atol=2e-4)
    outcomes = visible_keys(model, batch)[:, :, None, T0:] + model.info.sink_logits
    by_row = -np.where(full > 0, full * np.log(np.maximum(full, 1e-300)), 0).sum(-1)[..., T0:] / np.log(outcomes)
    assert_allclose(column(found, "normalised"), by_row.mean((1, 3)).ravel(), atol=1e-4)
    assert_allclose(column(found, "focus"), 1 - column(found, "normalised"), atol=1e-12)

    profile = interp.analyze(model, "offset_profile", prompts=prompts, furthest=6)
    for d in range(7):
        dense = np.stack([pattern[..., i, i - d] for i in range(6, LENGTH)], -1).mean((1, 3))
        rows = variant(profile, "profile")
        assert_allclose(rows[rows["position"] == d]["value"], dense.ravel(), atol=1e-4)


def test_focus_without_the_first_token_is_that_of_the_row_without_it(model, prompts):
    full = slotted(eager(model, model.batch(prompts)))[..., T0:, :]
    seen = visible_keys(model, model.batch(prompts))[:, :, None, T0:]
    first_seen = seen >= np.arange(T0 + 1, LENGTH + 1)
    rest = full[..., 1:] / full[..., 1:].sum(-1, keepdims=True)
    nats = -np.where(rest > 0, rest * np.log(np.maximum(rest, 1e-300)), 0).sum(-1)
    expected = 1 - nats / np.log(seen + model.info.sink_logits - first_seen)
    found = interp.analyze(model, "entropy", prompts=prompts)
    assert_allclose(column(found, "focus_without_first"), expected.mean((1, 3)).ravel(), atol=2e-3)


def test_divergences_are_those_of_dense_patterns(model, prompts):
    found = divergence_map(model, prompts=prompts, n_rows=5, seed=3)
    rows = found.data["rows"]
    pattern = slotted(eager(model, model.batch(prompts)))[..., rows, :].transpose(1, 0, 2, 3, 4)
    pattern = pattern.reshape(len(prompts), -1, len(rows), LENGTH + 1)
    assert_allclose(found.value, np.mean([jensen_shannon(p, p) for p in pattern], 0), atol=1e-4)
    nulls = [jensen_shannon(p, q) for p, q in zip(pattern, np.roll(pattern, -1, 0), strict=True)]
    assert_allclose(found.null, (np.mean(nulls, 0) + np.mean(nulls, 0).T) / 2, atol=1e-4)
    assert_allclose(np.diag(found.value), 0, atol=1e-6)


def test_rollout_and_flow_are_those_of_dense_patterns(model, prompts):
    batch = model.batch(prompts[:2])
    pattern = eager(model, batch).mean(2)
    mixed = 0.5 * pattern / pattern.sum(-1, keepdims=True) + 0.5 * np.eye(LENGTH)
    rolled, flowed = (f(model, batch, rows=[-1, 20]) for f in (rollout, flow))
    for prompt in range(2):
        product = rolled_out(mixed[:, prompt])
        assert_allclose(np.nan_to_num(rolled.value[prompt]), product[[-1, 20]], atol=1e-4)
        assert_allclose(np.nan_to_num(flowed.value[prompt, 1]), max_flows(mixed[:, prompt], 20), atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "mistral"])
def test_gradient_relevance_is_that_of_dense_patterns(architecture, prompts):
    """Patterns and their gradients by autograd through transformers' own eager attention, in float64."""
    model = interp.load(build(architecture).double())
    batch = model.batch(prompts[:2])
    found = gradient_relevance(model, batch, rows=[-1, 20])
    expected = np.zeros((2, 2, LENGTH))
    for r, row in enumerate((LENGTH - 1, 20)):
        run = model.torch_module(batch.ids, output_attentions=True, use_cache=False)
        at_row = run.logits[:, row].log_softmax(-1)
        slopes = torch.autograd.grad(at_row.max(-1).values.sum(), run.attentions)
        for prompt in range(2):
            relevance = torch.eye(LENGTH, dtype=torch.float64)
            for pattern, slope in zip(run.attentions, slopes, strict=True):
                relevance = relevance + (pattern * slope)[prompt].relu().mean(0) @ relevance
            expected[prompt, r] = relevance[row].detach().numpy()
    assert_allclose(np.nan_to_num(found.value), expected, atol=1e-6)


def test_gradient_relevance_finds_what_is_copied_and_not_the_sink():
    made = factory.plant([Induction(), FirstTokenSink()], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    task = made.task("induction", seed=0, n=6)
    found = gradient_relevance(model, task.tokens, answers=task.answers[:, None])
    value = found.value[:, 0, :-1]
    copied = [int((row[:-1] == answer).nonzero()[0, 0]) for row, answer in zip(task.tokens, task.answers, strict=True)]
    assert value.argmax(-1).tolist() == copied
    assert (value[:, 0] < 0.1 * value.max(-1)).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", *WINDOWED])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(architecture, side):
    model = tiny(architecture)
    batch = ragged(40, side, lengths=(40, 31, 23))
    own = [batch.ids[i][batch.mask[i]] for i in range(3)]
    focus = interp.analyze(model, "entropy", prompts=batch)
    alone = [interp.analyze(model, "entropy", prompts=row.expand(3, -1)) for row in own]
    assert_allclose(column(focus, "nats"), np.mean([column(a, "nats") for a in alone], 0), atol=1e-4)
    for method in (rollout, flow):
        found = method(model, batch, rows=[-1])
        for i, row in enumerate(own):
            single = method(model, row, rows=[-1])
            assert_allclose(found.value[i, 0][batch.mask[i]], single.value[0, 0], atol=1e-4)
            assert_allclose(found.null[i, 0][batch.mask[i]], single.null[0, 0], atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_head_made_uniform_writes_the_mean_of_what_it_may_see(architecture):
    batch = ragged(30, "left", lengths=(30, 25))
    values = torch.randn(2, 30, 2, 4)
    for window in (None, 7):
        found = uniform_outputs(values, batch.mask, window)
        for row, first in enumerate((0, 5)):
            for i in range(first, 30):
                low = first if window is None else max(first, i - window + 1)
                torch.testing.assert_close(found[row, i], values[row, low : i + 1].mean(0), atol=1e-5, rtol=1e-5)


# planted truth, and what misleads


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
    from interp.zoo.mechanisms.sketch import HeadPen

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


# house rules


@pytest.mark.parametrize("name", HEADLINES)
def test_no_head_of_an_inert_model_is_labelled(name):
    made = factory.plant([], seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    found = interp.analyze(model, name, n_prompts=16)
    rows = variant(found, HEADLINES[name])
    assert not rows["label"].any()
    assert rows["q"].min() > 0.01


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_oss"])
@pytest.mark.parametrize("name", HEADLINES)
def test_methods_agree_and_a_call_is_repeatable(name, architecture):
    tables = [
        interp.analyze(tiny(architecture), name, n_prompts=8, method=method, seed=1).table
        for method in ("fused", "naive", "fused")
    ]
    np.testing.assert_array_equal(tables[0]["value"], tables[2]["value"])
    kept = tables[0]["variant"] != "cmr_distance"  # a share of variance: of a nearly flat profile it is noise
    loose = {"separation": 0.05}
    for name_ in tables[0]["variant"][kept].unique():
        a, b = (t[t["variant"] == name_]["value"].to_numpy() for t in tables[:2])
        assert_allclose(a, b, atol=loose.get(name_, 2e-3))


def test_what_does_not_apply_is_said(planted, prompts):
    made, model = planted
    with pytest.raises(NotApplicable, match="tokenizer can read"):
        interp.analyze(model, "text_induction")
    with pytest.raises(NotApplicable, match="tokenizer"):
        interp.analyze(tiny("gpt2"), "icl_score")
    with pytest.raises(TaskError, match="come together"):
        interp.analyze(model, "undifferentiated", prompts=[[1, 2, 3]])
    with pytest.raises(TaskError, match="too short"):
        interp.analyze(model, "entropy", prompts=[[1, 2, 3]] * 3)
    with pytest.raises(TaskError, match="at most 96"):
        flow(tiny("llama"), torch.zeros(1, 97, dtype=torch.long))
    with pytest.raises(TaskError, match="outside a prompt"):
        rollout(tiny("llama"), prompts, rows=[LENGTH])
    with pytest.raises(SiteError, match="L9H9"):
        divergence_map(tiny("llama"), prompts=prompts, heads=["L9H9"])
    with pytest.raises(TaskError, match="not of the same rows"):
        agreement(rollout(tiny("llama"), prompts, rows=[3]), rollout(tiny("llama"), prompts, rows=[4]))


def test_analyses_say_what_they_do_not_mean():
    for name in (*HEADLINES, "text_induction", "icl_score", "undifferentiated"):
        spec = analyses()[name]
        assert spec.misleads
        assert "arXiv" in spec.reference
        assert "null" in (spec.run.__doc__ or "")


def test_icl_score_on_a_model_that_reads_text():
    from interp.zoo.curriculum import build as build_rich
    from interp.zoo.skills import CONTEXT
    from interp.zoo.skills.vocabulary import tokenizer

    model = interp.load(build_rich("default", seed=0).eval(), tokenizer=tokenizer(max_length=CONTEXT))
    found = interp.analyze(model, "icl_score", n_prompts=6, early=20, late=60, heads=["L1H2"], n_random=2)
    rows = found.table.set_index("variant")
    assert set(found.interventions["metric"]) == {"icl_score", "late_loss_nats"}
    assert_allclose(rows.loc["late_loss", "value"], math.log(model.info.d_vocab), atol=0.5)  # untrained: knows nothing
    assert_allclose(
        rows.loc["icl_score", "value"], rows.loc["late_loss", "value"] - rows.loc["early_loss", "value"], atol=1e-9
    )
    assert abs(rows.loc["context_gain", "value"]) < 0.2
    assert rows.loc["icl_score", "p"] > 0.001


def test_figures(planted, prompts):
    made, model = planted
    lags = interp.analyze(model, "lag_profile", n_prompts=8, n_lengths=4).table
    lines = plots_attention.profile_lines(lags[lags["variant"] == "profile"], k=3, axis="lag")
    assert [trace.name for trace in lines.data][-1] == "null"
    assert {named(made, "induction")[0], named(made, "duplicate_token")[0]} <= {t.name for t in lines.data}
    found = divergence_map(tiny("llama"), prompts=prompts, n_rows=3)
    heat = plots_attention.pair_map(found.value, found.components)
    assert_allclose(np.array(heat.data[0].z), found.value)
    points = plots_attention.embedding(found.embedding(), found.components)
    assert list(points.data[0].text) == list(found.components)
    rolled = rollout(tiny("llama"), prompts[:1])
    bars = plots_attention.relevance_bars(rolled.table(), note=rolled.caution)
    assert_allclose(np.array(bars.data[0].y), rolled.value[0, 0])
    assert rolled.caution in bars.layout.annotations[0].text
    with pytest.raises(SchemaError):
        plots_attention.pair_map(found.value, found.components[:3])
    with pytest.raises(SchemaError):
        plots_attention.relevance_bars(rollout(tiny("llama"), prompts).table())
    with pytest.raises(SchemaError):
        plots_attention.profile_lines(lags.head(0))
