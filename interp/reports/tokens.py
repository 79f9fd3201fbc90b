"""Tokens as a reader can tell them apart: white space and invisible characters written out."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
JOINER = "\u200d"  # holds an emoji together; only alone is it worth showing


class Piece(NamedTuple):
    """Part of a token: as it is, or a sign that stands for a character one could not see."""

    text: str
    sign: bool


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


def _sign(char: str, *, alone: bool) -> str | None:
    if char in SIGNS:
        return SIGNS[char]
    kind = unicodedata.category(char)
    invisible = kind in {"Cc", "Zl", "Zp", "Zs", "Cs"} or (kind == "Cf" and (alone or char != JOINER))
    return f"\\u{{{ord(char):x}}}" if invisible else None
