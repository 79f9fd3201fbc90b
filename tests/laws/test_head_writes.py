"""Norms and projections of what heads write are those of the writes, which are never formed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import D_MODEL, SPANNING, ragged, tiny

from interp.decompose import head_writes
from interp.errors import TaskError


@pytest.mark.parametrize("name", SPANNING)
def test_they_are_those_of_z_times_w_o(name):
    batch, model = ragged(20, "left"), tiny(name)
    directions = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    found = head_writes(model, batch, directions)
    layers = model.info.attention_layers
    run, weights = model.run(batch, capture=["z"]), model.weights()
    writes = torch.stack(
        [torch.einsum("bphv,hvd->bphd", run[f"L{i}.z"].double(), weights[i].folded().w_o.double()) for i in layers]
    )
    norms, projections = writes.norm(dim=-1), writes @ directions.double().T
    least = norms.clamp(min=1e-12)  # padding on the left writes nothing
    size = least[..., None] * directions.norm(dim=-1)
    assert found.layers == layers
    assert float(((found.norms - norms).abs() / least).max()) < 1e-6
    assert float(((found.projections - projections).abs() / size).max()) < 1e-6


def test_without_a_norm_behind_them_they_are_the_writes_of_the_run():
    batch, model = ragged(20, "right"), tiny("gpt2")
    found, run = head_writes(model, batch), model.run(batch, capture=["head_out"])
    norms = torch.stack([run[f"L{i}.head_out"].norm(dim=-1) for i in found.layers])
    assert float((found.norms - norms).abs().max() / norms.max()) < 1e-6
    assert found.projections.shape == (*norms.shape, 0)


def test_directions_are_of_the_stream():
    with pytest.raises(TaskError, match="expected \\[direction, 64\\]"):
        head_writes(tiny("gpt2"), [1, 2, 3], torch.zeros(D_MODEL))
