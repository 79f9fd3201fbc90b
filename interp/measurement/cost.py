"""`Cost` and `Plan`: forward passes of analyses, counted as they run, or foretold before anything does."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from interp.batch import Batch, Prompts
from interp.environment import human_bytes
from interp.measurement.registry import _no_prompts, _obstacle, _takes_prompts, analyses, analyze, find
from interp.model import Model
from interp.several import several

COUNTS = Path(__file__).with_name("cost.json")
"""What the analyses of heads cost by themselves; made anew by `python tests/bench/analysis_counts.py`."""
UNIT = 1024  # tokens of a pass that costs are counted in
SAMPLE = (16, 64)  # prompts and tokens of the one pass that is timed before anything runs
MODEL = "a random GPT-2 of 12 layers, 12 heads and d_model 96, one thread of a CPU"
WIDTHS = 18  # widths of the stream that a token's activations take at once, those of the MLP included: an estimate


@dataclass(frozen=True)
class Cost:
    """What one run of an analysis took.

    Attributes:
        forwards: passes that were begun, whole or in part.
        tokens: tokens that went through the model, a pass of some layers counted for these.
        batch: tokens of the largest pass. width: of its prompts.
        seconds: wall time.
    """

    forwards: int
    tokens: float
    batch: int
    width: int
    seconds: float

    @property
    def equivalents(self) -> float:
        """The same in forward passes of 1,024 tokens."""
        return self.tokens / UNIT


class Counter:
    """Counts of passes, filled as they run."""

    def __init__(self) -> None:
        self.forwards, self.token_layers, self.batch, self.width = 0, 0, 0, 0

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass begins."""
        tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        assert tokens is not None
        rows, n = tokens.shape[:2]
        self.forwards += 1
        if rows * n > self.batch:
            self.batch, self.width = rows * n, n

    def layer(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A layer runs."""
        x = args[0] if args else kwargs["hidden_states"]
        self.token_layers += x.shape[0] * x.shape[1]


@contextlib.contextmanager
def counted(model: Model) -> Iterator[Counter]:
    """Context in which every forward pass of a model is counted, by hooks on its module and its layers."""
    own: Any = model
    counter = Counter()
    handles = [own.torch_module.register_forward_pre_hook(counter.begin, with_kwargs=True)]
    handles += [x.register_forward_pre_hook(counter.layer, with_kwargs=True) for x in own.anatomy.blocks]
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()


def forwards(model: Model, name: str, **options: Any) -> Cost:
    """Run an analysis and count its passes; the model is of the backend `hf`.

    >>> import interp
    >>> from interp.measurement.cost import forwards
    >>> forwards(interp.load("zoo:planted-induction"), "previous_token", n_prompts=4).forwards
    1
    """
    start = time.perf_counter()
    with counted(model) as counter:
        analyze(model, name, **options)
    tokens = counter.token_layers / model.info.n_layers
    return Cost(counter.forwards, tokens, counter.batch, counter.width, time.perf_counter() - start)


@cache
def stored() -> dict[str, dict[str, Any]]:
    """Counts by analysis, of their options as they are unless given."""
    return json.loads(COUNTS.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Plan:
    """What `detect` would run, foretold.

    Attributes:
        table: one row for each analysis: analysis, forwards (of 1,024 tokens), prompts x tokens of the largest pass,
            seconds and bytes; NaN where an analysis was never counted.
        left_out: what would not be run, and why.
        per_token: seconds that a token took in the one pass that was run.
        device: where.
    """

    table: pd.DataFrame
    left_out: Mapping[str, str]
    per_token: float
    device: str

    @property
    def seconds(self) -> float:
        """All analyses."""
        return float(self.table["seconds"].sum())

    def __str__(self) -> str:
        lines = [f"{'analysis':<20} {'passes':>8} {'prompts x tokens':>18} {'time':>9} {'memory':>9}"]
        for row in self.table.to_dict("records"):
            known = row["forwards"] == row["forwards"]  # noqa: PLR0124  NaN
            numbers = (
                f"{row['forwards']:>8.1f} {row['shape']:>18} {_time(row['seconds']):>9}" if known else "  not known"
            )
            lines.append(f"{row['analysis']:<20} {numbers} {human_bytes(row['bytes']) if known else '':>9}")
        total = f"{self.table['forwards'].sum():>8.1f} {'':>18} {_time(self.seconds):>9}"
        lines += [
            f"{'all':<20} {total}",
            "",
            "Estimates. A pass is one of 1,024 tokens; counts were measured on",
            f"{MODEL}.",
            f"Time: from one pass of {SAMPLE[0]} x {SAMPLE[1]} tokens on {self.device}. Memory: activations of",
            "the largest pass, without weights, caches and logits.",
        ]
        return "\n".join(lines)


def _time(seconds: float) -> str:
    minute = 60
    return f"{seconds:.1f} s" if seconds < minute else f"{seconds / minute:.1f} min"


def plan(
    model: Model,
    names: str | Sequence[str] | None = None,
    *,
    prompts: Prompts | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Passes, tokens, bytes and time of `interp.detect` with these arguments. One small pass is run, and timed.

    Passes are those that were counted on a small model, scaled by `n_prompts` or by prompts of one's own. Time is that
    of the pass times what the analysis took beyond its passes there, and what longer prompts cost in attention.

    Raises:
        UnknownEntry: no such analysis.
        TaskError: prompts that cannot be run.
    """
    chosen = several(names, "names of analyses")
    specs = [find(n) for n in chosen] if chosen else usual_analyses()
    batch, options = None if prompts is None else model.batch(prompts), options or {}
    reasons = {
        a.name: _obstacle(a, model, options.get(a.name)) or _no_prompts(a, batch, options.get(a.name, {}))
        for a in specs
    }
    left_out = {name: reason for name, reason in reasons.items() if reason}
    per_token = seconds_per_token(model)
    rows = [
        _row(model, a.name, batch if _takes_prompts(a) else None, options.get(a.name, {}), per_token)
        for a in specs
        if a.name not in left_out
    ]
    columns = ["analysis", "forwards", "shape", "seconds", "bytes"]
    return Plan(pd.DataFrame(rows, columns=columns), left_out, per_token, str(model.device))


def usual_analyses() -> list[Any]:
    """What `detect` runs where nothing is named."""
    return [a for a in analyses().values() if a.unit == "head" and getattr(a, "default", True)]


def seconds_per_token(model: Model) -> float:
    """Seconds that a token takes in one pass of random tokens, behind a first one of few that is not counted."""
    size, length = SAMPLE[0], min(SAMPLE[1], model.info.context or SAMPLE[1])
    ids = torch.randint(model.info.d_vocab, (size, length), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))  # whatever the ids: none is padding
    model.run(batch.select([0]), stop=0)
    start = time.perf_counter()
    model.run(batch, stop=model.info.n_layers - 1)
    return (time.perf_counter() - start) / ids.numel()


def _row(model: Model, name: str, batch: Batch | None, options: Mapping[str, Any], per_token: float) -> dict[str, Any]:
    """Estimates for one analysis."""
    count, nan = stored().get(name), float("nan")
    if count is None:
        return {"analysis": name, "forwards": nan, "shape": "", "seconds": nan, "bytes": nan}
    tokens, largest, width = count["tokens"], count["batch"], count["width"]
    if batch is not None:
        times = batch.ids.numel() / largest
        tokens, largest, width = tokens * times, batch.ids.numel(), batch.ids.shape[1]
    elif "n_prompts" in options and count.get("n_prompts"):
        times = options["n_prompts"] / count["n_prompts"]
        tokens, largest = tokens * times, max(width, round(largest * times))
    d = model.info.d_model
    longer = (12 * d + width) / (12 * d + SAMPLE[1])  # arithmetic of a token: 12 d^2 in matrices, n d in attention
    return {
        "analysis": name,
        "forwards": tokens / UNIT,
        "shape": f"{-(-largest // width)} x {width}",
        "seconds": tokens * per_token * count["factor"] * max(1.0, longer),
        "bytes": largest * WIDTHS * d * getattr(torch, model.info.dtype).itemsize,
    }
