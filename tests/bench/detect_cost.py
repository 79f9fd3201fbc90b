"""What `interp detect` costs on a GPT-2-small shape: forwards of each analysis, alone and where passes are shared.

One forward is 1,024 tokens through the matrices of all layers, each counted by its size, as they run: a pass that
ends or starts in the middle counts its share. Numbers of passes do not depend on widths, so that they are counted on a
narrow model; memory is measured at full width, each time in a new process.

    python tests/bench/detect_cost.py            # counts: a minute or two; memory with --memory: some minutes more
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pandas as pd
import torch
from providers import reading_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.measurement import registry

NARROW = {"n_embd": 96}
FORWARD = 1024
"""Tokens of one forward."""
AT_2848E89 = tuple(
    "induction previous_token duplicate_token sink successor copying copy_suppression movers direct_attribution "
    "retrieval echo_induction conflict temporal entropy offset_profile lag_profile text_induction distraction".split()
)
"""The analyses of heads that `detect` ran by default at commit 2848e89."""
COUNTS = harness.RESULTS / "detect_cost.csv"
TABLE = Path(__file__).parents[2] / "docs" / "detect_cost.table.md"


def load(*, narrow: bool = True) -> interp.Model:
    """GPT-2-small shape with random weights and a tokenizer that reads the shipped tasks."""
    torch.manual_seed(0)
    tokenizer = reading_tokenizer()
    sizes = {**NARROW, "vocab_size": len(tokenizer)} if narrow else {}
    config = GPT2Config(**sizes, bos_token_id=tokenizer.bos_token_id, eos_token_id=None)
    return interp.load(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)


class Counting:
    """Numbers multiplied in the layers' matrices of a GPT-2, for each token that goes through."""

    def __init__(self, module: GPT2LMHeadModel) -> None:
        self.products = 0
        self.whole = 0
        for block in module.transformer.h:
            for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                self.whole += part.weight.numel()
                part.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, args: tuple) -> None:
        self.products += args[0][..., 0].numel() * module.weight.numel()  # type: ignore[operator]

    @property
    def forwards(self) -> float:
        """So far."""
        return self.products / self.whole / FORWARD


@contextlib.contextmanager
def watched(counting: Counting, into: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Context in which the registry's `analyze` notes what each analysis costs."""
    plain = registry.analyze

    def analyze(model: interp.Model, name: str, **options: Any) -> Any:
        before = counting.forwards, time.process_time()
        try:
            return plain(model, name, **options)
        finally:
            into[name] = counting.forwards - before[0], time.process_time() - before[1]

    registry.analyze = analyze
    try:
        yield
    finally:
        registry.analyze = plain


def counts() -> pd.DataFrame:
    """Forwards and CPU seconds of every analysis of heads: alone, and in one run of `detect`."""
    model = load()
    counting = Counting(model.torch_module)  # type: ignore[attr-defined]
    together: dict[str, tuple[float, float]] = {}
    with watched(counting, together):
        registry.detect(model, seed=0)
    print({name: round(cost, 2) for name, (cost, _) in together.items()}, flush=True)
    rows = []
    for spec in (a for a in registry.analyses().values() if a.unit == "head"):
        before = counting.forwards
        with contextlib.suppress(interp.errors.NotApplicable):
            registry.analyze(model, spec.name, seed=0)
        alone = counting.forwards - before
        shared, _ = together.get(spec.name, (None, None))
        rows.append(
            {
                "analysis": spec.name,
                "alone": round(alone, 2),
                "in_detect": None if shared is None else round(shared, 2),
                "since": "2848e89" if spec.name in AT_2848E89 else "later",
            }
        )
    return pd.DataFrame(rows)


def peak(names: list[str] | None) -> float | None:
    """Peak memory in MB of `detect` at full width above what the loaded model takes."""
    model = load(narrow=False)
    return harness.peak_extra_mb(lambda: _quiet(model, names))


def _quiet(model: interp.Model, names: list[str] | None) -> None:
    with contextlib.suppress(interp.errors.NotApplicable):
        registry.detect(model, names, seed=0)


def page(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    lines = ["| analysis | alone | in `interp detect` |", "|---|---:|---:|"]
    for row in table.to_dict("records"):
        shared = "by name" if pd.isna(row["in_detect"]) else f"{row['in_detect']:.1f}"
        lines.append(f"| `{row['analysis']}` | {row['alone']:.1f} | {shared} |")
    old = table[table["since"] == "2848e89"]
    lines.append(f"| the 18 of commit 2848e89 | {old['alone'].sum():.1f} | {old['in_detect'].sum():.1f} |")
    ran = table[table["in_detect"].notna()]
    lines.append(f"| all that run by default | {ran['alone'].sum():.1f} | {ran['in_detect'].sum():.1f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Count, write the CSV and the table of the docs; with --memory the peaks too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="count, write nothing without --out")
    parser.add_argument("--out", help="CSV to write")
    parser.add_argument("--memory", nargs="*", metavar="NAME", help="peak memory of these analyses, or of all together")
    given = parser.parse_args(argv)
    if given.memory is not None:
        print(given.memory or "all", harness.fresh(peak, given.memory or None), "MB")
        return
    table = counts()
    print(page(table))
    if given.out or not given.quick:
        table.to_csv(given.out or COUNTS, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    if not given.quick:
        TABLE.write_text(page(table))


if __name__ == "__main__":
    main()
