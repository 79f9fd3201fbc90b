"""Natural text for any tokenizer: what the user gives, or stretches of sources that every machine has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from interp import tasks
from interp import texts as corpus
from interp.batch import Batch
from interp.errors import NotApplicable, TaskError
from interp.measurement.prompts import Read
from interp.model import Model

UNKNOWN = 0.2  # share of unknown tokens above which a tokenizer cannot read a text
LOWEST = 24  # tokens that a stretch must have to be a text


def stretches(model: Model, texts: Sequence[str] | None, *, n: int, length: int, bos: str, seed: int) -> Read:
    """`n` stretches of `length` tokens (BOS included) at random places of texts that are long enough.

    Default texts: modules of the Python standard library of which the zoo's models saw nothing, English and code mixed.

    Raises:
        NotApplicable: no tokenizer, or none of the default texts can be read with it (a closed vocabulary).
        TaskError: none of the texts given is long enough and can be read.
    """
    tokenizer: Any = model.tokenizer  # its attributes are resolved at run time
    if tokenizer is None:
        raise NotApplicable("natural text is needed, and this checkpoint has no tokenizer")
    first = tasks.bos_id(model, bos)
    start = int(first is not None)
    length = min(length, model.info.context or length)
    given = list(corpus.sources("held-out").values()) if texts is None else list(texts)
    read = [tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in given]
    generator = torch.Generator().manual_seed(seed)
    known = [row for row in read if row and row.count(tokenizer.unk_token_id) <= UNKNOWN * len(row)]
    if texts is not None:  # short texts shorten the stretch rather than drop out
        length = min(length, max(map(len, known), default=0) + start)
    long = [row for row in known if len(row) >= length - start]
    if length < LOWEST or not long:
        longest = max(map(len, known), default=0)
        refuse = NotApplicable if texts is None else TaskError
        raise refuse(f"no text of {max(length, LOWEST)} tokens that the tokenizer can read; the longest has {longest}")
    ids = torch.stack([_stretch(long, length - start, generator) for _ in range(n)])
    ids = torch.cat([torch.full((n, start), first or 0), ids], dim=1)
    batch = Batch.of(ids)
    source = "texts given" if texts is not None else "standard library, held-out modules"
    told = {"task": f"text: {source}", "n": n, "length": length, "bos": bos, "sha256": tasks.fingerprint([batch])}
    return Read(batch, start, told)


def _stretch(rows: Sequence[Sequence[int]], length: int, generator: torch.Generator) -> torch.Tensor:
    """One stretch: a text drawn by its size, then a place in it."""
    room = torch.tensor([len(row) - length + 1.0 for row in rows])
    row = rows[int(torch.multinomial(room, 1, generator=generator))]
    at = int(torch.randint(len(row) - length + 1, (), generator=generator))
    return torch.tensor(row[at : at + length])
