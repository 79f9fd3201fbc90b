"""Laws of parameters: weights reproduce what a run shows, gradients are slopes, and a changed parameter is noticed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp.edits import Replace
from interp.errors import BackendError
from interp.measurement.checks.laws.subject import EXACT, Subject, apart, close, noise, require, run_logits
from interp.model import Model
from interp.sites import Site
from interp.weights.norms import HeadNorm
from interp.weights.stream import Write

STEP = 2e-3
"""Length of a step uphill, as a share of the activation."""
SLOPE = 2e-2
"""Share by which a difference over such a step may miss the slope."""


def weights_reproduce_a_run(subject: Subject) -> None:
    """The matrices, norms and turns of `weights()` make q, k, v of resid_pre, and attn_out of z."""
    for what, (ours, theirs) in paired_activations(subject).items():
        close(ours, theirs, f"{what} by the weights, against the run")


def paired_activations(subject: Subject) -> dict[str, tuple[Tensor, Tensor]]:
    """q, k, v and attn_out of every layer, (by the weights, of the run); prompts of one length, without padding."""
    model, batch = subject.model, subject.batch
    weights = model.weights()
    run = model.run(batch, capture=["resid_pre", "q", "k", "v", "z", "attn_out"])
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in weights.layers:
        w = weights[layer]
        acts = {site.kind: x.detach().to(w.w_q) for site, x in run.acts.items() if site.first == layer}
        x = acts["resid_pre"] if w.norm is None else w.norm(acts["resid_pre"])
        turn_q, turn_k = weights.source.turns(layer, list(range(batch.ids.shape[1])))
        forms = {"q": (w.q_norm, turn_q), "k": (w.k_norm, turn_k), "v": (w.v_norm, None)}
        for name, (norm, turn) in forms.items():
            raw = torch.einsum("bpm,hmd->bphd", x, getattr(w, f"w_{name}")) + getattr(w, f"b_{name}")
            pairs[f"L{layer}.{name}"] = _projection(raw, norm, turn), acts[name]
        z = torch.einsum("bphd,hdm->bpm", acts["z"], w.w_o) + w.b_o
        attn_out = z if w.norm_after is None else w.norm_after(z)
        pairs[f"L{layer}.attn_out"] = attn_out, acts["attn_out"]
    return pairs


def _projection(raw: Tensor, norm: HeadNorm | None, turn: Tensor | None) -> Tensor:
    """A projection after its norm and its position, in the model's order."""

    def turned(x: Tensor) -> Tensor:
        return x if turn is None else torch.einsum("bphd,pde->bphe", x, turn.to(x))

    if norm is None:
        return turned(raw)
    return norm(turned(raw)) if norm.after_rotary else turned(norm(raw))


def writes_reproduce_a_run(subject: Subject) -> None:
    """`writes(layer)` as linear maps make attn_out of z, the divisor of a norm behind them held at its value."""
    model = subject.model
    run = model.run(subject.batch, capture=["z", "attn_out"])
    for layer in model.info.attention_layers:
        write, z = _attention_write(model, layer), run[Site("z", layer)].detach().flatten(2)
        divisor = write.divisor(z)
        out = (z / divisor) @ write.matrix(z.shape[-1]).to(z) + write.bias(z.shape[-1], divisor)
        close(out, run[Site("attn_out", layer)], f"L{layer}.attn_out by writes({layer}), against the run")


def reads_reproduce_a_run(subject: Subject) -> None:
    """The norm of `reads(layer)` makes mlp_in of the stream that the MLP reads, and `mlp_of` makes mlp_out of that."""
    model = subject.model
    run = model.run(subject.batch, capture=["resid_pre", "attn_out", "mlp_in", "mlp_out"])
    for layer in subject.layers:
        reads = model.reads(layer)
        pre, attn, mlp_in = (run[Site(kind, layer)].detach() for kind in ("resid_pre", "attn_out", "mlp_in"))
        stream = pre if reads.parallel else pre + attn
        norm_out = stream if reads.mlp is None else reads.mlp.to(stream.device)(stream)
        close(norm_out, mlp_in, f"L{layer}.mlp_in by reads({layer}), against the run")
        mlp_out = reads.mlp_of(mlp_in)
        if mlp_out is not None:
            close(mlp_out, run[Site("mlp_out", layer)], f"L{layer}.mlp_out by reads({layer}), against the run")


def a_gradient_is_the_slope_of_edits(subject: Subject) -> None:
    """With `gradients=True`, autograd at a captured site gives what small replacements there do to the logits."""
    model, batch, last = subject.model, subject.batch, subject.last
    sites = ["L0.resid_pre", "L0H1.z", f"L{last}.pattern"]

    def metric(**options: Any) -> tuple[Tensor, dict[Site, Tensor]]:
        run = model.run(batch, **options)
        return run_logits(run)[:, -1, 5].sum(), run.acts

    value, acts = metric(capture=sites, gradients=True)
    require(value.requires_grad, "logits of a run with gradients=True have none")
    grads = torch.autograd.grad(value, [acts[Site.parse(s)] for s in sites])
    for site, grad in zip(sites, grads, strict=True):
        x = acts[Site.parse(site)].detach()
        uphill = grad * (x != 0)
        require(bool(uphill.any()), f"the gradient at {site} is zero")
        step = STEP * uphill * x.norm() / uphill.norm()
        up, down = (metric(edits=[Replace(site, x + sign * step)])[0] for sign in (1, -1))
        close((grad * step).sum(), (up - down).detach() / 2, f"slope at {site}", share=SLOPE)


def a_changed_parameter_changes_the_fingerprint(subject: Subject) -> None:
    """`fingerprint()` is the same while nothing changes, another once a parameter is changed in place."""
    model, parameter = subject.model, _parameter(subject.model)
    before, logits = model.fingerprint(), subject.logits()
    hash(before)
    require(model.fingerprint() == before, "two fingerprints of an unchanged model differ")
    values = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(noise(parameter) * parameter.std())  # a factor would be lost in a norm behind the projection
    try:
        require(model.fingerprint() != before, "the fingerprint is the same after a parameter was changed in place")
        apart(subject.logits(), logits, "logits with a parameter changed in place")
    finally:
        with torch.no_grad():
            parameter.copy_(values)
    close(subject.logits(), logits, "logits with the parameter put back", share=EXACT)


def frozen_parameters_take_no_gradient(subject: Subject) -> None:
    """Inside `frozen()` no parameter requires a gradient, sites have theirs all the same; then each is as before."""
    model, parameter = subject.model, _parameter(subject.model)
    before = parameter.requires_grad
    try:
        for setting in (True, False):
            parameter.requires_grad_(setting)
            try:
                with model.frozen():
                    require(not parameter.requires_grad, "inside frozen() a parameter requires a gradient")
                    run = model.run(subject.batch, capture=["L0.resid_pre"], gradients=True)
                    torch.autograd.grad(run_logits(run).sum(), run["L0.resid_pre"])
                    raise BodyError
            except BodyError:
                pass
            require(parameter.requires_grad is setting, f"frozen() leaves a parameter with requires_grad={not setting}")
    finally:
        parameter.requires_grad_(before)


class BodyError(Exception):
    """What the body of a context of ours raises."""


def _attention_write(model: Model, layer: int) -> Write:
    """The map that writes attention's output.

    Raises:
        BackendError: there is none, with the reason: a refusal.
    """
    writes = model.writes(layer)
    if writes.attn is None:
        why = writes.missing.get("attn_out") or writes.missing.get("head_out") or ""
        raise BackendError(why and f"writes({layer}): {why}")
    return writes.attn


def _parameter(model: Model) -> nn.Parameter:
    """A parameter that is live in the model: of a projection that writes to the stream."""
    layer = model.info.attention_layers[0]
    write = model.writes(layer).mlp or _attention_write(model, layer)
    return max(write.projection.parameters(), key=lambda p: p.numel())


LAWS = (
    weights_reproduce_a_run,
    writes_reproduce_a_run,
    reads_reproduce_a_run,
    a_gradient_is_the_slope_of_edits,
    a_changed_parameter_changes_the_fingerprint,
    frozen_parameters_take_no_gradient,
)
