"""Files of one's own pairs, and answers of several tokens by a stated rule."""

from __future__ import annotations

import json

import pytest
import torch
from numpy.testing import assert_allclose

import interp
from interp.errors import SchemaError, TaskError
from interp.tasks import Conflict
from interp.tasks.files import read_pairs, read_prompts

CLEAN = "While Skozul and Moxgax stayed at the market , Skozul passed a cake to"
CORRUPT = "While Rivlim and Zanlim stayed at the market , Quasov passed a cake to"
ROW = {"clean": CLEAN, "corrupt": CORRUPT, "answer": "Moxgax", "wrong": "Skozul"}


@pytest.fixture(scope="module")
def default():
    return interp.load("zoo:default")


def test_three_kinds_of_file_hold_the_same_pairs(tmp_path, default):
    lines, array, table = (tmp_path / f"p{suffix}" for suffix in (".jsonl", ".json", ".csv"))
    lines.write_text("\n".join([json.dumps(ROW), "", json.dumps(ROW)]), encoding="utf-8")
    array.write_text(json.dumps([ROW, ROW]), encoding="utf-8")
    table.write_text(
        "\ufeffclean,corrupt,answer,wrong\n" + f'"{CLEAN}","{CORRUPT}",Moxgax,Skozul\n' * 2, encoding="utf-8"
    )
    one, two, three = (read_pairs(path) for path in (lines, array, table))
    assert one == two == three
    search, judge = one.tasks(default)
    assert search.sha256 == judge.sha256  # two pairs are too few to hold some out
    assert search.sha256 == interp.pair(default, [CLEAN] * 2, [CORRUPT] * 2, "Moxgax", "Skozul").sha256


def test_of_eight_pairs_every_second_is_held_out(tmp_path, default):
    path = tmp_path / "p.jsonl"
    names = ["Moxgax", "Skozul"] * 4
    rows = [{**ROW, "answer": name, "wrong": "Rivlim", "template": f"t{i}"} for i, name in enumerate(names)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    search, judge = read_pairs(path).tasks(default)
    assert (len(search), len(judge)) == (4, 4)
    assert search.templates == ("t0", "t2", "t4", "t6")
    assert set(search.answers.flatten().tolist()) == {default.single_token("Moxgax")}
    assert set(judge.answers.flatten().tolist()) == {default.single_token("Skozul")}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("p.txt", "", "cannot tell the format"),
        ("p.jsonl", "", "no pair"),
        ("p.jsonl", '{"clean": "a"}', "pair 1 has no 'corrupt'"),
        ("p.jsonl", '{"clean": "a", "corrupt": "b", "answer": "c"}\n{"clean": ', "line 2 is no JSON"),
        ("p.jsonl", '{"clean": "a", "corupt": "b", "answer": "c"}', "did you mean 'corrupt'"),
        ("p.jsonl", "[1, 2]", "expected an object"),
        ("p.json", '{"clean": "a"}', "expected a list"),
        ("p.csv", "clean,corrupt,answer\na,b,c,d\n", "more fields"),
        ("p.csv", 'clean,corrupt,answer\n"a,b,c\n', "cannot read"),
        ("p.csv", "clean,corrupt,answer,wrong\na,b,c,d\na,b,c,\n", "pair 2 has no 'wrong', and others have"),
    ],
)
def test_what_is_no_file_of_pairs_is_refused_with_the_place(tmp_path, name, text, why):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SchemaError, match=why):
        read_pairs(tmp_path / name)


def test_missing_and_binary_files(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "b.csv"):
        with pytest.raises(SchemaError, match="cannot read"):
            read_pairs(tmp_path / name)


def test_answers_of_several_tokens_by_each_rule(default):
    """`all`: the sum over its prompts is -log p of the whole answer, by the chain rule."""
    whole = "Moxgax and Skozul"
    with pytest.raises(TaskError, match="is 3 tokens"):
        interp.pair(default, CLEAN, CORRUPT, whole)
    first = interp.pair(default, CLEAN, CORRUPT, whole, "Skozul and Moxgax", answer_tokens="first")
    assert first.answers.tolist() == [[default.single_token("Moxgax")]]
    assert first.wrong.tolist() == [[default.single_token("Skozul")]]
    every = interp.pair(default, CLEAN, CORRUPT, whole, answer_tokens="all", roles={"S2": 10}, spans={"s": (0, 4)})
    assert (len(every), every.metric, every.record["n_answers"]) == (3, "loss_nats", 1)
    assert every.role("S2").tolist() == [10] * 3
    assert every.clean.span("s").sum(1).tolist() == every.clean.span("s")[:1].sum(1).tolist() * 3
    logits = default.run(every.clean).logits
    loss = interp.tasks.metrics.loss_nats(logits, every).sum()
    ids = default.batch(f"{CLEAN} {whole}").ids
    log_p = default.run(ids).logits[0].log_softmax(-1)
    n = ids.shape[1]
    expected = -sum(float(log_p[n - 4 + k, ids[0, n - 3 + k]]) for k in range(3))
    assert_allclose(float(loss), expected, rtol=1e-4)
    assert torch.equal(every.clean.ids[2, : n - 1][every.clean.mask[2, : n - 1]], ids[0, : n - 1])
    for wrong, rule, why in (("Skozul", "all", "leave `wrong` out"), (None, "al", "did you mean 'all'")):
        with pytest.raises(TaskError, match=why):
            interp.pair(default, CLEAN, CORRUPT, whole, wrong, answer_tokens=rule)
    with pytest.raises(TaskError, match="no list of right ones"):
        interp.pair(default, CLEAN, CORRUPT, [["Moxgax", "Skozul"]], answer_tokens="all")


def test_roles_are_words_or_positions_of_each_pair(tmp_path, default):
    rows = [{**ROW, "roles": {"SUBJECT": "Moxgax", "PLACE": 8}} for _ in range(3)]
    lines, table = tmp_path / "p.jsonl", tmp_path / "p.csv"
    lines.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    quoted = json.dumps(rows[0]["roles"]).replace('"', '""')
    table.write_text(
        "clean,corrupt,answer,wrong,roles\n" + f'"{CLEAN}","{CORRUPT}",Moxgax,Skozul,"{quoted}"\n' * 3, encoding="utf-8"
    )
    one, two = (read_pairs(path).task(default, name="p") for path in (lines, table))
    assert one.sha256 == two.sha256
    assert (one.name, len(one)) == ("p", 3)  # all of them: an analysis holds out what it needs to
    at = one.role("SUBJECT")
    assert {default.single_token("Moxgax")} == set(one.clean.ids[range(3), at].tolist())
    assert one.role("PLACE").tolist() == [8] * 3


@pytest.mark.parametrize(
    ("roles", "why"),
    [
        (["SUBJECT"], "roles are an object"),
        ({"SUBJECT": 1.5}, "roles are an object"),
        ("not json", "is no JSON"),
    ],
)
def test_roles_that_are_none(tmp_path, roles, why):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**ROW, "roles": roles}), encoding="utf-8")
    with pytest.raises(SchemaError, match=why):
        read_pairs(path)


def test_every_pair_needs_the_same_roles_and_a_word_that_is_there(tmp_path, default):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({**ROW, "roles": {name: 1}}) for name in "ab"), encoding="utf-8")
    with pytest.raises(SchemaError, match="every pair needs the same roles"):
        read_pairs(path)
    path.write_text(json.dumps({**ROW, "roles": {"S": "Skozul"}}), encoding="utf-8")
    with pytest.raises(TaskError, match="role 'S': the token 'Skozul' stands at positions"):
        read_pairs(path).task(default)


def test_prompts_of_a_file(tmp_path):
    contents = {
        "p.txt": "one\n\ntwo\n",
        "p.jsonl": '"one"\n{"prompt": "two"}\n',
        "p.json": '["one", {"prompt": "two"}]',
        "p.csv": "prompt,other\none,1\ntwo,2\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_prompts(tmp_path / name) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.txt", "\n", "has no prompt"),
        ("p.jsonl", "3", "row 1 is no prompt"),
        ("p.csv", "text\none\n", "row 1 is no prompt"),
        ("p.md", "one", "end it in .jsonl, .json, .csv, .txt"),
        ("p.json", '{"prompt": "x"}', "expected a list"),
    ],
)
def test_a_file_without_prompts(tmp_path, name, content, why):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SchemaError, match=why):
        read_prompts(tmp_path / name)


def test_conflicts_of_ones_own(default):
    texts = {"clean": ["the lamp", "the fork"], "corrupt": ["the road", "the lamp"], "questions": ["a lamp", "a"]}
    own = Conflict.of(default, **texts, answers=["moon", "sun"], wrong=["star", "star"])
    assert own.questions.mask.sum(1).tolist() == default.batch(texts["questions"]).mask.sum(1).tolist()
    assert own.task.contrasted and own.frame.tolist() == own.group.tolist() == [0, 0]
    with pytest.raises(TaskError, match="1 questions for 2 prompts"):
        Conflict.of(default, **{**texts, "questions": ["a"]}, answers=["moon", "sun"], wrong=["star", "star"])
