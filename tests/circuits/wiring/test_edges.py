"""Removing edges: what must hold on every architecture, padded batches included."""

from __future__ import annotations

import pytest
import torch
from tiny_models import D_VOCAB, MOST, tiny
from torch.testing import assert_close

import interp
from circuits.graph.layout import Layout
from circuits.wiring.case import Case
from circuits.wiring.edges import Below, run_edges, sent
from circuits.wiring.ports import Ports, ports
from interp.batch import Batch
from interp.errors import SchemaError
from interp.tasks import planted_task
from interp.zoo.planted import factory

CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(params=MOST)
def model(request):
    return tiny(request.param)


@pytest.fixture
def pair(model):
    """Clean and corrupted prompts of two lengths."""
    clean = model.batch([list(range(3, 12)), list(range(20, 25))])
    corrupt = Batch(torch.where(clean.mask, (clean.ids * 7 + 3) % D_VOCAB, clean.ids), clean.mask)
    return clean, corrupt


def form(of):
    return of.layout.exists.shape


def half(of, seed=1):
    return (torch.rand(form(of), generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def test_ports_are_what_the_model_reads(model, pair):
    clean, _ = pair
    read = ports(model)
    sites = [f"L{i}.{k}" for i in range(model.info.n_layers) for k in ("resid_pre", "q", "k", "v", "mlp_in")]
    middle = [] if read.layout.parallel else [f"L{i}.resid_mid" for i in range(model.info.n_layers)]
    acts = {str(site): x for site, x in model.run(clean, capture=[*sites, *middle]).acts.items()}
    for layer in range(model.info.n_layers):
        x = acts[f"L{layer}.resid_pre"]
        for port in ("q", "k", "v"):
            found = read.read(layer, port, x, clean.positions)
            assert_close(found[clean.mask], acts[f"L{layer}.{port}"][clean.mask], **CLOSE)
        stream = x if read.layout.parallel else acts[f"L{layer}.resid_mid"]
        assert_close(read.read_mlp(layer, stream)[clean.mask], acts[f"L{layer}.mlp_in"][clean.mask], **CLOSE)


def test_pulling_back_is_the_gradient_of_reading(model, pair):
    clean, _ = pair
    read = ports(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*clean.ids.shape, model.info.d_model, generator=generator)
    for port in ("q", "k", "v"):
        x_ = x.clone().requires_grad_()
        site = read.read(1, port, x_, clean.positions)
        grad = torch.randn(site.shape, generator=generator)
        whole = torch.autograd.grad(site, x_, grad)[0]
        raw = read.pull_raw(1, port, grad, x, clean.positions)
        at_norm = torch.einsum("bphk,hmk->bpm", raw, getattr(read.layer(1), f"w_{port}"))
        norm = read.reads[1].attn
        assert_close(at_norm if norm is None else norm.pull_back(at_norm, x), whole, **CLOSE)
    x_ = x.clone().requires_grad_()
    grad = torch.randn(x.shape, generator=generator)
    assert_close(read.pull_back_mlp(1, grad, x), torch.autograd.grad(read.read_mlp(1, x_), x_, grad)[0], **CLOSE)


def test_all_edges_are_the_model_and_none_the_other_run(model, pair):
    clean, corrupt = pair
    read = ports(model)
    other = sent(model, read, corrupt)
    all_, none = (run_edges(model, read, clean, fill(form(read)), other).logits for fill in (torch.ones, torch.zeros))
    assert torch.equal(all_, model.run(clean).logits)
    assert_close(none[clean.mask], model.run(corrupt).logits[clean.mask], **CLOSE)
    mask = torch.ones(form(read), dtype=torch.bool)
    assert torch.equal(run_edges(model, read, clean, mask, other).logits, all_)


def test_a_mask_for_each_row_is_that_mask_alone(model, pair):
    clean, corrupt = pair
    read = ports(model)
    other = sent(model, read, corrupt)
    first, second = half(read, 1), half(read, 2)
    both = run_edges(model, read, clean, torch.stack([first, second]), other).logits
    alone = [run_edges(model, read, clean, keep, other).logits[i] for i, keep in enumerate((first, second))]
    assert_close(both[clean.mask], torch.stack(alone)[clean.mask], **CLOSE)


def test_padding_changes_nothing(model, pair):
    clean, corrupt = pair
    read = ports(model)
    whole = run_edges(model, read, clean, half(read), sent(model, read, corrupt)).logits
    short = [batch.ids[1:, :5] for batch in pair]
    alone = run_edges(model, read, short[0], half(read), sent(model, read, short[1])).logits
    assert_close(alone[0], whole[1, :5], **CLOSE)


def test_entering_at_a_layer_is_the_same_run(model, pair):
    clean, corrupt = pair
    read = ports(model)
    n = int((read.layout.sender_layers < 1).sum())
    keep = half(read)
    upper = [i for i, (name, _) in enumerate(read.layout.slots) if name == "logits" or int(name[1:2]) >= 1]
    keep = torch.ones(form(read)).index_copy(1, torch.tensor(upper), keep[:, upper])
    other, own = sent(model, read, corrupt), sent(model, read, clean)
    resid = next(iter(model.run(clean, capture=["L1.resid_pre"], stop=1).acts.values()))
    entered = run_edges(model, read, clean, keep, other, below=Below(1, resid, own[:n])).logits
    assert_close(entered, run_edges(model, read, clean, keep, other).logits, **CLOSE)


def test_a_mask_has_the_gradient_of_its_finite_difference(pair, model):
    clean, corrupt = pair
    read = ports(model)
    other = sent(model, read, corrupt)
    keep = half(read).mul(0.5).add(0.25).requires_grad_()

    def value(mask, *, gradients):
        logits = run_edges(model, read, clean, mask, other, gradients=gradients).logits
        return logits[0, -1, 5] - logits[0, -1, 6]

    grad = torch.autograd.grad(value(keep, gradients=True), keep)[0]
    assert not grad[~torch.from_numpy(read.layout.exists)].any()
    direction = torch.where(torch.from_numpy(read.layout.exists), torch.randn(grad.shape), 0.0)
    step, at = 1e-2, keep.detach()
    up, down = (value(at + sign * step * direction, gradients=False) for sign in (1, -1))
    assert_close((up - down) / (2 * step), (grad * direction).sum(), atol=2e-3, rtol=2e-2)


def test_refusals(pair, model):
    clean, corrupt = pair
    read = ports(model)
    other = sent(model, read, corrupt)
    with pytest.raises(SchemaError, match="senders"):
        run_edges(model, read, clean, torch.ones(len(read.layout.senders), 2), other)
    with pytest.raises(SchemaError, match="for each of 2 prompts"):
        run_edges(model, read, clean, torch.ones(3, *form(read)), other[:, :1])
    with pytest.raises(SchemaError, match="activations of shape"):
        run_edges(model, read, clean, torch.ones(form(read)), other[..., :3])


def test_a_run_leaves_nothing_behind(pair, model):
    clean, corrupt = pair
    before = model.run(clean).logits
    run_edges(model, ports(model), clean, torch.zeros(form(ports(model))), sent(model, ports(model), corrupt))
    assert torch.equal(model.run(clean).logits, before)


def test_ports_are_read_again_when_a_weight_changes():
    model = tiny("llama")
    first = ports(model)
    assert ports(model) is first
    with torch.no_grad():
        next(model.torch_module.parameters()).mul_(1.0)
    assert isinstance(ports(model), Ports)
    assert ports(model) is not first


@pytest.mark.parametrize("backend", ["nnsight", "lens"])
def test_the_backends_agree(backend):
    clean, corrupt = [[3, 4, 5, 6, 7]], [[3, 9, 5, 8, 7]]
    hf = tiny("llama")
    other = interp.load(hf.torch_module, backend=backend)
    runs = [run_edges(m, ports(m), clean, half(ports(m)), sent(m, ports(m), corrupt)).logits for m in (hf, other)]
    assert_close(runs[0], runs[1], **CLOSE)


def test_a_case_holds_what_methods_need():
    planted = factory.plant([factory.Induction()], seed=0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    case = Case.of(model, planted_task(planted, "induction", n=6))
    assert isinstance(case.layout, Layout)
    assert (case.clean > case.corrupt).all()
    parts = torch.cat([part.clean for part in case.batches(4)])
    assert_close(parts, case.clean, **CLOSE)
    assert_close(case.repeated(2).clean, case.clean.repeat(2), **CLOSE)
    kl = Case.of(model, case.task, metric="kl")
    assert_close(kl.clean, torch.zeros(6), **CLOSE)
    assert (kl.corrupt > 0.1).all()
    assert_close(kl.select([4, 5]).corrupt, kl.corrupt[4:], **CLOSE)
