"""W_V and W_O of every head, read off the modules by feeding them a basis.

Fused projections, interleaved layouts, transposed weights, quantised layers: whatever the module computes is the
matrix. `value = W_V x + b` is linear in the attention input, so the basis vectors and zero give W_V exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.attention import Call, Recorder, intercept
from interp.backends.anatomy import AttentionPart, input_device
from interp.errors import BackendError

CHUNK = 256  # basis vectors per call


def output_matrix(part: AttentionPart) -> Float[Tensor, "head d_value d_model"]:
    """W_O of each head: z_h W_O[h] summed over heads, plus a bias, is what the projection gives."""
    parameter = next(part.output.parameters())
    basis = torch.eye(part.n_heads * part.d_value, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        matrix = part.output(basis) - part.output(torch.zeros_like(basis[:1]))
    return matrix.float().cpu().unflatten(0, (part.n_heads, -1))


def value_matrices(
    model: PreTrainedModel, parts: Sequence[AttentionPart]
) -> dict[int, Float[Tensor, "kv_head d_model d_value"]]:
    """W_V of each layer's key-value groups, without the gain of the norm before attention.

    Raises:
        BackendError: the values are not a linear function of the attention input (a norm on values, say).
    """
    inputs = _attention_inputs(model, parts)
    return {part.layer: _value_matrix(model, part, *inputs[part.layer]) for part in parts}


def _attention_inputs(model: PreTrainedModel, parts: Sequence[AttentionPart]) -> dict[int, tuple[tuple, dict]]:
    """Arguments each attention module receives for a prompt of CHUNK tokens, to be reused with another input."""
    seen: dict[int, tuple[tuple, dict]] = {}
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or CHUNK
    tokens = torch.zeros(1, min(CHUNK, limit), dtype=torch.long, device=input_device(model))

    def keep(layer: int):
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            seen[layer] = (args, kwargs)

        return hook

    handles = [p.module.register_forward_pre_hook(keep(p.layer), with_kwargs=True) for p in parts]
    try:
        with torch.no_grad(), intercept(model, Recorder()):
            model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _value_matrix(model: PreTrainedModel, part: AttentionPart, args: tuple, kwargs: dict) -> Tensor:
    hidden = args[0] if args else kwargs["hidden_states"]
    n, width = hidden.shape[1], hidden.shape[-1]
    rows = torch.cat([torch.zeros(1, width), torch.eye(width), 2 * torch.eye(width)[:1]]).to(hidden)
    values: list[Tensor] = []
    for chunk in rows.split(n):
        given = torch.zeros_like(hidden)
        given[0, : len(chunk)] = chunk
        values.append(_values(model, part, given, args, kwargs)[:, : len(chunk)])
    value = torch.cat(values, dim=1).float().cpu()  # kv_head, 1 + d_model + 1, d_value
    bias, matrix, twice = value[:, :1], value[:, 1:-1], value[:, -1:]
    matrix = matrix - bias
    if not torch.allclose(twice - bias, 2 * matrix[:, :1], rtol=1e-2, atol=1e-5):
        raise BackendError(f"layer {part.layer}: values are not linear in the attention input, so there is no W_V")
    return matrix


def _values(model: PreTrainedModel, part: AttentionPart, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
    caught: list[Tensor] = []

    def watch(layer: int, call: Call) -> None:
        caught.append(call.value[0])

    with torch.no_grad(), intercept(model, Recorder(watch=watch)):
        if args:
            part.module(hidden, *args[1:], **kwargs)
        else:
            part.module(**{**kwargs, "hidden_states": hidden})
    return caught[0]
