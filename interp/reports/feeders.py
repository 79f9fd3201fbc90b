"""What wrote into the MLP that adds most to an answer: each component taken out of what it reads, the MLP run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import mlp_name
from interp.decompose import Decomposition, decompose
from interp.errors import BackendError, NotApplicable
from interp.model import Model
from interp.reports.cells import Cell, signed

NAMED = 4  # components that are named


@dataclass(frozen=True)
class Feeders:
    """The MLP that adds most to an answer and what wrote into it.

    Attributes:
        mlp: its name. value: what it adds, in logits.
        names, losses: components, and by how much less it adds without each, the largest change first.
        why: the reason where it cannot be told; `names` is empty then.
    """

    mlp: str
    value: Cell
    names: list[str]
    losses: list[Cell]
    why: str = ""


def feeders(
    model: Model, ids: Sequence[int], answer: int, wrong: int | None, groups: Mapping[str, float]
) -> Feeders | None:
    """What the largest MLP of a sum reads, by w . (MLP(x) - MLP(x - c)) for each component c of the stream x before it.

    w is the direction that the logit of the answer reads, less that of the wrong one or of the mean over the
    vocabulary, with the final norm's divisor held. Each component is taken out alone: what two of them do together is
    in both numbers, or in neither.

    Args:
        model: any loaded model.
        ids: the prompt; the answer is due behind its last token.
        answer: token id.
        wrong: another, or None for the mean over the vocabulary.
        groups: parts of the sum, of which `MLP 3` is one.

    Returns:
        None where no MLP is among the parts.
    """
    sizes = {int(name.split()[1]): value for name, value in groups.items() if name.startswith("MLP ")}
    if not sizes:
        return None
    layer = max(sizes, key=lambda at: abs(sizes[at]))
    name, value = mlp_name(layer), signed(sizes[layer])
    try:
        lost = _losses(model, decompose(model, list(ids)), layer, answer, wrong)
    except (NotApplicable, BackendError) as error:
        return Feeders(name, value, [], [], str(error))
    best = sorted(lost, key=lambda at: -abs(lost[at]))[:NAMED]
    return Feeders(name, value, best, [signed(lost[at]) for at in best])


def _losses(model: Model, parts: Decomposition, layer: int, answer: int, wrong: int | None) -> dict[str, float]:
    """By how many logits less the MLP adds without each component of what it reads."""
    from probes.mlp._regression import enters, leaves
    from probes.mlp.inputs import LoneMLP

    mlp, parallel = LoneMLP.of(model, layer), model.reads(layer).parallel
    index = [i for i, term in enumerate(parts.terms) if enters(term, layer, parallel=parallel)]
    read = parts.vectors[index][:, 0]
    written = parts.vectors[[i for i, term in enumerate(parts.terms) if leaves(term, layer)]].sum(0)
    mlp.check(model, read.sum(0)[None], written)
    w = _direction(model, parts.residual[0], answer, wrong)
    with torch.no_grad():
        whole, without = mlp(read.sum(0)), mlp(read.sum(0) - read)
    change = ((whole - without) @ w.to(whole)).tolist()
    return {parts.terms[i].name: x for i, x in zip(index, change, strict=True)}


def _direction(
    model: Model, residual: Float[Tensor, " d_model"], answer: int, wrong: int | None
) -> Float[Tensor, " d_model"]:
    """What a change of the stream before the final norm is multiplied by to give the change of the logit."""
    weights = model.weights()
    w_u = weights.w_u.detach().to(residual)
    w = w_u[:, answer] - (w_u.mean(1) if wrong is None else w_u[:, wrong])
    norm = weights.final_norm
    return w if norm is None else norm.to(w.device).transpose(w) / norm.divisor(residual)
