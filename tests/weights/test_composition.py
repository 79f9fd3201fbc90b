"""Composition of heads is that of the dense matrices, beside random rotations."""

from __future__ import annotations

import pytest
import torch
from tiny_models import N_HEADS, N_LAYERS, tiny
from torch.testing import assert_close

from interp.errors import SiteError
from interp.weights.composition import HOW, composition, turn_spread


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("how", HOW)
def test_composition_is_that_of_the_dense_matrices(name, how):
    model = tiny(name)
    weights = model.weights()
    found = composition(weights, how, offset=2)
    assert found.score.shape == (N_LAYERS, N_HEADS, N_LAYERS, N_HEADS)
    for a, b in ((0, 0), (3, 7), (6, 2)):
        writer = weights.ov(0, a, fold_norm=True).dense()
        reader = {
            "q": weights.qk(1, b, offset=2, fold_norm=True).dense(),
            "k": weights.qk(1, b, offset=2, fold_norm=True).dense().T,
            "v": weights.ov(1, b, fold_norm=True).dense(),
        }[how]
        want = (writer @ reader).norm() / (writer.norm() * reader.norm())
        assert_close(found.score[0, a, 1, b], want, rtol=1e-4, atol=1e-5)
    assert found.score[1].isnan().all()
    assert found.score[:, :, 0].isnan().all()
    assert found.z[0, :, 1].isfinite().all()
    assert found.baseline == 64**-0.5


def test_the_null_of_composition_is_that_of_random_rotations():
    d, draws = 12, 4000
    a, b = torch.randn(d, 3, dtype=torch.double), torch.randn(d, 4, dtype=torch.double) * torch.tensor([3.0, 1, 1, 1])
    turns = torch.linalg.qr(torch.randn(draws, d, d, dtype=torch.double))
    turns = turns.Q * turns.R.diagonal(dim1=1, dim2=2).sign()[:, None]
    share = torch.linalg.matrix_norm(a.T @ turns @ b).square() / (a.norm() * b.norm()) ** 2
    purity = [(torch.linalg.svdvals(m) ** 4).sum() / m.norm() ** 4 for m in (a, b)]
    assert_close(float(share.mean()), 1 / d, rtol=0.03, atol=0)
    assert_close(float(share.std()), float(turn_spread(*purity, d)), rtol=0.05, atol=0)


def test_planted_composition_stands_out():
    """A head whose queries read what an earlier head writes, and no other pair."""
    model = tiny("gpt2")
    weights = model.weights()
    first, second = weights[0], weights[1]
    plain = composition(weights, "q", fold_norm=False)
    second.w_q[5] = first.w_o[2].T @ torch.randn(8, 8)
    found = composition(weights, "q", fold_norm=False)
    assert found.score[0, 2, 1, 5] > 0.9 * found.score[0, :, 1].max() > 2.5 * found.baseline
    assert found.z[0, 2, 1, 5] > 10
    assert plain.z[0, :, 1].abs().max() < 6


def test_composition_refuses_an_unknown_kind():
    model = tiny("gpt2")
    with pytest.raises(SiteError, match="unknown composition 'o'; valid choices: k, q, v"):
        composition(model.weights(), "o")
