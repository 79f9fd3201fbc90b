"""Whatever comes in at the doors is taken or refused: `interp.load`, `Model.run` and `interp.analyze` on odd arguments.

Each seed is one call with arguments drawn from lists of odd things; what it raises has to be an `InterpError`.
"""

from __future__ import annotations

import inspect
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import build, tiny

import interp
from interp import edits as kinds
from interp.errors import InterpError
from interp.measurement.registry import analyses, find

ODD = [
    *(None, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), True, 3 + 2j, np.int64(3), torch.float32),
    *("", "x", "auto", "none", "default", "L0H1", b"x", (), [], {}, [1, 2], (3, 1), (2, 2), (1, 2, 3), ["a"], {"a": 1}),
    *({1, 2}, object(), repr, np.array([1, 2]), torch.tensor([1, 2]), range(3)),
]
PROMPTS = [
    *([5, 6, 7], [[5, 6, 7], [8, 9]], torch.tensor([[5, 6, 7]]), torch.tensor([5.0]), "the cat", ["a", "b"], [], [[]]),
    *([-1], [64], [63], [10**30], np.array([[5, 6]]), np.array(["a"]), [[5, [6]]], [None], ["a", 3]),
    *({"input_ids": [[5, 6]]}, {"input_ids": [[5, 6]], "attention_mask": [[1, 0]]}, {"input_ids": "x"}),
    *({"input_ids": None}, torch.zeros(2, 3, 4), torch.zeros(0, 3).long(), list(range(3, 63)) * 20),
    interp.Batch(torch.tensor([[5, 6]]), torch.tensor([[0, 1]])),
    interp.Batch(torch.tensor([5, 6]), torch.tensor([True, True])),
    interp.Batch(torch.tensor([[5.0, 6]]), torch.ones(1, 2).bool()),
]
SITES = [
    *("z", "resid_post", "L0.z", "L1H2.z", "L9.z", "L0H9.z", "L0H1.pattern", "logits", "embed", "L0.logits", "q"),
    *("norm_scale", "L0KV1.k", "L0.z@1", "L0.z@-1", "L0.z@99", "nonsense", "", "L-1.z", "blocks.0.attn.hook_z"),
    *("head_out", "mlp_post", "mlp_in"),
]
REDUCERS: list[Any] = [torch.sum, None, torch.clone, "mean", 3]
EDITS = ("Ablate", "Scale", "Replace", "Add", "Noise", "KnockOut", "AttentionBias", "ForcePattern", "Uniform", "Apply")
VALUES = [*ODD, torch.zeros(4), torch.zeros(64), torch.zeros(1, 3, 8, 8)]
SOURCES = [
    *ODD,
    *("zoo:nope", "zoo:planted-induction", "zoo:", "org/none", "a/b/c", "/", Path("nowhere")),
    *(torch.nn.Linear(2, 2), transformers.LlamaForCausalLM, transformers.LlamaConfig()),
]
OPTIONS = (
    *("dtype", "device", "backend", "revision", "strip_prefix", "remote", "device_map", "tensor_parallel"),
    *("tokenizer", "stack", "source_text"),
)
FIELDS = {
    "names": (
        *("quantization_config", "_attn_implementation", "auto_map", "num_hidden_layers", "num_attention_heads"),
        *("hidden_size", "rope_parameters", "tie_word_embeddings", "architectures", "vocab_size", "model_type"),
    ),
    "values": (None, 0, -1, 1, 3, 1.5, "x", [], {}, [1], {"a": 1}, True, ["BertForMaskedLM"], {"quant_method": "x"}),
}
INDICES = (
    "{}",
    "[]",
    '{"weight_map": {"a": "../x.safetensors"}}',
    '{"weight_map": {"a": "x.bin"}}',
    '{"weight_map": 3}',
)


def make_edits(rng: random.Random) -> Any:
    """One edit, several, or something else."""

    def one() -> Any:
        arguments = [rng.choice(VALUES) for _ in range(rng.randint(0, 2))]
        try:
            return getattr(kinds, rng.choice(EDITS))(rng.choice(SITES), *arguments)
        except TypeError as error:  # too few or too many arguments are Python's own business
            if "argument" not in str(error):
                raise
            return kinds.Ablate("L0.z")

    kind = rng.random()
    return [one() for _ in range(rng.randint(0, 2))] if kind < 0.6 else one() if kind < 0.75 else rng.choice(ODD)


def run(rng: random.Random, folder: Path) -> object:
    """`Model.run` with odd prompts, captures, edits, start and stop."""
    model, prompt, options = tiny("llama"), rng.choice(PROMPTS + ODD), {}
    if rng.random() < 0.6:
        several = [rng.choice(SITES) for _ in range(rng.randint(0, 3))]
        reduced = {rng.choice(SITES): rng.choice(REDUCERS)}
        options["capture"] = rng.choice([several, several, reduced, rng.choice(SITES), rng.choice(ODD)])
    if rng.random() < 0.5:
        options["edits"] = make_edits(rng)
    if rng.random() < 0.2:
        options["stop"] = rng.choice(ODD)
    if rng.random() < 0.2:
        d = model.info.d_model
        options["start"] = rng.choice([*ODD, (1, torch.zeros(1, 3, d)), (9, torch.zeros(1, 3, d)), (0, torch.zeros(1))])
    return model.run(prompt, **options)


def analyze(rng: random.Random, folder: Path) -> object:
    """`interp.analyze` with odd names and options."""
    name, options = rng.choice([*analyses(), "nonsense", "", None, 3]), {}
    known = list(inspect.signature(find(name).run).parameters)[1:] if name in analyses() else ["seed"]
    for _ in range(rng.randint(1, 2)):
        option = rng.choice([*known, "nonsense"])
        options[option] = rng.choice(PROMPTS if option in ("prompts", "texts", "control", "task") else ODD)
    if "n_prompts" in known:
        options.setdefault("n_prompts", 4)
    return interp.analyze(tiny("llama"), name, **options)


def load(rng: random.Random, folder: Path) -> object:
    """`interp.load` of odd things, and of folders whose files were changed."""
    options = {rng.choice(OPTIONS): rng.choice(ODD)} if rng.random() < 0.4 else {}
    if rng.random() < 0.35:
        return interp.load(rng.choice(SOURCES), **options).run([5, 6, 7])
    config = json.loads((folder / "config.json").read_text())
    config[rng.choice([*config, *FIELDS["names"]])] = rng.choice(FIELDS["values"])
    (folder / "config.json").write_text(json.dumps(config))
    if rng.random() < 0.3:
        file = folder / rng.choice(["config.json", "model.safetensors", "generation_config.json"])
        data = file.read_bytes() if file.exists() else b""
        broken = [b"", data[: rng.randint(0, len(data))], data + b"x", b"\xff" * 50, b"[]", b"null", b"{}"]
        file.write_bytes(rng.choice(broken))
    if rng.random() < 0.1:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(rng.choice(INDICES))
    return interp.load(folder, **options).run([5, 6, 7])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build("llama").save_pretrained(folder)
    return folder


def raw_error(seed: int, saved: Path, tmp_path: Path) -> str | None:
    """What a call raised that is no `InterpError`; None where it was taken or refused."""
    rng = random.Random(seed)
    call: Callable[[random.Random, Path], object] = rng.choice([run, analyze, load])
    folder = tmp_path / str(seed)
    if call is load:
        shutil.copytree(saved, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that overflow on the way to a refusal
            call(rng, folder)
    except InterpError as error:
        return None if str(error).strip() else f"seed {seed}: {call.__name__}: an error without a word"
    except Exception as error:
        return f"seed {seed}: {call.__name__}: {type(error).__name__}: {str(error)[:200]}"
    return None


def test_odd_arguments_are_taken_or_refused(saved, tmp_path):
    assert [error for seed in range(60) if (error := raw_error(seed, saved, tmp_path))] == []


@pytest.mark.slow
def test_a_thousand_odd_arguments_are_taken_or_refused(saved, tmp_path):
    assert [error for seed in range(60, 1060) if (error := raw_error(seed, saved, tmp_path))] == []
