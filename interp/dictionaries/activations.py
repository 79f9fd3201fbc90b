"""Activations of dictionaries, as values: from a = x W and a bias to features. Normalisations of what goes in.

Each is called with a [... feature] and b [feature] apart, since a gated dictionary biases a twice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SchemaError, nearest

EPS = 1e-5  # of SAELens's layer norm


@dataclass(frozen=True, eq=False)
class Activation:
    """What makes features of a = x W and a bias b; each kind is a subclass."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Features [... feature]."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Its kind in a word, with what it is given: topk(32)."""
        return type(self).__name__.lower()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its parameters, one number for each feature or one for all."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> Activation:
        """The same on another device, in another dtype."""
        return replace(self, **{name: x.to(device=device, dtype=dtype) for name, x in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class ReLU(Activation):
    """f = max(a + b, 0)."""

    def __call__(self, a: Float[Tensor, "*batch feature"], b: Float[Tensor, " feature"]) -> Tensor:
        """Features [... feature]."""
        return (a + b).relu()


@dataclass(frozen=True, eq=False)
class TopK(Activation):
    """The k largest of max(a + b, 0) at each token; the others are 0 (Gao et al. 2024)."""

    k: int

    def __call__(self, a: Float[Tensor, "*batch feature"], b: Float[Tensor, " feature"]) -> Tensor:
        """Features [... feature]."""
        values, index = (a + b).relu().topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(a).scatter(-1, index, values)

    @property
    def name(self) -> str:
        """topk(k)."""
        return f"topk({self.k})"


@dataclass(frozen=True, eq=False)
class GroupMax(Activation):
    """The largest of max(a + b, 0) in each of k groups of neighbouring features (sparsify)."""

    k: int

    def __call__(self, a: Float[Tensor, "*batch feature"], b: Float[Tensor, " feature"]) -> Tensor:
        """Features [... feature]."""
        groups = (a + b).relu().unflatten(-1, (self.k, -1))
        values, index = groups.max(dim=-1, keepdim=True)
        return torch.zeros_like(groups).scatter(-1, index, values).flatten(-2)

    @property
    def name(self) -> str:
        """groupmax(k)."""
        return f"groupmax({self.k})"


@dataclass(frozen=True, eq=False)
class BatchTopK(Activation):
    """max(a + b, 0) where it is above one threshold for all features, k of them at a token on average.

    The threshold is estimated in training (Bussmann et al. 2024), so that a token's features do not depend on the
    tokens beside it. `threshold` None: none was estimated, and the k n largest of all n tokens given are kept.
    """

    k: int
    threshold: Float[Tensor, ""] | None = None

    def __call__(self, a: Float[Tensor, "*batch feature"], b: Float[Tensor, " feature"]) -> Tensor:
        """Features [... feature]."""
        f = (a + b).relu()
        if self.threshold is not None:
            return f * (f > self.threshold)
        values, index = f.flatten().topk(min(self.k * (f.numel() // f.shape[-1]), f.numel()), sorted=False)
        return torch.zeros_like(f).flatten().scatter(0, index, values).view_as(f)

    @property
    def name(self) -> str:
        """batchtopk(k)."""
        return f"batchtopk({self.k})"


@dataclass(frozen=True, eq=False)
class JumpReLU(Activation):
    """f = (a + b) where a + b > threshold, else 0 (Rajamanoharan et al. 2024).

    `rectify`: negative values are 0 even where a threshold is below 0, as SAELens has it and circuit-tracer has not.
    """

    threshold: Float[Tensor, " feature"]
    rectify: bool = True

    def __call__(self, a: Float[Tensor, "*batch feature"], b: Float[Tensor, " feature"]) -> Tensor:
        """Features [... feature]."""
        before = a + b
        f = before.relu() if self.rectify else before
        return f * (before > self.threshold)


@dataclass(frozen=True, eq=False)
class Gated(Activation):
    """f = 1[a + gate > 0] max(a exp(scale) + b, 0) (Rajamanoharan et al. 2024); `scale` is their r_mag."""

    gate: Float[Tensor, " feature"]
    scale: Float[Tensor, " feature"]

    def __call__(self, a: Float[Tensor, "*batch feature"], b: Float[Tensor, " feature"]) -> Tensor:
        """Features [... feature]."""
        return (a + self.gate > 0) * (a * self.scale.exp() + b).relu()


@dataclass(frozen=True)
class Normalisation:
    """What is done to x before it is encoded, and undone to what is decoded.

    Attributes:
        kind: "none"; "layer_norm", (x - mean) / (sd + 1e-5) over the width at each token, sd with d - 1;
            "constant_norm", x sqrt(d) / |x|; "scale", x times `scale`, one number for all tokens.
        undo: whether the inverse is applied to the decoded, as autoencoders do and transcoders, which write elsewhere,
            do not.
    """

    kind: str = "none"
    undo: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in NORMALISATIONS:
            raise SchemaError(f"unknown normalisation {self.kind!r}; {nearest(str(self.kind), NORMALISATIONS)}")

    def apply(self, x: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """(n, shift, factor) with x = n factor + shift."""
        if self.kind == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            sd = (x - shift).std(-1, keepdim=True)
            return (x - shift) / (sd + EPS), shift, sd
        if self.kind == "constant_norm":
            factor = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            return x / factor, 0.0, factor
        if self.kind == "scale":
            return x * self.scale, 0.0, 1 / self.scale
        return x, 0.0, 1.0


NORMALISATIONS = ("none", "layer_norm", "constant_norm", "scale")
ACTIVATIONS = (ReLU, TopK, GroupMax, BatchTopK, JumpReLU, Gated)
