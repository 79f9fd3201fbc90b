"""`Decomposition`: residual stream = embedding + what each head, MLP and bias wrote; the sum is checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.decompose.stream_run import StreamRun, run_stream
from interp.decompose.terms import Term, attention_of, embed, heads_of, mlp_of, neurons_of, place, sources_of
from interp.errors import BackendError
from interp.model import Model
from interp.several import numbers
from interp.shapes import brief
from interp.sites import Site
from interp.weights.stream import Write

TOLERANCE = 1e-5  # of a sum in float32, relative to what it should be
ROUNDING = 8  # in half precision: units of rounding

Direction = Float[Tensor, "batch #pos d_model"] | None
"""Written vectors are projected onto it; None keeps them as they are."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Contribution of each component to the residual stream, on the CPU.

    Attributes:
        terms: what `vectors` are of, in the order in which they are written.
        vectors: [component batch d_model] at one position, [component batch pos d_model] at all.
        residual: their sum as the model has it, [batch (pos) d_model].
        mask: real tokens among these, [batch (pos)].
        layer: the residual is that after this layer.
        error: |sum - residual| / |residual|, the largest over real tokens.
    """

    terms: tuple[Term, ...]
    vectors: Float[Tensor, "component batch *pos d_model"]
    residual: Float[Tensor, "batch *pos d_model"]
    mask: Bool[Tensor, "batch *pos"]
    layer: int
    error: float
    names: tuple[str, ...] = field(init=False)

    __repr__ = brief

    def __post_init__(self) -> None:
        """Names beside the terms."""
        object.__setattr__(self, "names", tuple(c.name for c in self.terms))

    def __getitem__(self, name: str) -> Float[Tensor, "batch *pos d_model"]:
        """Contribution of one component: `parts["L3H5"]`."""
        return self.vectors[place(name, self.terms)]

    def table(self) -> pd.DataFrame:
        """Per component: mean over real tokens of its norm, and of its share <c, r> / <r, r> of the residual r.

        Shares sum to 1 and may be negative. They say how much of the stream's length a component makes up, not what
        later layers do with it.
        """
        square = self.residual.double().square().sum(-1)
        rows = []
        for c, vector in zip(self.terms, self.vectors, strict=True):
            share = (vector.double() * self.residual).sum(-1) / square
            rows.append(
                {**c.as_dict(), "norm": _mean(vector.norm(dim=-1), self.mask), "share": _mean(share, self.mask)}
            )
        return pd.DataFrame(rows).astype(dict.fromkeys(("layer", "head", "source", "neuron"), "Int64"))


@torch.no_grad()
def decompose(
    model: Model,
    tokens: Prompts,
    *,
    layer: int | None = None,
    position: int | None = -1,
    heads: bool = True,
    sources: bool = False,
    neurons: Sequence[int] = (),
    tolerance: float | None = None,
) -> Decomposition:
    """r = embed + pos + sum_l (sum_h z_h W_O[h] + b_attn + MLP + b_mlp): the residual stream as a sum of writes.

    Norms behind attention or MLP (Gemma-2, OLMo-2) are passed with their divisor frozen; residual multipliers are
    folded in. What a layer adds beside the two (a decoder's attention to its source, a state space) is one component
    `B3`, the difference that is left, and a layer that is no such sum (norms behind the additions) is one as a whole.

    Args:
        model: any backend.
        tokens: prompts.
        layer: the stream after this layer; None for the stream before the final norm.
        position: of a real token, counted from the prompt's start or (negative) its end; None for all of them.
        heads: split attention into heads; without, one component `A3` per layer.
        sources: split each head by the token it brought something from, p_ij v_j W_O (components `L3H5<j`, j a column
            of the batch). Needs one position: only its rows of the patterns are computed.
        neurons: layers whose MLP is split into neurons, a_i W_out[i].
        tolerance: of the relative error; 1e-5 for float32, eight units of rounding below.

    Raises:
        InterpError: the sum misses the residual; says at which layer.
        SiteError: a layer or position out of range, or neurons of a layer that has no one set of them.
    """
    neurons = numbers(neurons, "neurons")
    stream = run_stream(model, tokens, layer=layer, position=position, heads=heads, sources=sources, neurons=neurons)
    terms, vectors, errors = collect(stream, None, heads=heads, neurons=neurons)
    scale = torch.stack([stream.at("resid_post", i).cpu().norm(dim=-1) for i in range(stream.last + 1)])
    relative = (errors / scale).masked_fill(~stream.mask.cpu(), 0.0).flatten(1).amax(1)
    check(relative, model, tolerance)
    residual, mask = stream.at("resid_post", stream.last).cpu(), stream.mask.cpu()
    if position is not None:
        vectors, residual, mask = vectors[:, :, 0], residual[:, 0], mask[:, 0]
    return Decomposition(tuple(terms), vectors, residual, mask, stream.last, float(relative[-1]))


def check(
    relative: Float[Tensor, " layer"], model: Model, tolerance: float | None, *, what: str = "residual stream"
) -> None:
    """Refuse a sum that misses.

    Raises:
        BackendError: names the first layer after which it does.
    """
    limit = allowed(model) if tolerance is None else tolerance
    if float(relative[-1]) <= limit:
        return
    layer = int((~(relative <= limit)).nonzero()[0])
    raise BackendError(
        f"{model.info.name}: components miss the {what} by {float(relative[-1]):.1e} of it (allowed: "
        f"{limit:.0e}); first after layer {layer} ({float(relative[layer]):.1e}), which adds what was not found"
    )


def allowed(model: Model) -> float:
    """Relative error that rounding may cause."""
    dtype = getattr(torch, model.info.dtype, torch.float32)
    return max(TOLERANCE, ROUNDING * torch.finfo(dtype).eps) if dtype.itemsize < 4 else TOLERANCE


def collect(
    stream: StreamRun, direction: Direction, *, heads: bool, neurons: Sequence[int]
) -> tuple[list[Term], Float[Tensor, "component batch pos out"], Float[Tensor, "layer batch pos"]]:
    """Components, what they wrote (along `direction`), and after each layer the length by which the sum misses."""
    components, parts, errors = [], [], []
    contributions = embedding_terms(stream, direction)
    total = torch.zeros(())
    for layer in range(stream.last + 1):
        for terms, x in [*contributions, *_layer(stream, layer, direction, heads, layer in neurons)]:
            values = x.cpu()
            components += terms
            parts.append(values)
            total = total + values.double().sum(0)
        contributions = []
        errors.append((total - along(stream.at("resid_post", layer), direction).cpu()).norm(dim=-1).float())
    return components, torch.cat(parts).float(), torch.stack(errors)


Contribution = tuple[list[Term], Float[Tensor, "component batch pos out"]]


def embedding_terms(stream: StreamRun, direction: Direction) -> list[Contribution]:
    """Input of the first layer: token embedding and, where the model adds learned positions, those apart.

    Positions are told by what they do: what is left of the input when the tokens' rows of W_E are taken off must not
    change with the tokens. Where it does (an embedding norm, a multiplier), the input stays in one piece.
    """
    model, full = stream.model, stream.at("embed")
    whole = [([embed()], along(full, direction)[None])]
    rest = _rest(model, stream.ids, full)
    if rest is None or not bool((rest.abs() > 1e-6 * full.abs().max()).any()):
        return whole
    other = Batch((stream.batch.ids[:1] + 1) % model.info.d_vocab, stream.batch.mask[:1])
    site = Site("embed", position=stream.position)
    acts = model.run(other, capture=[site], stop=0).acts[site].to(full)
    probe = _rest(model, (stream.ids[:1] + 1) % model.info.d_vocab, acts if stream.position is None else acts[:, None])
    if probe is None or float(((probe - rest[:1])[stream.mask[:1]]).abs().max()) > 1e-5 * float(full.abs().max()):
        return whole
    tokens = along(full - rest, direction)[None]
    return [([embed()], tokens), ([Term("pos", "pos")], along(rest, direction)[None])]


def _rest(model: Model, ids: Tensor, full: Tensor) -> Tensor | None:
    """Input of the first layer less the token's row of W_E; None where that is of another width."""
    rows = model.weights().source.embed(ids.flatten().cpu()).to(full).unflatten(0, ids.shape)
    return full - rows if rows.shape == full.shape else None


def _layer(stream: StreamRun, layer: int, direction: Direction, heads: bool, neurons: bool) -> Iterator[Contribution]:
    """Everything a layer writes."""
    w = stream.writes[layer]
    if "attn_out" in w.missing:
        whole = stream.at("resid_post", layer) - stream.at("resid_pre", layer)
        yield [Term(f"B{layer}", "block", layer)], along(whole, direction)[None]
        return
    yield from _attention(stream, layer, direction, heads)
    if w.rest:
        rest = stream.at("resid_post", layer) - stream.at("resid_pre", layer) - stream.at("attn_out", layer)
        rest = rest if "mlp_out" in w.missing else rest - stream.at("mlp_out", layer)
        yield [Term(f"B{layer}", "block", layer)], along(rest, direction)[None]
    if "mlp_out" in w.missing:
        return
    out = stream.at("mlp_out", layer)
    bias = torch.zeros_like(out)
    if w.mlp is not None:
        a = stream.at("mlp_post", layer).reshape(*out.shape[:2], -1)
        divisor = w.mlp.divisor(a)
        bias = w.mlp.bias(a.shape[-1], divisor).to(out)
        if neurons:
            matrix = w.mlp.matrix(a.shape[-1])[:, None]
            yield neurons_of(layer, a.shape[-1]), _head_writes((a / divisor)[..., None], matrix, direction)
    if not neurons:
        yield [mlp_of(layer)], along(out - bias, direction)[None]
    yield from _bias(f"b_mlp{layer}", layer, bias, direction)


def _attention(stream: StreamRun, layer: int, direction: Direction, heads: bool) -> Iterator[Contribution]:
    """Heads, or their sources, and the bias; attention in one piece where heads cannot be told apart."""
    out, write = stream.at("attn_out", layer), stream.writes[layer].attn
    if write is None:
        yield [attention_of(layer)], along(out, direction)[None]
        return
    z = stream.at("z", layer)
    divisor = write.divisor(z.flatten(2))
    bias = write.bias(z.shape[2] * z.shape[3], divisor).to(out)
    if not heads:
        yield [attention_of(layer)], along(out - bias, direction)[None]
    elif layer in stream.patterns:
        yield _sources(stream, layer, write, divisor, direction)
    else:
        matrix = write.matrix(z.shape[2] * z.shape[3]).unflatten(0, z.shape[2:])
        yield heads_of(layer, z.shape[2]), _head_writes(z / divisor[..., None], matrix, direction)
    yield from _bias(f"b_attn{layer}", layer, bias, direction)


def _sources(stream: StreamRun, layer: int, write: Write, divisor: Tensor, direction: Direction) -> Contribution:
    """p_ij v_j W_O[h] of one query: keys stand where positions otherwise do."""
    v = stream.values(layer)
    p = stream.patterns[layer].to(v).transpose(1, 2)[..., None]  # batch key head 1
    n, n_heads, width = v.shape[1:]
    matrix = write.matrix(n_heads * width).unflatten(0, (n_heads, width))
    writes = _head_writes(p * v / divisor[..., None], matrix, direction)  # head batch key out
    return sources_of(layer, n_heads, n), writes.transpose(1, 2).flatten(0, 1)[:, :, None]


def _bias(name: str, layer: int, bias: Tensor, direction: Direction) -> Iterator[Contribution]:
    if bool(bias.any()):
        yield [Term(name, "bias", layer)], along(bias, direction)[None]


def along(x: Float[Tensor, "batch pos d_model"], direction: Direction) -> Float[Tensor, "batch pos out"]:
    """The vector, or its product with a direction."""
    return x if direction is None else (x * direction.to(x)).sum(-1, keepdim=True)


def _head_writes(
    x: Float[Tensor, "batch pos k width"], matrix: Float[Tensor, "k width d_model"], direction: Direction
) -> Float[Tensor, "k batch pos out"]:
    """x_k matrix_k for each k; with a direction the matrices are projected first and no vector is made."""
    if direction is None:
        return torch.einsum("bpkw,kwd->kbpd", x, matrix.to(x))
    projection = torch.einsum("kwd,bpd->bpkw", matrix.to(x), direction.to(x))
    return (x * projection).sum(-1).movedim(2, 0)[..., None]


def _mean(x: Tensor, mask: Tensor) -> float:
    return float(x[mask].mean())
