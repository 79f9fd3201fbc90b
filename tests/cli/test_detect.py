"""`interp detect` and `interp demo`: the finding first, options and prompts of one's own, tables on request."""

from __future__ import annotations

import functools
import json
import time

import pytest

from interp import zoo
from interp.cli import values
from interp.cli.index import entries
from interp.cli.tables import interval, number
from interp.measurement import registry

PLANTED = "zoo:planted-induction"
QUICK = ("-o", "n_prompts=8")


def test_the_summary_is_short_and_says_the_finding(run, monkeypatch):
    some = functools.partial(registry.detect, names=["induction", "previous_token", "duplicate_token"])
    monkeypatch.setattr(registry, "detect", lambda *args, **options: some(args[0], **options))
    code, out, err = run("detect", PLANTED, *QUICK, "-o", "n_random=3")
    lines = out.splitlines()
    ((layer, head),) = zoo.truth("planted-induction").roles["induction"]
    assert code == 0
    assert len(lines) <= 20 and max(map(len, lines)) <= 80
    assert lines[0] == f"{PLANTED} (2 layers x 8 heads): 3 analyses, seed 0"
    assert lines[1].startswith(f"  1 induction head: L{layer}H{head}; without them second copy accuracy 1.000")
    assert "Nothing found: duplicate-token heads" in out
    assert lines[-1].startswith("--full: all tables")
    assert "left out" not in err


@pytest.mark.parametrize("words", [("--full",), ("--top", 2)])
def test_all_tables_on_request(run, words):
    names = [word for name in ("sink", "previous_token", "entropy") for word in ("-a", name)]
    code, out, _ = run("detect", PLANTED, *names, *QUICK, *words)
    assert code == 0
    assert "First-token sinks  (sink: first_token)" in out
    assert "Previous-token heads" in out
    assert "Roles" in out


def test_three_analyses_by_name_are_summed_up_and_two_are_shown(run):
    _, three, _ = run("detect", PLANTED, "-a", "sink", "-a", "previous_token", "-a", "entropy", *QUICK)
    _, two, _ = run("detect", PLANTED, "-a", "sink", "-a", "previous_token", *QUICK)
    assert "95 % interval" not in three
    assert two.count("95 % interval") == 2


def test_tables_and_sentences_keep_to_80_columns(run):
    code, out, _ = run("detect", PLANTED, "-a", "induction", *QUICK, "-o", "n_random=3")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "same layers: 1.000 +- 0.000)" in " ".join(out.split())


def test_an_interval_over_one_prompt_is_a_dash(run, tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps("4 9 7 3 4 9 7 3 4 9 7 3"), encoding="utf-8")
    assert (interval(float("nan"), float("nan")), interval(0.5, 1), number(float("nan"))) == (
        "-",
        "0.500 .. 1.000",
        "-",
    )
    code, out, err = run("detect", "zoo:default", "-a", "induction", "-o", f"prompts={file}")
    assert code == 0, err
    assert "nan" not in out
    assert " - " in out


def row(**fields):
    return json.dumps(fields)


@pytest.fixture
def exchanged(tmp_path):
    """Pairs in which the right answer is the name that the model does not say."""
    clean = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"
    corrupt = "While Rivlim and Zanlim stayed at the market , Quasov passed a cake to"
    file = tmp_path / "exchanged.jsonl"
    file.write_text(
        "\n".join([row(clean=clean, corrupt=corrupt, answer="Skozul", wrong="Moxgax")] * 8), encoding="utf-8"
    )
    return file


def test_a_task_that_the_model_cannot_do_is_said_under_the_title(run, exchanged):
    code, out, _ = run("detect", "zoo:default", "-a", "movers", "-o", f"task={exchanged}", "-o", "n_draws=6")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("Movers")
    assert lines[1].startswith("  exchanged: right in 0.00 of 8 prompts (chance 0.5); logit_diff -1")
    assert " The model does not do this task better than chance" in " ".join(" ".join(lines[2:4]).split())


def test_the_result_holds_accuracy_and_metric_beside_chance(run):
    code, out, _ = run("detect", "zoo:default", "-a", "movers", "-o", "n_draws=6", "-o", "n_prompts=16", "--json")
    (own,) = [json.loads(out)["provenance"]["ability"]["ioi"]]
    assert code == 0
    assert (own["accuracy"], own["chance"], own["n"], own["able"]) == (1.0, 0.5, 16, True)
    assert own["metric"] == "logit_diff" and own["value"] > 10 and own["value_by_chance"] == 0


def test_prompts_are_typed_or_of_files(run, tmp_path):
    text = "lamp fork road lamp fork road lamp fork road lamp fork road lamp fork road lamp fork road"
    file = tmp_path / "t.txt"
    file.write_text(text, encoding="utf-8")
    words = ("--prompt", text, "--text", file, "--prompt", text)
    code, out, err = run("detect", "zoo:default", "-a", "sink", *words, "--json")
    assert code == 0, err
    assert {r["n"] for r in json.loads(out)["rows"] if r["variant"] == "first_token"} == {3}


def test_debug_at_the_end_shows_the_traceback(run, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("interp.measurement.registry.detect", fail)
    code, _, err = run("detect", PLANTED)
    assert code == 1 and "(for the traceback add --debug to the command)" in err
    from interp.cli import main as cli

    with pytest.raises(ZeroDivisionError):
        cli.main(["detect", PLANTED, "--debug"])
    with pytest.raises(ZeroDivisionError):
        cli.main(["--debug", "detect", PLANTED])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "n_prompts"), "options are written NAME=VALUE"),
        (("-o", "n_promts=4"), "has an option 'n_promts'; did you mean 'n_prompts'?"),
        (("-o", "inductoin.n_prompts=4"), "unknown analysis 'inductoin'; did you mean 'induction'?"),
        (("-o", "induction.n_promts=4"), "'induction' has no option 'n_promts'; did you mean 'n_prompts'?"),
        (("-a", "sink", "-o", "induction.n_prompts=4"), "which is not run; add -a induction"),
        (("-a", "sink", "-o", "n_prompts=four"), "n_prompts is 'four'; expected an integer"),
        (("-a", "sink", "-o", "n_prompts=99999999999"), "expected at most 2147483647"),
        (("-a", "sink", "-o", "n_prompts=0"), "expected an integer of at least 1"),
        (("-a", "induction", "-o", "causal=maybe"), "expected true or false"),
        (("-a", "induction", "-o", "lengths=8"), "expected two integers"),
        (("-a", "induction", "-o", "lengths=a,b"), "expected integers, such as 8,16"),
        (("-a", "plane_removal", "-o", "shares=0.5,x"), "expected numbers"),
        (("-a", "sink", "-o", "prompts=nowhere.txt"), "there is no such file"),
        (("-a", "sink", "-o", "prompts=hello"), "expected a file of prompts"),
        (("-a", "movers", "-o", "task=nowhere.csv"), "there is no such file"),
        (("-a", "movers", "-o", "task=iio"), "unknown task 'iio'; did you mean 'ioi'?"),
        (("-a", "retrieval", "-o", "task=ioi"), "expected JSON such as"),
        (("-a", "retrieval", "-o", 'task={"needle": 3}'), "needle"),
        (("-a", "successor", "-o", "classes=[]"), "expected a JSON object"),
    ],
)
def test_what_is_no_option_or_value_is_refused_before_a_model_is_loaded(run, monkeypatch, words, message):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("interp.loading.load.load", load)
    code, out, err = run("detect", PLANTED, *words)
    if message != "needle":  # what a needle needs is seen when it is made
        assert (code, out) == (2, "")
    assert message in " ".join(err.split()) or message == "needle"


def test_names_and_types_are_refused_at_once():
    start = time.process_time()
    for text in ("n_promts=3", "n_prompts=x", "x.n_prompts=3"):
        with pytest.raises(values.typer.BadParameter):
            values.typed_options([text], ["induction", "sink"])
    assert time.process_time() - start < 0.5


def test_an_option_goes_to_each_that_has_it_and_takes_the_value():
    given = values.typed_options(
        ["task=ioi", "n_prompts=4", "sink.n_prompts=2"], ["movers", "retrieval", "sink", "copying"]
    )
    assert {name: sorted(own) for name, own in given.items()} == {
        "movers": ["n_prompts", "task"],
        "retrieval": ["n_prompts"],
        "sink": ["n_prompts"],
        "copying": ["n_prompts"],
    }
    assert given["sink"]["n_prompts"] == 2 and given["movers"]["n_prompts"] == 4


def test_every_option_of_every_analysis_has_a_kind_that_can_be_typed():
    kinds = {kind for entry in entries("analyses").values() for kind in entry["options"].values()}
    assert kinds <= set(values.READ)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("integers", "8,16", [8, 16]),
        ("integers", "[8, 16]", [8, 16]),
        ("numbers", "0.25, 1e-3", [0.25, 0.001]),
        ("texts", "mean,zero", ["mean", "zero"]),
        ("texts", '["a, b"]', ["a, b"]),
        ("true or false", "No", False),
        ("number", "3", 3.0),
        ("text", "a=b", "a=b"),
        ("object", '{"days": ["Monday"]}', {"days": ["Monday"]}),
    ],
)
def test_values_as_they_are_typed(kind, text, value):
    assert values.typed(kind, text) == value


def test_instructions_and_conflicts_of_ones_own(run, tmp_path):
    """Injection and conflict heads on files; roles of pairs for memory injection."""
    pairs = [row(instruction="say lamp now", data=f" {w} fork road lamp fork") for w in ("fork", "road") * 6]
    for name in ("normal", "attacked"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    words = [w for n in ("normal", "attacked") for w in ("-o", f"{n}={tmp_path / f'{n}.jsonl'}")]
    code, out, err = run("detect", "zoo:default", "-a", "distraction", *words)
    assert code == 0, err
    assert "0 of 48 heads labelled" in out  # the same prompts twice


def test_demo_ends_in_the_path_of_the_page(run, tmp_path, monkeypatch):
    some = functools.partial(registry.detect, names=["previous_token", "sink"])
    monkeypatch.setattr(registry, "detect", some)
    page = tmp_path / "report.html"
    code, out, _ = run("demo", PLANTED, "--out", page)
    lines = out.splitlines()
    assert code == 0
    assert len(lines) <= 20
    assert lines[-1] == f"report: {page}"
    assert "1 previous-token head: L" in out


def test_a_dry_run_foretells_and_measures_nothing(run, monkeypatch):
    monkeypatch.setattr(registry, "detect", lambda *args, **options: pytest.fail("was run"))
    code, out, _ = run("detect", PLANTED, "--dry-run", *QUICK)
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["analysis", "passes", "prompts", "x", "tokens", "time", "memory"]
    assert any(line.split()[:5] == ["previous_token", "0.5", "8", "x", "64"] for line in lines)
    assert "Estimates." in out and max(map(len, lines)) <= 80
