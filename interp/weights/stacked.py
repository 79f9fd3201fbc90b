"""`StackedWeights`: one tensor over all layers of each matrix, as TransformerLens has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import BackendError
from interp.weights.mlp import MLPWeights


@runtime_checkable
class _Layers(Protocol):
    """What stacks are made of."""

    source: Any
    layers: tuple[int, ...]

    def __getitem__(self, layer: int) -> Any: ...

    def mlp(self, layer: int) -> MLPWeights: ...


class StackedWeights:
    """Matrices of all layers at once; each call reads and copies all of them: take layers singly in large models.

    Rows of attention are those of `layers`, the layers that have attention; rows of MLPs are all layers.

    Raises:
        BackendError: layers differ in their sizes, or one has no such matrix.
    """

    @property
    def w_q(self: _Layers) -> Float[Tensor, "layer head d_model d_head"]:
        """W_Q of every head."""
        return _stack("w_q", self.__getitem__, self.layers)

    @property
    def w_k(self: _Layers) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """W_K of every key-value head; query head h reads h // group."""
        return _stack("w_k", self.__getitem__, self.layers)

    @property
    def w_v(self: _Layers) -> Float[Tensor, "layer kv_head d_model d_value"]:
        """W_V of every key-value head."""
        return _stack("w_v", self.__getitem__, self.layers)

    @property
    def w_o(self: _Layers) -> Float[Tensor, "layer head d_value d_model"]:
        """W_O of every head."""
        return _stack("w_o", self.__getitem__, self.layers)

    @property
    def w_in(self: _Layers) -> Float[Tensor, "layer d_model d_mlp"]:
        """What each neuron reads (behind a gate: the part that the gate multiplies)."""
        return _stack("w_in", self.mlp, range(self.source.n_layers))

    @property
    def w_gate(self: _Layers) -> Float[Tensor, "layer d_model d_mlp"]:
        """What each neuron's gate reads."""
        return _stack("w_gate", self.mlp, range(self.source.n_layers))

    @property
    def w_out(self: _Layers) -> Float[Tensor, "layer d_mlp d_model"]:
        """What each neuron writes."""
        return _stack("w_out", self.mlp, range(self.source.n_layers))


def _stack(name: str, layer: Callable[[int], Any], layers: Sequence[int]) -> Tensor:
    rows = []
    for i in layers:
        matrix = getattr(layer(i), name)
        if matrix is None:
            raise BackendError(f"layer {i} has no {name}: its MLP has no gate")
        rows.append(matrix)
    shapes = {tuple(x.shape) for x in rows}
    if len(shapes) > 1:
        raise BackendError(f"{name}: layers differ in their sizes {sorted(shapes)}; take them one by one: weights()[3]")
    return torch.stack(rows)
