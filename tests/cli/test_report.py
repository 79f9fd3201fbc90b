"""`interp report` as it is typed: exit codes, what goes to which stream, and the size of what it writes."""

import json
from importlib import import_module

import pytest
import transformers

PLANTED = "zoo:planted-induction"
SENTENCE = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", "a", "--answer", "b", "--answer", "c"], 2, "2 --answer for 1 --prompt"),
        (["--wrong", "b"], 2, "1 --wrong for 0 --prompt"),
        (["-a", "inductoin"], 2, "did you mean 'induction'"),
        (["--bos", "front"], 2, "unknown BOS policy 'front'; valid choices: default, forced, none"),
        (["--task", "inductoin"], 2, "unknown task 'inductoin'; did you mean 'induction'"),
        (["--prompt", "t21 t22", "--answer", "no such"], 1, "answer 'no such' is"),
        (["--out", "no/such/folder/r.html"], 1, "cannot write"),
    ],
    ids=["too many answers", "no prompts", "analysis", "policy", "task", "answer", "folder"],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    got, out, err = run("report", PLANTED, *arguments)
    assert (got, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_options(run):
    code, out, _ = run("report", "--help")
    assert code == 0
    for option in (
        "task",
        "prompt",
        "answer",
        "wrong",
        "analysis",
        "out",
        "seed",
        "revision",
        "dtype",
        "device",
        "bos",
    ):
        assert f"--{option}" in out


def test_the_report_of_the_shipped_model_is_whole_and_at_most_8_mib(run, tmp_path, monkeypatch):
    # A rougher circuit, found in a fifth of the time.
    monkeypatch.setattr(import_module("interp.reports.circuits"), "PROMPTS", 12)
    path = tmp_path / "r.html"
    asked = ["--task", "ioi", "--prompt", SENTENCE, "--answer", "Moxgax", "--wrong", "Skozul"]
    code, out, err = run("report", "zoo:default", *asked, "-a", "induction", "-a", "sink", "--out", path)
    assert code == 0
    assert out == f"report: {path.resolve()}\n"
    assert "circuit of ioi" in err
    assert path.stat().st_size <= 8 * 2**20
    page = path.read_text(encoding="utf-8")
    assert "interp report zoo:default --task ioi" in page
    for part in ("prompt-0", "circuit-of-0", "atlas", "sinks", "analysis-0", "analysis-1", "attention", "provenance"):
        assert f'id="{part}"' in page
    assert "Moxgax" in page


def test_what_was_left_out_is_said_in_the_terminal_and_on_the_page(run, tmp_path):
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=12)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "small")
    code, out, err = run("report", tmp_path / "small", "--bos", "none", "--out", tmp_path / "r.html")
    assert code == 0
    assert out == f"report: {(tmp_path / 'r.html').resolve()}\n"
    lines = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert "left out: sink: prompts of 12 tokens are too short to speak of a sink; at least 16 are needed" in lines
    assert "left out: movers: needs text, and this checkpoint has no tokenizer" in lines
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "too short to speak of a sink" in page

    code, out, err = run("detect", tmp_path / "small", "--bos", "none", "--json")
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("left out: ")] == lines
    found = json.loads(out)["provenance"]
    policies = {c["call"]["analysis"]: c["call"]["passed"].get("bos") for c in found["calls"]}
    assert policies["previous_token"] == policies["induction"] == "none"
    assert policies["copying"] is None  # of no random prompts
