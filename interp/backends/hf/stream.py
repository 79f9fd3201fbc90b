"""`StreamPart`: the modules that write a layer's share of the residual stream, verified by arithmetic.

A layer is understood when `resid_post - resid_pre = a * attn + m * mlp` for the outputs of two of its modules (a = m =
1 but for residual multipliers). If a module takes `resid_pre + a * attn`, that is `resid_mid`; if none does, attention
and MLP stand side by side. Three more forms are understood in part: a third module that adds its own (a state space
beside attention), norms behind the additions (post-norm: BERT, BART), and layers that mix tokens by something else than
attention. There the stream is not the sum of attention and MLP, which `further` says. What does not come out so has no
such site, and `missing` says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from interp.backends.hf.neurons import neurons
from interp.backends.hf.watch import Event, Identity, identity, source


@dataclass(frozen=True, eq=False)
class StreamPart:
    """One layer's reads and writes.

    Attributes:
        attn_out, mlp_out: modules whose output, times the scale beside it, is added to the stream.
        resid_mid: a module whose input is the stream between the two.
        mlp_norm: the norm that makes the MLP's input; None where the MLP reads the stream itself.
        mlp_in: modules that take the MLP's input. mlp_post: the MLP's last projection, which takes its neurons.
        mlp_pre, mlp_up: modules that give the MLP's pre-activations; one may give both, `gate_first` says how.
        mlp_norm_after: a norm that gives the MLP's output.
        router: the module that scores the experts of a mixture, `router_at` where in its output; `router_last`: it
            gives these scores alone, so that a change of them reaches the experts.
        mlp_whole: modules that, called one after another, make the MLP's output of its input; none where it is more.
        missing: why a kind of site does not exist here.
        further: why the layer does not just add these writes to its stream; empty where it does.
        beside: whether it adds one thing more, the rest of what it adds, and nothing else is the matter.
    """

    attn_out: nn.Module | None = None
    attn_scale: float = 1.0
    resid_mid: nn.Module | None = None
    mlp_norm: nn.Module | None = None
    mlp_in: tuple[nn.Module, ...] = ()
    mlp_post: nn.Module | None = None
    mlp_pre: nn.Module | None = None
    mlp_up: nn.Module | None = None
    gate_first: bool = True
    mlp_norm_after: nn.Module | None = None
    router: nn.Module | None = None
    router_at: int = 0
    router_last: bool = False
    mlp_whole: tuple[nn.Module, ...] = ()
    mlp_out: nn.Module | None = None
    mlp_scale: float = 1.0
    missing: dict[str, str] = field(default_factory=dict)
    further: str = ""
    beside: bool = False


OF_MLP = ("mlp_in", "mlp_pre", "mlp_up", "mlp_post", "mlp_out")


def stream_part(layer: int, block: str, attention: tuple[str, Event] | None, events: Sequence[Event]) -> StreamPart:
    """Reads and writes of the layer at path `block`; `attention` is the path of its attention and what writes it."""
    own = next((e for e in events if e.path == block), None)
    if own is None or not own.inputs or not own.outputs or own.inputs[0].shape != own.outputs[0].shape:
        return _none(f"layer {layer} does not take and give one residual stream", ("resid_pre", "resid_post"))
    if own.inputs[0].ndim > 3:  # noqa: PLR2004 - [batch pos d_model]
        return _none(f"layer {layer} takes and gives several residual streams at once", ("resid_pre", "resid_post"))
    inside = [e for e in events if e.within(block)]
    x, delta = own.inputs[0], own.outputs[0].double() - own.inputs[0].double()
    if attention is None:
        return _without_attention(layer, x, delta, inside)
    path, call = attention
    writes = chain(call.outputs[0], inside)
    others = [e for e in inside if not e.within(path) and e.path != path and e is not call]
    outputs = [e for e in others if _stream_like(e, x) and e.gave[0] not in set(map(identity, writes))]
    fit = next(_fits(x, delta, writes, outputs), None)
    further = ""
    if fit is None:
        fit = next(_fits_beside(x, delta, writes, outputs), None)
        further = f"layer {layer} adds a third thing beside attention and MLP"
    if fit is None:
        normed = _behind_norms(layer, own, call, writes, inside, others)
        return normed or _none(f"what layer {layer} adds to its input is not attention plus MLP, each times a number")
    attn, a, mlp, m = fit
    writer = _last_giving(identity(attn), inside) or call
    readers = [e for e in inside[inside.index(call) :] if _reads(e, x, attn, a)]
    middle = next(iter(_outermost([e for e in readers if e.took[0] == readers[0].took[0]])), None)
    missing = {}
    if middle is None:
        missing["resid_mid"] = (
            f"attention and MLP of layer {layer} read the same residual and are added together (parallel residual), "
            "so that nothing stands between them"
        )
    if mlp is None:
        missing |= dict.fromkeys(OF_MLP, f"layer {layer} adds nothing but attention: it has no MLP")
        return StreamPart(writer.module, a, middle, missing=missing)
    if further:
        middle, missing["resid_mid"] = None, f"{further}, so that nothing stands between the two"
    part = StreamPart(writer.module, a, middle, missing=missing, further=further, beside=bool(further))
    return _with_mlp(layer, part, (mlp, m), others, x)


def _without_attention(layer: int, x: Tensor, delta: Tensor, inside: list[Event]) -> StreamPart:
    """A layer that mixes tokens by something else: what adds to it behind that, token by token, is its MLP."""
    why = f"layer {layer} has no attention, and what else it is made of is not told apart"
    outputs = [e for e in inside if _stream_like(e, x)]
    for mixer in outputs:
        behind = [
            e for e in outputs[outputs.index(mixer) + 1 :] if not mixer.within(e.path) and not e.within(mixer.path)
        ]
        fit = next(_fits(x, delta, [mixer.outputs[0]], behind), None)
        mlp = None if fit is None else fit[2]
        if fit is None or mlp is None:
            continue
        writer = _last_giving(identity(mlp), behind)
        if writer is None or not _tokenwise(writer):
            continue
        others = [e for e in inside if not e.within(mixer.path) and e is not mixer]
        part = StreamPart(missing=dict.fromkeys(("attn_out", "head_out", "resid_mid"), why), further=why)
        return _with_mlp(layer, part, (mlp, fit[3]), others, x)
    return _none(why)


def _tokenwise(event: Event) -> bool:
    """Whether a module does the same at every token, whatever the others are: tokens turned round come out so."""
    if len(event.inputs) != 1 or event.inputs[0].ndim < 3:  # noqa: PLR2004 - [batch pos d_model]
        return False
    with torch.no_grad():
        try:
            turned = event.module(event.inputs[0].flip(1))
        except (RuntimeError, TypeError, ValueError):  # takes more than its first tensor
            return False
    turned = turned if isinstance(turned, Tensor) else turned[0]
    return torch.allclose(turned.flip(1), event.outputs[0].reshape(turned.shape), rtol=1e-3, atol=1e-5)


def _behind_norms(
    layer: int, own: Event, call: Event, writes: list[Tensor], inside: list[Event], others: list[Event]
) -> StreamPart | None:
    """A post-norm layer, N2(h + mlp(h)) with h = N1(x + attention): its two writes, each before a norm.

    A third one (attention to a source) may stand before or behind this attention, with a norm of its own.
    """
    after = inside[inside.index(call) :]
    entries = [own.inputs[0], *(e.outputs[0] for e in others if e.is_norm and e not in after)]
    sums = [(x, w, e) for x in entries for w in reversed(writes) for e in after if e.is_norm and _reads(e, x, w, 1.0)]
    if not sums:
        return None
    x, attn, first = sums[0]
    behind = [e for e in others if others.index(e) > others.index(first) and _stream_like(e, x)]
    norms = [first, *(e for e in behind if e.is_norm)]
    last = next((e for e in behind if e.is_norm and e.gave[:1] == own.gave[:1]), None)
    if last is None:
        return None
    why = f"norms follow the additions in layer {layer} (post-norm), so that its stream is no sum"
    missing = {"resid_mid": why}
    writer = _last_giving(identity(attn), inside) or call
    for norm, e in ((n, e) for n in norms for e in reversed(behind)):
        h, out = norm.outputs[0], e.outputs[0].reshape(x.shape)
        if e is not last and norm is not last and others.index(e) > others.index(norm) and _reads(last, h, out, 1.0):
            part = StreamPart(writer.module, missing=missing, further=why)
            return _with_mlp(layer, part, (out, 1.0), others[others.index(norm) :], x)
    return None


def _none(why: str, more: tuple[str, ...] = ()) -> StreamPart:
    return StreamPart(missing=dict.fromkeys(("attn_out", "head_out", "resid_mid", *OF_MLP, *more), why))


def _stream_like(event: Event, x: Tensor) -> bool:
    """Whether a module gives something of the size of the stream."""
    return bool(event.outputs) and event.outputs[0].numel() == x.numel() and event.outputs[0].shape[-1] == x.shape[-1]


def chain(tensor: Tensor, events: Sequence[Event]) -> list[Tensor]:
    """A tensor and what norms and dropouts made of it, in order."""
    links = [tensor]
    for e in events:
        passes = e.is_norm or (e.is_leaf and not e.parameters)
        if passes and e.outputs and e.took[:1] == (identity(links[-1]),) and e.gave[0] != identity(links[-1]):
            links.append(e.outputs[0])
    return links


def _tolerance(*terms: Tensor) -> float:
    """Rounding error to expect of a sum, with some room."""
    return 16 * torch.finfo(terms[0].dtype).eps * max(float(t.abs().max()) for t in terms)


def _fits(
    x: Tensor, delta: Tensor, writes: list[Tensor], outputs: list[Event]
) -> Iterator[tuple[Tensor, float, Tensor | None, float]]:
    """(attn, a, mlp, m) with delta = a attn + m mlp, plain sums first, the last modules of each chain first."""
    pairs = [(attn, e.outputs[0].reshape(x.shape)) for attn in reversed(writes) for e in reversed(outputs)]
    for attn, mlp in pairs:
        if float((delta - attn.double() - mlp.double()).abs().max()) <= _tolerance(x, attn, mlp):
            yield attn, 1.0, mlp, 1.0
    for attn in reversed(writes):
        if float((delta - attn.double()).abs().max()) <= _tolerance(x, attn):
            yield attn, 1.0, None, 1.0
    for attn, mlp in pairs:
        terms = torch.stack([attn.double().flatten(), mlp.double().flatten()], dim=1).cpu()
        a, m = torch.linalg.lstsq(terms, delta.flatten()[:, None].cpu()).solution[:, 0].tolist()
        for digits in range(1, 8):  # a multiplier as it stands in a config: the shortest that fits
            short_a, short_m = float(f"{a:.{digits}g}"), float(f"{m:.{digits}g}")
            error = float((delta - short_a * attn.double() - short_m * mlp.double()).abs().max())
            if error <= _tolerance(x, attn, mlp) and min(abs(a), abs(m)) > 1e-3:
                yield attn, short_a, mlp, short_m
                break


def _fits_beside(
    x: Tensor, delta: Tensor, writes: list[Tensor], outputs: list[Event]
) -> Iterator[tuple[Tensor, float, Tensor, float]]:
    """(attn, 1, mlp, 1) with delta = attn + other + mlp, where the MLP is what works token by token."""
    for attn in reversed(writes):
        for i, e in enumerate(outputs):
            rest = delta - attn.double() - e.outputs[0].double().reshape(x.shape)
            for last in reversed(outputs[i + 1 :]):
                mlp = last.outputs[0].reshape(x.shape)
                close = float((rest - mlp.double()).abs().max()) <= _tolerance(x, attn, mlp)
                if close and _tokenwise(last) and not _tokenwise(e):
                    yield attn, 1.0, mlp, 1.0


def _reads(event: Event, x: Tensor, attn: Tensor, a: float) -> bool:
    """Whether a module takes the stream after attention, of whose width it is."""
    if x.numel() != attn.numel() or not event.inputs or event.inputs[0].numel() != x.numel():
        return False
    if event.took[0] == identity(x):
        return False
    middle = x.double() + a * attn.double()
    error = (event.inputs[0].double().reshape(x.shape) - middle).abs().max()
    return float(error) <= _tolerance(x, attn)


def _last_giving(tensor: Identity, events: Sequence[Event]) -> Event | None:
    """The outermost module to give a tensor; one that runs twice (a shared dropout) cannot tell what it gives."""
    runs = Counter(id(e.module) for e in events)
    return next((e for e in reversed(events) if e.gave[:1] == (tensor,) and runs[id(e.module)] == 1), None)


def _outermost(events: Sequence[Event]) -> tuple[nn.Module, ...]:
    return tuple(e.module for e in events if not any(e.within(other.path) for other in events))


def _with_mlp(layer: int, part: StreamPart, mlp: tuple[Tensor, float], others: list[Event], x: Tensor) -> StreamPart:
    output, scale = mlp
    writer = _last_giving(identity(output), others)
    if writer is None:
        return replace(part, missing=dict.fromkeys(OF_MLP, f"layer {layer} runs what makes its MLP's output twice"))
    last = next((e for e in reversed(others) if e.is_projection and _becomes(e, output, others)), None)
    missing = dict(part.missing)
    if last is None:
        why = (
            f"the MLP output of layer {layer} is not that of one projection (a mixture of experts?), "
            "so there is no one set of neurons"
        )
        missing |= dict.fromkeys(("mlp_pre", "mlp_up", "mlp_post"), why)
        first, before = writer, None
    else:
        first, before = next(e for e in others if e.is_projection), neurons(layer, last, others)
        missing |= before.missing
    read = first.took[0] if first.inputs and first.inputs[0].shape[-1] == x.shape[-1] else None
    takers = [e for e in others if e.took[:1] == (read,) and not e.is_norm and list(e.module.parameters())]
    outermost = _outermost(takers)
    if not outermost:
        missing["mlp_in"] = f"no module takes the MLP's input in layer {layer}"
    return replace(
        part,
        mlp_norm=None if read is None else source(others, read),
        mlp_in=outermost,
        mlp_post=None if last is None else last.module,
        mlp_pre=None if before is None else before.pre,
        mlp_up=None if before is None else before.up,
        gate_first=before is None or before.gate_first,
        mlp_norm_after=writer.module if writer.is_norm else None,
        mlp_whole=_whole([e for e in takers if e.module in outermost], output, writer),
        mlp_out=writer.module,
        mlp_scale=scale,
        missing=missing,
    )


def _whole(takers: Sequence[Event], output: Tensor, writer: Event) -> tuple[nn.Module, ...]:
    """The one module that takes the MLP's input, with the norm behind it if there is one, where they are all of it."""
    if len(takers) != 1 or len(takers[0].inputs) != 1:
        return ()
    if takers[0].gave[:1] == (identity(output),):
        return (takers[0].module,)
    return (takers[0].module, writer.module) if writer.took[:1] == takers[0].gave[:1] else ()


def _becomes(event: Event, tensor: Tensor, events: Sequence[Event]) -> bool:
    """Whether what a module gives is `tensor`, but for norms and dropouts."""
    return bool(event.outputs) and identity(tensor) in set(map(identity, chain(event.outputs[0], events)))
