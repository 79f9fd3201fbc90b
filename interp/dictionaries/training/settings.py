"""`Settings`: what kind of dictionary is trained, how large and for how long, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch

from interp.errors import SchemaError, UnknownEntry, nearest

KINDS = ("topk", "batchtopk", "jumprelu", "standard", "gated")
REVIVALS = ("aux", "resample", "none")
PENALISED = ("standard", "gated")
"""Kinds that are sparse by a penalty on sum f / sqrt(d)."""
SHRINKAGE = 0.25
"""Share by which that penalty makes an active feature smaller, unless its weight is said."""


@dataclass(frozen=True)
class Settings:
    """What fixes a training run, beside its data.

    Lengths and losses are those of activations scaled so that E|x| = sqrt(d).

    Attributes:
        kind: "topk" (Gao et al. 2024), "batchtopk" (Bussmann et al. 2024), "jumprelu" and "gated" (Rajamanoharan et al.
            2024), "standard" (ReLU with an L1 penalty, Bricken et al. 2023).
        n_features: of each member.
        k: active features of a token: exactly ("topk"), on average over a batch ("batchtopk"), or what is aimed at.
        sparsity: weight of the sparsity loss: of sum f / sqrt(d) for "standard" and "gated", of (L0 / k - 1)^2 for
            "jumprelu". None: 1 for "jumprelu", `penalty` for the other two, from where that of "gated" is steered to
            an L0 of k (`losses.steer`). "standard" cannot be: what makes its features few makes them small.
        steps: updates. batch_size: tokens of each.
        learning_rate: of Adam; it rises over the first 5 % of the steps and falls to 0 over the last 20 %.
        seed: of the parameters and of the order of the data.
        revival: of features that are dead: "aux", a loss by which they explain what is left over (Gao et al. 2024);
            "resample", set anew to what is explained worst (Bricken et al. 2023); "none". None: "aux" for "topk" and
            "batchtopk", "resample" for the others.
        dead_after: tokens without it after which a feature is dead.
        aux_k: dead features that the loss lets explain; None: half of the width. aux_weight: of that loss.
        resample_every: steps; not in the last quarter.
        skip: whether a transcoder has a linear skip connection (Paulo et al. 2025).
        threshold, bandwidth: of "jumprelu": where thresholds start, and the width of the kernel of their gradient.

    Raises:
        SchemaError: a kind or revival that is none, or numbers out of range.
    """

    kind: str = "batchtopk"
    n_features: int = 1024
    k: int = 32
    sparsity: float | None = None
    steps: int = 2000
    batch_size: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0
    revival: str | None = None
    dead_after: int = 50_000
    aux_k: int | None = None
    aux_weight: float = 1 / 32
    resample_every: int = 250
    skip: bool = False
    threshold: float = 0.5
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name, known in (("kind", KINDS), ("revival", REVIVALS)):
            value = getattr(self, name)
            if value not in known and not (name == "revival" and value is None):
                raise UnknownEntry(f"unknown {name} {value!r} of a dictionary; {nearest(str(value), known)}")
        for name in ("n_features", "k", "steps", "batch_size", "dead_after", "resample_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SchemaError(f"{name} is {value!r}; expected a whole number from 1 on")
        if self.k > self.n_features:
            raise SchemaError(f"k is {self.k}, and there are {self.n_features} features; lower it")
        for name in ("learning_rate", "threshold", "bandwidth"):
            if not getattr(self, name) > 0:
                raise SchemaError(f"{name} is {getattr(self, name)!r}; it must be above 0")

    @property
    def steered(self) -> bool:
        """Whether the weight of the sparsity loss follows L0, each member's its own."""
        return self.sparsity is None and self.kind == "gated"

    @property
    def penalty(self) -> float:
        """2 r / sqrt(k), with which a penalty on sum f / sqrt(d) shrinks features by the share r = .25.

        Of k active features, orthogonal and of one size m, sum f^2 = k m^2 = d. What minimises (m - f)^2 / d + w f /
        sqrt(d) is f = m - w sqrt(d) / 2, smaller by the share w sqrt(k) / 2, whatever the width and the units.
        """
        return 2 * SHRINKAGE / self.k**0.5

    @property
    def weight(self) -> float:
        """Of the sparsity loss; where it is steered, at the start."""
        if self.sparsity is not None:
            return self.sparsity
        return {"jumprelu": 1.0, **dict.fromkeys(PENALISED, self.penalty)}.get(self.kind, 0.0)

    @property
    def revives_by(self) -> str:
        """How dead features are revived."""
        return self.revival or ("aux" if self.kind in ("topk", "batchtopk") else "resample")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        done = (step + 1) / self.steps
        return self.learning_rate * min(1.0, done / 0.05, (1 - step / self.steps) / 0.2)


def generator(*numbers: int | str) -> torch.Generator:
    """Random numbers that depend on these alone, so that an interrupted run draws what it would have drawn."""
    return torch.Generator().manual_seed(Random(" ".join(map(str, numbers))).getrandbits(63))
