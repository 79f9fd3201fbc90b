"""Malformed options of analyses and what they name, tables of roles, and options that do not go together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from malformed_inputs.case import CIRCUIT, MODEL, TEXTS, Case, write

OPTIONS = {
    "induction": ("n_prompts", "length", "causal", "bos", "prompts"),
    "movers": ("task", "n_draws", "method"),
    "conflict": ("prompts", "factor", "n_null"),
}
TYPED = ("", "x", "-1", "0", "1.5", "[]", "{}", "null", "true", "1e400", "NaN", "9" * 30, "\x1b[2J", "[" * 9999, "\x00")


def analysis_options() -> Iterator[Case]:
    """-o of analyses: values of the wrong kind, names that are none, files that are something else."""
    for analysis, names in OPTIONS.items():
        for name in (*names, "nonsense"):
            for value in TYPED:
                arguments = ("detect", MODEL, "-a", analysis, "-o", f"{name}={value}")
                yield Case("analysis", f"{analysis} {name}={value!r:.20}", arguments)
    for text in (
        "",
        "=",
        "seed",
        "=3",
        ".seed=3",
        "induction.=3",
        "sink.seed=3",
        "nobody.seed=3",
        "a.b.c=3",
        "seed==3",
    ):
        yield Case("analysis", f"-o {text!r}", ("detect", MODEL, "-a", "induction", "-o", text))
    for option in ("induction.prompts", "conflict.prompts", "movers.task", "distraction.prompts"):
        arguments = ("detect", MODEL, "-a", option.split(".")[0], "-o")
        for suffix in (".jsonl", ".json", ".csv", ".txt"):
            contents = {
                **TEXTS,
                "other columns": b"a,b\n1,2\n",
                "objects": b'{"clean": 3}\n',
                "bomb": b'{"a":' * 5000,
                "no rows": b"clean,corrupt,answer,wrong\n",
            }
            for name, content in contents.items():
                make = partial(write, f"own{suffix}", content)
                yield Case("analysis", f"{option} {name}{suffix}", (*arguments, f"{option}=own{suffix}"), make)
        for place in (
            "model",
            "none.csv",
            "/dev/zero",
            "/dev/null",
            "model/model.safetensors",
            "folder.csv",
            "huge.csv",
        ):
            yield Case("analysis", f"{option} {place}", (*arguments, f"{option}={place}"), odd_files)


def odd_files(folder: Path) -> None:
    """A folder and a file of two terabytes, no byte of which is stored, with names of tables."""
    (folder / "folder.csv").mkdir()
    with (folder / "huge.csv").open("wb") as file:
        file.truncate(2 * 10**12)


def role_tables() -> Iterator[Case]:
    """--roles of `interp circuit`."""
    contents = {
        **TEXTS,
        "other columns": b"a,b\nL0H1,x\n",
        "no components": b"component,role\nnobody,x\n\xe2\x80\xae,y\n",
        "half a row": b"component,role\nL0H1\n",
        "twice": b"component,component\nL0H1,L0H1\n",
        "a million rows": b"component,role\n" + b"L0H1,x\n" * 1_000_000,
    }
    for name, content in contents.items():
        for suffix in (".csv", ".parquet"):
            arguments = (*CIRCUIT, "--out", "made", "--roles", f"roles{suffix}")
            yield Case("roles", f"{name}{suffix}", arguments, partial(write, f"roles{suffix}", content))
    for place in ("none.csv", "model", "/dev/zero", "folder.csv", "huge.csv"):
        yield Case("roles", place, (*CIRCUIT, "--out", "made", "--roles", place), odd_files)


def together() -> Iterator[Case]:
    """Texts and options that do not go together, or not with what is there."""
    detect = ("detect", "model", "-a", "sink")
    for text in ("", " ", "\x00", "\x1b[2J", "\ud800", "\u202e"):
        yield Case("together", f"detect --prompt {text!r}", (*detect, "--prompt", text))
    for more in (("--top", "0"), ("--full", "--json"), ("--full", "--json", "--top", "3"), ("--span", "a=0:1")):
        yield Case("together", " ".join(more), (*detect, *more))

    def somebody(folder: Path) -> None:
        (folder / "there").mkdir()
        write("there/notes.txt", b"what somebody wrote\n", folder)
        write("there/cfg.json", json.dumps({"a": 1}).encode(), folder)

    for kind in ("saelens", "circuit-tracer", "x"):
        for place in ("there", "model", "there/notes.txt"):
            yield Case("together", f"--save {kind} {place}", ("sae", "load", "sae", "--save", kind, place), somebody)
    for place in ("there/notes.txt", "model/config.json"):
        yield Case("together", f"circuit in {place}", (*CIRCUIT, "--out", place), somebody)
