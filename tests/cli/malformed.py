"""Malformed inputs: checkpoints, options, targets, stored tables, prompts, tasks and dictionaries that are not right.

Each `Case` is one call of the program. `cases()` makes them all, in classes; the order is fixed.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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


def cases() -> list[Case]:
    """All of them."""
    makers = (configs, weights, tokenizers, options, targets, stored, questions, prompts, tasks, dictionaries, methods)
    return [case for make in makers for case in make()]


def sample(n: int, *, seed: int = 0) -> list[Case]:
    """n of them, some of each class."""
    by_kind: dict[str, list[Case]] = {}
    for case in cases():
        by_kind.setdefault(case.kind, []).append(case)
    rng = random.Random(seed)
    each = max(1, n // len(by_kind))
    return [case for members in by_kind.values() for case in rng.sample(members, min(each, len(members)))]


def write(name: str, content: bytes, folder: Path) -> None:
    """Put a file there."""
    (folder / name).write_bytes(content)


def put(file: str, key: str, value: Any, folder: Path) -> None:
    """Change one entry of a JSON file."""
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    content[key] = value
    path.write_text(json.dumps(content))


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


def cut(name: str, share: float, folder: Path) -> None:
    """Leave the first part of a file."""
    data = (folder / name).read_bytes()
    write(name, data[: int(len(data) * share)], folder)


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


def options() -> Iterator[Case]:
    """What is typed."""
    numbers = ("-1", "x", "", "1.5", "1e3", "99999999999999999999999", "nan", "0x10", "١٢٣٤", "--", "\x1b[2J")
    for number in numbers:
        yield Case("option", f"--seed {number!r}", ("detect", MODEL, "-a", "previous_token", "--seed", number))
        yield Case("option", f"--top {number!r}", ("detect", MODEL, "-a", "previous_token", "--top", number))
        yield Case(
            "option",
            f"--n-prompts {number!r}",
            ("circuit", MODEL, "-t", "induction", "-m", "eap", "--random", "1", "--n-prompts", number),
        )
        yield Case("option", f"--edges {number!r}", (*CIRCUIT, "--edges", number))
    words = ("", " ", "x", "\x1b[31m", "a b", "-", "../..", "induction\x00", "L0H1", "é" * 400, "\udcff")
    for word in words:
        yield Case("option", f"-a {word!r:.20}", ("detect", MODEL, "-a", word))
        yield Case("option", f"--dtype {word!r:.20}", ("detect", MODEL, "--dtype", word))
        yield Case("option", f"--device {word!r:.20}", ("detect", MODEL, "--device", word))
        yield Case("option", f"--bos {word!r:.20}", ("detect", MODEL, "--bos", word))
        yield Case("option", f"--stack {word!r:.20}", ("detect", MODEL, "-a", "sink", "--stack", word))
        yield Case("option", f"model {word!r:.20}", ("detect", word, "-a", "sink"))
        yield Case("option", f"zoo:{word!r:.20}", ("zoo", "card", word))
        yield Case("option", f"-t {word!r:.20}", (*CIRCUIT, "-t", word))
        yield Case("option", f"-m {word!r:.20}", (*CIRCUIT, "-m", word))
        yield Case("option", f"--metric {word!r:.20}", (*CIRCUIT, "--metric", word))
        yield Case("option", f"--ablation {word!r:.20}", (*CIRCUIT, "--ablation", word))
        yield Case("option", f"list {word!r:.20}", ("list", word))
        yield Case("option", f"completion {word!r:.20}", ("completion", word))
        yield Case("option", f"reproduce {word!r:.20}", ("reproduce", word))
        yield Case("option", f"command {word!r:.20}", (word,))
        yield Case("option", f"--revision {word!r:.20}", ("detect", MODEL, "-a", "sink", "--revision", word))
    for case in (("detect",), ("detect", MODEL, "x"), ("detect", MODEL, "--nonsense"), ("zoo",), ("sae", "nonsense")):
        yield Case("option", " ".join(case), case)


def targets() -> Iterator[Case]:
    """Where output is to go."""
    ours = ("detect", MODEL, "-a", "previous_token", "--out")

    def foreign(name: str, folder: Path) -> None:
        write(name, b"what somebody wrote\n", folder)

    def fifo(folder: Path) -> None:
        os.mkfifo(folder / "pipe.csv")

    def loop(folder: Path) -> None:
        (folder / "loop.csv").symlink_to("loop.csv")

    def link(folder: Path) -> None:
        foreign("kept.csv", folder)
        (folder / "link.csv").symlink_to("kept.csv")

    def astray(folder: Path) -> None:
        (folder / "astray.csv").symlink_to("none/x.csv")

    def folder_there(folder: Path) -> None:
        (folder / "x.csv").mkdir()

    for suffix in (".csv", ".json", ".parquet"):
        yield Case("target", f"somebody's {suffix}", (*ours, f"a{suffix}"), partial(foreign, f"a{suffix}"))
        yield Case(
            "target",
            f"somebody's board{suffix}",
            ("zoo", "verify", "--out", f"a{suffix}"),
            partial(foreign, f"a{suffix}"),
        )
    for name in ("model/model.safetensors", "model/config.json", "notes.html", "notes.txt"):
        make = partial(foreign, name) if name.startswith("notes") else lambda folder: None
        yield Case("target", f"report over {name}", ("report", MODEL, "-a", "sink", "--out", name), make)
        yield Case("target", f"demo over {name}", ("demo", MODEL, "--out", name), make)
        yield Case("target", f"table over {name}", (*ours, name), make)
        yield Case("target", f"circuit in {name}", (*CIRCUIT, "--out", name), make)
        yield Case("target", f"graph in {name}", ("sae", "graph", MODEL, "-p", "x", "--out", name), make)
        yield Case("target", f"sae in {name}", ("sae", "load", "sae", "--save", "saelens", name), make)
        yield Case("target", f"zoo in {name}", ("zoo", "build", "planted-induction", name), make)
    yield Case("target", "a pipe", (*ours, "pipe.csv"), fifo)
    yield Case("target", "a circle", (*ours, "loop.csv"), loop)
    yield Case("target", "a link to somebody's", (*ours, "link.csv"), link)
    yield Case("target", "a link astray", (*ours, "astray.csv"), astray)
    yield Case("target", "a folder", (*ours, "x.csv"), folder_there)
    for name in (
        "",
        ".csv",
        "none/x.csv",
        "n" * 300 + ".csv",
        "a\x00.csv",
        "x.CSV",
        "x.csv/",
        "model/config.json/x.csv",
    ):
        yield Case("target", f"{name!r:.30}", (*ours, name))
    for name in (
        "/dev/null",
        "/dev/full",
        "/dev/stdout",
        "/proc/x.csv",
        "/proc/self/x.csv",
        "~nobody-of-this-name/x.csv",
    ):
        yield Case("target", name, (*ours, name))
        yield Case("target", f"report to {name}", ("report", MODEL, "-a", "sink", "--out", name))
        yield Case("target", f"circuit to {name}", (*CIRCUIT, "--out", name))
    for name in ("edges.csv", "graph.json", "circuit.html", "circuit.dot", "faithfulness.csv"):
        made = (*CIRCUIT, "--out", "mine")

        def somebody(folder: Path, name: str = name) -> None:
            (folder / "mine").mkdir()
            foreign(f"mine/{name}", folder)

        yield Case("target", f"a folder with somebody's {name}", made, somebody)
    yield Case("target", "zoo build in a full folder", ("zoo", "build", "planted-induction", "model"))


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


def questions() -> Iterator[Case]:
    """--sql."""
    for sql in (
        *("", " ", ";", ";;", "--", "SELECT", "SELECT (", "SELEKT 1", "SELECT nonsense", "SELECT * FROM nothing"),
        *("SELECT 1; SELECT 2", "DROP TABLE results", "CREATE TABLE x (i INT)", "INSERT INTO runs VALUES (1)"),
        *("COPY results TO 'x.csv'", "COPY (SELECT 1) TO '/dev/stdout'", "EXPORT DATABASE 'x'", "ATTACH 'x.db'"),
        *("SET threads = 4", "SET memory_limit = '1TB'", "PRAGMA database_list", "INSTALL httpfs", "LOAD httpfs"),
        *("CALL enable_logging()", "SELECT * FROM enable_logging()", "SELECT write_log('x')", "CALL pragma_version()"),
        *("SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM 'x.parquet'", "SELECT * FROM glob('*')"),
        *("SELECT * FROM read_text('config.json')", "SELECT getenv('HOME')", "SELECT * FROM sys", "SELECT * FROM pd"),
        *("SELECT * FROM range(100000000)", "SELECT 1/0", "SELECT 'x'::INT", "SELECT error('\x1b[2J')"),
        *(
            "SELECT {'a': 'x'::BLOB} AS s, [1] AS l, MAP {'k': 1} AS m",
            "SELECT '\\xff\\xfe'::BLOB",
            "SELECT chr(27) AS x",
        ),
        *("SELECT DATE '9999-12-31' AS d, INTERVAL 1 DAY AS i, uuid() AS u", "SELECT '\x00'", "SELECT \udcff"),
        *("SELECT 170141183460469231731687303715884105727::HUGEINT AS h", "SELECT 1 AS a, 2 AS a", "DELETE FROM runs"),
        *("SELECT * FROM " + "(" * 5000, "SELECT " + "1+" * 20_000 + "1", "BEGIN", "CHECKPOINT", "VACUUM", "EXECUTE x"),
    ):
        yield Case("question", f"{sql!r:.50}", ("runs", "results", "--sql", sql, "--json"))


def prompts() -> Iterator[Case]:
    """Texts that a model is run on."""
    texts = ("", " ", "\n", "\x00", "\x1b[2J", "é" * 3000, "w1 " * 3000, "\ud800", "\udcff", "-1", "<bos>", "💥" * 50)
    for text in texts:
        yield Case("prompt", f"{text!r:.20}", ("sae", "features", "sae", "-m", "model", "-p", text))
        yield Case("prompt", f"graph {text!r:.20}", ("sae", "graph", "model", "-p", text, "--check", "0"))
        report = ("report", "model", "-a", "sink", "--out", "out.html", "--prompt", text)
        yield Case("prompt", f"report {text!r:.20}", (*report, "--answer", "no such word"))
        yield Case(
            "prompt",
            f"answer {text!r:.20}",
            ("report", "model", "-a", "sink", "--prompt", "w1", "--answer", text + "?"),
        )
    for name, content in TEXTS.items():
        if name not in ("deep", "digits"):
            text = ("sae", "features", "sae", "-m", "model", "--text", "text")
            yield Case("prompt", f"file {name}", text, partial(write, "text", content))
    for name in ("none", "model", "/dev/zero", "/proc/self/mem", "a\x00b", "n" * 300):
        yield Case("prompt", f"file {name!r:.20}", ("sae", "features", "sae", "-m", "model", "--text", name))
    for arguments in (("--answer", "w1"), ("--prompt", "w1", "--answer", "a", "--answer", "b"), ("--wrong", "x")):
        yield Case("prompt", " ".join(arguments), ("report", MODEL, *arguments))


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


def methods() -> Iterator[Case]:
    """Options of circuit methods."""
    circuit = CIRCUIT
    for method, name in (("eap-ig", "steps"), ("cdt", "steps"), ("acdc", "threshold"), ("eap-ig", "nonsense")):
        for value in ("", "x", "-1", "0", "1.5", "null", "[]", "[1]", "{}", "true", '"2"', "1e400", "NaN", "9" * 30):
            yield Case("method", f"{method} {name}={value}", (*circuit, "-m", method, "-o", f"{name}={value}"))
    for text in ("", "=", "steps", "=3", "\x1b=3", "steps=" + DEEP):
        yield Case("method", f"{text!r:.30}", (*circuit, "-o", text))
