"""Spans: stretches of prompts that have a name (system, document, question), read into masks of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = Any
"""Where a span stands in one prompt: (start, stop), in characters of a text and in real tokens of ids; words that stand
once in the text; a list of these; or None where the prompt has none."""

Offsets = Sequence[tuple[int, int]]
"""Characters (start, stop) of each token of a text; an empty range for what was put around it."""


def read_spans(
    spans: Mapping[str, Any],
    mask: Bool[Tensor, "batch pos"],
    texts: Sequence[str | None],
    offsets: Sequence[Offsets | None],
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Masks of the tokens of each span.

    Args:
        spans: name -> a mask [batch pos], a `Span` for each prompt in a list, or one `Span` for all prompts.
        mask: real tokens.
        texts: the text of each prompt, None for ids.
        offsets: characters of each real token of a text, None for ids.

    Raises:
        TaskError: a name that is none, as many spans as there are prompts are not there, a span that is empty or
            reaches beyond its prompt, or words that do not stand once in the text.
    """
    if not isinstance(spans, Mapping):
        raise TaskError(f"spans: expected {{name: span}}, such as {{'document': (5, 40)}}; got {type(spans).__name__}")
    result = {}
    for name, given in spans.items():
        check_name(name)
        if isinstance(given, Tensor):
            result[name] = given
            check_mask(name, given, mask)
        else:
            each = given if isinstance(given, list) else [given] * len(mask)
            if len(each) != len(mask):
                raise TaskError(f"span {name!r}: {len(each)} for {len(mask)} prompts; give one for each in a list")
            result[name] = _placed(name, each, mask, texts, offsets)
        if not bool(result[name].any()):
            raise TaskError(f"span {name!r} is empty in every prompt")
    return result


def check_name(name: Any) -> None:
    """Raise TaskError unless a span's name is a text, without spaces around it."""
    if not isinstance(name, str) or not name or name != name.strip():
        raise TaskError(f"a span's name is a text such as 'document'; got {name!r:.40}")


def check_mask(name: str, span: Any, mask: Bool[Tensor, "batch pos"]) -> None:
    """Raise TaskError unless a span is a mask of real tokens."""
    if not isinstance(span, Tensor) or span.dtype != torch.bool or span.shape != mask.shape:
        kind = f"{span.dtype} {tuple(span.shape)}" if isinstance(span, Tensor) else type(span).__name__
        raise TaskError(f"span {name!r}: a mask of a span is bool, of shape {tuple(mask.shape)}; got {kind}")
    beyond = (span & ~mask.to(span.device)).any(1)
    if bool(beyond.any()):
        raise TaskError(f"span {name!r} reaches into the padding of prompt {int(beyond.nonzero()[0, 0])}")


def character_offsets(
    text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[int, int]]:
    """Characters of each of a text's tokens; (0, 0) for what the tokenizer puts around them.

    Raises:
        TaskError: a tokenizer that does not say (a slow one), or that gives other tokens than these.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TaskError("this tokenizer does not say which characters a token is: give ids, and spans of tokens")
    words: Any = tokenizer
    output = words(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    bare, offsets = list(output["input_ids"]), [(int(a), int(b)) for a, b in output["offset_mapping"]]
    for start in range(len(ids) - len(bare) + 1):
        if list(ids[start : start + len(bare)]) == bare:
            return [(0, 0)] * start + offsets + [(0, 0)] * (len(ids) - start - len(bare))
    raise TaskError("the text's tokens are others where nothing stands around it: give ids, and spans of tokens")


def _placed(
    name: str,
    each: Sequence[Span],
    mask: Bool[Tensor, "batch pos"],
    texts: Sequence[str | None],
    offsets: Sequence[Offsets | None],
) -> Bool[Tensor, "batch pos"]:
    """The mask of one span, given for every prompt."""
    result = torch.zeros_like(mask)
    for row, span in enumerate(each):
        at = mask[row].nonzero()[:, 0]
        for part in span if isinstance(span, list) else [] if span is None else [span]:
            tokens = _tokens(f"span {name!r} of prompt {row}", part, len(at), texts[row], offsets[row])
            result[row, at[tokens]] = True
    return result


def _tokens(label: str, span: Span, n: int, text: str | None, offsets: Offsets | None) -> list[int]:
    """Numbers of the real tokens that one stretch covers."""
    if isinstance(span, str):
        span = _of_words(label, span, text)
    start, stop = _range(label, span, n if text is None else len(text), "tokens" if text is None else "characters")
    if text is None or offsets is None:
        return list(range(start, stop))
    # a token may have the space before its word: one that shares no more than spaces with the span is none of it
    tokens = [i for i, (a, b) in enumerate(offsets) if text[max(a, start) : min(b, stop)].strip()]
    if not tokens:
        raise TaskError(f"{label} is empty: no token stands for these characters")
    return tokens


def _of_words(label: str, words: str, text: str | None) -> tuple[int, int]:
    if text is None:
        raise TaskError(f"{label}: words are found in a text, and this prompt is ids; give (start, stop) in tokens")
    count = text.count(words) if words else 0
    if count != 1:
        raise TaskError(f"{label}: {words!r:.60} stands {count} times in the text; give (start, stop) in characters")
    start = text.index(words)
    return start, start + len(words)


def _range(label: str, span: Span, n: int, unit: str) -> tuple[int, int]:
    if not isinstance(span, tuple | range | slice) or (isinstance(span, tuple) and len(span) != 2):  # noqa: PLR2004
        raise TaskError(f"{label}: expected (start, stop) in {unit}; got {type(span).__name__} {span!r:.40}")
    start, stop = span if isinstance(span, tuple) else (span.start, span.stop)
    if any(isinstance(x, bool) or not isinstance(x, int) for x in (start, stop)):
        raise TaskError(f"{label}: expected whole numbers (start, stop) in {unit}; got {span!r:.40}")
    if not 0 <= start < n or stop > n:
        raise TaskError(f"{label} is {unit} {start} to {stop}, and the prompt has {n}")
    if stop <= start:
        raise TaskError(f"{label} is empty: {unit} {start} to {stop}")
    return start, stop
