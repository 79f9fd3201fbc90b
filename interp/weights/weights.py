"""`Weights`: W_Q, W_K, W_V, W_O of every head, and the circuits they make.

Row vectors throughout: q = x W_Q + b_Q. Layers are read when asked for and kept up to a bound, so that an 8B model is
never copied whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from interp.components import head_name
from interp.errors import BackendError, SiteError
from interp.numerics import refuse_autocast
from interp.parallel import cached_property
from interp.shapes import brief
from interp.weights.factored import FactoredMatrix
from interp.weights.mlp import MLPWeights
from interp.weights.norms import UNEVEN, HeadNorm, Norm
from interp.weights.ov import OV
from interp.weights.stacked import StackedWeights

KEEP = 2**30  # bytes of layers kept by default
BLOCK = 2**24  # entries of an embedding matrix made at one time
SHIFT = 7  # how far a pair of positions is moved to see that only their distance counts


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer's attention, in float32 on the CPU.

    With n = `norm` (None: the stream is read raw), R_p the turn that position p gives, and N = `q_norm` (None: none):
    q_p = N(n(x) W_Q + b_Q) R_p, the same for k; v = n(x) W_V + b_V, through `v_norm` where there is one;
    s_ij = scale q_i . k_j, then soft-capped; attn_out = norm_after(sum_h z_h W_O[h] + b_O). Where N comes
    `after_rotary` the two change places. What the model applies at position 0, such as yarn's factor or OPT's scaling,
    is inside W_Q and W_K. Query head h reads key-value head h // group.
    """

    layer: int
    w_q: Float[Tensor, "head d_model d_head"]
    w_k: Float[Tensor, "kv_head d_model d_head"]
    w_v: Float[Tensor, "kv_head d_model d_value"]
    w_o: Float[Tensor, "head d_value d_model"]
    b_q: Float[Tensor, "head d_head"]
    b_k: Float[Tensor, "kv_head d_head"]
    b_v: Float[Tensor, "kv_head d_value"]
    b_o: Float[Tensor, " d_model"]
    norm: Norm | None
    norm_after: Norm | None
    q_norm: HeadNorm | None
    k_norm: HeadNorm | None
    v_norm: HeadNorm | None
    scale: float
    softcap: float | None

    __repr__ = brief

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return len(self.w_q) // len(self.w_k)

    @property
    def nbytes(self) -> int:
        """Memory of the matrices."""
        return sum(w.nbytes for w in (self.w_q, self.w_k, self.w_v, self.w_o))

    def folded(self) -> LayerWeights:
        """The same layer reading x / scale(x) instead of norm(x), and writing before a frozen division.

        The gain (and LayerNorm's centring) before attention goes into W_Q, W_K, W_V and its bias into b_Q, b_K, b_V;
        the gain behind attention into W_O and b_O. Divisors are what is left out.
        """
        w = self
        if w.norm is not None:
            n = w.norm
            projections = {f"w_{x}": n.transpose(getattr(w, f"w_{x}").mT).mT for x in "qkv"}
            bias = {f"b_{x}": getattr(w, f"b_{x}") + n.bias @ getattr(w, f"w_{x}") for x in "qkv"}
            w = replace(w, **projections, **bias, norm=None)
        if w.norm_after is not None:
            n = w.norm_after
            w = replace(w, w_o=n.linear(w.w_o), b_o=n.linear(w.b_o) + n.bias, norm_after=None)
        return w


@runtime_checkable
class Source(Protocol):
    """What a backend provides for `Weights`; float32 on the CPU."""

    layers: tuple[int, ...]
    n_layers: int
    context: int | None
    d_model: int
    d_vocab: int
    half: bool

    def layer(self, layer: int) -> LayerWeights:
        """One layer, read from the model."""
        ...

    def mlp(self, layer: int) -> MLPWeights:
        """MLP of one layer, read from the model."""
        ...

    def positions(self) -> Float[Tensor, "position d_model"]:
        """What is added to the stream at each position."""
        ...

    def turns(
        self, layer: int, positions: Sequence[int]
    ) -> tuple[Float[Tensor, "position d_head d_head"], Float[Tensor, "position d_head d_head"]]:
        """R_q(p), R_k(p) for each position: q(p) = q(0) R_q(p), norms inside attention left out."""
        ...

    def embed(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_embed"]:
        """Rows of W_E."""
        ...

    def unembed(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """x W_U without the bias."""
        ...

    def columns(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Columns of W_U, one row per token."""
        ...

    @property
    def b_u(self) -> Float[Tensor, " d_vocab"]:
        """Bias of the unembedding."""
        ...

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        ...


class Weights(StackedWeights):
    """Weights of a model by layer (`weights[3].w_q`), its embeddings, and the circuits of its heads.

    Args:
        source: where they are read from.
        keep: bytes of layers kept once read; older ones are read again when asked for.
    """

    def __init__(self, source: Source, *, keep: int = KEEP) -> None:
        self.source, self.keep = source, keep
        self.layers = source.layers
        self._layer_cache: OrderedDict[int, LayerWeights] = OrderedDict()
        self._rotations: dict[tuple[int, int], Tensor] = {}

    def __getitem__(self, layer: int) -> LayerWeights:
        """One layer's attention.

        Raises:
            SiteError: no such layer, or one without attention.
            BackendError: torch.autocast is on.
        """
        refuse_autocast()
        if not hasattr(layer, "__index__"):
            raise SiteError(f"a layer is a whole number, counted from 0; got {type(layer).__name__} {layer!r:.40}")
        if layer not in self.layers:
            raise SiteError(f"layer {layer} has no attention weights; layers with attention: {self.layers}")
        if layer not in self._layer_cache:
            self._layer_cache[layer] = self.source.layer(layer)
            while len(self._layer_cache) > 1 and sum(w.nbytes for w in self._layer_cache.values()) > self.keep:
                self._layer_cache.popitem(last=False)
        self._layer_cache.move_to_end(layer)
        return self._layer_cache[layer]

    def mlp(self, layer: int) -> MLPWeights:
        """One layer's MLP: W_in, W_gate, W_out, read from the model each time.

        Raises:
            SiteError: no such layer.
            BackendError: no one set of neurons (a mixture of experts), or no projections that act on them one by one.
        """
        refuse_autocast()
        if layer not in range(self.source.n_layers):
            raise SiteError(f"layer {layer} is out of range; the model has {self.source.n_layers} layers")
        return self.source.mlp(layer)

    @cached_property
    def w_pos(self) -> Float[Tensor, "position d_model"]:
        """Learned (or sinusoidal) positions: what is added to a token's embedding at each position of the context.

        Raises:
            BackendError: nothing is (rotary, a bias of the scores), or the stream is no sum of token and position.
        """
        return self.source.positions()

    @cached_property
    def w_e(self) -> Float[Tensor, "d_vocab d_embed"]:
        """Token embedding as its module gives it; scales and norms that follow are in `effective_embedding`."""
        return torch.cat([self.source.embed(ids) for ids in self._vocabulary()])

    def embed_through(self, matrix: Float[Tensor, "d_embed k"]) -> Float[Tensor, "d_vocab k"]:
        """W_E times a matrix; W_E is never made as a whole.

        Raises:
            BackendError: tokens are embedded in another width than the stream's, and projected after.
        """
        width = self.source.embed(torch.zeros(1, dtype=torch.long)).shape[-1]
        if width != len(matrix):
            raise BackendError(
                f"embeddings are {width} wide, the stream {len(matrix)}; pass `embedding`, as "
                "effective_embedding gives it"
            )
        return torch.cat([self.source.embed(ids) @ matrix for ids in self._vocabulary()])

    @cached_property
    def w_u(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding, without the final norm."""
        return self.unembed(torch.eye(self.source.d_model))

    @property
    def b_u(self) -> Float[Tensor, " d_vocab"]:
        """Bias of the unembedding; zeros without."""
        return self.source.b_u

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        return self.source.final_norm

    def unembed(
        self, x: Float[Tensor, "*batch d_model"], *, fold_norm: bool = False
    ) -> Float[Tensor, "*batch d_vocab"]:
        """x W_U, with the final norm's gain and centring on request; W_U is never made as a whole."""
        if fold_norm and self.final_norm is not None:
            x = self.final_norm.linear(x)
        return self.source.unembed(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    def rotation(self, layer: int, offset: int) -> Float[Tensor, "d_head d_head"]:
        """T(o) with q_i . k_j = q_i(0) T(i - j) k_j(0): what rotary does to a pair at this distance.

        Read off the model's own q and k at positions (o, 0), and checked at a second pair. Identity for learned
        positions and for layers without rotary. Zero along directions that no head of the layer uses.

        Raises:
            SiteError: a negative offset (a key after its query), or one beyond the context.
            BackendError: the score depends on more than the offset.
        """
        limit = self.source.context
        if offset < 0 or (limit is not None and offset >= limit):
            raise SiteError(f"offset {offset}: expected 0 to {'any distance' if limit is None else limit - 1}")
        if (layer, offset) not in self._rotations:
            self._rotations[layer, offset] = self._rotation(layer, offset)
        return self._rotations[layer, offset]

    def _rotation(self, layer: int, offset: int) -> Tensor:
        w = self[layer]
        for norm in (w.q_norm, w.k_norm):
            if norm is not None and not norm.commutes:
                raise BackendError(
                    f"layer {layer}: a norm with unequal gains comes after rotary, so a score depends on both positions"
                )
        limit = self.source.context
        shift = SHIFT if limit is None else min(SHIFT, limit - 1 - offset)
        turn_q, turn_k = self.source.turns(layer, [0, shift, offset, offset + shift])
        turn, turn_later = turn_q[2] @ turn_k[0].T, turn_q[3] @ turn_k[1].T
        # The angle p * theta is rounded: in float32 an error of p 6e-8; half precision rounds cosines to 3 digits.
        slack = 3e-2 if self.source.half else 1e-4 + 5e-7 * (offset + shift)
        if (turn - turn_later).abs().max() > slack * turn.abs().max():
            raise BackendError(
                f"layer {layer}: the score of positions ({offset}, 0) differs from that of ({offset + shift}, "
                f"{shift}), so it depends on more than the offset"
            )
        return turn

    def qk(self, layer: int, head: int | None = None, *, offset: int = 0, fold_norm: bool = False) -> FactoredMatrix:
        """W_Q T(offset) W_K^T, [d_model d_model]: x_i QK x_j + terms of the biases = q_i . k_j, before `scale`.

        Gains (and centring) of a norm on q and k are always folded in, its divisors are not: they are positive numbers
        of the token. With `fold_norm` it reads x / scale(x) of the stream instead of the norm's output. Without a head,
        all of them as a batch.

        Raises:
            BackendError: a norm divides some channels of q or k and not the others.
        """
        w = self._layer(layer, head, fold_norm)
        if not all(norm is None or norm.even for norm in (w.q_norm, w.k_norm)):
            raise BackendError(f"layer {layer}: {UNEVEN}")
        w_q = w.w_q if w.q_norm is None else w.q_norm.fold(w.w_q)
        w_k = w.w_k if w.k_norm is None else w.k_norm.fold(w.w_k)
        left = w_q if offset == 0 and w.q_norm is None else w_q @ self.rotation(layer, offset)
        return _pick(FactoredMatrix(left, w_k.repeat_interleave(w.group, 0).mT), head)

    def ov(self, layer: int, head: int | None = None, *, fold_norm: bool = False) -> FactoredMatrix:
        """W_V W_O, [d_model d_model]: what a head adds to the stream for the (normed) token it attends to.

        Gains of a norm on values are folded in. With `fold_norm` it reads x / scale(x) of the stream, and the gain of a
        norm behind attention is in W_O; the divisor there is not. Without a head, all of them as a batch.
        """
        w = self._layer(layer, head, fold_norm)
        w_v = w.w_v if w.v_norm is None else w.v_norm.fold(w.w_v)
        return _pick(FactoredMatrix(w_v.repeat_interleave(w.group, 0), w.w_o), head)

    def full_ov(
        self,
        layer: int,
        head: int,
        *,
        embedding: Float[Tensor, "token d_model"] | None = None,
        fold_norm: bool = True,
        centre: bool = True,
    ) -> FactoredMatrix:
        """W_E W_V W_O W_U, [d_vocab d_vocab]: how much attending to token a raises the logit of token b.

        `positivity()` is its copying ratio, `topk(k)` the tokens each token raises most, neither made as a whole.
        `embedding` takes the place of W_E (see `interp.decompose.embeddings.effective_embedding`). With `centre` each
        row's mean over the vocabulary is taken off: a shift of all logits is no output.
        """
        ov = self.ov(layer, head, fold_norm=fold_norm)
        right = self.unembed(ov.right, fold_norm=fold_norm)
        left = self.embed_through(ov.left) if embedding is None else embedding @ ov.left
        return FactoredMatrix(left, right - right.mean(-1, keepdim=True) if centre else right)

    def full_qk(
        self,
        layer: int,
        head: int,
        *,
        offset: int = 0,
        embedding: Float[Tensor, "token d_model"] | None = None,
        fold_norm: bool = True,
    ) -> FactoredMatrix:
        """W_E W_Q T(offset) W_K^T W_E^T, [d_vocab d_vocab]: how much token a looks for token b, before `scale`.

        The key stands `offset` before the query (without rotary it makes no difference). `embedding` takes the place of
        W_E: `w_pos` for the circuit over positions. Terms of biases are left out; see `qk`.
        """
        qk = self.qk(layer, head, offset=offset, fold_norm=fold_norm)
        sides = (qk.left, qk.right.mT)
        left, right = (self.embed_through(x) if embedding is None else embedding @ x for x in sides)
        return FactoredMatrix(left, right.mT)

    def ov_circuits(self) -> OV:
        """W_V and W_O of every layer and head at once, norms folded in, and the embeddings around them; see `OV`.

        Raises:
            BackendError: layers differ in their numbers of heads.
        """
        circuits = [self.ov(layer, fold_norm=True) for layer in self.layers]
        n_heads = {c.shape[0] for c in circuits}
        if len(n_heads) > 1:
            raise BackendError(f"layers differ in their numbers of heads {sorted(n_heads)}; take them one by one: ov()")
        rank = max(c.rank for c in circuits)  # narrower heads are filled up with zeros, which leaves products alone
        w_v = torch.stack([pad(c.left, (0, rank - c.rank)) for c in circuits])
        w_o = torch.stack([pad(c.right, (0, 0, 0, rank - c.rank)) for c in circuits])
        w_u = self.w_u if self.final_norm is None else self.final_norm.transpose(self.w_u.mT).mT
        return OV(w_v, w_o, self.w_e, w_u, self.layers)

    def _vocabulary(self) -> tuple[Tensor, ...]:
        return torch.arange(self.source.d_vocab).split(max(1, BLOCK // self.source.d_model))

    def _layer(self, layer: int, head: int | None, fold_norm: bool) -> LayerWeights:
        w = self[layer]
        if head is not None and not 0 <= head < len(w.w_q):
            raise SiteError(f"{head_name(layer, head)}: head {head} is out of range; there are {len(w.w_q)} heads")
        return w.folded() if fold_norm else w


def _pick(matrix: FactoredMatrix, head: int | None) -> FactoredMatrix:
    return matrix if head is None else matrix[head]
