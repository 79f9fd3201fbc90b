"""The null that a head analysis states is what heads of random models score: counts within their binomial interval.

Exact where every head is uniform: see the last tests. Hits of one head are not independent of each other, but no head
is favoured: the mean over heads is that of a guess.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from probe_cases import blind
from scipy.stats import binomtest
from tiny_models import SPANNING, build

import interp
from interp.tasks.haystacks import PAIRS
from interp.zoo.planted.mechanisms import Vocabulary

SEEDS = 4  # models of 16 heads each
SURE = 1 - 0.01 / 42  # 99 % that all of the intervals below hold: six for each of seven architectures
WORDS = 48
SIZES = (12, 26, 10)


@pytest.fixture(scope="module", params=SPANNING)
def models(request):
    """Random models, with the tokenizer of planted ones and without."""
    tokenizer = Vocabulary(WORDS).tokenizer(context=700)
    made = [build(request.param, seed=seed) for seed in range(SEEDS)]
    return [(interp.load(m, tokenizer=tokenizer), interp.load(m)) for m in made]


def classes(model):
    words = [str(w) for w in model.tokenizer.convert_ids_to_tokens(list(range(4, 4 + WORDS)))]
    ends = np.cumsum((0, *SIZES))
    return {f"class {i}": words[a:b] for i, (a, b) in enumerate(zip(ends, ends[1:], strict=False))}


def check(tables, *, guesses):
    """Hits of all heads in all tables against the null they state; each value is a share of `guesses`."""
    rows = [t[t["value"].notna()] for t in tables]
    values = np.concatenate([r["value"].to_numpy(float) for r in rows])
    (null,) = {round(float(x), 12) for r in rows for x in r["null"]}
    hits = values * guesses
    assert_allclose(hits, hits.round(), atol=1e-6)
    interval = binomtest(int(hits.round().sum()), len(values) * guesses).proportion_ci(SURE)
    assert interval.low <= null <= interval.high
    return null


def labels(tables):
    """Labelled heads in all: q < 0.01 lets one random model in a hundred have one."""
    return sum(int(t["label"].fillna(False).sum()) for t in tables)


def variant(model, name, of, **options):
    table = interp.analyze(model, name, **options).table
    return table[table["variant"] == of]


@pytest.fixture(scope="module")
def successors(models):
    """One table for each model; the ways to embed a word are its variants."""
    found = [
        interp.analyze(m, "successor", classes=classes(m), causal=False, seed=i) for i, (m, _) in enumerate(models)
    ]
    return [result.table for result in found]


@pytest.mark.parametrize("embedding", ["full", "ov_mlp0", "ov_embed"])
def test_successor_hits_are_those_of_a_guess_within_the_class(successors, embedding):
    tables = [table[table["variant"] == embedding] for table in successors]
    null = check(tables, guesses=sum(n - 1 for n in SIZES))
    assert_allclose(null, sum((n - 1) / n for n in SIZES) / sum(n - 1 for n in SIZES), atol=1e-12)
    assert labels(tables) <= 1


@pytest.mark.parametrize(("name", "of"), [("copying", "own_top"), ("copy_suppression", "own_bottom")])
def test_a_word_is_its_own_first_or_last_once_in_the_sample(models, name, of):
    tables = [variant(m, name, of, n_tokens=WORDS, seed=i) for i, (_, m) in enumerate(models)]
    assert_allclose(check(tables, guesses=WORDS), 1 / WORDS, atol=1e-12)
    assert labels(tables) <= 1


def test_retrieval_hits_are_those_of_a_key_drawn_at_random(models):
    """Needles stand at the same rows in all models: one null."""
    n, needles = 24, 3
    options = {"task": PAIRS, "causal": False, "length": 40, "n_prompts": n}
    tables = [variant(m, "retrieval", "teacher_forced", **options, seed=i) for i, (_, m) in enumerate(models)]
    windowed = any(window for window in models[0][1].info.windows)
    assert windowed == any(t["value"].isna().any() for t in tables)  # layers that do not reach back have no score
    if any(t["value"].notna().any() for t in tables):  # in mistral's no layer does
        check(tables, guesses=n * needles)
    assert labels(tables) <= 1


EXACT = {
    "induction": ("prefix_matching", {"causal": False, "n_lengths": 4}),
    "previous_token": ("score", {}),
    "duplicate_token": ("score", {}),
    "retrieval": ("mass", {"causal": False, "task": PAIRS, "length": 60}),
    "echo_induction": ("echo", {}),
}
"""Analyses whose null is a mean of 1 / (visible keys), and the variant that states it."""


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi"])
@pytest.mark.parametrize("name", EXACT)
def test_mass_is_the_null_exactly_where_attention_is_uniform(name, architecture):
    of, options = EXACT[name]
    rows = variant(blind(architecture), name, of, n_prompts=8, **options)
    assert_allclose(rows["value"].to_numpy(float), rows["null"].to_numpy(float), rtol=1e-5)
    assert not rows["label"].fillna(False).any()
