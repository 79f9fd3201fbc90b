"""Neurons of plain, gated and mixed MLPs: they sum to the write, and removing one is what zeroing its weights does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mlp_written import prompts
from tiny_models import SPANNING, build, ragged, tiny
from torch.testing import assert_close

import interp
from interp.decompose import attribute, decompose
from interp.decompose.experts import expert_units
from interp.edits import Scale
from interp.errors import SiteError
from interp.measurement.neuron_effects import NeuronEffects, keep_only_edits, matched_neurons, neuron_edits
from interp.patching.case import Case
from interp.sites import Site

PICK = [(0, 3), (0, 50), (1, 7), (1, 90)]


@pytest.fixture(scope="module", params=SPANNING)
def effects(request):
    model = tiny(request.param)
    return NeuronEffects.of(Case.of(model, prompts(model, 4)))


def test_neurons_and_bias_sum_to_the_write(effects):
    model, batch = effects.case.model, ragged(12, "right")
    parts = decompose(model, batch, position=None, heads=False, neurons=[0, 1])
    own = [i for i, t in enumerate(parts.terms) if t.layer == 1 and (t.kind == "neuron" or t.name == "b_mlp1")]
    out = model.run(batch, capture=["L1.mlp_out"])["L1.mlp_out"]
    error = (parts.vectors[own].sum(0) - out)[batch.mask].norm(dim=-1) / out[batch.mask].norm(dim=-1)
    assert float(error.max()) <= 1e-5
    assert parts.error <= 1e-5


def silent(model, place):
    """Logits of a copy whose W_out has no such row."""
    module, (layer, i) = copy.deepcopy(model.torch_module), place
    found = {
        name: p
        for name, p in module.named_parameters()
        if f".{layer}." in name and any(k in name for k in ("down_proj", "mlp.c_proj", "dense_4h_to_h")) and p.ndim > 1
    }
    (name, weight) = next(iter(found.items()))
    if weight.ndim == 3:
        weight.data[i // weight.shape[1], i % weight.shape[1]] = 0.0
    elif "c_proj" in name:
        weight.data[i] = 0.0
    else:
        weight.data[:, i] = 0.0
    return lambda ids: module(ids).logits


@torch.no_grad()
def test_removal_is_that_of_a_model_without_the_neuron(effects):
    case = effects.case
    lost = effects.removal(PICK, "zero", rows=8)
    for j, place in enumerate(PICK):
        without = case.value(silent(case.model, place)(case.task.clean.ids))
        np.testing.assert_allclose(lost[:, j], (case.clean - without).double().numpy(), atol=2e-5)
        run = case.model.run(case.task.clean, edits=neuron_edits(case.model, [place]))
        assert_close(case.value(run.logits), without, atol=2e-5, rtol=0)


def test_direct_effects_are_attributions(effects):
    task = effects.case.task
    direct = effects.direct()
    parts = attribute(effects.case.model, task.clean, task.answers, task.wrong, heads=False)
    own = [i for i, (layer, _) in enumerate(effects.names) if layer == 1]
    np.testing.assert_allclose(direct[:, own].sum(1), parts["M1"].numpy(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("how", ["mean", "resample"])
def test_values_that_are_put_in(how):
    """Against a run whose neuron is set by hand, at every token."""
    model = tiny("gemma2")
    task = prompts(model, 4)
    effects = NeuronEffects.of(Case.of(model, task))
    post = model.run(task.clean if how == "mean" else task.corrupt, capture=["L1.mlp_post"])["L1.mlp_post"]
    value = post[..., 7].mean().expand(4, 9) if how == "mean" else post[..., 7]

    def put(x):
        x = x.clone()
        x[..., 7] = value
        return x

    edited = model.run(task.clean, edits=[interp.edits.Apply("L1.mlp_post", put)]).logits
    expected = effects.case.clean - effects.case.value(edited)
    np.testing.assert_allclose(effects.removal([(1, 7)], how)[:, 0], expected.numpy(), atol=1e-5)


def test_first_order_is_the_limit_of_a_small_step():
    model = interp.load(build("llama").double())
    effects = NeuronEffects.of(Case.of(model, prompts(model, 4)))
    first, step = effects.first_order("zero"), 1e-2
    for layer, i in PICK[1:3]:
        factor = torch.ones(96, dtype=torch.float64)
        ends = []
        for sign in (-1, 1):
            factor[i] = 1 + sign * step
            run = model.run(effects.case.task.clean, edits=[Scale(Site("mlp_post", layer), factor.clone())])
            ends.append(effects.case.value(run.logits))
        slope = ((ends[1] - ends[0]) / (2 * step)).detach().numpy()
        np.testing.assert_allclose(first[:, effects.names.index((layer, i))], slope, rtol=5e-3, atol=2e-4)


@torch.no_grad()
def test_keeping_all_and_keeping_none():
    model = tiny("gpt2")
    task = prompts(model, 4)
    effects = NeuronEffects.of(Case.of(model, task))
    values = {part.layer: part.activations.mean((0, 1)) for part in effects.layers}
    kept = model.run(task.clean, edits=keep_only_edits(model, effects.names, values)).logits
    assert_close(kept, model.run(task.clean).logits)
    edits = [interp.edits.Replace(Site("mlp_post", layer), x.expand(4, 9, -1)) for layer, x in values.items()]
    bare = model.run(task.clean, edits=edits).logits
    assert_close(model.run(task.clean, edits=keep_only_edits(model, [], values)).logits, bare)


def test_experts_are_those_of_the_module():
    """Which expert a neuron belongs to, and its weight in the mixture, by the module's own router."""
    model = tiny("gpt_oss")
    run = model.run(ragged(12, "unpadded"), capture=["L1.mlp_in"])
    x = run["L1.mlp_in"]
    units = expert_units(model.reads(1), x, 1)
    mlp = model.torch_module.model.layers[1].mlp
    scores = torch.nn.functional.linear(x, mlp.router.weight, mlp.router.bias)
    chosen = scores.argmax(-1)  # one expert a token, with weight 1
    assert_close(units.matrix, mlp.experts.down_proj.detach().flatten(0, 1))
    active = (units.activations != 0).unflatten(-1, (2, -1)).any(-1)
    assert torch.equal(active, torch.nn.functional.one_hot(chosen, 2).bool())
    assert units.expert.tolist() == [0] * 96 + [1] * 96
    assert_close(units.bias, mlp.experts.down_proj_bias[chosen].detach(), atol=1e-5, rtol=1e-4)


def test_experts_in_bfloat16_have_the_neurons_of_float32():
    module = build("gpt_oss").to(torch.bfloat16)
    low, high = interp.load(module), interp.load(copy.deepcopy(module).float())
    mlp_in = low.run(ragged(13, "unpadded", lengths=(6,)), capture=["L0.mlp_in"])["L0.mlp_in"].float()
    found, expected = (expert_units(m.reads(0), mlp_in, 0) for m in (low, high))
    assert_close(found.matrix, expected.matrix, atol=0, rtol=0)
    error = (found.activations - expected.activations).norm() / expected.activations.norm()
    assert error < 0.01


def test_controls_are_of_the_same_layer_and_size():
    names = [(layer, i) for layer in (0, 1) for i in range(40)]
    norms = np.arange(80.0) + 1
    chosen = [(0, 5), (1, 30)]
    sets = matched_neurons(chosen, names, norms, n_sets=12, seed=0)
    assert len({tuple(s) for s in sets}) > 5
    for own in sets:
        assert [layer for layer, _ in own] == [0, 1]
        assert not set(own) & set(chosen)
        assert all(abs(i - c) <= 9 for (_, i), (_, c) in zip(own, chosen, strict=True))
    with pytest.raises(SiteError, match="out of range"):
        neuron_edits(tiny("gpt2"), [(7, 0)])


def test_an_edit_in_force_behind_the_mlp_is_refused():
    model = tiny("gpt2")
    with model.editing([Scale("L1.mlp_out", 0.5)]), pytest.raises(SiteError, match="edit in force"):
        NeuronEffects.of(Case.of(model, prompts(model, 4)))
