"""Copying and copy suppression of a random model against the dense map from tokens to their own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import binom
from tiny_models import D_VOCAB, N_HEADS, tiny

import interp


@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
def test_shares_ratio_and_p_of_layer_0_are_those_of_the_dense_map(name):
    """Rows are the tokens that are attended to, columns those that are written: by row, less a shift of all logits."""
    model = tiny(name)
    weights = model.weights()
    ov, final = weights.ov(0, fold_norm=True), weights.final_norm
    written = weights.w_e @ ov.dense()
    if final.centred:
        written = written - written.mean(-1, keepdim=True)
    maps = (written * final.gain) @ weights.w_u
    own = torch.arange(D_VOCAB)
    hits = {"copying": maps.argmax(-1) == own, "copy_suppression": maps.argmin(-1) == own}
    values = torch.linalg.eigvals((maps - maps.mean(-1, keepdim=True)).double())
    ratio = (values.real.sum(-1) / values.abs().sum(-1)).numpy()
    for analysis, top in (("copying", "own_top"), ("copy_suppression", "own_bottom")):
        table = interp.analyze(model, analysis, seed=1).table
        rows = {v: table[(table["variant"] == v) & (table["layer"] == 0)] for v in (top, "effective_ratio")}
        found = hits[analysis].double().mean(-1).numpy()
        assert 0 < found.sum() < N_HEADS / 2
        assert_allclose(rows[top]["value"], found, atol=1e-12)
        assert_allclose(rows[top]["p"], binom.sf(np.rint(found * D_VOCAB) - 1, D_VOCAB, 1 / D_VOCAB), rtol=1e-9)
        assert_allclose(rows["effective_ratio"]["value"], ratio, atol=1e-5)
