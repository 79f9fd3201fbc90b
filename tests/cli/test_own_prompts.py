"""Prompts of one's own on the command line, and a task that the model cannot do."""

from __future__ import annotations

import json

import pytest

from interp.cli.main import main

CLEAN = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"
CORRUPT = "While Rivlim and Zanlim stayed at the market , Quasov passed a cake to"
PAIR = ("--clean", CLEAN, "--corrupt", CORRUPT, "--answer", "Moxgax", "--wrong", "Skozul")
QUICK = ("--method", "eap", "--edges", "60", "--random", "2")


@pytest.fixture
def said(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        return ended.value.code, capsys.readouterr()

    return run


def test_a_circuit_of_two_prompts_typed(said):
    code, told = said("circuit", "zoo:default", *PAIR, *QUICK)
    assert code == 0
    assert "own: the model is right in 1.00 of 1 prompt (chance 0.5)" in told.out
    assert "cannot be told from 1" in told.out
    assert "(no interval over one prompt) on 1 prompt, those it was found on" in " ".join(told.out.split())


def test_a_circuit_of_a_file_whose_task_the_model_gets_wrong(said, tmp_path):
    """Names exchanged: it says the other one each time, and that comes first."""
    row = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "Skozul", "wrong": "Moxgax"}
    (tmp_path / "p.jsonl").write_text("\n".join([json.dumps(row)] * 12), encoding="utf-8")
    code, told = said("circuit", "zoo:default", "--pairs", tmp_path / "p.jsonl", *QUICK)
    text = " ".join(told.out.split())
    assert code == 0
    assert max(map(len, told.out.splitlines())) <= 80
    assert text.startswith("The model does not do this task better than chance")
    assert "own: the model is right in 0.00 of 6 prompts (chance 0.5)" in text
    assert "no verdict: by logit_diff the whole model is not reliably better than nothing" in text


def test_a_report_of_ones_own_pair(said, tmp_path):
    page = tmp_path / "r.html"
    code, _ = said("report", "zoo:default", *PAIR, "-a", "previous_token", "-m", "eap", "--out", page)
    text = page.read_text(encoding="utf-8")
    assert code == 0
    assert "Circuit of own" in text
    assert "right in 1.00 of 1 prompt" in text
    assert "those it was found on" in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--clean", "a"), "0 --corrupt for 1 --clean"),
        (("--clean", "a", "--corrupt", "b"), "0 --answer for 1 --clean"),
        ((*PAIR, "--task", "ioi"), "name a task"),
        ((), "name a task"),
        (("--task", "ioi", "--answer", "x"), "of prompts of your own"),
        (("--pairs", "none.csv"), "cannot read"),
        (("--pairs", "none.csv", "--clean", "a"), "leave --clean"),
        ((*PAIR, "--answer-tokens", "al"), "did you mean 'all'"),
    ],
)
def test_what_does_not_match_is_refused_before_the_model_is_loaded(said, words, why):
    code, told = said("circuit", "no/such-model", *words)
    assert (code, why in " ".join(told.err.split())) == (2, True)
