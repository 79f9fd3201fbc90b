"""`Padding`: what a model makes of padding, found by trying, and the positions that padded prompts are run at.

Most decoders take position ids, counted from 0 within each prompt; some count from elsewhere (the RoBERTa family), some
take none and count columns, some carry a state through the padding. A few short passes say which: three tokens alone,
and the same three behind or before two of padding. Where they do not come out alike, such a batch is refused.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.attention import Recorder, intercept
from interp.backends.hf.anatomy import input_device
from interp.batch import Batch
from interp.errors import BackendError
from interp.numerics import evaluating

TOKENS, PADS = 3, 2
EXACT, ROUNDED = 1e-3, 0.1
"""Share by which logits may differ: of float32, of half precision."""


class Padding:
    """How one model is given padded prompts; each side is tried when it first comes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._first: dict[str, int | None] = {}

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What a padded batch is passed with besides its ids.

        Raises:
            BackendError: padding on that side changes the prompts; says on which side it does not.
        """
        inputs = {"attention_mask": batch.mask.long()}
        ends = {"left": batch.mask[:, 0], "right": batch.mask[:, -1]}
        starts = [self._tried(side) for side, real in ends.items() if not bool(real.all())]
        return inputs | ({} if starts[0] is None else {"position_ids": batch.positions + starts[0]})

    def _tried(self, side: str) -> int | None:
        """The position that prompts start at, None where the model is given none."""
        if side not in self._first:
            self._first[side] = self._start(side)
        return self._first[side]

    def _start(self, side: str) -> int | None:
        starts = self._starts()
        offloaded = any(hasattr(m, "_hf_hook") for m in self.model.modules())
        if not offloaded and any(p.is_meta for p in self.model.parameters()):
            return starts[0]  # its weights are on another machine: it cannot be tried here
        for start in starts:
            if self._unchanged(side, start):
                return start
        name, other = type(self.model).__name__, {"left": "right", "right": "left"}[side]
        if any(self._unchanged(other, start) for start in starts):
            raise BackendError(
                f"{name} gives other numbers for a prompt that is padded on the {side} than for the prompt alone; pad "
                f'on the {other}: Batch.of(prompts, side="{other}")'
            )
        raise BackendError(
            f"{name} gives other numbers for a prompt that is padded than for the prompt alone; run prompts of one "
            "length at a time"
        )

    def _starts(self) -> list[int | None]:
        """Positions that a prompt may start at, the usual one first."""
        if not self.takes_positions:
            return [None]
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        after = [pad + 1] if isinstance(pad, int) and pad >= 0 else []
        return [0, *after, None]

    def _unchanged(self, side: str, start: int | None) -> bool:
        """Whether three tokens beside padding are as they are alone, where their positions start so."""
        device = input_device(self.model)
        ids = torch.arange(TOKENS)[None].to(device) + self._token
        at = slice(PADS, None) if side == "left" else slice(None, TOKENS)
        padded = torch.full((1, TOKENS + PADS), self._token, device=device)
        padded[:, at] = ids
        mask = torch.zeros_like(padded, dtype=torch.bool)
        mask[:, at] = True
        options: dict[str, Any] = {"attention_mask": mask.long()}
        if start is not None:
            options["position_ids"] = Batch(padded, mask).positions + start
        with evaluating(self.model), torch.no_grad():
            alone = _answer(self.model(ids, use_cache=False))
        if not bool(torch.isfinite(alone).all()):
            return True  # nothing to compare; the run itself says where and why
        try:
            with evaluating(self.model), torch.no_grad(), intercept(self.model, Recorder(padded=True)):
                beside = _answer(self.model(padded, use_cache=False, **options))[:, at]
        except (IndexError, RuntimeError, ValueError):  # a position that there is not, or a form that is not taken
            return False
        share = EXACT if alone.itemsize >= torch.float32.itemsize else ROUNDED
        return bool((alone - beside).float().norm() <= share * alone.float().norm())

    @property
    def _token(self) -> int:
        """The least id that the configuration does not set apart, where there is room for three."""
        config = self.model.config.get_text_config()
        apart = {
            v for k in ("pad_token_id", "bos_token_id", "eos_token_id") if isinstance(v := getattr(config, k, 0), int)
        }
        size = len(next(self.model.get_input_embeddings().parameters()))
        fits = (t for t in range(size - TOKENS) if not apart & set(range(t, t + TOKENS)))
        return next(fits, 0)


def _answer(output: Any) -> Tensor:
    """Logits, or the last hidden state of a model that gives none."""
    return output.last_hidden_state if output.logits is None else output.logits
