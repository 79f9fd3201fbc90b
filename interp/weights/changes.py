"""`WeightMatrices`: the matrices of a model that can be changed for a run, and `WeightChange`, the edit that does it.

A parameter is never touched: what a change of a matrix adds to the projection's output is added there, by what the same
pass has at its input. So a change works on every backend, ends with its context, and takes gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.edits import Apply, Edit
from interp.errors import BackendError, SiteError
from interp.numerics import wide
from interp.shapes import brief
from interp.sites import Site
from interp.weights.mlp import MLPWeights
from interp.weights.norms import HeadNorm, Norm
from interp.weights.weights import LayerWeights, Weights

ATTENTION, NEURONS = ("w_q", "w_k", "w_v", "w_o"), ("w_in", "w_gate", "w_out")
MATRICES = (*ATTENTION, *NEURONS)
Matrix = tuple[int, str]
"""(layer, name): which of `MATRICES` of which layer."""
Turn = Float[Tensor, "position d_head d_head"]
Row = Callable[[Tensor, Int[Tensor, "batch pos"], Tensor], Tensor]
"""(input, positions, change) -> what is added to the output."""


@dataclass(frozen=True, eq=False)
class WeightMatrices:
    """W_Q, W_K, W_V, W_O [head ...] and W_in, W_gate, W_out of layers, as `Weights` has them.

    Attributes:
        values: by (layer, name); "w_gate" only where there is one.
        missing: why a matrix is none that can be changed: no one set of neurons, or queries that no matrix turns.
        length: positions that a change of W_Q or W_K is made for.
    """

    values: Mapping[Matrix, Float[Tensor, "..."]]
    missing: Mapping[Matrix, str]
    length: int
    attention: Mapping[int, LayerWeights]
    neurons: Mapping[int, MLPWeights]
    turns: Mapping[int, tuple[Turn, Turn] | None]

    __repr__ = brief

    @classmethod
    def of(cls, weights: Weights, *, length: int, layers: Sequence[int] | None = None) -> WeightMatrices:
        """Of some layers, or all; prompts may have `length` tokens."""
        attention: dict[int, LayerWeights] = {}
        neurons: dict[int, MLPWeights] = {}
        turns: dict[int, tuple[Turn, Turn] | None] = {}
        values: dict[Matrix, Tensor] = {}
        missing: dict[Matrix, str] = {}
        for i in range(weights.source.n_layers) if layers is None else layers:
            names = ATTENTION if i in weights.layers else ()
            try:
                attention |= {i: weights[i]} if names else {}
            except BackendError as error:
                names, missing = (), missing | {(i, name): str(error) for name in names}
            try:
                turns |= {i: _turns(weights, i, length)} if names else {}
            except BackendError as error:
                names, missing = ATTENTION[2:], missing | {(i, name): str(error) for name in ATTENTION[:2]}
            values |= {(i, name): getattr(attention[i], name) for name in names}
            try:
                neurons[i] = weights.mlp(i)
                own = {(i, name): getattr(neurons[i], name) for name in NEURONS}
                values |= {key: x for key, x in own.items() if x is not None}
            except BackendError as error:
                missing |= {(i, name): str(error) for name in NEURONS}
        return cls(values, missing, length, attention, neurons, turns)

    def zeros(self, names: Iterable[Matrix] | None = None) -> dict[Matrix, Float[Tensor, "..."]]:
        """No change of each matrix, to be filled, or to take a gradient."""
        return {name: torch.zeros_like(self.values[name]) for name in (self.values if names is None else names)}

    def edits(self, changes: Mapping[Matrix, Float[Tensor, "..."]]) -> list[Edit]:
        """Edits after which the model runs with W + change, for each of the matrices given.

        A change may require a gradient. Several changes of one layer take its input as the run has it, so all of them
        hold together.

        Raises:
            SiteError: a matrix that there is none of, or a change of another shape.
        """
        return [WeightChange(self, name, change) for name, change in changes.items()]

    def row(self, matrix: Matrix) -> Row:
        """What a change of a matrix adds to the projection's output."""
        layer, name = matrix
        if name in ("w_in", "w_gate"):
            return lambda x, positions, change: x @ change
        if name == "w_out":
            m = self.neurons[layer]
            return _behind(m.w_out, m.b_out, m.norm_after)
        w = self.attention[layer]
        if name == "w_o":
            return _behind(w.w_o.flatten(0, 1), w.b_o, w.norm_after)
        norm, turns = getattr(w, f"{name[-1]}_norm"), self.turns.get(layer) if name != "w_v" else None
        turn = None if turns is None else turns[["w_q", "w_k"].index(name)]
        return _head_row(getattr(w, name), getattr(w, f"b_{name[-1]}"), norm, turn)

    def sites(self, matrix: Matrix) -> tuple[Site, Site]:
        """Where a matrix reads and where it writes."""
        layer, name = matrix
        gated = layer in self.neurons and self.neurons[layer].w_gate is not None
        source = {"w_o": "z", "w_out": "mlp_post", **dict.fromkeys(("w_in", "w_gate"), "mlp_in")}.get(name, "attn_in")
        target = {"w_o": "attn_out", "w_out": "mlp_out", "w_in": "mlp_up" if gated else "mlp_pre", "w_gate": "mlp_pre"}
        return Site(source, layer), Site(target.get(name, name[-1]), layer)


@dataclass(frozen=True, eq=False, init=False)
class WeightChange(Apply):
    """W -> W + change, for one of a model's matrices; made by `WeightMatrices.edits`."""

    matrices: WeightMatrices
    matrix: Matrix
    change: Float[Tensor, "..."]

    __repr__ = brief

    def __init__(self, matrices: WeightMatrices, matrix: Matrix, change: Float[Tensor, "..."]) -> None:
        if matrix not in matrices.values:
            why = matrices.missing.get(matrix, f"there are {sorted({name for _, name in matrices.values})} of layers")
            raise SiteError(f"layer {matrix[0]} has no {matrix[1]} to change: {why}")
        if change.shape != matrices.values[matrix].shape:
            shapes = f"{tuple(change.shape)}; the matrix is {tuple(matrices.values[matrix].shape)}"
            raise SiteError(f"layer {matrix[0]}, {matrix[1]}: a change of shape {shapes}")
        fields = {"site": matrices.sites(matrix)[1], "function": _alone, "rows": None, "positions": None}
        for name, value in (fields | {"matrices": matrices, "matrix": matrix, "change": change}).items():
            object.__setattr__(self, name, value)

    @property
    def parts(self) -> Sequence[Edit]:
        """A reader where the matrix reads, and a writer where it writes."""
        passage = _Passage(self)
        source, target = self.matrices.sites(self.matrix)
        return [_Part(source, passage.read, passage), _Part(target, passage.write, passage)]


@dataclass(frozen=True, eq=False)
class _Part(Apply):
    narrows: ClassVar[bool] = False
    passage: _Passage

    def begin(self, mask: Bool[Tensor, "batch prompt"], offset: int) -> None:
        self.passage.begin(mask, offset)


class _Passage:
    """What one forward pass has read; a pass may come in pieces, which each site has in the same order."""

    def __init__(self, edit: WeightChange) -> None:
        self.row, self.change = edit.matrices.row(edit.matrix), edit.change
        self.length = edit.matrices.length if edit.matrix[1] in ("w_q", "w_k") else None
        self.begin(torch.ones(0, 0, dtype=torch.bool), 0)

    def begin(self, mask: Tensor, offset: int) -> None:
        self.mask, self.offset, self.written = mask, offset, 0
        self.pieces: list[tuple[int, Tensor]] = []

    def read(self, x: Tensor) -> Tensor:
        self.pieces.append((self.offset + sum(piece.shape[1] for _, piece in self.pieces), x))
        return x

    def write(self, y: Tensor) -> Tensor:
        column, x = self.pieces[self.written]
        self.written += 1
        row = self.row(wide(x), self._positions(x, column), self.change.to(x.device))
        return y + row.reshape(y.shape).to(y.dtype)

    def _positions(self, x: Tensor, column: int) -> Int[Tensor, "batch pos"]:
        """Of each token among the real ones of its prompt; those behind the prompt go on counting."""
        real = torch.ones(len(x), column + x.shape[1], dtype=torch.bool, device=x.device)
        if len(self.mask) == len(x):
            n = min(self.mask.shape[1], real.shape[1])
            real[:, :n] = self.mask[:, :n].to(x.device)
        positions = (real.cumsum(1) - 1).clamp(min=0)[:, column:]
        if self.length is not None and int(positions.max()) >= self.length:
            raise SiteError(
                f"a change made for prompts of {self.length} tokens; here is one of {int(positions.max()) + 1}"
            )
        return positions


def _turns(weights: Weights, layer: int, length: int) -> tuple[Turn, Turn] | None:
    """What positions do to queries and keys; None where that is nothing."""
    turns = weights.source.turns(layer, range(length))
    eye = torch.eye(turns[0].shape[-1])
    return None if all(torch.equal(turn, eye.expand_as(turn)) for turn in turns) else turns


def _behind(matrix: Float[Tensor, "width d_model"], bias: Float[Tensor, " d_model"], norm: Norm | None) -> Row:
    """What a change of an output projection adds, through the norm behind it where there is one."""

    def row(x: Tensor, positions: Tensor, change: Tensor) -> Tensor:
        x = x.flatten(2)
        more = x @ change.reshape(-1, change.shape[-1])
        if norm is None:
            return more
        own, raw = norm.to(x.device), x @ matrix.to(x) + bias.to(x)
        return own(raw + more) - own(raw)

    return row


def _head_row(
    matrix: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"],
    norm: HeadNorm | None,
    turn: Turn | None,
) -> Row:
    """What a change of W_Q, W_K or W_V adds, through the norm of heads and the turn of each position."""

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        return x if turn is None else torch.einsum("bphd,bpde->bphe", x, turn.to(x)[positions])

    def behind(x: Tensor, positions: Tensor) -> Tensor:
        if norm is None:
            return turned(x, positions)
        own = norm.to(x.device)
        return own(turned(x, positions)) if norm.after_rotary else turned(own(x), positions)

    def row(x: Tensor, positions: Tensor, change: Tensor) -> Tensor:
        more = torch.einsum("bpm,hmd->bphd", x, change)
        if norm is None:
            return turned(more, positions)
        raw = torch.einsum("bpm,hmd->bphd", x, matrix.to(x)) + bias.to(x)
        return behind(raw + more, positions) - behind(raw, positions)

    return row


def _alone(x: Tensor) -> Tensor:
    raise SiteError("a change of weights is carried out by the model that it is given to, as `parts` at its sites")
