"""`pair`: two prompts of one's own as a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.batch import Prompts
from interp.model import Model
from interp.tasks.metrics import AnyMetric
from interp.tasks.own import OneOrMore, Place, pair_parts
from interp.tasks.prompt import PromptTask, collate


def pair(
    model: Model,
    clean: Prompts,
    corrupt: Prompts,
    answer: OneOrMore,
    wrong: OneOrMore | None = None,
    *,
    roles: Mapping[str, Place] | None = None,
    metric: AnyMetric | None = None,
    templates: Sequence[str] | None = None,
    spans: Mapping[str, Any] | None = None,
    answer_tokens: str = "one",
    name: str = "pair",
    corruption: str = "own",
) -> PromptTask:
    """A task of one's own prompts: one clean and one corrupted text, or as many of each.

    Texts are tokenized as `model.run` does it, with what the tokenizer puts in front. Twins have as many tokens as each
    other, because position i of the one is patched with position i of the other.

    Args:
        model: whose tokens are meant.
        clean: a text, token ids, or a list of either.
        corrupt: the twin of each.
        answer: what is right after the clean prompt: a text of one token (most begin with a space) or its id; for all
            prompts, or one for each; several right ones as a list in the list.
        wrong: what it is compared with, likewise; None where the metric does not ask for one.
        roles: name -> position (negative from the prompt's end), one for all prompts or one for each, or the text of a
            token that each clean prompt has once. END, the last token, is added.
        metric: a name in `interp.tasks.metrics` or a function (logits, task) -> [batch]; "logit_diff" with a wrong
            answer and "prob" without.
        templates: name of each prompt's template; means are taken over prompts of one template and length. One for all
            if not given.
        spans: names of stretches of the clean prompts, as `Batch.of` takes them; the twins have them where they do.
        answer_tokens: what a text of several tokens is as an answer: "one" refuses it, "first" is its first token,
            "all" every token with those before it fed in (teacher forcing): each is a prompt of its own, and by default
            the metric is `loss_nats`, whose mean over them is the answer's per token; without `wrong`.
        name: of the task, for tables.
        corruption: how the twins were made, for tables.

    Raises:
        TaskError: as many clean as corrupted prompts are not there, twins of different lengths or all the same, an
            answer that is not one token (the form of it that is one is named), or a role that is not there.

    >>> import interp
    >>> model = interp.load("zoo:planted-induction")
    >>> task = interp.pair(model, [5, 6, 7, 5], [5, 8, 7, 5], 6, 8, roles={"TARGET": 1})
    >>> task.roles["END"].tolist(), task.metric
    ([3], 'logit_diff')
    """
    parts = pair_parts(
        model,
        clean,
        corrupt,
        answer,
        wrong,
        roles=roles,
        metric=metric,
        templates=templates,
        spans=spans,
        answer_tokens=answer_tokens,
        name=name,
        corruption=corruption,
    )
    return collate(**parts)
