"""Paragraphs known by heart: of a model whose neurons say each next word, and of the trained one that is shipped."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import interp
from interp import zoo
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.loading.hooked.config import HookedConfig
from interp.loading.hooked.decoder import HookedDecoder
from interp.measurement.tuning import Entries, tune
from interp.weights.changes import WeightMatrices
from probes.relevance import memorisation
from probes.relevance.gradient_parts import exchange_p, pooled, shares, summed_gradient, weight_parts
from probes.relevance.paragraphs import Paragraphs, collect, joined

WORDS, LENGTH, PREFIX = 10, 8, 4


def follower():
    """Neuron j reads word j and writes word j + 1, round the first ten words; words from ten on have no neuron."""
    config = HookedConfig(
        vocab_size=2 * WORDS, output_size=2 * WORDS, hidden_size=2 * WORDS, intermediate_size=WORDS, head_dim=5,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=LENGTH, norm=None,
        scales=[1.0], activation="relu", is_causal=True,
    )  # fmt: skip
    model = HookedDecoder._from_config(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    state, eye = dict(model.named_parameters()), torch.eye(2 * WORDS)
    state["embed.weight"].data.copy_(eye)
    state["unembed.weight"].data.copy_(eye)
    state["blocks.0.mlp.in_proj.weight"].data.copy_(eye[:WORDS])
    state["blocks.0.mlp.out_proj.weight"].data.copy_(4 * eye[1 : WORDS + 1].roll(0, 0).T)
    state["blocks.0.mlp.out_proj.weight"].data[:, WORDS - 1] = 4 * eye[0]
    return model.eval()


def round_about(n):
    return (torch.arange(n)[:, None] + torch.arange(LENGTH)) % WORDS


def without_neurons(n):
    return torch.randint(WORDS, 2 * WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(0))


@cache
def followed():
    model = interp.load(follower())
    options = {"n_sets": 19, "n_steps": 0, "n_random": 1, "share": 0.02, "n_draws": 5}
    return memorisation(model, prompts=round_about(10), others=without_neurons(10), prefix=PREFIX, **options)


def rows(result, variant):
    table = result.table
    return table[table["variant"] == variant].set_index("component")


def test_gradients_are_where_the_words_are_written_and_nowhere_else():
    table = rows(followed(), "gradient")
    assert_allclose(table["value"].sum(), 1)
    assert (table.loc[[c for c in table.index if "H" in c], "value"] == 0).all()
    assert (table["null"] == 0).all()
    assert table.loc["M0 w_in", "label"] and table.loc["M0 w_out", "label"] and not table.loc["L0H0 w_o", "label"]
    module = follower()
    tokens = round_about(10)
    sizes = []
    for row in tokens:
        module.zero_grad()
        logits = module(row[None]).logits[0, PREFIX - 1 : -1]
        torch.nn.functional.cross_entropy(logits, row[PREFIX:]).backward()
        grads = [module.blocks[0].mlp.in_proj.weight.grad, module.blocks[0].mlp.out_proj.weight.grad]
        sizes.append([float(g.abs().mean()) for g in grads])
    own = np.array(sizes) / np.array(sizes).sum(1, keepdims=True)
    assert_allclose(table.loc[["M0 w_in", "M0 w_out"], "value"], own.mean(0), rtol=1e-4)
    largest = rows(followed(), "gradient_max")["value"]
    assert largest["M0 w_in"] != pytest.approx(table.loc["M0 w_in", "value"], rel=1e-3)
    layer = rows(followed(), "layer")
    assert_allclose(layer.loc["layer 0", "value"], 1)


def test_only_the_last_word_of_the_prefix_is_needed():
    breaks, rise = rows(followed(), "breaks")["value"], rows(followed(), "token")
    last = f"token {PREFIX - 1}"
    assert breaks[last] == 1 and breaks.drop(last).eq(0).all()
    assert rise.loc[last, "value"] > 0.5 and rise["value"].drop(last).abs().max() < 1e-6
    assert rise.loc[last, "label"]


def test_the_contrast_is_the_gradient_of_a_difference_of_means():
    model = interp.load(follower())
    matrices = WeightMatrices.of(model.weights(), length=LENGTH)
    parts = [Paragraphs.of(model, tokens, PREFIX) for tokens in (round_about(10), without_neurons(10))]
    name, at = (0, "w_out"), (3, 4)
    change = {name: matrices.zeros([name])[name]}
    change[name][at] = 1e-2
    ahead, behind = (
        [part.measure(model, matrices.edits({name: s * change[name]}))[1].mean() for part in parts] for s in (1, -1)
    )
    slope = ((ahead[0] - ahead[1]) - (behind[0] - behind[1])) / 2e-2
    sign = np.repeat([0.1, -0.1], 10)
    grads = summed_gradient(model, matrices, joined(*parts), sign)
    assert_allclose(float(grads[name][at]), slope, rtol=2e-2)
    assert_allclose(pooled(grads, "mean")[-1], float(grads[name].abs().mean()))
    expected = rows(followed(), "contrast").loc["M0 w_out", "value"]
    assert_allclose(expected, float(grads[name].abs().mean()), rtol=1e-4)


def test_what_is_not_known_is_taken_off_the_contrast():
    model, table = interp.load("zoo:paragraphs"), rows(known(), "contrast")
    both = collect(model, None, None, None, n=8, seed=0)[:2]
    matrices = WeightMatrices.of(model.weights(), length=33)
    own, other = (summed_gradient(model, matrices, part, np.full(8, 1 / 8)) for part in both)
    expected = pooled({name: x - other[name] for name, x in own.items()}, "mean")
    assert_allclose(table.loc[[p.name for p in weight_parts(matrices)], "value"], expected, rtol=1e-3)


def test_exchanges_tell_a_difference_from_none():
    rng = np.random.default_rng(0)
    same = rng.standard_normal((12, 40))
    p = exchange_p(same[:6], same[6:], n=199, seed=0)
    assert 0.2 < p.mean() < 0.8 and (p < 0.01).sum() <= 2
    assert_allclose(exchange_p(same[:6] + 9, same[6:], n=199, seed=0), 1 / 200, atol=5e-3)
    assert (exchange_p(same[:6] - 9, same[6:], n=199, seed=0) > 0.9).all()
    assert_allclose(shares(np.array([[1.0, 3.0], [0.0, 0.0]])), [[0.25, 0.75], [0, 0]])


@cache
def known():
    return memorisation(interp.load("zoo:paragraphs"), n_paragraphs=8, n_sets=99, n_draws=5, n_steps=0, n_random=1)


def test_the_shipped_model_keeps_them_low_and_forgets_by_a_thousandth_of_its_weights():
    result = known()
    assert result.provenance["data"]["exact_match"] == 1.0 and result.provenance["data"]["exact_match_others"] == 0.0
    layer = rows(result, "layer")
    assert layer.loc["layer 0", "value"] > layer.loc["layer 0", "null"] + 0.05 and layer.loc["layer 0", "label"]
    place = rows(result, "localisation").iloc[0]
    assert place["p"] <= 0.01 and place["value"] > 5 * place["null"]
    moved = result.interventions.set_index("metric")
    assert moved.loc["exact_match", "clean"] == 1.0 and moved.loc["exact_match", "edited"] < 0.1
    assert moved.loc["exact_match", "random_mean"] > 0.8
    assert abs(moved.loc["other_loss", "edited"] / moved.loc["other_loss", "clean"] - 1) < 0.02
    rises = [moved.loc[name, "edited"] - moved.loc[name, "clean"] for name in ("known_loss", "other_loss")]
    assert_allclose(place["value"], rises[0] - rises[1], rtol=1e-4)
    assert moved["k"].eq(round(0.001 * 64512)).all()


def test_rarity_is_the_rank_correlation_of_attention():
    from scipy.stats import spearmanr

    result, model = known(), interp.load("zoo:paragraphs")
    own, other, _ = collect(model, None, None, None, n=8, seed=0)
    counts = torch.bincount(other.batch.ids[other.batch.mask], minlength=model.info.d_vocab) + 1
    attention = model.run(own.batch, capture=["L1.pattern"])["L1.pattern"][:, 3, 16, 1:17]
    expected = [spearmanr(a, -counts[i[1:17]].log()).statistic for a, i in zip(attention, own.batch.ids, strict=True)]
    assert_allclose(rows(result, "rarity").loc["L1H3", "value"], np.mean(expected), rtol=1e-5)


def test_tuning_trains_the_entries_and_no_others():
    model = interp.load(follower())
    matrices = WeightMatrices.of(model.weights(), length=LENGTH)
    masks = {name: torch.zeros_like(x, dtype=torch.bool) for name, x in matrices.values.items()}
    masks[0, "w_out"][2, 12] = True
    entries = Entries.of(masks)
    assert len(entries) == 1

    def loss(edits):
        return -model.run([[2]], edits=edits, gradients=True).logits[0, -1].log_softmax(-1)[12]

    changes = tune(model, matrices, entries, loss, steps=30, learning_rate=0.5)
    assert changes[0, "w_out"].nonzero().tolist() == [[2, 12]] and changes[0, "w_out"][2, 12] > 4
    before, after = (model.run([[2]], edits=edits).logits[0, -1].argmax() for edits in ((), matrices.edits(changes)))
    assert (before, after) == (3, 12)
    sizes = {name: x.abs() for name, x in matrices.values.items()}
    top = Entries.largest(sizes, WORDS)
    assert {name: len(at) for name, at in top.index.items()} == {(0, "w_out"): WORDS}
    drawn = top.matched(sizes, np.random.default_rng(0))
    assert len(drawn.index[0, "w_out"].unique()) == WORDS
    assert not set(drawn.index[0, "w_out"].tolist()) & set(top.index[0, "w_out"].tolist())


def test_what_cannot_be_asked_is_refused_with_a_way_out():
    model = interp.load(follower())
    with pytest.raises(NotApplicable, match="give `prompts`"):
        memorisation(model)
    with pytest.raises(NotApplicable, match="4 of each are needed"):
        memorisation(model, prompts=without_neurons(6))
    with pytest.raises(NotApplicable, match="`others` that it has not seen"):
        memorisation(model, prompts=round_about(8))
    with pytest.raises(TaskError, match="from 1 to 7"):
        memorisation(model, prompts=round_about(8), prefix=8)
    with pytest.raises(TaskError, match="4 at least"):
        memorisation(model, prompts=[[1, 2, 3]])
    with pytest.raises(SchemaError, match="above 0"):
        memorisation(model, prompts=round_about(8), share=0.0)


def test_padded_paragraphs_are_judged_by_their_own_tokens():
    model = interp.load(follower())
    ragged = [row.tolist()[: LENGTH - i % 3] for i, row in enumerate(round_about(6))]
    for row in ragged:
        row[0] = 2 * WORDS - 1  # followed by what no neuron says: a large loss, in the prefix
    part = Paragraphs.of(model, ragged, None)
    assert part.start.tolist() == [len(row) // 2 for row in ragged]
    known_by_heart, losses = part.measure(model)
    assert known_by_heart.all()
    for i, row in enumerate(ragged):
        logits = model.run([row]).logits[0].log_softmax(-1)
        expected = -np.mean([float(logits[t - 1, row[t]]) for t in range(len(row) // 2, len(row))])
        assert_allclose(losses[i], expected, rtol=1e-5)


@pytest.mark.slow
def test_all_hundred_paragraphs_are_forgotten_at_less_than_two_per_cent_of_the_loss():
    result = memorisation(interp.load("zoo:paragraphs"), n_paragraphs=100, n_steps=0, n_random=3)
    assert rows(result, "localisation")["p"].iloc[0] < 0.01
    moved = result.interventions.set_index("metric")
    assert moved.loc["exact_match", "edited"] < 0.1 and moved.loc["exact_match", "random_mean"] > 0.9
    assert abs(moved.loc["other_loss", "edited"] / moved.loc["other_loss", "clean"] - 1) < 0.02
    assert zoo.entry("paragraphs").kind == "trained"
