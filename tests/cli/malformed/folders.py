"""Malformed files: of a checkpoint, its tokenizer and tasks, of a dictionary and among stored results."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from malformed_inputs.case import CIRCUIT, DEEP, DETECT, FIELDS, TEXTS, VALUES, Case, cut, put, write


def configs() -> Iterator[Case]:
    """config.json of a checkpoint."""
    for field in FIELDS:
        for value in VALUES:
            yield Case("config", f"{field} = {value!r:.40}", DETECT, partial(put, "model/config.json", field, value))
    for name, content in TEXTS.items():
        yield Case("config", name, DETECT, partial(write, "model/config.json", content))
        yield Case("config", f"generation {name}", DETECT, partial(write, "model/generation_config.json", content))
        yield Case("config", f"adapter {name}", DETECT, partial(only_adapter, content))

    def folder_in_place(folder: Path) -> None:
        (folder / "model" / "config.json").unlink()
        (folder / "model" / "config.json").mkdir()

    yield Case("config", "a folder", DETECT, folder_in_place)


def only_adapter(content: bytes, folder: Path) -> None:
    """A folder of an adapter alone."""
    (folder / "model/config.json").unlink()
    write("model/adapter_config.json", content, folder)


def tensors(header: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def weights() -> Iterator[Case]:
    """model.safetensors and its index."""
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    def header(**changes: Any) -> bytes:
        return tensors(json.dumps({"lm_head.weight": {**one, **changes}}).encode(), data=b"\x00" * 8)

    files = {
        "empty": b"",
        "seven bytes": b"\x00" * 7,
        "a header of 2^62": tensors(b"{}", 2**62),
        "a header of a gigabyte": tensors(b"{}", 2**30),
        "no JSON": tensors(b"{" * 50),
        "deep": tensors(DEEP.encode()),
        "a list": tensors(b"[1, 2]"),
        "null": tensors(b"null"),
        "no tensors": tensors(b"{}"),
        "one tensor": header(),
        "a shape of 10^18": header(shape=[10**18]),
        "a negative shape": header(shape=[-2]),
        "a shape of text": header(shape="x"),
        "an unknown dtype": header(dtype="F33"),
        "a dtype of 3": header(dtype=3),
        "offsets outside": header(data_offsets=[0, 10**15]),
        "offsets backwards": header(data_offsets=[8, 0]),
        "no offsets": tensors(b'{"a": {"dtype": "F32", "shape": [2]}}'),
        "integers": header(dtype="I64", shape=[1]),
        "pickle": b"\x80\x04K\x01.",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in files.items():
        yield Case("weights", name, DETECT, partial(write, "model/model.safetensors", content))
    for share in (1, 2, 3):
        yield Case("weights", f"{share} quarters of it", DETECT, partial(cut, "model/model.safetensors", share / 4))
    indices = [
        *TEXTS.values(),
        b'{"weight_map": 3}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": ["b"]}}',
        b'{"weight_map": {"a": "../x.safetensors"}}',
        b'{"weight_map": {"a": "x.bin"}}',
        b'{"weight_map": {"a": "gone.safetensors"}}',
        b'{"weight_map": {"a": "\\u0000.safetensors"}}',
    ]
    for number, content in enumerate(indices):
        yield Case("weights", f"index {number}", DETECT, partial(index_alone, content))
    yield Case("weights", "none", DETECT, lambda folder: (folder / "model/model.safetensors").unlink())


def index_alone(content: bytes, folder: Path) -> None:
    """An index in place of the weights."""
    (folder / "model/model.safetensors").unlink()
    write("model/model.safetensors.index.json", content, folder)


def tokenizers() -> Iterator[Case]:
    """Files of a tokenizer."""
    for file in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "added_tokens.json",
    ):
        for name, content in TEXTS.items():
            yield Case("tokenizer", f"{file} {name}", DETECT, partial(write, f"model/{file}", content))
    for key in (
        "tokenizer_class",
        "model_max_length",
        "bos_token",
        "eos_token",
        "added_tokens_decoder",
        "chat_template",
    ):
        for value in (None, 3, -1, "x", [], [1], {"a": 1}, True, 10**30):
            yield Case(
                "tokenizer", f"{key} = {value!r}", DETECT, partial(put, "model/tokenizer_config.json", key, value)
            )
    for key in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder", "post_processor", "version"):
        for value in (3, "x", [1], {"type": "None"}, {"type": "BPE"}):
            yield Case("tokenizer", f"{key} = {value!r}", DETECT, partial(put, "model/tokenizer.json", key, value))


def stored() -> Iterator[Case]:
    """Files among results."""
    runs = ("runs", "results")
    for suffix in (".json", ".parquet"):
        for name, content in TEXTS.items():
            yield Case("stored", f"{name}{suffix}", runs, partial(write, f"results/x{suffix}", content))
        for share in (1, 2, 3):
            yield Case("stored", f"{share} quarters{suffix}", runs, partial(part_of, f"good{suffix}", share / 4))
    for key in ("provenance", "rows", "interventions"):
        for value in (None, 3, "x", [], {}, [1], [[]], [{"a": 1}], {"a": 1}):
            yield Case("stored", f"{key} = {value!r}", runs, partial(put, "results/good.json", key, value))
    for key in ("calls", "run_id", "model", "seed", "method", "created_utc", "seconds", "device"):
        for value in (None, 3, "x\x1b[2J", [], [1], {"a": 1}):
            yield Case("stored", f"provenance {key} = {value!r}", runs, partial(provenance, key, value))
    graph = {"schema": 1, "layout": {}, "provenance": {}, "edges": []}
    for key in ("layout", "provenance", "edges"):
        for value in (None, 3, [1], [{"sender": 3}], {"a": 1}):
            content = json.dumps({**graph, key: value}).encode()
            yield Case("stored", f"graph {key} = {value!r}", runs, partial(write, "results/graph.json", content))

    def special(folder: Path) -> None:
        os.mkfifo(folder / "results" / "pipe.json")
        (folder / "results" / "loop.json").symlink_to("loop.json")
        (folder / "results" / "folder.parquet").mkdir()
        (folder / "results" / ".interp-1-left.parquet").write_bytes(b"half")
        (folder / "results" / "gone.json").symlink_to("none")

    yield Case("stored", "no files", runs, special)
    yield Case("stored", "a name of escapes", runs, partial(write, "results/\x1b[2J\x1b[31m.parquet", b"x"))
    yield Case("stored", "a name of bytes", runs, partial(write, "results/\udcff\udcfe.parquet", b"x"))
    yield Case("stored", "no folder", ("runs", "nowhere"))
    yield Case("stored", "a file", ("runs", "results/good.json"))
    for a, b in (("x", "y"), ("", ""), ("good.json", "x"), ("\x1b", "good.json")):
        yield Case("stored", f"compare {a!r} {b!r}", ("runs", "results", "--compare", a, b))


def part_of(name: str, share: float, folder: Path) -> None:
    """A stored table cut short."""
    cut(f"results/{name}", share, folder)


def provenance(key: str, value: Any, folder: Path) -> None:
    """Change one entry of a stored table's provenance."""
    path = folder / "results/good.json"
    content = json.loads(path.read_text())
    content["provenance"][key] = value
    path.write_text(json.dumps(content))


def tasks() -> Iterator[Case]:
    """tasks.json of a checkpoint."""
    circuit = (CIRCUIT[0], "model", "-t", "own", *CIRCUIT[4:])
    good = {"family": "lookup", "templates": ["{x} w2"], "rows": [{"slots": {"x": "w1"}, "answers": ["w3"]}] * 6}

    def task(content: Any, folder: Path) -> None:
        write("model/tasks.json", json.dumps({"schema": 1, "tasks": {"own": content}}).encode(), folder)

    for name, content in TEXTS.items():
        yield Case("task", name, circuit, partial(write, "model/tasks.json", content))
    for value in (None, 3, "x", [], {}, [1], {"own": None}, {"own": 3}, {"own": []}, {"other": good}):
        whole = json.dumps({"schema": 1, "tasks": value}).encode()
        yield Case("task", f"tasks = {value!r:.30}", circuit, partial(write, "model/tasks.json", whole))
    for key in ("family", "templates", "words", "rows", "many", "key", "one_in", "metric", "corruptions", "answer"):
        for value in (None, 3, 0, -1, "x", [], {}, [1], [None], {"a": 1}, [{"text": 3}], ["{"], ["{y}"]):
            yield Case("task", f"{key} = {value!r}", circuit, partial(task, {**good, key: value}))


def dictionaries() -> Iterator[Case]:
    """Files of a dictionary."""
    load = ("sae", "load", "sae")
    for name, content in TEXTS.items():
        yield Case("dictionary", f"cfg {name}", load, partial(write, "sae/cfg.json", content))
        yield Case("dictionary", f"weights {name}", load, partial(write, "sae/sae_weights.safetensors", content))
        yield Case("dictionary", f"config.yaml {name}", load, partial(yaml_alone, content))
    for key in (
        "architecture",
        "d_in",
        "d_sae",
        "dtype",
        "normalize_activations",
        "metadata",
        "k",
        "reshape_activations",
    ):
        for value in (None, 3, -1, "x", [], [1], {"a": 1}, 10**18):
            yield Case("dictionary", f"{key} = {value!r}", load, partial(put, "sae/cfg.json", key, value))
    for extra in (("--format", "x"), ("--site", "x"), ("--site", "L9.z"), ("--scale", "x"), ("--loss",), ("-p", "w1")):
        yield Case("dictionary", " ".join(extra), (*load, *extra))
    for name in ("nowhere", "sae/cfg.json", "model", "zoo:default/none", "zoo:none/x", "", "a/b/c", "\x00"):
        yield Case("dictionary", f"{name!r}", ("sae", "load", name))
    for extra in (("-f", "10000000000000000000"), ("-f", "-1"), ("--member", "7"), ("--top", "0")):
        yield Case("dictionary", " ".join(extra), ("sae", "features", "sae", "-m", "model", "-p", "w1", *extra))
    train = ("sae", "train", "model", "--out", "made", "--steps", "1")
    for extra in (
        ("x",),
        ("L0.z",),
        ("L9.resid_post",),
        ("L0.resid_post", "--kind", "x"),
        ("L0.resid_post", "-k", "0"),
    ):
        yield Case("dictionary", f"train {' '.join(extra)}", (*train, *extra))
    yield Case(
        "dictionary",
        "train where another's state is",
        ("sae", "train", "model", "L0.resid_post", "--out", "sae", "--steps", "1", "--features", "8", "--k", "2"),
        partial(write, "sae/training.pt", b"no state"),
    )


def yaml_alone(content: bytes, folder: Path) -> None:
    """A configuration of circuit-tracer in place of SAELens's."""
    (folder / "sae/cfg.json").unlink()
    write("sae/config.yaml", content, folder)
