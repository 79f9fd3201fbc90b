"""What a terminal asks for: names at once, completion, Ctrl-C, a reader that goes away, no escapes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import typer

from interp import zoo
from interp.cli import completion, index
from interp.cli import main as cli
from interp.cli.names import BOS, DTYPES
from interp.cli.output import printable
from interp.errors import UnknownName
from interp.tasks.synthetic import BOS_POLICIES

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv[0] = 'interp'; from interp.cli.main import main; main()"
EARLY = "import sys; sys.argv[0] = 'interp'; import interp.cli"
"""The first of our modules: before it nobody of ours can answer to Ctrl-C."""
PLANTED = "zoo:planted-induction"


def interp(*arguments, **options):
    """The program in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("list",),
        ("completion", "bash"),
        ("detect", "zoo:defalt"),
        ("detect", PLANTED, "-a", "inductoin"),
        ("circuit", PLANTED, "-t", "inductoin"),
        ("circuit", PLANTED, "-t", "ioi", "-m", "eap-ig", "-o", "steps=ten"),
        ("report", PLANTED, "--dtype", "float31"),
        ("detect", PLANTED, "--out", "none/x.csv"),
    ],
    ids=" ".join,
)
def test_names_are_known_at_once(arguments):
    """Less than a second of processor time, and nothing heavy imported, whatever else the machine does."""
    code = f"""
import sys
from interp.cli.main import main
try:
    main({list(arguments)!r})
except SystemExit as stopped:
    heavy = {{"torch", "transformers", "pandas", "plotly", "scipy", "pyarrow"}} & set(sys.modules)
    print(stopped.code, sorted(heavy), file=sys.stderr)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    status, heavy = done.stderr.splitlines()[-1].split(" ", 1)
    good = arguments[0] in ("--help", "--version", "list", "completion")
    assert (int(status), heavy) == (0 if good else 1 if "--out" in arguments else 2, "[]")


@pytest.mark.parametrize("kind", index.KINDS)
def test_listed_names(run, kind):
    code, out, _ = run("list", kind)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == list(index.entries(kind))
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run("list", kind, "--json")
    assert json.loads(out) == {kind: index.entries(kind)}


def test_without_a_kind_all_are_listed_in_80_columns(run):
    code, out, _ = run("list")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    words = set(out.replace(",", " ").split())
    assert all(name in words for kind in index.KINDS for name in index.entries(kind))


def test_help_fits_into_80_columns(run):
    for command in completion.commands(typer.main.get_command(cli.app)):
        code, out, _ = run(*command.path, "--help")
        assert code == 0 and max(map(len, out.splitlines())) <= 80, command.path


def test_a_name_that_the_index_lacks_is_found_where_a_package_announces_it(monkeypatch):
    ours = index._index()
    monkeypatch.setattr(index, "plugin_names", lambda group: [*ours["packages"], *ours["methods"], "somebody.elses"])
    monkeypatch.setattr(index, "analyses", lambda: {"theirs": {"title": "x"}})
    monkeypatch.setattr(index, "methods", lambda: {"theirs": {"title": "x"}})
    assert index.entries.__wrapped__("analyses") == index.entries.__wrapped__("methods") == {"theirs": {"title": "x"}}
    monkeypatch.setattr(
        index, "plugin_names", lambda group: ours["packages"] if "analyses" in group else ours["methods"]
    )
    assert index.entries.__wrapped__("analyses") == ours["analyses"]
    monkeypatch.setattr(index, "modules", lambda: "a module more")
    assert index.entries.__wrapped__("analyses") == {"theirs": {"title": "x"}}


def test_words_written_twice_are_the_same():
    assert set(BOS) == set(BOS_POLICIES)
    assert set(completion.DTYPES) <= set(DTYPES)


def complete(line, script):
    """What bash offers for a line."""
    code = (
        f"{script}\nCOMP_LINE={json.dumps(line)}; COMP_POINT={len(line)}; _interp; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_names(run):
    _, script, _ = run("completion", "bash")
    assert {"detect", "list", "sae"} <= set(complete("interp ", script))
    assert complete("interp det", script) == ["detect"]
    assert set(complete("interp detect zoo:default -a ", script)) == set(index.entries("analyses"))
    assert complete("interp detect zoo:default -a induc", script) == ["induction"]
    assert complete("interp circuit zoo:default --method eap-ig-", script) == ["eap-ig-activations"]
    assert complete("interp report x --task greater", script) == ["greater_than"]
    assert complete("interp sae tr", script) == ["train"]
    assert complete("interp sae train x --kin", script) == ["--kind"]
    assert complete("interp detect zoo:planted-t", script) == ["planted-two-hop"]  # behind the colon, where bash parts
    assert "--json" in complete("interp detect x --json --", script)
    assert set(complete("interp detect --json zoo:", script)) == set(zoo.names())
    assert "tests/" in [f"{name}/" for name in complete("interp runs te", f"cd {ROOT}\n{script}")]


def test_other_shells(run):
    code, out, _ = run("completion", "zsh")
    assert code == 0 and "bashcompinit" in out
    code, out, _ = run("completion", "fish")
    assert code == 0 and "complete -c interp -n '__fish_seen_subcommand_from detect' -l analysis -r -f -a" in out


def test_version(run):
    from interp import __version__

    assert run("--version") == (0, f"interp {__version__}\n", "")


def test_names_cannot_command_the_terminal(run, tmp_path):
    assert printable("a\tb\n\x1b[2J\x9b\u202e\udcff") == "a\tb\n\\u001b[2J\\u009b\\u202e\\udcff"
    (tmp_path / "\x1b[2J.parquet").write_text("x")
    code, out, err = run("runs", tmp_path, "--sql", "SELECT 'x' || chr(27) || '[2J' AS x")
    assert code == 0 and "\x1b" not in out + err and "\\u001b[2J" in out
    code, out, _ = run("runs", tmp_path, "--sql", "SELECT chr(155) AS x", "--json")
    assert "\x9b" not in out and json.loads(out) == [{"x": "\x9b"}]
    code, _, err = run("detect", "\x1b[31mx")
    assert code == 1 and "\x1b" not in err and "\\x1b[31mx" in err


@pytest.mark.parametrize(("error", "code"), [(UnknownName("no such name"), 2), (OSError(5, "Input/output error"), 1)])
def test_exit_codes_of_errors(run, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("interp.measurement.registry.detect", fail)
    got, out, err = run("detect", PLANTED)
    assert (got, out) == (code, "") and "unexpected" not in err


def test_a_library_that_swallows_ctrl_c(run, monkeypatch):
    def swallow(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt as error:
            raise ImportError("numpy.core.multiarray failed to import") from error

    monkeypatch.setattr("interp.measurement.registry.detect", swallow)
    assert run("detect", PLANTED) == (130, "", "interp: interrupted\n")


def test_ctrl_c_while_modules_are_imported():
    code = f"""
import builtins, os, signal, sys, time
sys.argv[0] = "interp"
real = builtins.__import__
def slow(name, *rest):
    if name == "typer":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    return real(name, *rest)
builtins.__import__ = slow
{PROGRAM.split("; ", 2)[2]}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interp: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_at_any_time():
    for n in range(40):
        victim = subprocess.Popen(
            [sys.executable, "-c", f"{EARLY}; print(flush=True); {PROGRAM}", "detect", PLANTED],
            stderr=-1,
            stdout=-1,
            text=True,
        )
        victim.stdout.readline()
        time.sleep(0.15 + 0.15 * n)
        victim.send_signal(signal.SIGINT)
        _, err = victim.communicate(timeout=60)
        assert victim.returncode in (0, 130) and "Traceback" not in err, (n, err)


def test_a_reader_that_goes_away_and_a_full_device():
    whole = f'{sys.executable} -c "{PROGRAM}" completion bash'
    for command, code, words in (
        (f"{whole} | head -c 9 >/dev/null; exit ${{PIPESTATUS[0]}}", (0, 141), ""),
        (f"{whole} > /dev/full", (1,), "interp: the output: No space left on device\n"),
        (f"{whole} >&-", (0,), ""),
    ):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode in code and done.stderr == words, command


def test_a_terminal_without_unicode():
    done = interp("runs", ROOT / "none-é", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1 and "none-\\xe9" in done.stderr


def test_spreadsheets_execute_nothing_where_that_is_asked(tmp_path):
    from interp.results.files import write_table

    table = pd.DataFrame({"token": ["=1+1", "+x", "-1", "@a", "plain", "\tb"], "value": [-1.0, 2, 3, 4, 5, 6]})
    plain = pd.read_csv(write_table(table, tmp_path / "plain.csv", force=True))
    quoted = pd.read_csv(write_table(table, tmp_path / "quoted.csv", quote=True))
    assert plain["token"].tolist() == table["token"].tolist()
    assert quoted["token"].tolist() == ["'=1+1", "'+x", "'-1", "'@a", "plain", "'\tb"]
    assert quoted["value"].tolist() == table["value"].tolist()


def test_the_weights_of_a_model_are_not_replaced(run, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    for command in (("report", PLANTED, "-a", "sink"), ("demo", PLANTED)):
        code, out, err = run(*command, "--out", weights)
        assert (code, out) == (1, "") and "--force" in err
    assert weights.read_bytes() == b"weights"


def test_every_command_that_writes_has_force():
    text = textwrap.dedent((ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8"))
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    writing = [name for name, part in sections.items() if "--out" in part or "--save " in part]
    assert [name for name in writing if "--force" not in sections[name]] == ["interp bench"]
    assert isinstance(cli.FAILED, int)


def test_a_long_error_keeps_both_its_ends(run):
    code, _, err = run("detect", PLANTED, "-a", "induction", "-o", "bos=" + "[" * 9999)
    assert code == 2 and len(err) < 2100 and "valid choices: default" in err


def test_stored_runs_fit_into_80_columns(run, tmp_path):
    run("detect", PLANTED, "-a", "previous_token", "--out", tmp_path / "heads.parquet")
    code, out, _ = run("runs", tmp_path)
    assert code == 0 and "previous_token" in out and max(map(len, out.splitlines())) <= 80
