"""`Batch`: prompts as token ids with their padding mask, read from text, ids or a tokenizer's output."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.batch.halves import check_text
from interp.batch.spans import character_offsets, check_mask, check_name, read_spans
from interp.errors import PromptWarning, TaskError, UnknownTask, nearest
from interp.shapes import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompts = Any
"""Batch, text, ids, several of either, an array of ids, or what a tokenizer returns (a mapping with `input_ids`)."""

BOS_POLICIES = ("default", "forced", "none")
"""What stands in front of a text: what the tokenizer puts there by itself, one beginning of text, or none."""

PACKAGE = Path(__file__).resolve().parents[1]

EMPTY = "empty prompt: at least one token is needed in each"
TOKENIZED = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "length")
"""Keys of a tokenizer's output that say no more than ids and mask do, for a decoder."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids and which of them are real. Padding stands on one side of each prompt only.

    Attributes:
        ids, mask: [batch pos].
        spans: name -> mask of the tokens of a stretch of each prompt: "document", "question", or any other name. Masks
            may overlap; a row without True is a prompt that has no such stretch.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    spans: Mapping[str, Bool[Tensor, "batch pos"]] = field(default_factory=dict, kw_only=True)

    def __repr__(self) -> str:
        """Shapes, and the spans where there are any."""
        text = brief(self)
        return text if self.spans else text.replace(", spans={}", "")

    @property
    def padded(self) -> bool:
        """Whether any token is padding."""
        return not bool(self.mask.all())

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token within its own prompt, padding not counted; padding on the left stands at 0."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def first(self) -> Int[Tensor, " batch"]:
        """Index of each prompt's first real token."""
        return self.mask.long().argmax(1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda x: x.to(device))

    def span(self, name: str) -> Bool[Tensor, "batch pos"]:
        """Mask of a span's tokens, as `KeyMass`, `Mean(rows=...)` and the positions of edits take it.

        Raises:
            TaskError: no span has this name; names the nearest.
        """
        if name not in self.spans:
            has = nearest(str(name), self.spans) if self.spans else "it has none: Batch.of(..., spans={name: ...})"
            raise TaskError(f"the batch has no span {name!r}; {has}")
        return self.spans[name]

    def select(self, rows: Sequence[int] | slice | Tensor) -> Batch:
        """Some of the prompts, in the order given, as wide as they were."""
        return self._each(lambda x: x[rows])

    def cut(self, start: int = 0, stop: int | None = None) -> Batch:
        """Columns `start` to `stop` alone.

        Raises:
            TaskError: a span of which a prompt would keep no token.
        """
        part = self._each(lambda x: x[:, start:stop])
        for name, span in part.spans.items():
            lost = (self.spans[name].any(1) & ~span.any(1)).nonzero()
            if len(lost):
                columns = f"columns {start} to {self.ids.shape[1] if stop is None else stop}"
                raise TaskError(f"span {name!r} of prompt {int(lost[0, 0])} has no token in {columns}")
        return part

    def repeat(self, times: int) -> Batch:
        """All prompts, `times` times over."""
        return self._each(lambda x: x.repeat(times, 1))

    def joined(self, other: Batch) -> Batch:
        """These prompts and as wide ones of another batch; a span that one of the two lacks is in none of its rows."""
        names = dict.fromkeys((*self.spans, *other.spans))
        spans = {
            name: torch.cat([b.spans.get(name, torch.zeros_like(b.mask)) for b in (self, other)]) for name in names
        }
        return Batch(torch.cat([self.ids, other.ids]), torch.cat([self.mask, other.mask]), spans=spans)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ids, mask and spans changed alike."""
        return Batch(
            change(self.ids), change(self.mask), spans={name: change(span) for name, span in self.spans.items()}
        )

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        side: str = "right",
        keep_end: bool = False,
        bos: str = "default",
        spans: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Batch from ids (array or nested lists, ragged allowed), text, a tokenizer's output, or a batch.

        `side` is where padding goes in what is not padded yet. Text is tokenized with what the tokenizer adds in front,
        once; an end-of-text token that it appends is left out, since the next token is asked for, and ids that begin or
        end with several of its padding token are read as padding: each with a `PromptWarning`. `keep_end` leaves an
        appended token where it is, for models that see a prompt as a whole. `bos` is about text alone: "default" is
        what the tokenizer does by itself, "forced" one beginning of text in front, "none" none but what is written.

        `spans` names stretches of the prompts, {name: one for each prompt in a list, or one for all}: (start, stop) in
        characters of a text, in real tokens of ids; the words themselves where they stand once in a text; a list of
        these for a span in several pieces; None where a prompt has none; or a mask [batch pos] of all prompts. A token
        that stands for some of a span's characters belongs to it, one of spaces around them does not.

        Raises:
            TaskError: nothing to run, ids that are not integers, padding within a prompt, or text without a tokenizer;
                an unknown `bos`, one for what is no text, or "forced" where the tokenizer knows no beginning of text;
                a span that is empty, stands outside its prompt, or cannot be found.

        >>> batch = Batch.of([[5, 6, 7, 8], [5, 6]], spans={"question": [(2, 4), (1, 2)]})
        >>> batch.span("question").tolist()
        [[False, False, True, True], [False, True, False, False]]
        """
        if spans and isinstance(prompts, Iterator):
            prompts = list(prompts)  # read twice
        batch = cls._of(prompts, tokenizer, side=side, keep_end=keep_end, bos=bos)
        return batch if not spans else batch._named(spans, prompts, tokenizer)

    @classmethod
    def _of(
        cls, prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None, *, side: str, keep_end: bool, bos: str
    ) -> Batch:
        if bos not in BOS_POLICIES:
            raise UnknownTask(f"unknown BOS policy {bos!r}; {nearest(str(bos), BOS_POLICIES)}")
        if bos != "default" and not _is_text(prompts):
            raise TaskError(f"bos={bos!r} is about text, and ids are run as they are; leave `bos` out, or give text")
        if isinstance(prompts, Batch):
            return prompts
        if isinstance(prompts, Mapping) or hasattr(prompts, "input_ids"):
            return cls._of_tokenizer(prompts, tokenizer, side=side)
        if isinstance(prompts, np.ndarray) and prompts.dtype.kind in "UO":
            prompts = prompts.tolist()
        if isinstance(prompts, Tensor | np.ndarray):
            return cls._of_array(torch.as_tensor(prompts))._unpadded(tokenizer)
        rows = _rows(prompts)
        texts = any(isinstance(row, str) for row in rows)
        ids = [
            _tokens(row, tokenizer, keep_end=keep_end, bos=bos) if isinstance(row, str) else _ids(row) for row in rows
        ]
        batch = cls._of_ids(ids, side)
        return batch if texts else batch._unpadded(tokenizer)

    def _named(self, spans: Mapping[str, Any], prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None) -> Batch:
        """The batch with spans, places in texts read by the tokenizer."""
        is_ids = isinstance(prompts, Batch | Mapping | Tensor) or hasattr(prompts, "input_ids")
        if isinstance(prompts, np.ndarray):
            prompts = prompts.tolist()
        rows = [None] * len(self.ids) if is_ids else _rows(prompts)
        texts = [row if isinstance(row, str) else None for row in rows]
        by_mask = isinstance(spans, Mapping) and all(isinstance(x, Tensor) for x in spans.values())
        offsets = [
            None if text is None or by_mask else character_offsets(text, ids[mask].tolist(), tokenizer)
            for text, ids, mask in zip(texts, self.ids, self.mask, strict=True)
        ]
        return replace(self, spans={**self.spans, **read_spans(spans, self.mask, texts, offsets)})

    @classmethod
    def _of_array(cls, ids: Tensor) -> Batch:
        if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TaskError(f"tokens must be integers [batch, pos]; got {ids.dtype} of shape {tuple(ids.shape)}")
        if ids.numel() == 0:
            raise TaskError(EMPTY)
        ids = ids.reshape(-1, ids.shape[-1]).long()
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    @classmethod
    def _of_tokenizer(cls, output: Any, tokenizer: PreTrainedTokenizerBase | None, *, side: str) -> Batch:
        given = dict(output) if isinstance(output, Mapping) else vars(output)
        if "input_ids" not in given:
            raise TaskError(
                f"a mapping is read as a tokenizer's output, with `input_ids`; got keys {sorted(map(str, given))}"
            )
        unknown = sorted(
            set(map(str, given)) - {*TOKENIZED, "position_ids", "offset_mapping", "overflow_to_sample_mapping"}
        )
        if unknown or "position_ids" in given:
            name = unknown[0] if unknown else "position_ids"
            raise TaskError(
                f"a tokenizer's output with {name!r} cannot be run: give `input_ids` and `attention_mask` alone"
            )
        if given.get("attention_mask") is None:
            return cls.of(given["input_ids"], tokenizer, side=side)
        ids, mask = ([_ids(row) for row in _rows(given[name])] for name in ("input_ids", "attention_mask"))
        if [len(row) for row in ids] != [len(row) for row in mask]:
            raise TaskError("attention_mask: another shape than input_ids")
        if any(x not in (0, 1) for row in mask for x in row):
            raise TaskError("attention_mask: only 0 and 1 say what is padding; masks per pair of tokens are not read")
        if len({len(row) for row in ids}) > 1:
            real = [[i for i, m in zip(*row, strict=True) if m] for row in zip(ids, mask, strict=True)]
            return cls._of_ids(real, side)
        return cls(torch.tensor(ids), torch.tensor(mask).bool()).checked()

    @classmethod
    def _of_ids(cls, rows: Sequence[Sequence[int]], side: str) -> Batch:
        if not rows or not all(rows):
            raise TaskError(EMPTY)
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for r, row in enumerate(rows):
            span = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            try:
                ids[r, span] = torch.tensor(row)
            except (OverflowError, RuntimeError, ValueError) as error:
                raise TaskError(f"token id {max(row, key=abs)} is outside any vocabulary") from error
            mask[r, span] = True
        return cls(ids, mask)

    def checked(self) -> Batch:
        """The batch itself.

        Raises:
            TaskError: ids and mask of different shapes, a prompt without a token, padding within one, or a span that
                reaches into it.
        """
        if (
            self.ids.ndim != 2
            or self.ids.is_floating_point()
            or self.ids.shape != self.mask.shape
            or self.mask.dtype != torch.bool
        ):
            shapes = f"{tuple(self.ids.shape)} and {tuple(self.mask.shape)} of {self.mask.dtype}"
            raise TaskError(f"a batch has ids [batch, pos] and a mask of booleans of the same shape; got {shapes}")
        for name, span in self.spans.items():
            check_name(name)
            check_mask(name, span, self.mask)
        if self.ids.numel() > 0 and bool(self.mask.all()):
            return self
        if self.ids.numel() == 0 or not bool(self.mask.any(1).all()):
            raise TaskError(EMPTY)
        turns = (self.mask[:, 1:] != self.mask[:, :-1]).sum(1)
        inside = (turns > 1) | ((turns == 1) & (self.mask[:, 0] == self.mask[:, -1]))
        if bool(inside.any()):
            raise TaskError(f"prompt {int(inside.nonzero()[0, 0])} has padding within it; it may stand at one end only")
        return self

    def padded_on(self, side: str) -> Batch:
        """The same prompts with their padding on the other side, where it is not on this one."""
        if bool(self.mask[:, -1 if side == "left" else 0].all()):
            return self
        rows = [ids[mask].tolist() for ids, mask in zip(self.ids, self.mask, strict=True)]
        batch = Batch._of_ids(rows, side).to(self.ids.device)
        spans = {name: torch.zeros_like(batch.mask) for name in self.spans}
        for name, span in spans.items():
            span[batch.mask] = self.spans[name][self.mask]  # real tokens stand in the same order
        return replace(batch, spans=spans)

    def _unpadded(self, tokenizer: PreTrainedTokenizerBase | None) -> Batch:
        """The batch without runs of the padding token at an end of ids that came without a mask; warns of them."""
        pad = getattr(tokenizer, "pad_token_id", None)
        if pad is None or len(self.ids) == 0:
            return self
        word = (self.ids != pad) & self.mask
        front, back = word.long().cumsum(1) > 0, word.flip(1).long().cumsum(1).flip(1) > 0
        ends = (self.ids == pad) & self.mask & ~(front & back)
        shared = pad in {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
        # one such token may begin or end the text, where it is that of beginnings and ends as well
        rows = (ends.sum(1) > int(shared)) & word.any(1)
        if not bool(rows.any()):
            return self
        if shared:
            raise TaskError(
                f"ids begin or end with {int(ends.sum(1).max())} of the padding token (id {pad}) and have no mask: "
                "give the tokenizer's whole output, or ids without padding"
            )
        warn(
            f"{int(rows.sum())} of {len(rows)} prompts begin or end with the padding token (id {pad}), read as "
            "padding; give the tokenizer's whole output to say so"
        )
        return Batch(self.ids, self.mask & ~(ends & rows[:, None])).checked()


def _rows(prompts: Prompts) -> list[Any]:
    """Prompts one by one, each text or a list of ids; text, or ids without another list around them, are one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    rows = _listed(prompts)
    if not rows:
        raise TaskError(EMPTY)
    return rows if all(isinstance(row, str) or _is_list(row) for row in rows) else [rows]


def _is_text(prompts: Prompts) -> bool:
    """Whether prompts are text, all of them."""
    if isinstance(prompts, np.ndarray) and prompts.dtype.kind in "UO":
        prompts = prompts.tolist()
    rows = [prompts] if isinstance(prompts, str) else prompts
    return isinstance(rows, list | tuple) and all(isinstance(row, str) for row in rows)


def _is_list(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def _listed(values: Any) -> list[Any]:
    if isinstance(values, Tensor | np.ndarray) and values.ndim > 0:
        return values.tolist()
    if isinstance(values, bytes | Mapping) or not isinstance(values, Iterable):
        raise TaskError(f"prompts are text or token ids; got {type(values).__name__}: {values!r:.40}")
    return list(values)


def _ids(row: Any) -> list[int]:
    """Ids as integers; what is not one is refused, never cut to one."""
    ids = []
    for value in _listed(row):
        number = value.item() if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0 else value
        if isinstance(number, bool) or not isinstance(number, int):
            raise TaskError(f"token ids are integers; got {type(value).__name__}: {value!r:.40}")
        ids.append(number)
    return ids


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase | None, *, keep_end: bool, bos: str) -> list[int]:
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
