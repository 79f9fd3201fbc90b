"""Matrices of attention, from the outputs of its modules on a basis.

Fused projections, interleaved layouts, transposed weights, quantised layers: whatever the module computes is the
matrix. q, k and v at position 0 are affine in the attention input once the norms inside attention are let through, so
zero and the basis vectors give bias and weights exactly. What a later position does to q and k is read off the same
way. Half-precision weights are read in float32.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.attention import StopForward
from interp.backends.hf.anatomy import Anatomy, AttentionPart, input_device
from interp.backends.hf.feed import Feeder, Quiet
from interp.backends.hf.inner import bypassed, inner_norms, read_inner
from interp.backends.hf.read_mlp import Probe, read_mlp
from interp.backends.hf.read_norms import read_norm
from interp.backends.hf.read_reads import read_reads
from interp.backends.hf.read_writes import read_writes
from interp.backends.hf.shards import MATRICES
from interp.errors import BackendError, NotApplicable
from interp.numerics import alone, device_of, evaluating, exactly, input_dtype, wide
from interp.parallel import cached_property
from interp.weights.mlp import MLPWeights
from interp.weights.norms import Norm
from interp.weights.stream import Reads, Writes
from interp.weights.weights import LayerWeights, Weights

P = ParamSpec("P")
R = TypeVar("R")
PROBE = 5  # tokens of a pass that tells projections of an MLP apart
VOCABULARY = 8192  # rows of the unembedding that are widened to float32 at one time


def read_weights(model: PreTrainedModel, anatomy: Anatomy, *, unedited: Quiet = contextlib.nullcontext) -> Weights:
    """Weights of a decoder, each layer read when it is first asked for; `unedited` keeps edits out of it meanwhile.

    Raises:
        BackendError: the model is spread over processes.
    """
    if anatomy.shards is not None:
        raise BackendError(f"{type(model).__name__}: {MATRICES}")
    return Weights(ModuleSource(model, anatomy, unedited=unedited))


def output_matrix(part: AttentionPart) -> Float[Tensor, "head d_value d_model"]:
    """W_O of each head: z_h W_O[h] summed over heads, plus a bias, is what the projection gives."""
    return _output(part)[0]


def value_matrices(
    model: PreTrainedModel, parts: Sequence[AttentionPart]
) -> dict[int, Float[Tensor, "kv_head d_model d_value"]]:
    """W_V of each layer's key-value groups, without the gain of the norm before attention.

    Raises:
        BackendError: the values are not an affine function of the attention input.
    """
    reader = _Reader(model, parts)
    return {part.layer: reader.projections(part)[2][0] for part in parts}


class _Reader:
    """W_Q, W_K, W_V and the norms inside attention, of any layer."""

    def __init__(
        self, model: PreTrainedModel, parts: Sequence[AttentionPart], *, unedited: Quiet = contextlib.nullcontext
    ) -> None:
        self.feeder = Feeder(model, parts, unedited=unedited)
        self.width = int(model.config.get_text_config().hidden_size)
        self._inner: dict[int, dict[nn.Module, Norm | None]] = {}

    def inner(self, part: AttentionPart) -> dict[nn.Module, Norm | None]:
        """Norms between a layer's attention input and its attention call; see `inner_norms`."""
        if part.layer not in self._inner:
            self._inner[part.layer] = inner_norms(self.feeder, part, self.width)
        return self._inner[part.layer]

    def projections(self, part: AttentionPart) -> list[tuple[Tensor, Tensor]]:
        """(W [head d_model d], b [head d]) of q, k and v, norms inside attention let through."""
        test = torch.randn(1, self.width, generator=torch.Generator().manual_seed(0))
        rows = torch.cat([torch.zeros(1, self.width), torch.eye(self.width), test])
        with bypassed(self.inner(part)):
            call = self.feeder(part, rows)
        matrices = []
        for name, x in (("queries", call.q[:, 0]), ("keys", call.k[:, 0]), ("values", call.v[:, 0])):
            bias, matrix, want = x[0], x[1:-1] - x[0], x[-1]
            ours = torch.einsum("m,mhd->hd", test[0].to(x), matrix) + bias
            if not torch.allclose(ours, want, rtol=1e-3, atol=1e-3 * float(want.abs().max())):
                raise BackendError(
                    f"layer {part.layer}: {name} are not affine in the attention input, so there is no matrix; norms "
                    f"let through: {len(self.inner(part))}"
                )
            matrices.append((matrix.transpose(0, 1), bias))
        return matrices

    def turns(
        self, part: AttentionPart, positions: Sequence[int]
    ) -> tuple[Float[Tensor, "position d_head d_head"], Float[Tensor, "position d_head d_head"]]:
        """R_q(p) and R_k(p) with q(p) = q(0) R_q(p), solved from random inputs; see `interp.weights.weights.Source`."""
        if part.biased:
            raise BackendError(
                f"layer {part.layer} adds a bias of position to its scores; nothing turns queries and keys"
            )
        at = sorted({0, *positions})
        rows = torch.randn(max(64, part.d_head + 32), self.width, generator=torch.Generator().manual_seed(4))
        with bypassed(self.inner(part)):
            call = self.feeder(part, rows, at)
        index = [at.index(p) for p in positions]
        q, k = (_turns(x, at, f"layer {part.layer}") for x in (call.q, call.k))
        return q[index], k[index]


def _turns(x: Float[Tensor, "row position head d"], at: Sequence[int], where: str) -> Float[Tensor, "position d d"]:
    """R with x[:, p] = x[:, 0] R[p], for all heads at once; zero on directions that no head ever uses."""
    first = x[:, at.index(0)].flatten(0, 1).double()
    inverse = torch.linalg.pinv(first, rtol=1e-7)  # once: what every position starts from
    turns = torch.eye(first.shape[1]).repeat(len(at), 1, 1)
    for i, position in enumerate(at):
        later = x[:, i].flatten(0, 1).double()
        if torch.equal(first, later):
            continue
        turn = inverse @ later
        if (first @ turn - later).norm() > 1e-4 * later.norm():
            raise BackendError(
                f"{where}, position {position}: what the position does to queries and keys is not one linear map for "
                "all heads"
            )
        turns[i] = turn.float()
    return turns


def _in_turn(reading: Callable[Concatenate[ModuleSource, P], R]) -> Callable[Concatenate[ModuleSource, P], R]:
    """A reading during which no other thread runs the model."""

    @functools.wraps(reading)
    def read(self: ModuleSource, *args: P.args, **kwargs: P.kwargs) -> R:
        with alone(self.model):
            return reading(self, *args, **kwargs)

    return read


class ModuleSource:
    """Source of `Weights` in a transformers model; implements `interp.weights.weights.Source`."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, *, unedited: Quiet = contextlib.nullcontext) -> None:
        self.model, self.anatomy = model, anatomy
        self.parts = {p.layer: p for p in anatomy.attention}
        self.layers, self.n_layers = tuple(self.parts), len(anatomy.blocks)
        self.unedited = unedited
        self.reader = _Reader(model, anatomy.attention, unedited=unedited)
        self.context = self.reader.feeder.context
        self.d_model = self.reader.width
        self.d_vocab = len(next(model.get_input_embeddings().parameters()))
        self.half = next(model.parameters()).itemsize < 4

    @_in_turn
    def layer(self, layer: int) -> LayerWeights:
        """Everything one layer's attention is made of.

        Raises:
            BackendError: q, k or v is no affine function of the attention input even with the norms let through, or
                that input is not the stream.
        """
        part, reader = self.parts[layer], self.reader
        if part.stray:
            raise BackendError(f"{part.stray}, so that it has no matrices from stream to stream")
        (w_q, b_q), (w_k, b_k), (w_v, b_v) = reader.projections(part)
        w_o, b_o = _output(part)
        q_norm, k_norm, v_norm = read_inner(reader.feeder, part, reader.inner(part), self.d_model)
        before, after = (None if n is None else read_norm(n, self.d_model) for n in (part.norm_before, part.norm_after))
        times = self.anatomy.stream[layer].attn_scale if self.anatomy.stream else 1.0  # a residual multiplier
        if after is None:
            w_o, b_o = times * w_o, times * b_o
        else:
            after = replace(after, gain=times * after.gain, bias=times * after.bias)
        return LayerWeights(
            layer=layer,
            w_q=w_q,
            w_k=w_k,
            w_v=w_v,
            w_o=w_o,
            b_q=b_q,
            b_k=b_k,
            b_v=b_v,
            b_o=b_o,
            norm=before,
            norm_after=after,
            q_norm=q_norm,
            k_norm=k_norm,
            v_norm=v_norm,
            scale=reader.feeder(part, torch.zeros(1, self.d_model)).scale,
            softcap=part.softcap,
        )

    @_in_turn
    def mlp(self, layer: int) -> MLPWeights:
        """W_in, W_gate and W_out of a layer, with the norms around them."""
        writes, reads = self.around(layer)
        last = None if writes.mlp is None else writes.mlp.projection
        probe = None if last is None else Probe(self.anatomy.blocks[layer], last, self._short_pass, self.foreign)
        return read_mlp(layer, probe, writes, reads, self.d_model)

    def around(self, layer: int) -> tuple[Writes, Reads]:
        """What a layer writes and reads."""
        return read_writes(self.anatomy, layer, self.d_model), read_reads(self.anatomy, layer, self.d_model)

    def foreign(self, module: nn.Module) -> bool:
        """Whether a module is none of the model's own."""
        return False

    @_in_turn
    def positions(self) -> Float[Tensor, "position d_model"]:
        """Input of the first layer less the token's row of W_E, which must be the same whatever the tokens are."""
        if self.context is None:
            raise BackendError("no W_pos: the model takes prompts of any length, so it has no table of positions")
        ids = torch.arange(2 * self.context).view(2, -1) % self.d_vocab
        ids[1] = ids[1].flip(0)
        with self._entering() as entered:
            self._short_pass(ids)
        full = wide(entered[0]).cpu()
        rows = self.embed(ids.flatten()).unflatten(0, ids.shape)
        if rows.shape != full.shape:
            raise BackendError(f"no W_pos: embeddings are {rows.shape[-1]} wide, and the stream {full.shape[-1]}")
        rest, size = full - rows, float(full.abs().max())
        if float((rest[0] - rest[1]).abs().max()) > 1e-5 * size * (2**13 if self.half else 1):
            raise BackendError("no W_pos: what enters the first layer is not a token's row of W_E plus its position's")
        if float(rest.abs().max()) <= 1e-6 * size:
            raise BackendError("no W_pos: no positions are added to the stream (rotary, or a bias of the scores)")
        return rest[0]

    @contextlib.contextmanager
    def _entering(self) -> Iterator[list[Tensor]]:
        """What enters the first layer, at which a pass ends."""
        entered: list[Tensor] = []

        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            entered.append((args[0] if args else kwargs["hidden_states"]).detach())
            raise StopForward

        handle = self.anatomy.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield entered
        finally:
            handle.remove()

    @_in_turn
    def _short_pass(self, ids: Tensor | None = None) -> None:
        ids = torch.arange(PROBE)[None] % self.d_vocab if ids is None else ids
        with self.unedited(), evaluating(self.model), torch.no_grad(), contextlib.suppress(StopForward):
            self.model(input_ids=ids.to(input_device(self.model)), use_cache=False)

    @_in_turn
    def turns(
        self, layer: int, positions: Sequence[int]
    ) -> tuple[Float[Tensor, "position d_head d_head"], Float[Tensor, "position d_head d_head"]]:
        """Rotations of q and k at each position."""
        return self.reader.turns(self.parts[layer], positions)

    @_in_turn
    def embed(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_embed"]:
        """Rows of W_E.

        Raises:
            BackendError: tokens are embedded by several tables.
        """
        table = self.model.get_input_embeddings()
        if isinstance(table, nn.ModuleList):
            if len(table) != 1:
                raise BackendError(f"tokens are embedded by {len(table)} tables, so that there is no one W_E")
            table = table[0]
        with torch.no_grad():
            return wide(table(ids.to(input_device(self.model))[None])[0]).cpu()

    def unembed(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """x W_U, without the bias; W_U is widened in blocks of the vocabulary."""
        weight = self._unembedding
        if weight is None:
            zero = torch.zeros(1, x.shape[-1])
            return self._logits(x) - self._logits(zero)
        blocks = weight.split(VOCABULARY)
        return torch.cat([(x.to(w.device) @ wide(w.detach()).T.to(x)).cpu() for w in blocks], dim=-1)

    def columns(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Columns of W_U, one row per token."""
        weight = self._unembedding
        if weight is None:
            return self.unembed(torch.eye(self.d_model))[:, ids].T
        return wide(weight.detach()[ids.to(weight.device)]).cpu()

    @property
    def b_u(self) -> Float[Tensor, " d_vocab"]:
        """Bias of the unembedding; zeros without."""
        return self._bias

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        norm = self.anatomy.final_norm
        return None if norm is None else read_norm(norm, self.d_model)

    @cached_property
    def _bias(self) -> Tensor:
        return self._logits(torch.zeros(1, self.d_model))[0]

    @cached_property
    def _unembedding(self) -> Tensor | None:
        """The parameter that is W_U transposed, if multiplying by it is all that the unembedding does."""
        test = torch.randn(1, self.d_model, generator=torch.Generator().manual_seed(5))
        unembed = self.anatomy.unembed
        for parameter in () if unembed is None else unembed.parameters():
            if (
                parameter.shape == (len(self.b_u), self.d_model)
                and parameter.is_floating_point()
                and not parameter.is_meta
            ):
                ours = torch.cat([test @ wide(w.detach()).cpu().T.to(test) for w in parameter.split(VOCABULARY)], -1)
                want = self._logits(test)[0] - self.b_u
                if torch.allclose(ours[0], want, rtol=2e-2, atol=2e-2 * float(want.std())):
                    return parameter
        return None

    @_in_turn
    def _logits(self, x: Tensor) -> Tensor:
        """Output of the unembedding module, in its own precision."""
        module = self.anatomy.unembed
        if module is None:
            raise NotApplicable(f"{type(self.model).__name__}: an encoder has no unembedding, and gives no logits")
        parameter = next(p for p in module.parameters() if p.is_floating_point())
        with torch.no_grad():
            return wide(module(x.to(device_of(module), parameter.dtype))).cpu()


def _output(part: AttentionPart) -> tuple[Float[Tensor, "head d_value d_model"], Float[Tensor, " d_model"]]:
    """W_O of each head, and the bias."""
    device = device_of(part.output)
    dtype = input_dtype(part.output)
    basis = torch.eye(part.n_heads * part.d_value, device=device, dtype=dtype)
    bias = wide(exactly(part.output, torch.zeros_like(basis[:1])))[0]
    matrix = wide(exactly(part.output, basis)) - bias
    return matrix.cpu().unflatten(0, (part.n_heads, -1)), bias.cpu()
