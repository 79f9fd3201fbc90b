"""`Mechanism`: heads in an order, subspaces, weights, a task and a closed form of its effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.components import Edge
from interp.zoo.planted.mechanisms.planted_vocabulary import Task, Vocabulary
from interp.zoo.planted.mechanisms.sketch import CONSTANT, RATES, Sketch

Place = tuple[int, int]
EXPECTED_PERIOD = 32
"""Block length T of the prompts that expected scores are for: `<bos>` and T words, twice."""


@dataclass(frozen=True)
class Slot:
    """One head of a mechanism: its role, the roles that must stand in earlier layers, the layers it may have."""

    role: str
    after: tuple[str, ...] = ()
    first_layer: int = 0
    last_layer: int | None = None
    also: tuple[str, ...] = ()
    """What it does as heads of other roles do: see `Truth.kinds`."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Base of all mechanisms: frozen values, listed in the call of `plant`."""

    at: Place | tuple[Place, ...] | None = None
    """(layer, head) of each of its heads, in the order of `slots`; None: wherever the seed says."""

    name: ClassVar[str] = ""
    slots: ClassVar[tuple[Slot, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    """Mechanisms that this one reads from: planted as well where the caller does not list them."""
    table: ClassVar[str] = ""
    """Role of its MLP neurons, where it has some."""
    named: ClassVar[tuple[str, ...]] = ()
    """Roles of what is neither a head nor a neuron: the keys of `other_parts`."""

    def places(self) -> tuple[Place, ...] | None:
        """`at` as one place per slot; ValueError where the numbers differ."""
        if self.at is None:
            return None
        flat: Any = self.at
        places: tuple[Place, ...] = (flat,) if isinstance(flat[0], int) else flat
        if len(places) != len(self.slots):
            raise ValueError(f"{self.name} has {len(self.slots)} heads; `at` names {len(places)} places")
        return places

    def claims(self, vocab: Vocabulary) -> Mapping[str, int]:
        """Subspaces that it writes, with their sizes."""
        return {}

    def words(self) -> int:
        """Words that the vocabulary must have: one more than the highest number that the mechanism names."""
        return 0

    def neurons(self) -> int:
        """MLP neurons that it needs in one layer."""
        return 0

    def write(self, sketch: Sketch, places: Mapping[str, Place]) -> None:
        """Write its weights, heads at `places` by role."""
        raise NotImplementedError

    def edges(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Connections; `names` gives a component per role, those of needed mechanisms included."""
        return ()

    def beside(self, names: Mapping[str, str]) -> Sequence[Edge]:
        """Connections that it writes and that its own task has no use for: a query that reads where to park."""
        return ()

    def other_parts(self, names: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        """Role -> names of what plays it; see `Truth.named`. `names` as for `edges`."""
        return {}

    def task(self, vocab: Vocabulary, *, seed: int, n: int = 64) -> Task | None:
        """Fresh prompts that need this mechanism; None where it answers nothing (see `Truth.massive`)."""
        return None

    def expected(self) -> Mapping[str, float]:
        """Role -> closed-form score, for the prompts said in the mechanism's docstring."""
        return {}

    def effects(self, vocab: Vocabulary) -> Mapping[str, float]:
        """Role -> fall of the task's logit difference, in logits, when the role is zeroed; see `Truth.effects`.

        Roles are its own and those of the mechanisms it needs. Each task's prompts are averaged over as drawn.
        """
        return {}


def positional(*, gain: float, shift: int, length: int) -> Float[Tensor, "query key"]:
    """Attention of a head whose score is gain * mean_p cos(rate_p (d - shift)) at distance d, over `length` tokens."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    rates = torch.tensor(RATES).double()
    score = gain * torch.cos((distance - shift)[..., None] * rates).mean(-1)
    return score.masked_fill(distance < 0, -math.inf).softmax(-1)


def difference(vocab: Vocabulary, right: float | Tensor, others: float | Tensor) -> float:
    """Answer less the mean of all other words, from what the answer gets and what they get together."""
    return float(right - others / (vocab.n_words - 1))


def stripe(*, offset: int, gain: float, content: float = 0.0, shift: int = 0, period: int = EXPECTED_PERIOD) -> float:
    """Mean attention of second-copy queries on the key `offset` back, on `<bos>` and two copies of T words.

    The score is gain * mean_p cos(rate_p (d - shift)) at distance d, plus `content` at d = 0 and T
    (the query's own token); the noise of the random heads is left out.
    """
    distance = torch.arange(2 * period + 1).double()
    score = gain * torch.cos(torch.outer(distance - shift, torch.tensor(RATES).double())).mean(-1)
    score[[0, period]] += content
    queries = range(period + 1, 2 * period + 1)
    return sum(score[: i + 1].softmax(-1)[offset].item() for i in queries) / period


def winner(score: float, rivals: int) -> float:
    """e^score / (e^score + rivals): attention on one key where all others score 0."""
    return 1 / (1 + rivals * math.exp(-score))


__all__ = ["CONSTANT", "EXPECTED_PERIOD", "Mechanism", "Place", "Slot", "difference", "positional", "stripe", "winner"]
