"""Masks between 0 and 1 that are learned: hard-concrete gates, and a Lagrangian that leads them to a share of zeros.

A gate is z = clamp(s (r - l) + l, 0, 1), s = sigmoid((logit u + a) / t) with u uniform: it is exactly 0 or 1 with some
probability and has a gradient in between; P(z > 0) = sigmoid(a - t log(-l / r)). Louizos et al. 2018, arXiv 1712.01312.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEFT, RIGHT, TEMPERATURE = -0.1, 1.1, 2 / 3
EPS = 1e-6
OPEN = 3.0
"""Where a begins: P(z > 0) = 0.99."""


class Gates:
    """Independent gates; `a` is what is learned."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.a = torch.full((n,), OPEN, device=device, requires_grad=True)

    def sample(self, generator: torch.Generator) -> Float[Tensor, " gate"]:
        """One draw of every gate."""
        u = torch.rand(len(self.a), generator=generator).clamp(EPS, 1 - EPS).to(self.a)
        s = torch.sigmoid((u.logit() + self.a) / TEMPERATURE)
        return (s * (RIGHT - LEFT) + LEFT).clamp(0, 1)

    @property
    def open(self) -> Float[Tensor, " gate"]:
        """P(z > 0)."""
        return torch.sigmoid(self.a - TEMPERATURE * torch.tensor(-LEFT / RIGHT).log())


class Target:
    """l1 (t - s) + l2 (t - s)^2 with multipliers that rise as long as the share s of closed gates misses t."""

    def __init__(self, share: float, device: torch.device) -> None:
        self.share = share
        self.multipliers = torch.zeros(2, device=device, requires_grad=True)

    def loss(self, closed: Float[Tensor, ""], progress: float) -> Float[Tensor, ""]:
        """At a moment of the warm-up, over which t grows from 0 to the share asked for."""
        deficit = self.share * min(1.0, progress) - closed
        return self.multipliers[0] * deficit + self.multipliers[1] * deficit.square()


@dataclass(frozen=True)
class Schedule:
    """How long and how fast gates are trained.

    Attributes:
        steps: at most.
        lr: of gates and multipliers (Adam). The published 0.8 is for 3000 steps: within a few hundred the multipliers
            swing past the target, and on some models the circuit is then no better than chance.
        warm_up: share of the steps over which the target grows.
        lr_warm_up: share over which the learning rate does.
        patience: steps without a lower loss, at the target, after which training ends.
    """

    steps: int = 400
    lr: float = 0.2
    warm_up: float = 0.6
    lr_warm_up: float = 0.07
    patience: int = 80


NEAR = 0.01
"""How far from its target a share may be when training ends early."""
SMOOTH = 0.9


def train(
    parts: list[tuple[Gates, Target]],
    step: Callable[[list[Tensor], int], Tensor],
    schedule: Schedule,
    *,
    seed: int,
    progress: Callable[[int, float, float], None] | None = None,
) -> tuple[int, float]:
    """Train gates; `step` gives the loss of a draw of them. Returns the steps taken and the loss, a running mean.

    `progress` is told step, loss, and the closed share of the first gates. The same seed gives the same gates.
    """
    generator = torch.Generator().manual_seed(seed)
    down = torch.optim.Adam([gates.a for gates, _ in parts], lr=schedule.lr)
    up = torch.optim.Adam([target.multipliers for _, target in parts], lr=schedule.lr, maximize=True)
    mean, best, best_at, n_steps = float("nan"), float("inf"), 0, 0
    for n_steps in range(1, schedule.steps + 1):
        rate = min(1.0, n_steps / max(1.0, schedule.lr_warm_up * schedule.steps))
        for group in (*down.param_groups, *up.param_groups):
            group["lr"] = schedule.lr * rate
        moment = n_steps / max(1.0, schedule.warm_up * schedule.steps)
        value = step([gates.sample(generator) for gates, _ in parts], n_steps)
        closed = [1 - gates.open.mean() for gates, _ in parts]
        loss = value + sum(target.loss(share, moment) for (_, target), share in zip(parts, closed, strict=True))
        parameters = [x for gates, target in parts for x in (gates.a, target.multipliers)]
        for x, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            x.grad = grad
        down.step()
        up.step()
        now = float(value.detach())
        mean = now if n_steps == 1 else SMOOTH * mean + (1 - SMOOTH) * now
        if progress is not None:
            progress(n_steps, mean, float(closed[0].detach()))
        near = all(abs(float(s.detach()) - t.share) <= NEAR for (_, t), s in zip(parts, closed, strict=True))
        if moment < 1 or not near:
            continue
        if mean < best:
            best, best_at = mean, n_steps
        if n_steps - best_at >= schedule.patience:
            break
    return n_steps, mean
