"""The copying models as values: shape, data and training of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Copying:
    """Shape, data and training of a copying model; with a seed it fixes a training run."""

    shape: dict[str, Any]
    """Options of LlamaConfig."""
    n_words: int
    steps: int
    period: Callable[[float, Callable[[int, int], int]], int]
    """(fraction of training done, draw(low, high) inclusive) -> block length."""
    max_repeats: int
    tokens_per_step: int
    learning_rate: float
    weight_decay: float
    test_periods: tuple[int, ...]
    """Block lengths that the card reports."""
    data: str
    """The law of the block length, in words, for the card."""
    limits: str
    """What the model must not be used to conclude, for the card."""


COPYING: dict[str, Copying] = {
    "positional-shortcut": Copying(
        shape=dict(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            intermediate_size=16,
        ),
        n_words=64,
        steps=800,
        period=lambda done, draw: 24,
        max_repeats=2,
        tokens_per_step=2048,
        learning_rate=3e-3,
        weight_decay=0.01,
        test_periods=(8, 12, 16, 20, 23, 24, 25, 28, 32, 48),
        data="T is always 24; two copies.",
        limits="It is a trap, not an example: its heads look a fixed distance back and match no "
        "content, so one layer is enough. A detector that tests T = 24 alone calls them induction "
        "heads; any other T shows that they are not.",
    ),
}
