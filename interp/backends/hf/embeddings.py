"""`Embeddings`: the modules that embed tokens and positions, verified by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.backends.hf.watch import Event


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What embeds tokens and positions.

    Attributes:
        tokens, positions: the modules, None where there is none.
        normed: whether a norm takes the sum before the layers do.
        missing: why a kind of site does not exist.
    """

    tokens: nn.Module | None = None
    positions: nn.Module | None = None
    normed: bool = False
    missing: dict[str, str] = field(default_factory=dict)


def embeddings(model: PreTrainedModel, blocks: str, first: Event, events: Sequence[Event]) -> Embeddings:
    """Embeddings in front of the layers at path `blocks`; `first` is the event of the first layer.

    Positions are embedded by a module whose output, with that of tokens, is what enters the layers, or what a norm in
    front of them takes.
    """
    tokens = model.get_input_embeddings()
    outside = [e for e in events if not e.within(blocks) and e.path != blocks and e.outputs]
    own = next((e for e in outside if e.module is tokens), None)
    if own is None:
        why = "the embedding of tokens is not called as a module"
        return Embeddings(missing=dict.fromkeys(("token_embed", "pos_embed"), why))
    x, t = first.inputs[0], own.outputs[0]
    norm = next((e for e in outside if e.is_norm and e.gave[:1] == first.took[:1]), None)
    total = x if norm is None else norm.inputs[0]
    others = [e for e in outside if e is not own and e.outputs[0].shape[-2:] == t.shape[-2:] == total.shape[-2:]]
    added = next((e for e in others if _sum(t, e.outputs[0], total)), None)
    if added is not None:
        return Embeddings(tokens, added.module, norm is not None)
    why = "no module's output is added to the embedding of tokens: positions enter elsewhere, or along with more"
    return Embeddings(tokens, None, norm is not None, {"pos_embed": why})


def _sum(tokens: Tensor, positions: Tensor, total: Tensor) -> bool:
    error = float((tokens.double() + positions.double() - total.double()).abs().max())
    return bool(positions.any()) and error <= 4 * float(total.abs().max()) * torch.finfo(total.dtype).eps
