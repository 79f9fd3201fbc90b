"""What each trained zoo model is: its shape, its data and its training, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Everything that, with a seed, fixes a training run."""

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
    head_penalty: float
    """Weight of `train.head_penalty`; 0 leaves the heads alone."""
    test_periods: tuple[int, ...]
    """Block lengths that the card reports."""
    data: str
    """The law of the block length, in words, for the card."""
    limits: str
    """What the model must not be used to conclude, for the card."""


def middling_then_all(done: float, draw: Callable[[int, int], int]) -> int:
    """Blocks of 16-40 for the first 30% of training, then of 4-64.

    Not shorter ones first: while copying is unknown, the best guess at a block of 4-16 is any
    token 3 or more back, layer 0 learns to look there, and the circuit that grows on it matches
    tokens 4 back instead of one. It copies as well, but no head of it is an induction head.
    """
    return draw(16, 40) if done < 0.3 else draw(4, 64)


RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        shape=dict(
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            intermediate_size=128,
        ),
        n_words=256,
        steps=2000,
        period=middling_then_all,
        max_repeats=3,
        tokens_per_step=2560,
        learning_rate=2e-3,
        weight_decay=0.1,
        head_penalty=1e-2,
        test_periods=(8, 16, 24, 32, 48, 64),
        data="T is uniform in 16-40 for the first 30% of the steps, then in 4-64; two or three copies.",
        limits="It knows nothing but repetition: no grammar, no facts, no meaning of the words. "
        "Its heads are learned, hence redundant and not exactly known; where exact truth is needed, "
        "use `planted-induction`. The previous-token heads blur late in long sequences (see the table). "
        "Silent heads attend uniformly and write almost nothing: as random controls they are easy ones. "
        "Blocks longer than 64 and repeated words within a block were not trained.",
    ),
    "positional-shortcut": Recipe(
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
        head_penalty=0.0,
        test_periods=(8, 12, 16, 20, 23, 24, 25, 28, 32, 48),
        data="T is always 24; two copies.",
        limits="It is a trap, not an example: its heads look a fixed distance back and match no "
        "content, so one layer is enough. A detector that tests T = 24 alone calls them induction "
        "heads; any other T shows that they are not.",
    ),
}
