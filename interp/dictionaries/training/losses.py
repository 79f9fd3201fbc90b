"""What is minimised: the error, sparsity by kind, and what revives dead features."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.dictionaries.training.coder import Coder, Coders, Passage
from interp.dictionaries.training.settings import generator
from interp.dictionaries.training.streams import Activations

RAMP = 0.1
"""Fraction of the run over which the weight of the sparsity loss rises from 0."""
STEER = 2.0
"""Rate of a steered weight's logarithm, of the learning rate."""
UNTIL = 0.75
"""Fraction of the run after which no feature is resampled."""
ENCODER = 0.2
"""Length of the encoder of a resampled feature, of the mean length of living ones (Bricken et al. 2023)."""


def loss(coders: Coders, passage: Passage, batch: Activations) -> tuple[Tensor, dict[str, Tensor]]:
    """sum over sites of E|y - y_hat|^2 / d, the sparsity loss of the kind, and the auxiliary loss of dead features."""
    settings = coders.settings
    parts = {"error": _error(passage.y, passage.y_hat)}
    total = parts["error"]
    if settings.weight:
        sparsity = torch.stack([_sparsity(c, p.before, passage, i) for i, (c, p) in _members(coders, passage)])
        weights = torch.stack([coder.weight for coder in coders.coders])
        parts["sparsity"] = sparsity.sum()
        total = total + min(1.0, batch.progress / RAMP) * (weights * sparsity).sum()
    if settings.kind == "gated":
        parts["gate"] = _error(passage.y, _by_gates(coders, passage))
        total = total + parts["gate"]
    if settings.revives_by == "aux" and settings.aux_weight:
        aux = [_aux(c, p.before, passage, coders.outs[i]) for i, (c, p) in _members(coders, passage)]
        parts["aux"] = torch.stack(aux).sum()
        total = total + settings.aux_weight * parts["aux"]
    return total, {name: x.detach() for name, x in parts.items()}


def after(coders: Coders, optimizer: torch.optim.AdamW, step: int, batch: Activations) -> None:
    """Decoders to unit norm; the weight of the sparsity loss is steered; now and then dead features are resampled."""
    settings = coders.settings
    coders.to_unit_norm()
    if settings.steered:
        steer(coders, step)
    due = (step + 1) % settings.resample_every == 0 and step + 1 <= UNTIL * settings.steps
    if settings.revives_by == "resample" and due:
        resample(coders, optimizer, batch, generator("resample", settings.seed, step))


@torch.no_grad()
def steer(coders: Coders, step: int) -> None:
    """ln w += STEER rate clip(ln(L0 / k), -1, 1), for each member's weight w of the sparsity loss.

    At rest L0 is k. It moves with the learning rate, as what it waits for does.
    """
    rate = STEER * coders.settings.rate(step)
    for coder in coders.coders:
        error = (coder.active.clamp(min=1e-3) / coder.settings.k).log().clamp(-1, 1)
        coder.weight.mul_((rate * error).exp())


@torch.no_grad()
def resample(coders: Coders, optimizer: torch.optim.AdamW, batch: Activations, random: torch.Generator) -> int:
    """Set dead features to the errors of tokens, drawn by their squared error; returns how many.

    The decoder becomes the token's error at unit norm, the encoder the token's input less the mean, of a fifth of the
    mean length of living encoders, biases 0 and thresholds as at the start; the optimiser's moments of these are 0.
    """
    coders.eval()
    passage = coders(batch)
    coders.train()
    count = 0
    for i, (coder, _) in _members(coders, passage):
        dead = coder.dead.nonzero()[:, 0]
        if not len(dead):
            continue
        left = torch.stack([passage.y[o] - passage.y_hat[o] for o in coders.outs[i]], 1)
        chances = left.square().sum((1, 2)).double().cpu()
        drawn = torch.multinomial(chances, len(dead), replacement=len(dead) > len(batch), generator=random)
        drawn = drawn.to(dead.device)
        x = passage.x[i] - (coder.b_dec if coder.tied else passage.x[i].mean(0))
        length = coder.w_enc[:, ~coder.dead].norm(dim=0).mean().nan_to_num(1.0)
        coder.w_dec[dead] = left[drawn] / left[drawn].norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        towards = left[drawn, 0] if coder.tied else x[drawn]
        coder.w_enc[:, dead] = ENCODER * length * torch.nn.functional.normalize(towards, dim=1).mT
        shift = (
            torch.zeros(len(dead), device=dead.device) if coder.tied else -passage.x[i].mean(0) @ coder.w_enc[:, dead]
        )
        coder.b_enc[dead] = shift
        if coder.gate is not None and coder.scale is not None:
            coder.gate[dead], coder.scale[dead] = shift, 0.0
        if coder.log_threshold is not None:
            coder.log_threshold[dead] = torch.tensor(coder.settings.threshold).log().to(dead.device)
        for name, parameter in coder.named_parameters():
            if name in ("b_dec", "skip"):
                continue
            for moment in ("exp_avg", "exp_avg_sq"):
                value = optimizer.state[parameter][moment]
                value[(slice(None), dead) if name == "w_enc" else dead] = 0.0
        coder.silent[dead] = 0
        count += len(dead)
    return count


def _members(coders: Coders, passage: Passage):  # noqa: ANN202
    return enumerate(zip(coders.coders, passage.codes, strict=True))


def _error(y: list[Tensor], y_hat: list[Tensor]) -> Tensor:
    return torch.stack([(a - b).square().sum(-1).mean() / a.shape[1] for a, b in zip(y, y_hat, strict=True)]).sum()


def _sparsity(coder: Coder, before: Tensor, passage: Passage, member: int) -> Tensor:
    """(L0 / k - 1)^2, or E sum f / sqrt(d), of gates before their step where there are some."""
    if coder.log_threshold is not None:
        return (coder.l0(passage.codes[member]) / coder.settings.k - 1).square()
    f = passage.codes[member].f if coder.gate is None else before.relu()
    return f.sum(-1).mean() / coder.w_dec.shape[2] ** 0.5


def _by_gates(coders: Coders, passage: Passage) -> list[Tensor]:
    """What gates before their step would write through the decoders, which get no gradient of it."""
    written = [torch.zeros_like(y) for y in passage.y]
    for i, (coder, codes) in _members(coders, passage):
        w, outs = coder.directions.detach(), coders.outs[i]
        constant = coder.b_dec.detach() + (0 if coder.skip is None else passage.x[i] @ coder.skip.detach())
        for j, out in enumerate(outs):
            written[out] = written[out] + codes.before.relu() @ w[:, j] + (constant if j == 0 else 0)
    return written


def _aux(coder: Coder, before: Tensor, passage: Passage, outs: tuple[int, ...]) -> Tensor:
    """|e - e_hat|^2 / |e|^2 with e what is left over, and e_hat the dead features that are largest there."""
    dead = coder.dead.nonzero()[:, 0]
    if not len(dead):
        return before.new_zeros(())
    left = torch.cat([(passage.y[o] - passage.y_hat[o]).detach() for o in outs], -1)
    k = min(coder.settings.aux_k or max(1, coder.w_dec.shape[2] // 2), len(dead))
    values, index = before[:, dead].relu().topk(k, dim=-1, sorted=False)
    f = torch.zeros_like(before[:, dead]).scatter(-1, index, values)
    missed = (left - f @ coder.directions[dead].flatten(1)).square().sum()
    return missed / left.square().sum().clamp(min=1e-12)
