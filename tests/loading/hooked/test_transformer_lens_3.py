"""Checkpoints as transformer-lens 3 itself writes them, with all that its configs and state dicts say beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tolerance import rounding

import interp
from interp.errors import ModelLoadError

FOLDER = Path(__file__).with_name("checkpoints")
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
ROUNDED = 1e-5
"""The golden logits have five digits behind the point."""


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformer_lens(name):
    golden = json.loads((FOLDER / name / "golden.json").read_text())
    expected = torch.tensor(golden["logits"])
    logits = interp.load(FOLDER / name).run(torch.tensor(golden["tokens"])).logits
    torch.testing.assert_close(logits, expected, atol=ROUNDED + rounding(expected, depth=64), rtol=0)


def test_there_are_ten():
    assert len(NAMES) == 10


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("some_later_switch", True, "unknown option 'some_later_switch' = True"),
        ("use_yarn_rope", True, "option 'use_yarn_rope' = True .* cannot be carried out"),
        ("rotary_scaling_factor", 2.0, "option 'rotary_scaling_factor' = 2.0 .* cannot be carried out"),
    ],
)
def test_what_is_switched_on_and_not_known_is_refused(tmp_path, option, value, message):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((FOLDER / "rotary-gated" / file).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"some_switch_that_is_off": False, option: value}))
    with pytest.raises(ModelLoadError, match=message):
        interp.load(tmp_path)
