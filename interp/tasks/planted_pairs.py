"""Planted facts as pairs that differ in what a text says against them."""

from __future__ import annotations

from random import Random

import torch

from interp.tasks._conflict import Conflict, Frame
from interp.tasks.prompt import PromptTask, collate
from interp.zoo.planted.mechanisms import Vocabulary


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
