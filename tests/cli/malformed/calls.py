"""Malformed calls: options, places of output, questions in SQL, prompts and options of methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from malformed_inputs.case import CIRCUIT, DEEP, MODEL, TEXTS, Case, write


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


def methods() -> Iterator[Case]:
    """Options of circuit methods."""
    circuit = CIRCUIT
    for method, name in (("eap-ig", "steps"), ("cdt", "steps"), ("acdc", "threshold"), ("eap-ig", "nonsense")):
        for value in ("", "x", "-1", "0", "1.5", "null", "[]", "[1]", "{}", "true", '"2"', "1e400", "NaN", "9" * 30):
            yield Case("method", f"{method} {name}={value}", (*circuit, "-m", method, "-o", f"{name}={value}"))
    for text in ("", "=", "steps", "=3", "\x1b=3", "steps=" + DEEP):
        yield Case("method", f"{text!r:.30}", (*circuit, "-o", text))
