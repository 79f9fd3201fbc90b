"""Texts of tokens one by one, and ids of texts that are one token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.batch import check_text
from interp.errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")
SHOWN = 12
"""Tokens of a text that an error names."""


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Text of each token on its own, leading spaces kept; the id where there is no tokenizer or no text."""
    if tokenizer is None:
        return [str(i) for i in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [_text(i, name, tokenizer) for i, name in zip(ids, names, strict=True)]


def _text(token: int, name: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    if name is None:
        return f"#{token}"
    byte = _BYTE.match(name)
    if byte:
        value = int(byte[1], 16)
        return chr(value) if value < 128 else name
    if "▁" in name:  # SentencePiece: decoding one token would lose its leading space
        return name.replace("▁", " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    whole = isinstance(text, str) and text and "\ufffd" not in text
    return str(text) if whole else name


def bare_ids(text: str, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids of a text as a part of a prompt: nothing is put in front or behind.

    Raises:
        TaskError: no text, or no tokenizer to read it.
    """
    if not isinstance(text, str):
        raise TaskError(f"expected a token id or a text; got {type(text).__name__} {text!r:.40}")
    if tokenizer is None:
        raise TaskError(f"{text!r}: this checkpoint has no tokenizer; give a token id instead of text")
    check_text(text)
    words: Any = tokenizer
    return [int(i) for i in words(text, add_special_tokens=False, verbose=False)["input_ids"]]


def single_id(text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Id of a text that is one token.

    Raises:
        TaskError: a text of no token or of several (says whether it is one with, or without, a space before it), one
            that the vocabulary does not have, or no tokenizer.
    """
    ids = bare_ids(text, tokenizer)
    words: Any = tokenizer
    if len(ids) != 1:
        parts = " + ".join(repr(token) for token in words.convert_ids_to_tokens(ids[:SHOWN]))
        pieces = f": {parts}{' ...' if len(ids) > SHOWN else ''}" if ids else ""
        raise TaskError(f"{text!r:.100} is {len(ids)} tokens{pieces}; one is needed, and {_other_form(text, words)}")
    unknown = getattr(words, "unk_token_id", None)
    if unknown is not None and ids[0] == unknown and text != words.unk_token:
        raise TaskError(f"{text!r:.100} is not in this model's vocabulary: it is read as {words.unk_token}")
    return ids[0]


def _other_form(text: str, tokenizer: Any) -> str:
    """Whether a text that is not one token is one with a space before it, or without."""
    other = text[1:] if text.startswith(" ") else f" {text}"
    ids = bare_ids(other, tokenizer) if other else []
    if len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None):
        return f"{other!r} is one"
    return f"{other!r:.100} is not one either: take another word, or its first token (its id; --answer-tokens first)"
