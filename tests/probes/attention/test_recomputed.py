"""Numbers of attention analyses computed once more from their parts: corrections, halves, pairs of words, losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from probe_cases import blind, column, variant
from scipy import stats as distributions
from tiny_models import D_VOCAB, tiny

import interp
from interp.batch import Batch
from interp.measurement.prompts import PromptSet, repeat_groups
from interp.measurement.scoring import MARGIN
from interp.results.stats import p_above, p_against_nulls
from interp.tasks import permuted_repeats
from interp.zoo.planted.mechanisms import Vocabulary
from probes.attention._distraction import Spans, focus
from probes.attention._lag_profile import lag_masses
from probes.attention._text_induction import GAP, matches

WORDS = 24


@pytest.fixture(scope="module")
def reader():
    """A random model with words."""
    return interp.load(tiny("llama").torch_module, tokenizer=Vocabulary(WORDS).tokenizer(context=256))


def text(model, n, seed=0):
    """n random words, some of which come back."""
    words = model.tokenizer.convert_ids_to_tokens(list(range(4, 4 + WORDS)))
    return " ".join(np.random.default_rng(seed).choice(words, n))


def test_p_of_a_peak_is_times_the_offsets_it_was_chosen_from():
    found = interp.analyze(tiny("llama"), "offset_profile", n_prompts=1, length=18, furthest=6, seed=1)
    profile = np.stack([variant(found, "profile").query("position == @d")["value"] for d in range(7)])
    peak = profile.argmax(0)
    np.testing.assert_array_equal(peak, variant(found, "peak")["position"])
    rest = np.stack([np.delete(profile[:, h], peak[h]) for h in range(profile.shape[1])], 1)
    p = p_against_nulls(profile.max(0), rest, margin=MARGIN)
    assert ((p > 1e-3) & (p < 1 / 7)).any()
    assert_allclose(column(found, "peak", "p"), np.minimum(1, 7 * p), rtol=1e-6)


def test_p_of_a_lag_is_times_the_lags_it_was_chosen_from():
    model, options = tiny("llama"), {"n_prompts": 3, "lengths": (16, 20), "n_lengths": 3, "seed": 2}
    found = interp.analyze(model, "lag_profile", furthest=6, **options)
    groups = repeat_groups(model, bos="default", **options)
    excess = lag_masses(model, groups, 6) - lag_masses(model, permuted_repeats(groups, seed=2), 6)
    excess = excess.reshape(len(excess), -1, 13)
    best = excess.mean(0).argmax(-1)
    p = p_above(np.take_along_axis(excess, best[None, :, None], -1)[..., 0], margin=MARGIN)
    np.testing.assert_array_equal(variant(found, "best")["position"], best - 6)
    assert p.min() < 0.9
    assert_allclose(column(found, "best", "p"), np.minimum(1, 13 * p), rtol=1e-5)


def test_heads_are_chosen_on_one_half_and_judged_on_the_other():
    model, generator = tiny("llama"), torch.Generator().manual_seed(0)
    sides = []
    for first in (3, 33):  # other words in either kind of prompt, so that heads differ between them
        ids = torch.randint(first, first + 30, (10, 17), generator=generator)
        inside = torch.zeros(10, 17, dtype=torch.bool)
        inside[:, 1:7] = True
        sides.append(Spans(Batch.of(ids), inside, inside.roll(8, 1)))
    found = interp.analyze(model, "distraction", normal=sides[0], attacked=sides[1], seed=3)
    rng = np.random.default_rng(3)
    calm, drawn = (focus(model, side).reshape(10, -1) for side in sides)
    calm, drawn = (x[rng.permutation(10)] for x in (calm, drawn))
    gap, spread = calm[:5].mean(0) - drawn[:5].mean(0), calm[:5].std(0, ddof=1) + drawn[:5].std(0, ddof=1)
    assert_allclose(column(found, "separation"), gap / spread, rtol=1e-6)
    assert_allclose(column(found, "auroc"), (calm[5:, None] > drawn[None, 5:]).mean((0, 1)), rtol=1e-9)
    assert_allclose(column(found, "focus"), calm[5:].mean(0), rtol=1e-6)
    assert (column(found, "focus", "null") == 0.5).all()


def test_targets_are_pairs_of_words_far_apart_that_have_not_come_too_often():
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (2, 60)))
    classes = torch.tensor([0, 1, 2, 0, -1, 3])  # 0 and 3 are spellings of one word, 4 is none
    prompts = PromptSet(Batch.of(ids), 0, {})
    for most in (2, 5):
        found = set(zip(*(x.tolist() for x in matches(prompts, classes, max_earlier=most)), strict=True))
        expected = set()
        for row, words in enumerate(classes[ids].tolist()):
            for i, word in enumerate(words):
                earlier = [j for j in range(i) if words[j] == word and j + 1 <= i - GAP]
                if word >= 0 and len(earlier) <= most:
                    expected |= {(row, i, j + 1) for j in earlier}
        assert expected
        assert found == expected


def test_text_induction_of_uniform_attention_is_its_null(reader):
    model = interp.load(blind().torch_module, tokenizer=reader.tokenizer)
    found = interp.analyze(
        model, "text_induction", texts=[text(model, 120, i) for i in range(4)], n_prompts=6, length=90
    )
    for name in ("fuzzy_pm", "exact_pm"):
        assert_allclose(column(found, name), column(found, name, "null"), rtol=1e-4)
        assert column(found, name).min() > 0


def test_icl_score_is_made_of_the_losses_at_its_places(reader):
    """One text, just as long as is asked for: every stretch is the same, and p is that of the sign test, or 1."""
    early, late, span = 10, 40, 16
    words = text(reader, late + span - 1, seed=7)
    found = interp.analyze(reader, "icl_score", texts=[words], n_prompts=3, early=early, late=late)
    rows = found.table.set_index("variant")
    ids = torch.tensor(
        [[reader.tokenizer.bos_token_id, *reader.tokenizer(words, add_special_tokens=False)["input_ids"]]]
    )
    assert ids.shape[1] == late + span

    def loss(tokens, at):
        logits = reader.run(Batch.of(tokens)).logits[0, at - 1 : at - 1 + span]
        return torch.nn.functional.cross_entropy(logits, tokens[0, at : at + span]).item()

    cut = torch.cat([ids[:, :1], ids[:, late - early + 1 :]], 1)
    expected = {"early_loss": loss(ids, early), "late_loss": loss(ids, late)}
    expected["icl_score"] = expected["late_loss"] - expected["early_loss"]
    expected["context_gain"] = loss(cut, early) - expected["late_loss"]
    for name, value in expected.items():
        assert rows.loc[name, "value"] == pytest.approx(value, abs=1e-4), name
    assert rows.loc["icl_score", "p"] == (1.0 if expected["icl_score"] >= 0 else 0.5**3)
    assert rows.loc["context_gain", "p"] == (1.0 if expected["context_gain"] <= 0 else 0.5**3)


def test_mates_are_the_other_heads_of_the_layer():
    prompts = torch.randint(3, D_VOCAB, (4, 9), generator=torch.Generator().manual_seed(0)).tolist()
    found = interp.analyze(tiny("llama"), "undifferentiated", prompts=prompts, control=prompts)
    ships, mates = variant(found, "ships"), variant(found, "mates")
    total = ships.groupby("layer")["value"].transform("sum")
    assert_allclose(mates["value"], (total - ships["value"]) / 7, rtol=1e-9)
    assert_allclose(ships["value"], ships["null"], rtol=1e-9)  # the control is the same
    assert (ships["p"] > 0.5).all()


def test_welch_of_undifferentiated_is_against_the_margin():
    generator = torch.Generator().manual_seed(1)
    sides = [torch.randint(3, D_VOCAB, (5, 9), generator=generator).tolist() for _ in range(2)]
    found = interp.analyze(tiny("llama"), "undifferentiated", prompts=sides[0], control=sides[1])
    rows = variant(found, "ships")
    back = variant(interp.analyze(tiny("llama"), "undifferentiated", prompts=sides[1], control=sides[0]), "ships")
    spread = np.hypot(rows["se"].to_numpy(float), back["se"].to_numpy(float))
    t = (rows["value"] - rows["null"] - MARGIN).to_numpy(float) / spread
    df = spread**4 / ((rows["se"] ** 4 + back["se"] ** 4) / 4).to_numpy(float)
    assert_allclose(rows["p"].to_numpy(float), distributions.t.sf(t, df), rtol=1e-4, atol=1e-9)
