"""Tasks of planted models as clean and corrupt pairs, so that what is found there can be compared with the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from interp import zoo
from interp.errors import TaskError, nearest
from interp.model import Model
from interp.tasks.prompt import PromptTask, collate
from interp.zoo.planted.factory import Planted
from interp.zoo.planted.mechanisms import Dated, Fact, Mechanism, Successor, TwoHop, Vocabulary

CORRUPTIONS = ("random", "minimal")
"""random: every token but `<bos>` becomes another random word, cues too, so that every edge of the mechanism carries a
difference. minimal: as little as flips the answer is exchanged; edges that read what stays the same carry none."""
ALIASES = {"ioi": "two_hop", "facts": "fact", "needles": "retrieval", "dated_facts": "dated"}
"""Names of tasks of trained models, and the mechanism that is their planted form."""

Pair = tuple[list[int], list[int], int, dict[str, int]]
"""Clean ids, minimally corrupted ids, the answer to those (which is the wrong one), and roles."""


def of(planted: Planted, name: str, *, n: int = 64, seed: int = 0, corruption: str = "random") -> PromptTask:
    """`n` pairs that need the mechanism called `name`, answered at the last token.

    Where no minimal pair exists ("copy", "anti_copy", "sink") the wrong answer is another choice or a random word, and
    only the random corruption is offered. Roles: two_hop IO, S1, S2; induction A1, B1; retrieval CUE, B1; fact and
    successor SUBJECT; dated SUBJECT, TIME (its minimal twin names another time); previous_token and duplicate_token A1;
    END everywhere.

    Raises:
        TaskError: no such mechanism with a task, or no such corruption of it.
    """
    task_names = names_of(planted)
    mechanism = next((m for m in planted.mechanisms if m.name == name), None)
    if mechanism is None or name not in task_names:
        raise TaskError(f"no task for {name!r} is planted; {nearest(name, task_names)}")
    corruptions = CORRUPTIONS if name in _MINIMAL else CORRUPTIONS[:1]
    if corruption not in corruptions:
        raise TaskError(f"{name} has no corruption {corruption!r}; {nearest(corruption, corruptions)}")
    task, vocab = planted.task(name, seed=seed, n=n), planted.vocab
    generator = torch.Generator().manual_seed(seed + 1)
    pairs, wrong, roles = [], [], []
    for row, tokens in enumerate(task.tokens.tolist()):
        answer = int(task.answers[row])
        if name in _MINIMAL:
            clean, other, rival, at = _MINIMAL[name](tokens, mechanism, vocab, generator)
        else:
            choices = vocab.words if task.choices is None else task.choices[row].tolist()
            rival = _draw([w for w in choices if w != answer], generator)
            clean, other, at = tokens, tokens, {}
        if corruption == "random":
            other = _resample(clean, vocab, generator)
        pairs.append((clean, other))
        wrong.append([rival])
        roles.append(at)
    return collate(
        name,
        pairs,
        answers=[[int(a)] for a in task.answers],
        wrong=wrong,
        roles=roles,
        templates=["planted"] * n,
        corruption=corruption,
        metric="logit_diff",
        record={"source": f"planted {name}", "seed": seed, "bos": "default"},
    )


def names_of(planted: Planted) -> tuple[str, ...]:
    """Mechanisms of the model that have a task."""
    return tuple(m.name for m in planted.mechanisms if m.task(planted.vocab, seed=0, n=1) is not None)


@cache
def _planted_model(name: str) -> Planted | None:
    return zoo.planted_by_name(name)


def _zoo(model: Model) -> Planted | None:
    name = model.info.name
    return _planted_model(name.removeprefix("zoo:")) if name.startswith("zoo:") else None


def zoo_task_names(model: Model) -> tuple[str, ...]:
    """Planted tasks of a model loaded from the zoo, under their own names."""
    planted = _zoo(model)
    return () if planted is None else names_of(planted)


def knows(model: Model, name: str) -> bool:
    """Whether the model is a planted one of the zoo with this task, or with its planted form."""
    return ALIASES.get(name, name) in zoo_task_names(model)


def of_zoo(model: Model, name: str, *, n: int, seed: int, split: str, corruption: str | None) -> PromptTask:
    """`of`, for a model loaded as `zoo:planted-...`; the splits differ by their random streams alone."""
    planted = _zoo(model)
    if planted is None:
        raise TaskError(f"{model.info.name!r} is not a planted model of the zoo")
    stream = 2 * seed + (split == "held-out")
    return of(planted, ALIASES.get(name, name), n=n, seed=stream, corruption=corruption or CORRUPTIONS[0])


def _draw(choices: list[int], generator: torch.Generator) -> int:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _resample(tokens: list[int], vocab: Vocabulary, generator: torch.Generator) -> list[int]:
    """Random distinct words in the place of every token but a leading `<bos>`, none equal to what stood there."""
    start = tokens[:1] if tokens[0] == vocab.bos else []
    words = torch.tensor(tokens[len(start) :])
    while True:
        new: Tensor = vocab.draw(1, len(words), generator=generator)[0]
        new = torch.where(new == words, new.roll(1), new)
        if bool((new != words).all()):
            return [*start, *new.tolist()]


def _exchange(tokens: list[int], i: int, j: int) -> list[int]:
    other = list(tokens)
    other[i], other[j] = other[j], other[i]
    return other


def _replace(tokens: list[int], i: int, token: int) -> list[int]:
    return [*tokens[:i], token, *tokens[i + 1 :]]


def _unused_word(tokens: list[int], vocab: Vocabulary, generator: torch.Generator) -> int:
    return _draw([w for w in vocab.words if w not in tokens], generator)


def _two_hop(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """The second mention becomes one of the other name: that one stands twice now."""
    del generator
    circuit: TwoHop = mechanism
    words = {vocab.word(i) for i in circuit.names}
    first, second, third = (i for i, token in enumerate(tokens) if token in words)
    s1, io = (first, second) if tokens[first] == tokens[third] else (second, first)
    return tokens, _replace(tokens, third, tokens[io]), tokens[s1], {"IO": io, "S1": s1, "S2": third}


def _induction(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """The earlier copy of the last token changes places with another word, whose successor is then right."""
    del mechanism, vocab
    a = tokens.index(tokens[-1])
    far = [i for i in range(1, len(tokens) - 2) if abs(i - a) > 1]
    c = _draw(far, generator)
    return tokens, _exchange(tokens, a, c), tokens[c + 1], {"A1": a, "B1": a + 1}


def _retrieval(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """The needle's cue changes places with another word, and what stands behind that one is then right."""
    del mechanism
    cue = tokens.index(vocab.cue("<needle>"))
    other = _draw([i for i in range(1, len(tokens) - 2) if abs(i - cue) > 1], generator)
    return tokens, _exchange(tokens, cue, other), tokens[other + 1], {"CUE": cue, "B1": cue + 1}


def _fact(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """Another subject, with another attribute."""
    fact: Fact = mechanism
    table = {vocab.word(s): vocab.word(a) for s, a in fact.facts}
    return _from_table(tokens, table, generator)


def _dated(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """Another time, at which something else goes with the subject."""
    dated: Dated = mechanism
    table, times = dated.lookup(vocab), [vocab.word(i) for i in dated.times]
    subject = next(i for i, token in enumerate(tokens) if token in {s for s, _ in table})
    at = next(i for i, token in enumerate(tokens) if token in times)
    other = _draw([time for time in times if time != tokens[at]], generator)
    return tokens, _replace(tokens, at, other), table[tokens[subject], other], {"SUBJECT": subject, "TIME": at}


def _successor(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """Another ordinal word, with another successor."""
    successor: Successor = mechanism
    table = {vocab.word(a): vocab.word(b) for c in successor.classes for a, b in zip(c[:-1], c[1:], strict=True)}
    return _from_table(tokens, table, generator)


def _from_table(tokens: list[int], table: Mapping[int, int], generator: torch.Generator) -> Pair:
    at = next(i for i, token in enumerate(tokens) if token in table)
    other = _draw([key for key, value in table.items() if value != table[tokens[at]]], generator)
    return tokens, _replace(tokens, at, other), table[other], {"SUBJECT": at}


def _previous(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """Another word before the last."""
    del mechanism
    new = _unused_word(tokens, vocab, generator)
    return tokens, _replace(tokens, len(tokens) - 2, new), new, {"A1": len(tokens) - 2}


def _duplicate(tokens: list[int], mechanism: Any, vocab: Vocabulary, generator: torch.Generator) -> Pair:
    """The last word and the other that stands twice change places, at their second mention."""
    del mechanism, vocab, generator
    last = tokens[-1]
    other = next(i for i, token in enumerate(tokens[:-1]) if token != last and token in tokens[:i])
    return tokens, _exchange(tokens, other, len(tokens) - 1), tokens[other], {"A1": tokens.index(last)}


_MINIMAL: Mapping[str, Callable[[list[int], Mechanism, Vocabulary, torch.Generator], Pair]] = {
    "two_hop": _two_hop,
    "induction": _induction,
    "retrieval": _retrieval,
    "fact": _fact,
    "dated": _dated,
    "successor": _successor,
    "previous_token": _previous,
    "duplicate_token": _duplicate,
}
