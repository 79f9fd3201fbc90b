"""Passes of every head analysis on a random GPT-2, written to interp/measurement/cost.json: what `plan` foretells from.

python tests/bench/analysis_counts.py
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.errors import InterpError
from interp.measurement import cost


def measure_counts() -> dict[str, dict[str, Any]]:
    """Counts of every head analysis that can be run on `cost.MODEL` with zoo:default's tokenizer.

    `factor` is time over what the tokens alone would take in the small pass that `cost.plan` times.
    """
    tokenizer = interp.load("zoo:default").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(n_embd=96, vocab_size=max(1000, len(tokenizer)), bos_token_id=None, eos_token_id=None)  # type: ignore[arg-type]
    model = interp.load(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)
    per_token, counts = cost.seconds_per_token(model), {}
    for spec in cost.usual_analyses():
        try:
            own = cost.forwards(model, spec.name, seed=0)
        except InterpError:  # its words are no tokens of this tokenizer
            continue
        default = inspect.signature(spec.run).parameters.get("n_prompts")
        factor = max(1.0, own.seconds / max(own.tokens * per_token, 1e-9))
        counts[spec.name] = {
            "forwards": own.forwards,
            "tokens": round(own.tokens),
            "batch": own.batch,
            "width": own.width,
            "factor": round(factor, 2),
            "n_prompts": default.default if default is not None and isinstance(default.default, int) else None,
        }
    return counts


if __name__ == "__main__":
    cost.COUNTS.write_text(json.dumps(measure_counts(), indent=1) + "\n", encoding="utf-8")
