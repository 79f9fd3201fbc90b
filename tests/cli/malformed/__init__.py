"""Malformed inputs: checkpoints, options, targets, stored tables, prompts, tasks and dictionaries that are not right.

Each `Case` is one call of the program. `cases()` makes them all, in classes; the order is fixed.
"""

from __future__ import annotations

import random

from malformed_inputs import calls, folders, own
from malformed_inputs.case import Case

MAKERS = (
    *(folders.configs, folders.weights, folders.tokenizers, calls.options, calls.targets, folders.stored),
    *(calls.questions, calls.prompts, folders.tasks, folders.dictionaries, calls.methods),
    *(own.analysis_options, own.role_tables, own.together),
)


def cases() -> list[Case]:
    """All of them."""
    return [case for make in MAKERS for case in make()]


def sample(n: int, *, seed: int = 0) -> list[Case]:
    """n of them, some of each class."""
    by_kind: dict[str, list[Case]] = {}
    for case in cases():
        by_kind.setdefault(case.kind, []).append(case)
    rng = random.Random(seed)
    each = max(1, n // len(by_kind))
    return [case for members in by_kind.values() for case in rng.sample(members, min(each, len(members)))]
