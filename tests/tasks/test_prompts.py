"""Prompt tasks: pairs that align, answers of one token, roles where they should be, splits that share nothing."""

from __future__ import annotations

import json
import operator
import re
from functools import cache

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from interp import data, tasks, zoo
from interp.errors import NotApplicable, SchemaError, TaskError
from interp.tasks.build import FAMILIES
from interp.tasks.source import document, shipped_tasks
from interp.zoo.planted import factory
from interp.zoo.trained.skills import CONTEXT, export
from interp.zoo.trained.skills.greater_than import TEMPLATES as SPANS
from interp.zoo.trained.skills.item import in_split
from interp.zoo.trained.skills.vocabulary import tokenizer as zoo_tokenizer

CASES = [
    (name, c)
    for name in shipped_tasks()
    for c in document(name).corruptions or FAMILIES[document(name).family].corruptions
]


@cache
def model(kind: str = "bpe"):
    """What a task asks of a model: "bpe" reads every word of the data and two digits at a time.

    "digits" reads one at a time, as Qwen and Gemma do; "threes" three from the left, as Llama 3 and DeepSeek-V3 do;
    "metaspace" one digit, with the space before a number as a token of its own, as Llama 2 does; "names" no digit.
    """
    if kind == "zoo":
        tokenizer = zoo_tokenizer(max_length=CONTEXT)
    else:
        digits = {"bpe": r" ?\d{1,2}", "threes": r"\d{1,3}", "metaspace": r"\d", "names": r" ?\d{4}"}.get(kind, r" ?\d")
        raw = Tokenizer(models.BPE())
        pattern = Regex(rf"{digits}| ?\p{{L}}+| ?[^\s\p{{L}}\d]+|\s")
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        raw.decoder = decoders.ByteLevel()
        texts = [(data.root() / name / "task.json").read_text() for name in shipped_tasks()]
        words = [f" {word}" for text in texts for word in json.dumps(json.loads(text)).replace('"', " ").split()]
        numbers = [f"{n:02d} {n:02d} {n}" for n in range(100)]
        numbers += [f"{n:03d}" for n in range(1000)] * 2 if kind == "threes" else []
        numbers += [f" {n}" for n in range(1100, 1800)] * 2 if kind == "names" else []
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=12000, show_progress=False, initial_alphabet=alphabet)
        raw.train_from_iterator([*texts, *words, *numbers], trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    return interp.load(bare(len(tokenizer)), tokenizer=tokenizer)


def bare(d_vocab, context=1024):
    config = {"vocab_size": d_vocab, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": context}
    return GPT2LMHeadModel(GPT2Config(**config, bos_token_id=None, eos_token_id=None))


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    export.write_tasks(folder)
    return folder


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_pairs_align(name, corruption):
    task = tasks.task(name, model(), n=24, corruption=corruption)
    assert len(task) == 24
    assert_close(task.clean.mask, task.corrupt.mask)
    assert (task.clean.ids != task.corrupt.ids).any(1).all()
    assert len({tuple(row) for row in task.clean.ids.tolist()}) == 24
    assert_close(task.end, task.lengths - 1)
    assert (task.answers[:, 0] >= 0).all() and (task.wrong[:, 0] >= 0).all()
    for right, wrong in zip(task.answers.tolist(), task.wrong.tolist(), strict=True):
        assert not ({*right} & {*wrong}) - {-1}


def test_what_differs_is_what_the_corruption_says():
    roles = {
        "counterfactual": {"S2"},
        "abc": {"S1", "IO", "S2"},
        "other_subject": {"S2"},
        "flipped_order": {"S1", "IO"},
    }
    for corruption, expected in roles.items():
        task = tasks.task("ioi", model(), n=16, corruption=corruption)
        changed = task.clean.ids != task.corrupt.ids
        marked = torch.zeros_like(changed)
        for role in expected:
            marked[torch.arange(16), task.role(role)] = True
        assert_close(changed, marked)


def test_ioi_reads_as_it_should():
    task, tokenizer = tasks.task("ioi", model(), n=32), model().tokenizer
    rows = torch.arange(32)
    ids = task.clean.ids
    assert_close(ids[rows, task.role("S1")], ids[rows, task.role("S2")])
    assert_close(ids[rows, task.role("IO")], task.answers[:, 0])
    assert_close(ids[rows, task.role("S2")], task.wrong[:, 0])
    assert_close(task.role("S1+1"), task.role("S1") + 1)
    first = task.role("IO") < task.role("S1")
    assert_close(first, torch.tensor([task.templates[i].startswith("ABBA") for i in task.template.tolist()]))
    assert 4 < first.sum() < 28
    text = tokenizer.decode(ids[0][task.clean.mask[0]])
    assert text.endswith((" to", " for"))


def test_greater_than_has_every_year_once():
    task, tokenizer = tasks.task("greater-than", model(), n=16), model().tokenizer
    for row in range(16):
        year = int(tokenizer.decode(task.clean.ids[row, task.role("YY")[row]]))
        after, before = ([int(tokenizer.decode(i)) for i in ids[row] if i >= 0] for ids in (task.answers, task.wrong))
        assert after == list(range(year + 1, 100))
        assert before == list(range(year + 1))
    assert_close(task.role("YY"), task.role("XX1") + 1)


DECIDING = {"bpe": "year", "digits": "tens", "metaspace": "tens", "threes": "units"}


@pytest.mark.parametrize("corruption", ["start_01", "random_year"])
@pytest.mark.parametrize("kind", DECIDING)
def test_greater_than_is_asked_by_the_token_that_decides(kind, corruption):
    """Right are the tokens that make the second year later, whatever comes behind them; wrong, earlier."""
    task, tokenizer = tasks.task("greater_than", model(kind), n=24, corruption=corruption), model(kind).tokenizer
    place = task.record["deciding_token"]
    assert place == DECIDING[kind]
    asked = set()
    for row in range(24):
        ids = task.clean.ids[row][task.clean.mask[row]]
        text, other = (
            tokenizer.decode(x.ids[row][x.mask[row]]).replace("\u0120", " ") for x in (task.clean, task.corrupt)
        )
        first, stem = re.search(r"(\d{4})\D+(\d+)$", text).groups()
        assert len(stem) == (3 if place == "units" else 2)
        assert first.startswith(stem) == (place == "units" or first[:2] == stem)
        digits = [str(tokenizer.decode(i)) for i in range(len(tokenizer))]
        sides = [[digits[i] for i in x[row] if i >= 0] for x in (task.answers, task.wrong)]
        for side, later in zip(sides, (True, False), strict=True):
            ends = [d + u for d in side for u in ("" if len(stem + d) == 4 else "0123456789")]
            assert all((int(stem + end) > int(first)) is later for end in ends)
        for side in sides:  # each token makes text that the tokenizer reads as the prompt and this token
            whole = tokenizer(text + side[0], add_special_tokens=False)["input_ids"]
            assert whole[:-1] == ids.tolist()
        undecided = {first[2]} if place == "tens" else set()
        class_ = [f"{n:02d}" for n in range(100)] if place == "year" else list("0123456789")
        assert sorted([*sides[0], *sides[1], *undecided]) == class_
        at = task.role("YY")[row]
        assert digits[ids[at]].strip() == {"year": first[2:], "tens": first[2], "units": first[3]}[place]
        start = re.search(r"\d{4}", other).group()
        if corruption == "start_01":
            assert start == first[:3] + "0" if place == "units" else start == first[:2] + "01"
        asked.add(first[2:])
        difference = [a != b for a, b in zip(text, other, strict=True)]
        assert 1 <= sum(difference) <= 2
    assert len(asked) > 10


def test_greater_than_is_refused_where_years_are_one_token():
    match = (
        "greater_than cannot be asked with this tokenizer: only 0 of 2 prompts have answers of one token, and .* align$"
    )
    with pytest.raises(NotApplicable, match=match):
        tasks.task("greater_than", model("names"), n=2)


def test_long_answers_are_stood_for_by_their_first_token():
    assert tasks.task("arithmetic", model("digits"), n=8).record["answer_rule"] == "first token"


APPLY = {"arithmetic": operator.add, "addition_three_digits": operator.add, "subtraction": operator.sub}


@pytest.mark.parametrize("name", [*APPLY, "addition_one_digit", "multiplication"])
@pytest.mark.parametrize(("kind", "form"), [("digits", "digit"), ("threes", "number"), ("bpe", "chunk")])
def test_results_are_asked_for_in_the_digit_form_of_the_tokenizer(name, kind, form):
    task, tokenizer = tasks.task(name, model(kind), n=16), model(kind).tokenizer
    short = kind == "bpe" and name not in ("arithmetic", "addition_three_digits")  # two digits are a token
    long = kind == "threes" and name == "addition_three_digits"  # sums of four digits are none
    assert task.record["deciding_token"] == ("number" if short else "chunk" if long else form)
    assert len(task.templates) > 2  # not where nothing stands before the answer alone
    apply = {**APPLY, "addition_one_digit": operator.add, "multiplication": operator.mul}[name]
    for batch, answers in ((task.clean, task.answers), (task.corrupt, task.wrong)):
        for ids, mask, answer in zip(batch.ids, batch.mask, answers[:, 0].tolist(), strict=True):
            text = tokenizer.decode(ids[mask])
            x, y, *rest = (int(n) for n in re.findall(r"\d+", text))
            given = "".join(map(str, rest)) + tokenizer.decode([answer]).strip()
            result = str(apply(x, y))
            assert result.startswith(given) and (task.record["deciding_token"] != "number" or result == given)


@pytest.mark.parametrize(("split", "other"), [tasks.SPLITS, tasks.SPLITS[::-1]])
def test_sums_modulo_twelve(split, other):
    task, tokenizer = tasks.task("modular_addition", model(), n=12, split=split), model().tokenizer
    for batch, answers in ((task.clean, task.answers), (task.corrupt, task.wrong)):
        for i in range(12):
            x, y = (int(tokenizer.decode([batch.ids[i, task.role(role)[i]]])) for role in ("x", "y"))
            assert int(tokenizer.decode(answers[i])) == (x + y) % 12
    rest = tasks.task("modular_addition", model(), n=12, split=other)
    assert not {tuple(r) for r in task.clean.ids.tolist()} & {tuple(r) for r in rest.clean.ids.tolist()}


@pytest.mark.parametrize("name", shipped_tasks())
def test_splits_share_no_prompt_and_seeds_repeat(name):
    train, held_out = (tasks.task(name, model(), n=20, split=split) for split in tasks.SPLITS)
    texts = [{tuple(r[m].tolist()) for r, m in zip(t.clean.ids, t.clean.mask, strict=True)} for t in (train, held_out)]
    assert not texts[0] & texts[1]
    assert tasks.task(name, model(), n=20).sha256 == train.sha256
    assert tasks.task(name, model(), n=20, seed=1).sha256 != train.sha256


@pytest.mark.parametrize("name", shipped_tasks())
def test_a_task_is_asked_of_a_small_vocabulary_or_refused(name):
    try:
        assert len(tasks.task(name, interp.load("zoo:default"), n=8)) == 8
    except NotApplicable as refusal:
        assert name in str(refusal)


def test_words_of_several_tokens_are_left_out_and_counted():
    found = tasks.task("ioi", model(), n=4).record["coverage"]
    assert found["name"][0] == found["name"][1] == 89
    with pytest.raises(NotApplicable, match="cannot be asked with this tokenizer"):
        tasks.task("ioi", model("zoo"), n=4)


def test_without_a_tokenizer():
    with pytest.raises(NotApplicable, match="has no tokenizer"):
        tasks.task("gender", interp.load(bare(60)))


def test_unknown_names_are_told():
    for call, message in (
        ({"name": "iio"}, "did you mean 'ioi'"),
        ({"name": "ioi", "corruption": "abcd"}, "did you mean 'abc'"),
        ({"name": "ioi", "split": "test"}, "unknown split"),
        ({"name": "ioi", "n": 0}, "0 prompts"),
    ):
        with pytest.raises(TaskError, match=message):
            tasks.task(**{"model": model(), **call})


@pytest.mark.parametrize("name", sorted(export.documents()))
@pytest.mark.parametrize("split", tasks.SPLITS)
def test_a_checkpoints_own_forms(zoo_folder, name, split):
    task = tasks.task(name, model("zoo"), n=32, split=split, source=zoo_folder)
    assert task.record["source"].startswith("tasks.json of")
    assert (task.clean.ids[:, 0] == model("zoo").tokenizer.bos_token_id).all()
    assert model("zoo").tokenizer.unk_token_id not in task.clean.ids
    assert all(left == of for left, of in task.record["coverage"].values())


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_own_splits_are_the_trainings(zoo_folder, split):
    tokenizer = model("zoo").tokenizer
    task = tasks.task("ioi", model("zoo"), n=32, split=split, source=zoo_folder)
    for right, wrong in zip(task.answers[:, 0], task.wrong[:, 0], strict=True):
        pair = sorted((tokenizer.decode(right), tokenizer.decode(wrong)))
        assert in_split("ioi " + " ".join(pair), split)
    spans = tasks.task("greater_than", model("zoo"), n=32, split=split, source=zoo_folder)
    assert len(spans.templates) <= len(SPANS)
    for row in range(32):
        event, century, year = (
            tokenizer.decode(spans.clean.ids[row, spans.role(r)[row]]) for r in ("NOUN", "XX1", "YY")
        )
        assert in_split(f"greater-than {event} {century} {int(year)}", split)


def test_files_of_another_form_are_refused(tmp_path):
    (tmp_path / "tasks.json").write_text('{"schema": 2}')
    with pytest.raises(SchemaError, match="was it written by another version"):
        tasks.task("ioi", model("zoo"), source=tmp_path)
    (tmp_path / "tasks.json").write_text('{"schema": 1, "tasks": {"ioi": {"family": "ioi", "tempates": []}}}')
    with pytest.raises(SchemaError, match=r"unknown fields \['tempates'\], missing fields \['templates'\]"):
        tasks.task("ioi", model("zoo"), source=tmp_path)


def test_induction_needs_ids_alone():
    loaded = interp.load(bare(60, context=80))
    for corruption in ("exchanged", "other_block", "other_query"):
        task = tasks.task("induction", loaded, n=20, corruption=corruption)
        rows, ids = torch.arange(20), task.clean.ids
        assert_close(ids[rows, task.role("A1")], ids[rows, task.end])
        assert_close(ids[rows, task.role("B1")], task.answers[:, 0])
        assert_close(ids[rows, task.role("D1")], task.wrong[:, 0])
        assert len(set((task.end - task.role("A1")).tolist())) > 2


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2"])
def test_planted_tasks_flip_or_vanish(architecture):
    planted = factory.plant(factory.ALL, architecture=architecture, seed=1)
    for name in ("two_hop", "induction", "retrieval", "fact", "successor", "previous_token", "duplicate_token"):
        for corruption in ("minimal", "random"):
            task = tasks.planted_task(planted, name, n=3, seed=3, corruption=corruption)
            with torch.no_grad():
                clean, corrupt = (task.value(planted.model(b.ids).logits) for b in (task.clean, task.corrupt))
            assert clean.median() > 0.5, name
            limit = -0.5 if corruption == "minimal" else clean.median() / 3
            assert corrupt.median() < limit, (name, corruption)


def test_planted_models_of_the_zoo_by_name():
    two_hop = interp.load("zoo:planted-two-hop")
    assert tasks.task("ioi", two_hop, n=4).name == "two_hop"
    assert "two_hop" in tasks.task_names(two_hop)
    assert zoo.planted_by_name("planted-induction") is None
    with pytest.raises(TaskError, match="two_hop has no corruption 'abc'"):
        tasks.task("ioi", two_hop, corruption="abc")
    with pytest.raises(TaskError, match="no task for 'copy' is planted"):
        tasks.planted_task(factory.plant([factory.TwoHop()]), "copy")


def test_groups_are_templates_of_one_length():
    task = tasks.task("capital_country", model(), n=40)
    for group in task.groups.unique():
        inside = task.groups == group
        assert len(task.lengths[inside].unique()) == len(task.template[inside].unique()) == 1


def test_a_model_runs_a_task():
    loaded = interp.load("zoo:planted-induction")
    task = interp.task("induction", loaded, n=12)
    assert task.value(loaded.run(task.clean).logits).min() > 3
    assert task.value(loaded.run(task.corrupt).logits).max() < -3
