"""Planted facts as pairs that differ in what a text says against them, or in which of the two is asked for."""

from __future__ import annotations

from random import Random

import torch

from interp.tasks._conflict import Conflict, Frame
from interp.tasks.prompt import PromptTask, collate
from interp.zoo.planted.mechanisms import Switch, Vocabulary


def planted_conflict(facts: PromptTask, vocab: Vocabulary, *, seed: int = 0) -> Conflict:
    """Prompts of the planted task `fact` with another subject's attribute told in them (`<needle>`, then the word).

    Role TOLD is that word's place. The facts themselves are `questions`.
    """
    rng = Random(seed)
    attributes = sorted(set(facts.answers[:, 0].tolist()))
    pairs, context_answers, roles = [], [], []
    for ids, answer, subject in zip(
        facts.clean.ids.tolist(), facts.answers[:, 0].tolist(), facts.role("SUBJECT").tolist(), strict=True
    ):
        other = rng.choice([word for word in attributes if word != answer])
        at = rng.choice([i for i in range(2, len(ids) - 1) if subject not in (i - 1, i)])
        clean, corrupt = ([*ids[: at - 1], vocab.cue("<needle>"), word, *ids[at + 1 :]] for word in (other, answer))
        pairs.append((clean, corrupt))
        context_answers.append([other])
        roles.append({"TOLD": at, "SUBJECT": subject})
    task = collate(
        "contradicted fact",
        pairs,
        answers=context_answers,
        wrong=facts.answers.tolist(),
        roles=roles,
        templates=["planted"] * len(pairs),
        corruption="context agrees",
        metric="logit_diff",
    )
    zeros = torch.zeros(len(task), dtype=torch.long)
    return Conflict(task, facts.clean, (Frame("needle", "<needle> {told} {core}", None),), zeros, zeros)


def planted_intents(vocab: Vocabulary, *, n: int = 64, seed: int = 0) -> PromptTask:
    """Pairs of the planted `Switch`: the clean prompt asks for what it tells, its twin for what is known instead.

    The right answer is the word told, the wrong one the fact. Roles: INTENT, the one word that differs, TOLD, SUBJECT.
    """
    switch = Switch()
    own = switch.prompts(vocab, seed=seed, n=n)
    use, ignore = (vocab.word(i) for i in switch.intents)
    pairs = []
    for ids, at in zip(own.tokens.tolist(), own.intent.tolist(), strict=True):
        clean, corrupt = ([*ids[:at], word, *ids[at + 1 :]] for word in (use, ignore))
        pairs.append((clean, corrupt))
    places = zip(own.intent.tolist(), own.word.tolist(), own.subject.tolist(), strict=True)
    return collate(
        "intent",
        pairs,
        answers=own.told[:, None].tolist(),
        wrong=own.known[:, None].tolist(),
        roles=[{"INTENT": intent, "TOLD": told, "SUBJECT": subject} for intent, told, subject in places],
        templates=["planted"] * n,
        corruption="other intent",
        metric="logit_diff",
    )
