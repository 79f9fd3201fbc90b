"""Scores of edges from what senders write and the gradient at slots, as matrix products, a tile of tokens at a time.

S[u, w] = sum_t d_u[t] . g_w[t], d_u the difference of two runs in what u writes and g_w the gradient at the stream
through slot w alone. With the norm n(x) = gain c(x) / s + bias before the slot, W its matrix and g the gradient behind
it: g_w = y / s - c(x) <c(x), y> / (width s^3), y = c(gain W g). Both d and g are local to a token, so nothing as large
as a residual stream per head is ever held for more tokens than a tile has.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribution.slot_gradients import QKV, Slopes, Written
from circuits.wiring.case import Case
from interp.sites import Site
from interp.weights.norms import Norm

TILE = 2**23
"""Numbers of a tile: the senders of its tokens and one layer's slots."""


class Contraction:
    """Edge scores of one model; holds the matrices of its slots and heads for as long as it lives."""

    def __init__(self, case: Case, *, tile: int = TILE) -> None:
        self.layout, self.ports, self.model, self.tile = case.layout, case.ports, case.model, tile
        exists = self.layout.exists
        self.before = exists.sum(0).tolist()  # senders stand in the order in which they are written
        self._slots: dict[int, tuple[list[Tensor], Norm | None]] = {}
        self._outputs: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        case: Case,
        change: Written,
        slopes: Slopes,
        *,
        senders: slice = slice(None),
        labels: Int[Tensor, "batch pos"] | None = None,
        n_labels: int = 1,
    ) -> Float[Tensor, "label batch sender slot"]:
        """Scores of each prompt, in one part, or apart by the label of the token that the edge is read at.

        Args:
            case: the prompts of `change` and `slopes`.
            change: difference of two runs in what is written.
            slopes: gradients; slots of layers that it lacks score zero.
            senders: those that are wanted; the others score zero.
            labels: number of each token's part.
            n_labels: parts.
        """
        batch, pos, width = change.embed.shape
        n = len(self.layout.senders), len(self.layout.slots)
        scores = change.embed.new_zeros(n_labels, batch, *n)
        positions = case.task.clean.positions.to(change.embed.device)
        begin, stop, _ = senders.indices(n[0])
        for rows, span in self._tiles(batch, pos, width):
            where = (rows, span)
            writes = self._tile_writes(change, where)
            parts = None if labels is None else _one_hot(labels[where], n_labels, writes)
            for columns, gradients in self._slot_gradients(slopes, where, positions):
                last = min(stop, self.before[columns.start])
                if last > begin:
                    scores[:, rows, begin:last, columns] += _product(writes[begin:last], gradients, parts)
        self._logits(scores, case, change, slopes, (begin, stop), labels)
        return scores

    def _tiles(self, batch: int, pos: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Whole prompts where several fit, else stretches of one."""
        heads = self.layout.n_heads + 2 * self.layout.n_kv_heads
        tokens = max(1, self.tile // ((len(self.layout.senders) + heads + 1) * width))
        if tokens >= pos:
            for first in range(0, batch, tokens // pos):
                yield slice(first, min(batch, first + tokens // pos)), slice(None)
            return
        for row in range(batch):
            for first in range(0, pos, tokens):
                yield slice(row, row + 1), slice(first, first + tokens)

    def _tile_writes(self, change: Written, where: tuple[slice, slice]) -> Float[Tensor, "sender batch pos d_model"]:
        """What every sender adds to the stream at the tokens of a tile."""
        embed = change.embed[where]
        writes = embed.new_empty(len(self.layout.senders), *embed.shape)
        writes[0], at = embed, 1
        for layer in range(self.layout.n_layers):
            if layer in change.heads:
                z = change.heads[layer][where]
                heads = z.shape[2]
                out = writes[at : at + heads].view(heads, -1, embed.shape[-1])
                torch.bmm(z.reshape(-1, *z.shape[2:]).transpose(0, 1), self._output(layer, z), out=out)
                at += heads
            if layer in change.mlps:
                writes[at] = change.mlps[layer][where]
                at += 1
        return writes

    def _slot_gradients(
        self, slopes: Slopes, where: tuple[slice, slice], positions: Int[Tensor, "batch pos"]
    ) -> Iterator[tuple[slice, Float[Tensor, "slot batch pos d_model"]]]:
        """Gradients at the stream through each slot, of q, k and v of a layer together, then of its MLP."""
        for layer, whole in slopes.stream.items():
            if self.layout.has_heads(layer):
                yield self._attention(slopes, layer, whole[where], where, positions[where])
            if self.layout.mlps:
                x, grad = slopes.mid[layer][where], slopes.sites[Site("mlp_in", layer)][where]
                at = self.layout.slot(layer, "in")
                yield slice(at, at + 1), self.ports.pull_back_mlp(layer, grad, x)[None]

    def _attention(
        self, slopes: Slopes, layer: int, x: Tensor, where: tuple[slice, slice], positions: Tensor
    ) -> tuple[slice, Tensor]:
        grads = [self.ports.pull_raw(layer, port, slopes.sites[Site(port, layer)][where], x, positions) for port in QKV]
        matrices, norm = self._slot(layer, x)
        tokens = x.shape[0] * x.shape[1]
        divisor = None if norm is None else norm.divisor(x).reshape(tokens, 1, 1)
        gradients = x.new_empty(sum(m.shape[0] for m in matrices), tokens, x.shape[-1])
        at = 0
        for grad, matrix in zip(grads, matrices, strict=True):
            flat = grad.reshape(tokens, *grad.shape[2:])
            flat = flat if divisor is None else flat / divisor
            torch.bmm(flat.transpose(0, 1), matrix, out=gradients[at : at + len(matrix)])
            at += len(matrix)
        if norm is not None and divisor is not None:
            centred = (x - x.mean(-1, keepdim=True) if norm.centred else x).reshape(tokens, -1)
            along = torch.bmm(gradients.transpose(0, 1), centred[:, :, None])  # token slot 1
            along = along.transpose(0, 1) / (-x.shape[-1] * divisor.reshape(1, tokens, 1).square())
            gradients.addcmul_(along, centred[None])
        first = self.layout.slot(layer, "q")
        return slice(first, first + at), gradients.view(at, *x.shape)

    def _logits(
        self,
        scores: Tensor,
        case: Case,
        change: Written,
        slopes: Slopes,
        senders: tuple[int, int],
        labels: Tensor | None,
    ) -> None:
        """Edges into the logits, where only END has a gradient; written into `scores`."""
        rows = torch.arange(len(slopes.end), device=slopes.end.device)
        end = case.task.end.to(rows.device)
        part = torch.zeros_like(rows) if labels is None else labels[rows, end]
        only = Written(
            change.embed[rows, end][:, None],
            {i: x[rows, end][:, None] for i, x in change.heads.items()},
            {i: x[rows, end][:, None] for i, x in change.mlps.items()},
        )
        writes = self._tile_writes(only, (slice(None), slice(None)))[slice(*senders), :, 0]
        scores[part, rows, slice(*senders), -1] += torch.einsum("ubd,bd->bu", writes, slopes.end)

    def _slot(self, layer: int, like: Tensor) -> tuple[list[Tensor], Norm | None]:
        """[head d_head d_model] of q, k and v with the norm's gain and centring, and the norm."""
        if layer not in self._slots:
            w, norm = self.ports.layer(layer), self.ports.reads[layer].attn
            matrices = [getattr(w, f"w_{port}").mT for port in QKV]
            folded_matrices = [m.contiguous() if norm is None else norm.transpose(m).contiguous() for m in matrices]
            self._slots[layer] = [m.to(like) for m in folded_matrices], None if norm is None else norm.to(like.device)
        return self._slots[layer]

    def _output(self, layer: int, like: Tensor) -> Float[Tensor, "head d_value d_model"]:
        if layer not in self._outputs:
            write, matrix = self.model.writes(layer).attn, self.ports.layer(layer).w_o
            assert write is not None  # ports exist only where attention is told apart
            matrix = matrix if write.norm is None else write.norm.to(matrix.device).linear(matrix)
            self._outputs[layer] = (matrix if write.scale == 1.0 else matrix * write.scale).to(like)
        return self._outputs[layer]


def _one_hot(labels: Int[Tensor, "batch pos"], n: int, like: Tensor) -> Float[Tensor, "label batch pos"]:
    return torch.nn.functional.one_hot(labels, n).to(like).permute(2, 0, 1)


def _product(
    writes: Float[Tensor, "sender batch pos d_model"],
    gradients: Float[Tensor, "slot batch pos d_model"],
    parts: Float[Tensor, "label batch pos"] | None,
) -> Float[Tensor, "label batch sender slot"]:
    """sum over tokens of d . g, or over those of each label."""
    if parts is None:
        d, g = (x.flatten(2).transpose(0, 1) for x in (writes, gradients))
        return torch.bmm(d, g.mT)[None]
    d, g = (x.flatten(1, 2).transpose(0, 1) for x in (writes, gradients))
    by_token = torch.bmm(d, g.mT).unflatten(0, writes.shape[1:3])
    return torch.einsum("rbp,bpuw->rbuw", parts, by_token)
