"""Tokens as a reader can tell them apart: white space and invisible characters written out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
JOINER = "\u200d"  # holds an emoji together; only alone is it worth showing
_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class Piece(NamedTuple):
    """Part of a token: as it is, or a sign that stands for a character one could not see."""

    text: str
    sign: bool


def texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Text of each token on its own, leading spaces kept; the id where there is no tokenizer or no text."""
    if tokenizer is None:
        return [str(i) for i in ids]
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [_text(i, name, tokenizer) for i, name in zip(ids, names, strict=True)]


def pieces(text: str) -> list[Piece]:
    """The text with spaces, line ends, control and direction characters replaced by signs."""
    parts: list[Piece] = []
    for char in text:
        sign = _sign(char, alone=len(text) == 1)
        piece = Piece(char if sign is None else sign, sign is not None)
        if parts and not piece.sign and not parts[-1].sign:
            piece = Piece(parts.pop().text + piece.text, False)
        parts.append(piece)
    return parts


def visible(text: str) -> str:
    """`pieces` as one string."""
    return "".join(piece.text for piece in pieces(text))


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


def _sign(char: str, *, alone: bool) -> str | None:
    if char in SIGNS:
        return SIGNS[char]
    kind = unicodedata.category(char)
    invisible = kind in {"Cc", "Zl", "Zp", "Zs", "Cs"} or (kind == "Cf" and (alone or char != JOINER))
    return f"\\u{{{ord(char):x}}}" if invisible else None
