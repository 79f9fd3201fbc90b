"""Last digits in numbers: a model whose digits are features, one that counts without them, one that does not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal

import interp
from interp.dictionaries import Dictionary, Normalisation
from interp.errors import NotApplicable, SchemaError
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms.base import Slot
from interp.zoo.trained.skills import vocabulary
from probes.heads import residues as _residues
from probes.heads._successor_features import successor_features

DECADES, BASE = 6, 10
N = DECADES * BASE


@dataclass(frozen=True, kw_only=True)
class Digits(factory.Successor):
    """Word 10 t + r is neuron r and neuron t of MLP 0, its digits; a head writes digit r + 1 and the same t.

    It counts on within a decade and does not carry: after 29 comes 20. Two neurons beside them write as much as the
    others, for the whole of two decades, into the digit of 5: they blur, and say nothing of residues.
    """

    classes: tuple[tuple[int, ...], ...] = (tuple(range(N)),)
    slots: ClassVar[tuple[Slot, ...]] = (Slot("successor", first_layer=1),)

    def neurons(self):
        return BASE + DECADES + 2

    def claims(self, vocab):
        return {"digit": BASE, "tens": DECADES, "copied": vocab.n_words}

    def write(self, sketch, places):
        digit, tens = sketch.basis("digit"), sketch.basis("tens")
        words = np.array([sketch.vocab.word(i) for i in range(N)]).reshape(DECADES, BASE)
        for r in range(BASE):
            sketch.neuron(0, read=sketch.tokens(words[:, r].tolist()), write=digit[r : r + 1])
        for t in range(DECADES):
            sketch.neuron(0, read=sketch.tokens(words[t].tolist()), write=tens[t : t + 1])
        for t in range(2):
            sketch.neuron(0, read=sketch.tokens(words[t].tolist()), write=0.3 * digit[5:6])
        copied = sketch.basis("copied", range(N)).unflatten(0, (DECADES, BASE))
        head = sketch.head(places["successor"])
        head.match(sketch.tokens([sketch.vocab.cue("<next>")]), digit.sum(0, keepdim=True), gain=9.0)
        head.park(answers="<next>")
        head.move(digit, copied.sum(0).roll(-1, 0), gain=0.5)
        head.move(tens, copied.sum(1), gain=0.5)


def words(made):
    return [made.tokenizer.convert_ids_to_tokens(made.vocab.word(i)) for i in range(N)]


def of(mechanism, architecture="llama"):
    made = factory.plant([mechanism], architecture=architecture, n_words=N + 4, seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    ((layer, head),) = made.truth.roles["successor"]
    return made, model, f"L{layer}H{head}"


@pytest.fixture(scope="module", params=["llama", "llama-gqa"])
def counted(request):
    made, model, name = of(Digits(), request.param)
    return made, successor_features(model, numbers=words(made)), name


def variant(found, name):
    return found.table[found.table["variant"] == name].set_index("component")


def test_digits_that_are_features_can_be_exchanged(counted):
    _, found, name = counted
    rows = variant(found, "arithmetic")
    assert set(rows.index[rows["label"]]) == {name}
    assert_allclose(rows.loc[name, "value"], 1)
    assert rows.loc[name, "null"] < 0.05
    assert rows.drop(name)["value"].max() < 0.25
    assert_allclose(variant(found, "carry").loc[name, "value"], 0)  # it has no carry: 29 becomes 20
    assert_allclose(variant(found, "digit").loc[name, "value"], 1)
    assert_allclose(variant(found, "successor").loc[name, "value"], 0.9)
    assert found.provenance["data"]["counts_best"] == name


def test_the_probe_reads_them_behind_mlp_0_and_not_before(counted):
    _, found, _ = counted
    rows = variant(found, "probe")
    assert_allclose(rows.loc[["full", "ov_mlp0"], "value"], 1)
    assert (rows.loc[["full", "ov_mlp0"], "p"] <= 0.005).all()
    assert rows.loc["ov_embed", "p"] > 0.01  # one-hot words share nothing
    assert_allclose(rows["null"], 1 / BASE, atol=0.02)


def test_the_neurons_of_the_digits_are_found_and_needed(counted):
    made, found, _ = counted
    rows = variant(found, "neuron")
    planted = made.truth.neurons["successor_table"]
    digits = {f"M{layer}N{i}" for layer, i in planted[:BASE]}
    assert set(rows.index[rows["label"]]) == digits
    assert_allclose(rows.loc[list(digits), "value"], 1, atol=1e-3)
    assert rows.drop(list(digits))["value"].max() < 0.7
    sets = found.interventions.set_index(["k", "metric"])
    assert sorted(set(found.interventions["k"])) == [1, 2, 4, 8, 10]
    assert (found.interventions["n_random"] == 5).all()
    gone = sets.xs(10)
    assert_allclose(gone["clean"], [0.9, 1.0, 1.0])
    assert (gone["edited"] < 0.3).all()
    assert (gone.loc["probe_accuracy", "random_mean"], gone.loc["digit_share", "random_mean"]) > (0.95, 0.95)
    dose = sets.xs("probe_accuracy", level=1)["edited"].to_numpy()
    assert (np.diff(dose) <= 0).all()


def test_a_head_that_counts_perfectly_without_digits_has_no_arithmetic():
    """What misleads in `mod10`: it is 1 for a head that has every number by heart, and no number shares a digit."""
    made, model, name = of(factory.Successor(classes=(tuple(range(N)),)))
    counts = interp.analyze(model, "successor", classes={"numbers": words(made)}, causal=False)
    assert_allclose(variant(counts, "mod10").loc[name, "value"], 1)
    found = successor_features(model, numbers=words(made))
    assert_allclose(variant(found, "successor").loc[name, "value"], (N - 1) / N, atol=1e-9)
    rows = variant(found, "arithmetic")
    assert not rows["label"].any()
    assert rows.loc[name, "value"] < 0.05
    assert variant(found, "probe")["p"].min() > 0.01
    assert not variant(found, "neuron")["label"].any()
    assert len(found.interventions) == 0


def test_nothing_is_found_in_a_random_model():
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 8, "n_embd": 128, "n_positions": 64, "vocab_size": len(vocabulary.tokens())}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=None)
    model = interp.load(transformers.GPT2LMHeadModel(config).eval(), tokenizer=vocabulary.tokenizer(max_length=64))
    found = successor_features(model)
    assert found.provenance["data"]["numbers"] == [100, 200]
    assert not found.table["label"].fillna(False).any()
    assert variant(found, "probe")["p"].min() > 0.01
    assert variant(found, "neuron")["p"].median() > 0.3
    for name in ("digit", "successor"):
        rows = variant(found, name)
        assert_allclose(rows["value"].mean(), {"digit": 1 / BASE, "successor": 0.01}[name], atol=0.02)


def test_the_trained_model_counts_numbers_without_digits():
    model = interp.load("zoo:default")
    found = successor_features(model)
    assert variant(found, "successor")["value"].idxmax() == "L2H6"
    assert variant(found, "successor").loc["L2H6", "value"] > 0.1
    assert not variant(found, "arithmetic")["label"].any()
    assert variant(found, "probe")["p"].min() > 0.05


def digit_dictionary(made, model, *, turned=False):
    """Digits and decades as features of what MLP 0 writes, at a quarter of its scale; then some that are never active.

    `turned`: a feature of one digit writes the next one.
    """
    index = [i for _, i in made.truth.neurons["successor_table"][: BASE + DECADES]]
    w = model.writes(0).mlp.matrix(made.model.config.intermediate_size)[index]
    w = w / w.norm(dim=-1, keepdim=True)
    other = torch.nn.functional.normalize(torch.randn(24, w.shape[1]), dim=-1)
    w_enc = torch.cat([torch.linalg.pinv(w), torch.zeros(w.shape[1], 24)], 1)
    writes = torch.cat([w[:BASE].roll(-1, 0) if turned else w[:BASE], w[BASE:]])
    w_dec = torch.cat([writes, other])
    zeros, quarter = (torch.zeros(len(w_dec)), torch.zeros(w.shape[1])), Normalisation("scale", scale=0.25)
    return Dictionary(4 * w_enc, w_dec / 4, *zeros, normalisation=quarter).at("L0.mlp_out")


def test_features_of_a_dictionary_do_what_class_means_do():
    made, model, name = of(Digits())
    options = {"numbers": words(made), "embedding": "ov_mlp0", "n_permutations": 100}
    d = digit_dictionary(made, model)
    found = successor_features(model, dictionary=d, n_random=2, **options)
    rows = variant(found, "feature")
    assert set(rows.index[rows["label"]]) == {f"L0.mlp_out:{r}" for r in range(BASE)}
    for kind in ("arithmetic", "dictionary", "dictionary_one"):
        heads = variant(found, kind)
        assert set(heads.index[heads["label"]]) == {name}
        assert_allclose(heads.loc[name, "value"], 1)
        assert heads.loc[name, "null"] < 0.05
    sets = found.interventions[found.interventions["set_id"].str.contains("features of L0.mlp_out")]
    gone = sets[sets["k"] == BASE].set_index("metric")
    assert_allclose(gone["clean"], [0.9, 1.0, 1.0])
    assert (gone["edited"] < 0.3).all()
    assert gone.loc["digit_share", "random_mean"] > 0.95 and (gone["n_random"] == 2).all()

    turned = successor_features(model, dictionary=digit_dictionary(made, model, turned=True), n_random=0, **options)
    for kind in ("dictionary", "dictionary_one"):
        heads = variant(turned, kind)
        assert not heads["label"].any() and heads["value"].max() < 0.1  # tuned to digits, and they write others
    assert variant(turned, "feature")["label"].sum() == BASE
    for wrong in (d.at("L1.mlp_out"), d.at("L0.mlp_out", "L0.resid_mid"), d.at("L0.mlp_in")):
        with pytest.raises(SchemaError, match="L0.mlp_out or L0.resid_post, from layer 0"):
            successor_features(model, dictionary=wrong, **options)


def test_what_does_not_apply_is_said():
    made, model, _ = of(Digits())
    with pytest.raises(NotApplicable, match="no ordinal class has 5 members"):
        successor_features(model)  # its words are no numerals
    with pytest.raises(NotApplicable, match="19 of 19 numbers .* 1 blocks of 10 are whole; at least 2"):
        successor_features(model, numbers=words(made)[:19])
    with pytest.raises(SchemaError, match="did you mean 'ov_mlp0'"):
        successor_features(model, numbers=words(made), embedding="mlp0")
    bare = successor_features(model, numbers=words(made), embedding="ov_embed", n_permutations=9)
    assert "neuron" not in set(bare.table["variant"])
    assert "W_E" in bare.provenance["data"]["neurons"]


def test_grid_features_and_tuning_by_hand():
    grid = _residues.Grid.of(np.array([0, 1, 2, 3, 4, 5, 7, 8]), 3)  # 6 is missing
    assert_array_equal(grid.at, [[0, 1, 2], [3, 4, 5]])
    assert_array_equal(grid.after, [[1, 2, 3], [4, 5, -1]])
    x = np.random.default_rng(0).normal(size=(3, 2, 2))
    for own, found in enumerate(_residues.features(x)):
        other = np.delete(x, own, 0).mean(0)
        assert_allclose(found, other - other.mean(0))
    same, none, once = np.tile([0.0, 1.0, 2.0], (4, 1)), np.zeros((4, 3)), np.eye(1, 12).reshape(4, 3)
    share, p, q = _residues.tuning(np.stack([same, none, once], -1), n_permutations=999, seed=0)
    assert_allclose(share, [1, 0, 1 / 4])
    assert p[0] < 0.02
    assert_allclose(p[1:], 1)
    assert (q >= p).all()
    drawn = _residues.matched_sets(np.arange(40.0), np.array([3, 4]), n=5, seed=0)
    assert all(len(set(s)) == 2 and not {3, 4} & set(s) and s.max() <= 12 for s in drawn)
    assert _residues.matched_sets(np.arange(3.0), np.array([0, 1]), n=5, seed=0) == []


def test_the_tuning_test_keeps_its_level():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(10, BASE, 400)) + np.arange(10)[:, None, None]  # decades differ: that is no residue
    sparse = (rng.random((10, BASE, 400)) < 0.03) * rng.random((10, BASE, 400))
    share, p, q = _residues.tuning(np.concatenate([dense, sparse], -1), n_permutations=199, seed=0)
    assert_allclose(share[:400].mean(), 0.1, atol=0.005)
    for kind in (p[:400], p[400:]):
        assert (kind <= 0.05).mean() < 0.075
    assert q.min() > 0.01
