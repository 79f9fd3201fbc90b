"""What a law of models is asked of: a model, the module it was made of, and prompts. And what counts as the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.batch import Batch, Prompts
from interp.edits import Edit, Scale
from interp.errors import InterpError
from interp.model import Model
from interp.run import Run
from interp.sites import DIVISORS, KINDS, Site

EXACT = 0.0
"""For one computation done twice, whose bits are equal."""
SHARE = 1e-5
"""Two routes to one number may differ by this share of the largest: ten times what was seen on tiny float32 models."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with prompts to run it on.

    Attributes:
        model: as the backend made it.
        module: a transformers module with the same parameters, to compare with.
        batch: prompts, padded or not.
    """

    model: Model
    module: PreTrainedModel
    batch: Batch

    @property
    def layers(self) -> range:
        """Every layer."""
        return range(self.model.info.n_layers)

    @property
    def last(self) -> int:
        """The last layer."""
        return self.model.info.n_layers - 1

    @property
    def real(self) -> Tensor:
        """Which tokens are no padding, [batch pos], on the CPU."""
        return self.batch.mask.cpu()

    def kinds(self) -> tuple[str, ...]:
        """Kinds of site that the model has; the others it refuses."""
        return tuple(kind for kind in KINDS if self.refusal(kind) is None)

    def editable(self) -> tuple[str, ...]:
        """Kinds of site that the model has and that can be changed: not what is read off, nor a choice made."""
        kinds = [kind for kind in self.kinds() if kind not in DIVISORS]
        return tuple(kind for kind in kinds if kind != "router_logits" or self._takes(Scale(kind, 1.0)))

    def _takes(self, edit: Edit) -> bool:
        try:
            self.model.run(self.batch, edits=[edit])
        except InterpError:
            return False
        return True

    def refusal(self, site: Site | str) -> str | None:
        """Why a site is refused, None where it is not."""
        try:
            self.model.run(self.batch, capture=[site])
        except InterpError as error:
            return str(error)
        return None

    def prompts(self) -> Iterator[Tensor]:
        """Each prompt alone, ids [1 pos] without padding."""
        for ids, mask in zip(self.batch.ids, self.batch.mask, strict=True):
            yield ids[mask][None]

    def logits(self, **options: Any) -> Tensor:
        """Logits of a run at the real tokens, [token d_vocab]."""
        return self.logits_of(self.batch, **options).detach().cpu()[self.real]

    def logits_of(self, tokens: Prompts, **options: Any) -> Tensor:
        """Logits of a run to the end, [batch pos d_vocab]."""
        return run_logits(self.model.run(tokens, **options))


def run_logits(run: Run) -> Tensor:
    """The logits of a run to the end."""
    if run.logits is None:
        raise AssertionError("a run to the end gives no logits")
    return run.logits


def require(truth: bool, what: str) -> None:
    """Raise AssertionError with what was to be true."""
    if not truth:
        raise AssertionError(what)


def close(actual: Tensor, expected: Tensor, what: str, *, share: float = SHARE, scale: float | None = None) -> None:
    """Raise AssertionError unless two tensors have one shape and differ by at most `share` of the largest |expected|.

    `scale` takes the place of the largest where that is not the size of the terms, as for sums that cancel.
    """
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    require(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    if not expected.numel():
        return
    same = actual == expected  # scores that are -inf in both, for one
    size = float(expected.masked_fill(expected.isinf(), 0.0).abs().max()) if scale is None else scale
    apart = float((actual.double() - expected.double()).masked_fill(same, 0.0).abs().max())
    require(apart <= share * size, f"{what}: {apart:.2g} apart, where {share * size:.2g} would be rounding")


def apart(one: Tensor, other: Tensor, what: str) -> None:
    """Raise AssertionError where two tensors are the same but for rounding: a change was to be seen."""
    size = float(other.detach().abs().max())
    change = float((one.detach().cpu().double() - other.detach().cpu().double()).abs().max())
    require(change > 4 * SHARE * size, f"{what}: nothing has changed")


def noise(like: Tensor, *, seed: int = 0) -> Tensor:
    """Standard normal numbers of the shape of a tensor."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
