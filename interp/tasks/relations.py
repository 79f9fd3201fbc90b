"""`relation_examples`: of a fictional ontology, kinds that are of the first member named, and kinds of the other."""

from __future__ import annotations

from random import Random

from interp.errors import TaskError
from interp.tasks.prompt import PromptTask

SIDES = ("", "other ")


def relation_examples(task: PromptTask, *, seed: int = 0) -> tuple[list[list[int]], list[bool], list[int]]:
    """Prompts cut behind a kind, whether the first member named is of that kind, and the kind's token.

    One example per prompt, of a rule of either chain whose premises stand before it in their order; what a causal model
    holds at the kind is the same in the prompt cut there. Labels and tokens are what `linear_probe` takes as `labels`
    and `types`: random labels, one per token, show what a probe can do that knows the word alone.

    Args:
        task: fictional ontologies with the facts first: `interp.task("fictional_ontology", model, order="facts")`.
        seed: of the draw.

    Raises:
        TaskError: a task without these roles, or with rules before the facts.
    """
    missing = [f"{side}{role}" for side in SIDES for role in ("FACT", "HIGH1") if f"{side}{role}" not in task.roles]
    if missing:
        raise TaskError(f"{task.name} has no role {missing[0]!r}: relations are those of a fictional ontology's kinds")
    rng, prompts, labels, kinds = Random(seed), [], [], []
    for row, ids in enumerate(task.clean.ids.tolist()):
        at = {role: int(where[row]) for role, where in task.roles.items()}
        facts = [at[f"{side}FACT"] for side in SIDES]
        if max(facts) > min(at[f"{side}HIGH1"] for side in SIDES):
            raise TaskError(f'{task.name}: rules stand before the facts; take order="facts" or "chain"')
        first = SIDES[facts.index(min(facts))]
        side = rng.choice(SIDES)
        place = rng.choice(_in_order(at, side))
        prompts.append(ids[: place + 1])
        labels.append(side == first)
        kinds.append(ids[place])
    return prompts, labels, kinds


def _in_order(at: dict[str, int], side: str) -> list[int]:
    """Places of a chain's kinds, as far as its rules stand one behind the other."""
    places = [at[f"{side}HIGH1"]]
    while (after := at.get(f"{side}HIGH{len(places) + 1}", -1)) > places[-1]:
        places.append(after)
    return places
