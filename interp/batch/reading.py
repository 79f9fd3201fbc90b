"""Text as token ids: what the tokenizer puts before and behind a text is told from the text's own tokens."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.batch.halves import check_text
from interp.errors import PromptWarning, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMPTY = "empty prompt: at least one token is needed in each"
PACKAGE = Path(__file__).resolve().parents[1]


def read_text(text: str, tokenizer: PreTrainedTokenizerBase | None, *, keep_end: bool, bos: str) -> list[int]:
    """Ids of a text: one beginning of text at most, no end that is not written in it (unless it is to be kept)."""
    if not text:
        raise TaskError(EMPTY)
    if tokenizer is None:
        raise TaskError("this checkpoint has no tokenizer: give token ids instead of text")
    check_text(text)
    words: Any = tokenizer
    ids = list(words(text, verbose=False)["input_ids"])
    bare = list(words(text, add_special_tokens=False, verbose=False)["input_ids"])
    start = words.bos_token_id
    if start is None and bos == "forced":
        raise TaskError("bos='forced', but this model has no BOS token; use bos='none'")
    before, after = _added(ids, bare, start)
    added = start is not None and before > 0 and ids[0] == start
    if after and not keep_end:
        end = words.convert_ids_to_tokens(ids[-1])
        warn(f"the tokenizer ends text with {end!r}: left out, so that the prompt ends with its last word")
        ids = ids[:-after]
    if bos == "none":
        ids = ids[before:]
    elif bos == "forced" and ids[:1] != [start]:
        ids = [start, *ids]
    elif added and bare[:1] == [start]:
        warn(f"the text begins with {words.bos_token!r}, which the tokenizer adds as well: one is kept")
        ids = ids[1:]
    return ids


def _added(ids: Sequence[int], bare: Sequence[int], start: int | None) -> tuple[int, int]:
    """Tokens that the tokenizer has put before and behind a text's own."""
    more = len(ids) - len(bare)
    first = 0 if start is None else max(0, _leading(ids, start) - _leading(bare, start))
    for before in [first, *range(more + 1)]:
        if before <= more and list(ids[before : before + len(bare)]) == list(bare):
            return before, more - before
    return first, 0  # read otherwise between such tokens: what is its own cannot be told


def _leading(ids: Sequence[int], token: int) -> int:
    """How many times a token stands in front."""
    return next((i for i, x in enumerate(ids) if x != token), len(ids))


def warn(message: str) -> None:
    """Warn at the line outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PromptWarning, stacklevel=level)
