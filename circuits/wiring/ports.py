"""How every slot of a model reads the residual stream, as functions of the stream that can be differentiated.

A slot (q, k or v of a head, the input of an MLP, the logits) is a function of the stream at its own position alone: a
norm, a projection, where the model has them a norm inside attention and rotary. Written out here they give what a slot
would read from another stream, and the gradient at the stream from that at the site, head by head, without a copy of
the residual per head.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.graph.layout import Layout
from interp.errors import BackendError
from interp.model import Model
from interp.parallel import cached_property
from interp.weights.norms import HeadNorm, Norm
from interp.weights.stream import Reads
from interp.weights.weights import LayerWeights, Weights

QKV = Literal["q", "k", "v"]
PROBES = 3
"""A layer turns like another if it does so at its second, middle and last position."""


class Ports:
    """The reads of every layer of a model.

    Attributes:
        info: of the model. layout: its senders and slots. reads: norms by layer.
    """

    def __init__(self, model: Model) -> None:
        """Read the norms.

        Raises:
            BackendError: a layer whose attention or MLP cannot be told apart, with the reason.
        """
        self.info = model.info
        self._model = weakref.ref(model)  # what is kept of a model must not keep it alive
        self.reads: tuple[Reads, ...] = tuple(model.reads(layer) for layer in range(self.info.n_layers))
        self.layout = _layout(model, self.reads)
        self._layers: dict[int, LayerWeights] = {}
        self._turns: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = {}

    @cached_property
    def weights(self) -> Weights:
        """Matrices, each layer read when first asked for.

        Raises:
            BackendError: the model is gone.
        """
        model = self._model()
        if model is None:
            raise BackendError(f"the model {self.info.name!r}, whose weights are asked for, has been let go of")
        return model.weights()

    @cached_property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        return self.weights.final_norm

    def prepare(self, n: int) -> Ports:
        """Read what n positions need of every layer: weights cannot be read while the model runs."""
        for layer in self.info.attention_layers:
            self.layer(layer)
            self._rotations(layer, n)
        return self

    def layer(self, layer: int) -> LayerWeights:
        """One layer's attention, kept once read."""
        if layer not in self._layers:
            self._layers[layer] = self.weights[layer]
        return self._layers[layer]

    def shared(self, layer: int, port: QKV) -> bool:
        """Whether a norm inside attention makes each head's reading depend on the other heads' projections."""
        norm = self._inner(layer, port)
        return norm is not None and norm.whole

    def raw(
        self, layer: int, port: QKV, x: Float[Tensor, "batch pos *slot d_model"], heads: Sequence[int] | None = None
    ) -> Float[Tensor, "batch pos head d_head"]:
        """n(x) W + b, before norms inside attention and rotary; x of the layer, or one for each head asked for."""
        w = self.layer(layer)
        matrix, bias = getattr(w, f"w_{port}").to(x), getattr(w, f"b_{port}").to(x)
        if heads is not None:
            matrix, bias = matrix[list(heads)], bias[list(heads)]
        norm = self.reads[layer].attn
        normed = x if norm is None else norm.to(x.device)(x)
        form = "bpm,hmk->bphk" if x.ndim == 3 else "bphm,hmk->bphk"
        return torch.einsum(form, normed, matrix) + bias

    def finish(
        self,
        layer: int,
        port: QKV,
        raw: Float[Tensor, "batch pos head d_head"],
        positions: Int[Tensor, "batch pos"],
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """What the site q, k or v holds: norms inside attention and rotary, in the model's order."""
        norm = self._inner(layer, port)
        if norm is not None:
            gain, bias = (t if heads is None or norm.whole else t[list(heads)] for t in (norm.gain, norm.bias))
            norm = replace(norm, gain=gain.to(raw), bias=bias.to(raw))
        turn = None if port == "v" else self.turn(layer, port, positions)
        if turn is None:
            return raw if norm is None else norm(raw)
        turn = turn.to(raw)
        if norm is None:
            return raw @ turn
        return norm(raw @ turn) if norm.after_rotary else norm(raw) @ turn

    def read(
        self,
        layer: int,
        port: QKV,
        x: Float[Tensor, "batch pos *slot d_model"],
        positions: Int[Tensor, "batch pos"],
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos head d_head"]:
        """The site q, k or v for a stream x; `heads` need a norm inside attention to be each head's own."""
        return self.finish(layer, port, self.raw(layer, port, x, heads), positions, heads)

    def read_mlp(self, layer: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The site mlp_in for a stream x."""
        norm = self.reads[layer].mlp
        return x if norm is None else norm.to(x.device)(x)

    def pull_raw(
        self,
        layer: int,
        port: QKV,
        grad: Float[Tensor, "batch pos head d_head"],
        x: Float[Tensor, "batch pos d_model"],
        positions: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Gradient at `raw` from the gradient at the site; x is only needed where attention has a norm inside."""
        if self._inner(layer, port) is None:
            turn = None if port == "v" else self.turn(layer, port, positions)
            return grad if turn is None else grad @ turn.to(grad).mT
        with torch.enable_grad():
            raw = self.raw(layer, port, x).detach().requires_grad_()
            site = self.finish(layer, port, raw, positions)
        return torch.autograd.grad(site, raw, grad.to(raw))[0]

    def pull_back_mlp(
        self, layer: int, grad: Float[Tensor, "batch pos d_model"], x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Gradient at the stream through the MLP alone, from the gradient at mlp_in."""
        norm = self.reads[layer].mlp
        return grad if norm is None else norm.to(x.device).pull_back(grad, x)

    def _inner(self, layer: int, port: QKV) -> HeadNorm | None:
        w = self.layer(layer)
        return {"q": w.q_norm, "k": w.k_norm, "v": w.v_norm}[port]

    def turn(self, layer: int, port: QKV, positions: Int[Tensor, "batch pos"]) -> Float[Tensor, "..."] | None:
        """R by position, [pos d_head d_head] where all prompts agree and [batch pos d_head d_head] where not."""
        n = int(positions.max()) + 1
        turn = self._rotations(layer, n)[0 if port == "q" else 1]
        if turn is None:
            return None
        same = bool((positions == positions[:1]).all())
        return turn[(positions[0] if same else positions).cpu()]

    def _rotations(self, layer: int, n: int) -> tuple[Tensor | None, Tensor | None]:
        """R_q, R_k at positions 0 .. n-1; None where positions do nothing. Layers that turn alike share them."""
        cached_key = next((key for key in self._turns if key[0] == layer and key[1] >= n), None)
        if cached_key is not None:
            return self._turns[cached_key]
        source = self.weights.source
        probes = sorted({min(1, n - 1), n // 2, n - 1})
        q, k = source.turns(layer, probes)
        for (_, length), turns in self._turns.items():
            if length >= n and all(
                _same_rotation(mine, theirs, probes) for mine, theirs in zip((q, k), turns, strict=True)
            ):
                self._turns[layer, length] = turns
                return turns
        identity = [bool(torch.allclose(t, torch.eye(t.shape[-1]).expand_as(t), atol=1e-5)) for t in (q, k)]
        q, k = source.turns(layer, range(n)) if not all(identity) else (q, k)
        self._turns[layer, n] = (None if identity[0] else q, None if identity[1] else k)
        return self._turns[layer, n]


def _same_rotation(mine: Tensor, theirs: Tensor | None, at: Sequence[int]) -> bool:
    other = torch.eye(mine.shape[-1]).expand_as(mine) if theirs is None else theirs[list(at)]
    return bool(torch.allclose(mine, other, atol=1e-5))


def _layout(model: Model, reads: Sequence[Reads]) -> Layout:
    """Senders and slots of a model.

    Raises:
        BackendError: a layer of which the parts are not told apart, or that differs in its parts from the others.
    """
    info = model.info
    for layer, layer_reads in enumerate(reads):
        for kind in ("attn_out", "head_out"):
            if kind in layer_reads.missing and layer in info.attention_layers:
                raise BackendError(f"{info.name}: layer {layer} has no edges of its own: {layer_reads.missing[kind]}")
    without = [layer for layer, layer_reads in enumerate(reads) if "mlp_out" in layer_reads.missing]
    if without and len(without) < len(reads):
        raise BackendError(f"{info.name}: layer {without[0]} has no MLP to be told apart, others have: not covered")
    forms = {layer_reads.parallel for layer_reads in reads if "mlp_out" not in layer_reads.missing}
    if len(forms) > 1:
        raise BackendError(f"{info.name}: some layers are parallel and some are not: not covered")
    return replace(Layout.of(info, parallel=forms == {True}), mlps=not without)


CACHE: WeakKeyDictionary[Model, tuple[Hashable, Ports]] = WeakKeyDictionary()
"""Ports that have been read, beside what the model's fingerprint was then."""


def ports(model: Model) -> Ports:
    """The ports of a model, read once as long as no parameter is changed; gone with the model."""
    state = model.fingerprint()
    entry = CACHE.get(model)
    if entry is None or entry[0] != state:
        entry = CACHE[model] = (state, Ports(model))
    return entry[1]
