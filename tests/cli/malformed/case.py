"""`Case`, one call of the program with malformed input, and how a folder is made wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prepare = Callable[[Path], object]
"""Changes a folder in which `model/` is a checkpoint, `sae/` a dictionary and `results/` holds a stored table."""
MODEL = "zoo:planted-induction"
DETECT = ("detect", "model", "-a", "previous_token")
CIRCUIT = ("circuit", MODEL, "-t", "induction", "-m", "eap", "--n-prompts", "4", "--random", "1")
DEEP = "[" * 100_000
VALUES: tuple[Any, ...] = (
    *(None, 0, -1, 1, 3, 1.5, "x", "", [], {}, [1], ["x"], {"a": 1}, True),
    *(10**18, -(10**18), 10**30, 1e308, float("nan"), "\x1b[2J", {"rope_type": 3}, [[[]]]),
)
FIELDS = (
    *"model_type architectures num_hidden_layers hidden_size num_attention_heads num_key_value_heads head_dim".split(),
    *"intermediate_size vocab_size max_position_embeddings rms_norm_eps rope_parameters hidden_act".split(),
    *"tie_word_embeddings torch_dtype dtype attention_bias mlp_bias bos_token_id eos_token_id pad_token_id".split(),
    *"quantization_config _attn_implementation auto_map use_cache initializer_range attention_dropout".split(),
    *"transformers_version layer_types sliding_window is_encoder_decoder tokenizer_class".split(),
)
TEXTS = {
    "empty": b"",
    "half": b'{"a": ',
    "list": b"[]",
    "null": b"null",
    "number": b"3",
    "text": b'"x"',
    "no utf-8": b"\xff\xfe\x00" * 9,
    "nul": b"\x00" * 64,
    "deep": DEEP.encode(),
    "digits": b'{"vocab_size": ' + b"9" * 6000 + b"}",
    "twice": b'{"model_type": "llama", "model_type": 3}',
    "other keys": b'{"a": {"b": [1, 2, {"c": null}]}}',
}


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        kind: its class. name: what is wrong. arguments: of the program. prepare: what makes it so.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    prepare: Prepare = lambda folder: None

    @property
    def id(self) -> str:
        """For messages."""
        return f"{self.kind}: {self.name}"


def write(name: str, content: bytes, folder: Path) -> None:
    """Put a file there."""
    (folder / name).write_bytes(content)


def put(file: str, key: str, value: Any, folder: Path) -> None:
    """Change one entry of a JSON file."""
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    content[key] = value
    path.write_text(json.dumps(content))


def cut(name: str, share: float, folder: Path) -> None:
    """Leave the first part of a file."""
    data = (folder / name).read_bytes()
    write(name, data[: int(len(data) * share)], folder)
