"""Domains of text: prompts of several kinds, of one length, on which the same heads are looked at."""

from __future__ import annotations

from collections.abc import Mapping

from interp import tasks
from interp.batch import Batch, Prompts
from interp.errors import InterpError, NotApplicable, TaskError
from interp.measurement.prompts import PromptSet, own_prompts, text_prompts
from interp.model import Model

LEAST = 8
"""Tokens of the shortest prompt of one's own."""
SHORTEST = 16
"""Tokens of the shortest prompt that is drawn: in fewer a block is not repeated and text is none."""
FEWEST = 3
"""Prompts of a domain: fewer say nothing about how sure a mean is."""


def domain_prompts(
    model: Model, domains: Mapping[str, Prompts] | None, *, n: int, length: int, bos: str, seed: int
) -> dict[str, PromptSet]:
    """Prompts of each domain. Text is cut into `n` stretches of `length` tokens, ids are taken as they are.

    Without any: random tokens ("random"), a random block twice ("repeated") and, where the tokenizer can read it, text
    ("text"), `n` prompts each.

    Raises:
        NotApplicable: no room for prompts of 16 tokens.
        TaskError: fewer than two domains, or fewer than three prompts in one.
    """
    if domains is None:
        return _default_domains(model, n=n, length=length, bos=bos, seed=seed)
    if len(domains) < 2:  # noqa: PLR2004
        raise TaskError(f"{len(domains)} domains; two at least are needed, between which a head can switch")
    own = {name: _own(model, x, n=n, length=length, bos=bos, seed=seed) for name, x in domains.items()}
    for name, data in own.items():
        if len(data.batch.ids) < FEWEST:
            raise TaskError(f"domain {name!r} has {len(data.batch.ids)} prompts; {FEWEST} at least are needed")
    return own


def _own(model: Model, prompts: Prompts, *, n: int, length: int, bos: str, seed: int) -> PromptSet:
    rows = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(rows, list | tuple) and rows and all(isinstance(row, str) for row in rows):
        return text_prompts(model, rows, n=n, length=length, bos=bos, seed=seed)
    return own_prompts(model, prompts, least=LEAST)


def _default_domains(model: Model, *, n: int, length: int, bos: str, seed: int) -> dict[str, PromptSet]:
    start = int(tasks.bos_id(model, bos) is not None)
    block = (min(length, model.info.context or length) - start) // 2
    block = min(block, len(tasks.ordinary_tokens(model)))
    length = start + 2 * block
    if length < SHORTEST:
        raise NotApplicable(f"prompts of {length} tokens are too short to compare domains; at least 16 are needed")
    (repeats,) = tasks.repeated_random(model, lengths=[block], n_each=n, bos=bos, seed=seed)
    data: dict[str, object] = {"task": "repeated random tokens", "n": n, "length": length, "bos": bos}
    data |= {"sha256": tasks.fingerprint([repeats.batch])}
    random = Batch.of(tasks.random_prompts(model, n=n, length=length, bos=bos, seed=seed, distinct=False).ids)
    sets = {
        "random": PromptSet(random, start, data | {"task": "random tokens", "sha256": tasks.fingerprint([random])}),
        "repeated": PromptSet(repeats.batch, start, data),
    }
    try:
        text = text_prompts(model, None, n=n, length=length, bos=bos, seed=seed)
    except InterpError:
        return sets
    return sets if text.batch.ids.shape[1] < length else sets | {"text": text}
