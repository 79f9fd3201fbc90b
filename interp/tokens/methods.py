"""`TokenMethods`: what every model does with tokens, the same on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Batch, Prompts
from interp.edits import Edit
from interp.errors import NotApplicable, TaskError, nearest
from interp.tokens.losses import token_losses
from interp.tokens.texts import bare_ids, single_id, token_texts

if TYPE_CHECKING:
    import pandas as pd

WHICH = ("only", "first", "last")
LISTED = 20  # tokens named in an error


@runtime_checkable
class _Runs(Protocol):
    """What the methods here need of a model."""

    info: Any
    tokenizer: Any

    def batch(self, tokens: Prompts, *, bos: str = "default") -> Batch: ...

    def run(self, tokens: Prompts, *, edits: Sequence[Edit] = ()) -> Any: ...


class TokenMethods(Protocol):
    """Tokens, their texts and places, the next token, the loss: part of every `Model`.

    `bos` says what stands in front of a text: "default", what the checkpoint's tokenizer puts there by itself (a bridge
    too); "forced", one beginning of text; "none", none. Ids are run as they are. What `tokens` gives can be run,
    attended, patched and analysed like any prompts.
    """

    def tokens(self: _Runs, prompts: Prompts, *, bos: str = "default") -> Batch:
        """Token ids [batch pos] and mask of prompts, on the model's device: `model.tokens("ab c", bos="none").ids`.

        Raises:
            TaskError: no text (with a `bos`), no tokenizer, an unknown `bos`, "forced" without a BOS token; ids that
                the model cannot run.

        >>> import interp
        >>> model = interp.load("zoo:default")
        >>> model.tokens("the cat").ids.shape == model.tokens("the cat", bos="none").ids.shape
        False
        """
        return self.batch(prompts, bos=bos)

    def str_tokens(self: _Runs, prompts: Prompts, *, bos: str = "default") -> list[str] | list[list[str]]:
        """Text of each token, leading spaces kept: a list for one prompt, a list of lists for several; no padding.

        Without a tokenizer texts are the ids. A token that is no whole character keeps the tokenizer's name for it.

        Raises:
            TaskError: as `tokens`.
        """
        batch = self.batch(prompts, bos=bos)
        rows = [token_texts(row, self.tokenizer) for row in _real(batch)]
        return rows if len(rows) > 1 or _several(prompts) else rows[0]

    def single_token(self: _Runs, text: int | str) -> int:
        """Id of a text that is one token; an id is itself.

        Raises:
            TaskError: a text of several tokens (names them), or not in the vocabulary; an id outside of it.
        """
        return _single(self, text)

    def position_of(
        self: _Runs, prompt: Prompts, token: int | str, *, which: str = "only", bos: str = "default"
    ) -> int:
        """Position of a token in one prompt, counted over its real tokens from 0: `"L3.z@5"` and `position=5` mean it.

        Args:
            prompt: one prompt.
            token: an id or a text; of a text of several tokens, the position of its last one.
            which: "first" or "last" where it stands there more than once; "only" refuses that.
            bos: what stands in front of a text.

        Raises:
            TaskError: it is not there, more than once, or several prompts.
        """
        if which not in WHICH:
            raise TaskError(f"unknown occurrence {which!r}; {nearest(str(which), WHICH)}")
        rows = _real(self.batch(prompt, bos=bos))
        if len(rows) != 1:
            raise TaskError(f"{len(rows)} prompts: the position in one of them is asked for; take them one at a time")
        wanted = [token] if isinstance(token, int) else bare_ids(token, self.tokenizer)
        ends = [i + len(wanted) - 1 for i in range(len(rows[0])) if wanted and rows[0][i : i + len(wanted)] == wanted]
        if not ends:
            words = token_texts(rows[0][:LISTED], self.tokenizer)
            rest = f" and {len(rows[0]) - LISTED} more" if len(rows[0]) > LISTED else ""
            raise TaskError(f"{token!r} is not in the prompt, whose tokens are {words}{rest}")
        if which == "only" and len(ends) > 1:
            raise TaskError(f"{token!r} stands at positions {ends}: say which='first' or 'last'")
        return ends[0 if which == "first" else -1]

    @torch.no_grad()
    def top_next(
        self: _Runs,
        prompts: Prompts,
        k: int = 10,
        *,
        answer: int | str | None = None,
        edits: Sequence[Edit] = (),
        bos: str = "default",
    ) -> pd.DataFrame:
        """The k likeliest next tokens after each prompt: columns prompt, rank (0 is first), token, text, probability.

        Args:
            prompts: one or several.
            k: rows a prompt.
            answer: an id or a text of one token that has a row in any case, the last where it is not among the k.
            edits: under which the model runs.
            bos: what stands in front of a text.

        Raises:
            TaskError: k below 1; an answer that is no token.
            NotApplicable: logits that are not one per token.
        """
        import pandas as pd

        if not isinstance(k, int) or k < 1:
            raise TaskError(f"the {k!r} likeliest tokens: expected a number from 1 on")
        if self.info.n_logits:
            raise NotApplicable(f"{self.info.name} has {self.info.n_logits} logits: which token one is of is not known")
        wanted = None if answer is None else _single(self, answer)
        batch = self.batch(prompts, bos=bos)
        logits = self.run(batch, edits=edits).logits
        last = batch.mask.shape[1] - 1 - batch.mask.flip(1).long().argmax(1)
        final = logits[torch.arange(len(last)), last.to(logits.device)].float()
        probability = final.softmax(-1)
        order = final.topk(min(k, final.shape[1])).indices
        rows: list[dict[str, object]] = []
        for b, likeliest in enumerate(order.tolist()):
            ids = likeliest if wanted is None or wanted in likeliest else [*likeliest, wanted]
            for i, text in zip(ids, token_texts(ids, self.tokenizer), strict=True):
                rank = likeliest.index(i) if i in likeliest else int((final[b] > final[b, i]).sum())
                rows.append(
                    {"prompt": b, "rank": rank, "token": i, "text": text, "probability": float(probability[b, i])}
                )
        return pd.DataFrame(rows)

    @torch.no_grad()
    def loss(
        self: _Runs, prompts: Prompts, *, per_token: bool = False, edits: Sequence[Edit] = (), bos: str = "default"
    ) -> Float[Tensor, ""] | Float[Tensor, "batch next"]:
        """Cross entropy of the next token in nats: the mean over all predicted tokens, -log p(token i + 1 | 0..i).

        `per_token`: each of them, [batch pos - 1], column i that of token i + 1; NaN at padding, which the mean leaves
        out. The first token is not predicted. exp of the mean is the perplexity.

        Raises:
            TaskError: no prompt of two tokens.
            NotApplicable: attention both ways (the token itself is seen), no logits, or fewer than the vocabulary.
        """
        if not self.info.causal:
            raise NotApplicable(f"{self.info.name} sees later tokens: its logits do not predict the next one")
        if self.info.n_logits:
            raise NotApplicable(f"{self.info.name} has {self.info.n_logits} logits: which token one is of is not known")
        batch = self.batch(prompts, bos=bos)
        if int(batch.mask.sum(1).max()) < 2:
            raise TaskError("a loss needs a prompt of two tokens at least: the first is not predicted")
        losses = token_losses(self.run(batch, edits=edits).logits, batch.ids, batch.mask)
        return losses if per_token else losses.nanmean()


def _single(model: _Runs, text: int | str) -> int:
    """Id of a token."""
    if isinstance(text, int) and not isinstance(text, bool):
        if not 0 <= text < model.info.d_vocab:
            raise TaskError(f"token id {text} is outside the vocabulary 0..{model.info.d_vocab - 1}")
        return text
    return single_id(text, model.tokenizer)  # type: ignore[arg-type]  # refused there


def _real(batch: Batch) -> list[list[int]]:
    """Ids of each prompt without padding."""
    return [ids[mask].tolist() for ids, mask in zip(batch.ids.cpu(), batch.mask.cpu(), strict=True)]


def _several(prompts: Prompts) -> bool:
    """Whether a list of prompts was given, be it of one: a list of texts, of lists of ids, or a matrix."""
    if isinstance(prompts, Batch):
        return True
    if isinstance(prompts, Tensor):
        return prompts.ndim > 1
    return isinstance(prompts, list | tuple) and not all(isinstance(x, int) for x in prompts)
