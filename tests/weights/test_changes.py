"""Changes of weights as edits, and gradients of weights, against the parameters of the module itself."""

import copy

import pytest
import torch
from tiny_models import D_MODEL, N_HEADS, build, ragged, tiny
from torch.testing import assert_close

import interp
from interp.errors import SiteError
from interp.gradients import weight_gradients
from interp.tokens.losses import token_losses
from interp.weights.changes import WeightMatrices

LAYER = 1


def stored(module, name, heads):
    """Function of a module's own tensor of each matrix (parameter or its gradient) in the form of `WeightMatrices`."""
    own = {n: p.data for n, p in module.named_parameters() if f".{LAYER}." in n and n.endswith("weight")}

    def of(part):
        return next(p for n, p in own.items() if part in n)

    if name == "gpt2":
        fused = [of("c_attn")[:, 64 * i : 64 * (i + 1)] for i in range(3)]
        views = {f"w_{x}": w.unflatten(1, (heads, -1)).transpose(0, 1) for x, w in zip("qkv", fused, strict=True)}
        views |= {"w_o": of("attn.c_proj").unflatten(0, (heads, -1)), "w_in": of("c_fc"), "w_out": of("mlp.c_proj")}
        return views
    if name == "gpt_neox":
        fused = of("query_key_value").T.unflatten(1, (heads, 3, -1))
        views = {f"w_{x}": fused[:, :, i].transpose(0, 1) for i, x in enumerate("qkv")}
        views |= {"w_in": of("dense_h_to_4h").T, "w_out": of("dense_4h_to_h").T}
        return views | {"w_o": of("attention.dense").T.unflatten(0, (heads, -1))}
    size = {x: of(f"{x}_proj").shape[0] // module.config.head_dim for x in "qkv"}
    views = {f"w_{x}": of(f"{x}_proj").T.unflatten(1, (n, -1)).transpose(0, 1) for x, n in size.items()}
    views |= {"w_o": of("o_proj").T.unflatten(0, (heads, -1))}
    return views | {"w_in": of("up_proj").T, "w_gate": of("gate_proj").T, "w_out": of("down_proj").T}


def changed(module, name, matrix, change, heads):
    other = copy.deepcopy(module)
    with torch.no_grad():
        stored(other, name, heads)[matrix].add_(change)
    return interp.load(other)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "olmo2"])
def test_a_change_is_that_of_the_parameter_and_so_is_its_gradient(name):
    module = build(name)
    if not hasattr(module.config, "head_dim") or module.config.head_dim is None:
        module.config.head_dim = D_MODEL // N_HEADS
    model, batch = interp.load(module), ragged(9, "left", lengths=(9, 6))
    matrices = WeightMatrices.of(model.weights(), length=9, layers=[LAYER])
    own = stored(module, name, N_HEADS)
    assert set(matrices.values) == {(LAYER, matrix) for matrix in own}

    def loss(logits):
        return token_losses(logits, batch.ids, batch.mask).nansum(1)

    grads = weight_gradients(model, batch, loss, matrices)[1]
    with torch.enable_grad():
        value = loss(model.run(batch, gradients=True).logits).sum()
        used = {n: p for n, p in module.named_parameters() if p.requires_grad}
        raw = torch.autograd.grad(value, list(used.values()), allow_unused=True)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for p, g in zip(twin.parameters(), raw, strict=True):
            p.copy_(torch.zeros_like(p) if g is None else g)
    for matrix, expected in stored(twin, name, N_HEADS).items():
        got = grads[LAYER, matrix]
        assert float((got - expected).norm()) <= 2e-4 * float(expected.norm()), matrix
    generator = torch.Generator().manual_seed(0)
    changes = {key: 0.3 * x.std() * torch.randn(x.shape, generator=generator) for key, x in matrices.values.items()}
    for matrix in ("w_q", "w_o", "w_out"):
        change = changes[LAYER, matrix]
        wanted = changed(module, name, matrix, change, N_HEADS).run(batch).logits[batch.mask]
        with model.editing(matrices.edits({(LAYER, matrix): change})):
            got = model.run(batch).logits[batch.mask]
        assert float((got - wanted).norm()) <= 1e-4 * float(wanted.norm()), matrix
        assert float((model.run(batch).logits[batch.mask] - wanted).norm()) > 1e-3 * float(wanted.norm())


def test_gradients_are_taken_where_changes_are():
    model, batch = tiny("gpt2"), ragged(6, "unpadded", lengths=(6,))
    matrices = WeightMatrices.of(model.weights(), length=6, layers=[0])
    name = (0, "w_out")

    def loss(logits):
        return token_losses(logits, batch.ids, batch.mask).nansum(1)

    way = torch.randn(matrices.values[name].shape, generator=torch.Generator().manual_seed(0)) * 1e-2
    at, slope = weight_gradients(model, batch, loss, matrices, names=[name], changes={name: way})
    assert set(slope) == {name}
    ahead = weight_gradients(model, batch, loss, matrices, names=[name], changes={name: 1.01 * way})[0]
    assert_close((ahead - at).sum(), (slope[name] * 0.01 * way).sum(), rtol=3e-2, atol=1e-4)


def test_what_there_is_not_is_refused():
    model = tiny("gpt_oss")
    matrices = WeightMatrices.of(model.weights(), length=4)
    assert "experts" in matrices.missing[0, "w_in"] and (0, "w_q") in matrices.values
    with pytest.raises(SiteError, match="experts"):
        matrices.edits({(0, "w_in"): torch.zeros(1)})
    with pytest.raises(SiteError, match="a change of shape"):
        matrices.edits({(0, "w_q"): torch.zeros(1)})
    with pytest.raises(SiteError, match="layer 9"):
        matrices.edits({(9, "w_q"): torch.zeros(1)})
    edits = matrices.edits({(0, "w_q"): matrices.values[0, "w_q"]})
    with pytest.raises(SiteError, match="prompts of 4 tokens"):
        model.run([[3, 4, 5, 6, 7]], edits=edits)
