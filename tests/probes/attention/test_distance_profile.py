"""Attention by distance and by thirds: planted ends, closed forms, and every number again from dense patterns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny

import interp
from interp.batch import Batch
from interp.errors import NotApplicable, TaskError
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import FirstTokenSink, PreviousToken
from interp.zoo.planted.mechanisms.base import Mechanism, Slot
from probes.attention import _distance_profile as measured


@dataclass(frozen=True, kw_only=True)
class Ends(Mechanism):
    """A head that looks at `<bos>` and at the token before."""

    name: ClassVar[str] = "ends"
    slots: ClassVar[tuple[Slot, ...]] = (Slot("ends"),)

    def claims(self, vocab):
        return {"both": 1}

    def write(self, sketch, places):
        head = sketch.head(places["ends"])
        head.offset(1, gain=20.0)
        head.match(sketch.constant, sketch.bos, gain=20.5)
        head.move(sketch.bos, sketch.basis("both"))


@pytest.fixture(scope="module")
def planted():
    made = factory.plant([Ends(), FirstTokenSink(), PreviousToken()], architecture="llama", seed=1)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    names = {role: f"L{layer}H{head}" for role, ((layer, head),) in made.truth.roles.items()}
    return names, interp.analyze(model, "distance_profile", n_prompts=48, length=62)


def rows(result, variant):
    return result.table[result.table["variant"] == variant].set_index("component")


def test_the_head_that_looks_at_both_ends_is_found_and_no_head_of_one_end(planted):
    names, result = planted
    found = rows(result, "u_shape")
    assert set(found.index[found["label"]]) == {names["ends"]}
    best = found.loc[names["ends"]]
    assert best["value"] > 0.25
    assert best["ci_low"] <= best["value"] <= best["ci_high"]
    assert best["null"] < 0
    ends = [rows(result, f"{third}_third")["value"] for third in ("first", "middle", "last")]
    for role, expected in (("sink", (1, 0, 0)), ("previous_token", (0, 0, 1))):
        assert_allclose([e[names[role]] for e in ends], expected, atol=0.01)
        assert abs(found.loc[names[role], "value"]) < 0.01
    assert rows(result, "u_shape_without_first").loc[names["ends"], "value"] < 0.01
    reach = rows(result, "reach")["value"]
    assert reach[names["sink"]] > 1.9
    assert reach[names["previous_token"]] < 0.1
    assert rows(result, "resolution").loc[names["previous_token"], "value"] > 0.9
    assert not rows(result, "trough").loc[[names["sink"], names["previous_token"]], "label"].any()


def test_resolution_of_a_geometric_curve():
    """sum r^d (r^d - r^(d+1)) / (sum r^d)^2 = (1 - r)^2 / (1 + r) for a long curve; 0 for a flat one."""
    curve = np.stack([0.7 ** np.arange(200.0), 0.2 ** np.arange(200.0)])
    assert_allclose(measured.resolution(curve), [0.3**2 / 1.7, 0.8**2 / 1.2], rtol=1e-9)
    assert_allclose(measured.resolution(3 * curve), measured.resolution(curve), rtol=1e-9)
    assert measured.resolution(np.full(9, 0.2)) == 0


def test_u_shape_of_shares():
    shares = np.array([[0.5, 0.1, 0.4], [0.9, 0.0, 0.1], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.8, 0.1]])
    assert_allclose(measured.u_shape(shares), [0.3, 0.1, 0, 0, -0.7], atol=1e-12)
    assert_allclose(measured.thirds(np.arange(6.0)), [1, 5, 9])


def test_a_trough_lies_between_higher_places():
    assert_allclose(measured.troughs(np.array([5.0, 1, 2, 0.5, 3, 0])), [0, 2, 1, 2.5, 0, 0])
    binned, places = measured.runs(np.arange(60.0))
    assert_allclose(binned, np.arange(20) * 3 + 1)
    assert places[:3].tolist() == [0, 3, 6]


def test_permutations_keep_the_mass_and_move_it():
    share = np.zeros((1, 1, 1, 6))
    share[..., 0] = share[..., 5] = 0.5
    draws = measured.permuted(share, n=400, seed=0)[:, 0, 0]
    assert set(np.unique(draws)) <= {-1.0, -0.5, 0.0, 0.5}
    # both in the middle 1/15, one there 8/15, one at each end 4/15, both at one end 2/15
    assert_allclose([(draws == v).mean() for v in (-1, -0.5, 0.5, 0)], [1 / 15, 8 / 15, 4 / 15, 2 / 15], atol=0.07)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_every_number_again_from_the_pattern(architecture):
    model = tiny(architecture)
    ids = torch.randint(model.info.d_vocab, (3, 50), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    result = interp.analyze(model, "distance_profile", prompts=ids, n_permutations=8)
    run = model.run(batch, capture=["pattern"])
    p = torch.stack([run[f"L{layer}.pattern"] for layer in model.info.attention_layers], 1).double().numpy()
    share = np.zeros((*p.shape[:3], 3))
    for i in range(34, 50):
        for j in range(i + 1):
            share[..., (j * 33 // (i + 1)) // 11] += p[..., i, j] / 16
    got = np.stack([rows(result, f"{t}_third")["value"].to_numpy() for t in ("first", "middle", "last")], -1)
    assert_allclose(got, share.mean(0).reshape(-1, 3), atol=1e-5)
    u = np.minimum(got[:, 0], got[:, 2]) - got[:, 1]
    assert_allclose(rows(result, "u_shape")["value"], u, atol=1e-5)
    back = [np.nanmean([p[..., i, i - d] for i in range(25, 50)], axis=0) for d in range(26)]
    curve = result.table[result.table["variant"] == "by_distance"]
    assert sorted(curve["position"].unique()) == list(range(0, 26, 2))
    seen = np.array([np.stack(back[d : d + 2]).mean((0, 1)).ravel() for d in range(0, 26, 2)])
    window = model.info.windows[0] or 50
    for d, row in zip(range(0, 26, 2), seen, strict=True):
        if d + 1 < window:
            assert_allclose(curve[curve["position"] == d]["value"], row, atol=1e-5)
    place = np.arange(50)
    distance = (p * (place[:, None] - place)).sum(-1) / ((place + 1) / 2)
    assert_allclose(rows(result, "reach")["value"], distance[..., 25:].mean((0, -1)).ravel(), rtol=1e-3)


def test_uniform_attention_has_no_shape():
    """The null of each number is what uniform attention gives."""
    model = tiny("llama")
    ids = torch.randint(model.info.d_vocab, (4, 40), generator=torch.Generator().manual_seed(1))
    with model.editing([interp.edits.Scale(f"L{layer}.q", 0.0) for layer in range(model.info.n_layers)]):
        result = interp.analyze(model, "distance_profile", prompts=ids, n_permutations=8)
    for variant in ("first_third", "middle_third", "last_third", "by_distance", "reach"):
        part = result.table[result.table["variant"] == variant]
        assert_allclose(part["value"], part["null"], atol=1e-5)
    assert not rows(result, "u_shape")["label"].any()
    assert_allclose(rows(result, "resolution")["value"], 0, atol=1e-3)
    assert_allclose(rows(result, "trough")["value"], 0, atol=0.05)


def test_odd_input_is_refused():
    model = tiny("gpt2")
    with pytest.raises(TaskError, match="permutations"):
        interp.analyze(model, "distance_profile", n_permutations=2)
    with pytest.raises(TaskError, match="at least 16"):
        interp.analyze(model, "distance_profile", prompts=[[1, 2, 3]])
    one = interp.analyze(model, "distance_profile", prompts=[list(range(20))], n_permutations=8)
    assert rows(one, "u_shape")["ci_low"].isna().all()
    with pytest.raises(NotApplicable):
        interp.analyze(tiny("gpt2"), "distance_profile", length=8)
