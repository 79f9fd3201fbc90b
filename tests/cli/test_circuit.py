"""`interp circuit` where folders are called like a model or a task, and its folder named after what was asked."""

from __future__ import annotations

import pytest

from interp.cli.circuit import folder_name

QUICK = ("--method", "eap", "--edges", 60, "--random", 1, "--n-prompts", 4)


def test_a_folder_named_after_model_task_and_method(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("zoo:default", "default", "ioi", "eap"):  # a run in such a place is like any other
        (tmp_path / name).mkdir()
    code, out, err = run("circuit", "zoo:default", "-t", "ioi", *QUICK, "--save")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "circuit-default-ioi-eap").iterdir()) == [
        "circuit.dot", "circuit.html", "edges.csv", "faithfulness.csv", "graph.json",
    ]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (("zoo:default", "greater-than", "acdc"), "circuit-default-greater-than-acdc"),
        (("openai/gpt2", None, "eap"), "circuit-gpt2-own-eap"),
        (("/srv/models/my model/", "ioi", "eap"), "circuit-my_model-ioi-eap"),
        (("../..", "ioi", "eap"), "circuit-model-ioi-eap"),
    ],
)
def test_names_of_folders(asked, name):
    assert folder_name(*asked) == name


def test_a_named_folder_and_a_given_one_are_too_many(run):
    code, out, err = run("circuit", "zoo:default", "-t", "ioi", "--save", "--out", "x")
    assert (code, out) == (2, "")
    assert "leave --out out" in err
