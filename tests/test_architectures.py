"""`tests/architectures` on a few types: what works, what is refused, and a broken number that is noticed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "architectures"))
from building import FAMILIES, SIZES, build, names, small  # noqa: E402  (no package: the line above makes it importable)
from outcomes import OUTCOMES, PARTLY, REFUSED, WORKS, WRONG, outcome, trials  # noqa: E402
from things import THINGS, Case  # noqa: E402

import interp  # noqa: E402


@pytest.mark.parametrize(
    ("model_type", "expected"), [("gpt2", WORKS), ("jamba", WORKS), ("mbart", PARTLY), ("mamba", REFUSED)]
)
def test_types(model_type, expected):
    row = outcome(model_type, "family")
    assert row.outcome == expected and row.outcome in OUTCOMES
    assert bool(row.lacks) == (expected != WORKS), row.lacks


def test_each_kind_of_layer_and_each_size_is_kept():
    config = small("gemma4_text")
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.hidden_size == SIZES["hidden_size"] and config.vocab_size == SIZES["vocab_size"]
    assert set(FAMILIES) - {"dots3_note"} - set(names()) <= {"musicgen_decoder", "musicgen_melody_decoder"}


def test_a_number_that_is_not_the_models_is_wrong():
    module = build("llama", small("llama"))
    other = build("llama", small("llama"), seed=1)
    failures = trials(Case(interp.load(module), other))
    wrong = {name for name, (kind, _) in failures.items() if kind == WRONG}
    assert {"logits", "generation", "gradients"} <= wrong <= set(THINGS)
    assert torch.isfinite(module(torch.arange(5)[None]).logits).all()
