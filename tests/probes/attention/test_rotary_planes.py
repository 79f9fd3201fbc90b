"""Rotary planes: parts sum to the score, a head of one plane is found by it, and without the plane it is flat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.attention import ByDistance
from interp.batch import Batch
from interp.edits import RotaryPlane
from interp.errors import NotApplicable
from interp.measurement.rotary import PlaneScores, rotary_planes
from probes.attention import _plane_removal as removal
from probes.attention import _rotary_planes as measured

SLOWEST = 7


def rows(result, variant):
    return result.table[result.table["variant"] == variant].set_index("component")


@pytest.fixture(scope="module")
def one_plane():
    """Three heads of 8 planes: L0H0's scores are of the slowest alone, L0H1's of the fastest, L0H2's random."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=128,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0  # what every token has, and nearly all of its norm
        model.model.embed_tokens.weight[:, 1:] *= 0.1
        attention = model.model.layers[0].self_attn
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            weight[:32] = 0.0
            weight[SLOWEST, 0] = weight[16, 0] = 0.6
        attention.v_proj.weight[:, 0] = 0.0  # what is moved is of the token, so that the pattern shows in the loss
        attention.v_proj.weight *= 30
        model.lm_head.weight *= 30
    return interp.load(model)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(80, (6, 60), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found(one_plane, ids):
    return interp.analyze(one_plane, "rotary_heads", prompts=ids, n_top=1, n_random=1)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen3"])
def test_the_parts_sum_to_the_score(architecture):
    model = tiny(architecture)
    batch = Batch.of(torch.randint(model.info.d_vocab, (2, 20), generator=torch.Generator().manual_seed(1)))
    rows = torch.arange(12, 20)
    for layer, planes in rotary_planes(model).items():
        scores = model.run(batch, capture=[f"L{layer}.scores"])[f"L{layer}.scores"]
        parts = PlaneScores.of(model, batch, layer, planes)
        for distance in (0, 3, 11):
            got = parts.parts(distance, rows)
            assert got.shape == (2, 8, model.info.n_heads, len(planes) + 1)
            want = scores[:, :, rows, rows - distance].transpose(1, 2)
            assert_allclose(got.sum(-1), want, atol=1e-5, rtol=1e-5)


def test_a_head_of_the_slowest_plane_is_positional_and_one_of_the_fastest_is_not(found):
    positional, share = rows(found, "positional"), found.table[found.table["variant"] == "share"]
    assert positional["label"].fillna(False).tolist()[:2] == [True, False]
    assert positional.loc["L0H0", "value"] < -0.9
    by_plane = share.pivot_table(index="position", columns="component", values="value")
    assert by_plane["L0H0"].idxmax() == SLOWEST
    assert by_plane["L0H1"].idxmax() == 0
    assert_allclose([by_plane.loc[SLOWEST, "L0H0"], by_plane.loc[0, "L0H1"]], 1.0, atol=1e-5)
    assert_allclose(by_plane.sum(), 1.0, atol=1e-6)
    assert_allclose(rows(found, "slow_share")["value"][:2], [1, 0], atol=1e-5)
    angles = share[share["component"] == "L0H0"].set_index("position")["angle"]
    assert_allclose(angles[range(8)], 100.0 ** (-np.arange(8) / 8), rtol=1e-3)
    assert angles[-1] == 0


def test_the_spread_of_a_pure_plane_is_that_of_its_cosine(found):
    """s(d) = scale q k cos(theta d), q and k the same at all positions but for what is left of the embedding."""
    spread = rows(found, "spread").loc["L0H0", "value"]
    cosine = np.cos(100.0 ** (-SLOWEST / 8) * np.arange(31)).std()
    amplitude = 16**-0.5 * (0.6 * np.sqrt(48)) ** 2
    assert_allclose(spread, amplitude * cosine, rtol=0.3)
    assert spread < amplitude * cosine  # some of the norm is not of the constant


@pytest.mark.parametrize(("head", "plane"), [(0, SLOWEST), (1, 0)])
def test_without_its_plane_the_curve_is_flat(one_plane, ids, head, plane):
    last = torch.zeros(ids.shape)
    last[:, -1] = 1

    def curve(*edits):
        return one_plane.attention(ids, {"a": ByDistance(last)}, edits=edits)["a"][0, :, head].double() * 60

    assert curve().var(-1).min() > 1e-2
    assert curve(RotaryPlane(f"L0H{head}.pattern", planes=plane)).var(-1).max() < 1e-6
    other = 3 if plane else 5
    assert curve(RotaryPlane(f"L0H{head}.pattern", planes=other)).var(-1).min() > 1e-2


def test_slow_planes_turn_half_a_turn_at_most():
    angle = np.array([1.0, 0.2, 0.05])
    assert measured.slow_planes(angle, 30).tolist() == [False, False, True]
    assert measured.slow_planes(angle, 10).tolist() == [False, True, True]
    assert measured.slow_planes(np.array([1.0, 0.5]), 100).tolist() == [False, True]


def test_shares_of_a_flat_score_are_unknown():
    share, spread = measured.shares(np.ones((1, 2, 5)))
    assert np.isnan(share).all()
    assert spread == 0


def test_removing_planes_is_measured_against_whole_runs(one_plane, ids):
    result = interp.analyze(one_plane, "plane_removal", prompts=ids, shares=(0.25, 1.0), n_random=5)
    assert set(result.table["component"]) == {"fastest 0.25", "slowest 0.25", "fastest 1", "slowest 1"}
    rise = rows(result, "rise")

    def loss(*edits):
        logits = one_plane.run(Batch.of(ids), edits=edits).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()

    for name, planes in (("fastest 0.25", (0, 1)), ("slowest 0.25", (6, 7)), ("slowest 1", tuple(range(8)))):
        assert_allclose(rise.loc[name, "value"], loss(RotaryPlane("L0.pattern", planes=planes)) - loss(), atol=1e-5)
    assert_allclose(rows(result, "loss").loc["fastest 1", "value"], 0, atol=1e-6)  # every set of all planes is the same
    assert rise.loc["slowest 1", "planes"] == 8
    assert (rise["value"].abs() > 2e-4).all()
    assert_allclose(rows(result, "loss")["value"], rise["value"] - rise["null"], atol=1e-6)


def test_random_planes_are_as_many():
    rng = np.random.default_rng(0)
    edits = removal.removal({0: 8, 1: 4}, 0.5, "random", rng)
    assert [len(set(e.planes)) for e in edits] == [4, 2]
    assert all(max(e.planes) < n for e, n in zip(edits, (8, 4), strict=True))


def test_positions_that_do_not_turn_are_refused():
    for name in ("rotary_heads", "plane_removal"):
        with pytest.raises(NotApplicable, match="no rotary planes"):
            interp.analyze(tiny("gpt2"), name)
