"""Fictional ontologies, dated facts and options of a family: what follows from a text is what the task calls right."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from interp import data, tasks
from interp.errors import NotApplicable, TaskError
from interp.measurement.sources import statement_masks
from interp.tasks.source import document
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms import Dated

CORRUPTIONS = ("link", "fact", "asked")


@cache
def model(kind):
    """Tokenizers that write a made-up kind as one token, a sign a token, or a letter a token (the shipped model's)."""
    if kind == "zoo":
        return interp.load("zoo:default")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    words = data.path("fictional_ontology", "task.json").read_text() if kind == "words" else ""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 4000 if kind == "words" else len(alphabet)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    raw.train_from_iterator([" " + word for word in re.findall(r"\w+|\.", words)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=1024)
    return interp.load(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)


def texts(own, batch):
    """Decoded prompts, spaces as people write them."""
    rows = (own.tokenizer.decode(ids[mask]) for ids, mask in zip(batch.ids, batch.mask, strict=True))
    return [row.replace("<bos>", "").replace(" .", ".").strip() for row in rows]


def conclusion(text):
    """What the member asked for is, and over how many links: worked out from the text alone."""
    rules = dict(re.findall(r"(?:Every|Each|Any) (\w+) (?:is|counts as) a (\w+)\.", text))
    facts = {}
    for name, kind in re.findall(r"(\w+) is a (\w+)\.", text):
        if not re.search(rf"(?:Every|Each|Any) {name} is", text):
            facts.setdefault(name, kind)
    kinds = [facts[re.search(r"(\w+) (?:is|counts as) a$", text).group(1)]]
    while kinds[-1] in rules:
        kinds.append(rules[kinds[-1]])
    return kinds


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize(("kind", "form"), [("words", "kind"), ("signs", "letter"), ("zoo", "letter")])
def test_right_is_what_follows_from_the_text(kind, form, corruption):
    own = model(kind)
    task = tasks.task("fictional_ontology", own, n=12, corruption=corruption)
    assert task.record["deciding_token"] == form
    for row, (clean, corrupt) in enumerate(zip(texts(own, task.clean), texts(own, task.corrupt), strict=True)):
        right, wrong = (own.tokenizer.decode(ids[row]).strip() for ids in (task.answers, task.wrong))
        depth = int(re.search(r"depth (\d)", task.templates[task.template[row]]).group(1))
        kinds = conclusion(clean)
        assert kinds[-1] == right and len(kinds) == depth + 1
        assert conclusion(corrupt)[-1] == wrong


def test_where_no_list_is_one_token_the_first_stands_for_a_word(tmp_path):
    content = json.loads(data.path("fictional_ontology", "task.json").read_text())
    content["words"]["letter"] = []
    (tmp_path / "tasks.json").write_text(json.dumps({"schema": 1, "tasks": {"fictional_ontology": content}}))
    own = model("signs")
    task = tasks.task("fictional_ontology", own, n=6, depths=(1, 2), source=tmp_path)
    assert task.record["deciding_token"] == "first token"
    for row, text in enumerate(texts(own, task.clean)):
        assert conclusion(text)[-1].startswith(own.tokenizer.decode(task.answers[row]).strip())
    with pytest.raises(NotApplicable, match="lower `depths` or `distractors`"):
        tasks.task("fictional_ontology", own, n=6, distractors=5, source=tmp_path)


def test_roles_name_kinds_and_ends_of_statements():
    own = model("words")
    task = tasks.task("fictional_ontology", own, n=8, depths=3)
    masks = statement_masks(task)
    assert {f"{side}{s}" for side in ("", "other ") for s in ("FACT", "RULE1", "RULE2", "RULE3")} == set(masks)
    for row, text in enumerate(texts(own, task.clean)):
        kinds = conclusion(text)
        said = {r: own.tokenizer.decode(task.clean.ids[row, at[row]]).strip() for r, at in task.roles.items()}
        assert [said["FACT"], *(said[f"HIGH{i}"] for i in (1, 2, 3))] == kinds
        assert [said[f"LOW{i}"] for i in (1, 2, 3)] == kinds[:3]
        assert said["NAME"] == said["ASKED"] and {said[f"{name} STOP"] for name in masks} == {"."}
        spans = [own.tokenizer.decode(task.clean.ids[row][mask[row]]).strip() for mask in masks.values()]
        whole = [s.strip() + "." for s in text.split(".")[:-1]]
        assert sorted(s for s in spans if s != whole[0][len(whole[0]) - len(s) :]) == sorted(whole[1:])


def test_order_steps_and_other_chains():
    own = model("words")
    for text in texts(own, tasks.task("fictional_ontology", own, n=6, depths=2, order="chain", distractors=2).clean):
        first = re.findall(r"(?:Every|Each|Any) (\w+)", text)
        assert text.index(" a ") < text.index(first[0]) and len(first) == 6
        after = dict(re.findall(r"(?:Every|Each|Any) (\w+) (?:is|counts as) a (\w+)\.", text))
        assert [after[kind] for kind in first[::2]] == first[1::2]
    for text in texts(own, tasks.task("fictional_ontology", own, n=6, depths=3, steps=True).clean):
        kinds = conclusion(text)
        name = re.search(r"(\w+) (?:is|counts as) a$", text).group(1)
        assert [k for n, k in re.findall(r"(\w+) is a (\w+)\.", text) if n == name] == kinds[:3]


def test_splits_share_no_pair_of_first_and_last_kind():
    own = model("words")
    sides = [
        {(k[0], k[-1]) for k in map(conclusion, texts(own, tasks.task("fictional_ontology", own, n=24, split=s).clean))}
        for s in tasks.SPLITS
    ]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("fictional_ontology", {"depth": 2}, "no option 'depth'; did you mean 'depths'"),
        ("fictional_ontology", {"depths": 0}, "depths is .0,.; expected integers of at least 1"),
        ("fictional_ontology", {"steps": 1}, "steps is 1; expected True or False"),
        ("arithmetic", {"digits": 0}, "digits is 0; expected an integer of at least 1"),
        ("ioi", {"digits": 1}, "ioi has no option 'digits'; it has none"),
        ("induction", {"digits": 1}, "induction has no option 'digits'; it has none"),
    ],
)
def test_options_of_another_family_or_kind_are_refused(name, options, match):
    with pytest.raises(TaskError, match=match):
        tasks.task(name, model("words"), n=2, **options)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_sums_of_as_many_digits_as_asked_for(digits):
    own = model("signs")
    task = tasks.task("arithmetic", own, n=6, digits=digits)
    for text in texts(own, task.clean):
        assert [len(n) for n in re.findall(r"\d+", text)[:2]] == [digits, digits]
    assert task.record["digits"] == digits and task.record["deciding_token"] == "digit"


@pytest.mark.parametrize("corruption", ["time", "subject"])
def test_dated_facts_are_those_of_the_table(corruption):
    own = model("signs")
    task = tasks.task("dated_facts", own, n=12, corruption=corruption)
    held = {}
    for row in document("dated_facts").rows:
        held[row["slots"]["subject"], row["slots"]["year"]] = row["answers"][0]
    for row, (clean, corrupt) in enumerate(zip(texts(own, task.clean), texts(own, task.corrupt), strict=True)):
        (subject, year), (other, then) = (
            next((s, y) for s, y in held if s in t and y == re.search(r"\d{4}", t).group()) for t in (clean, corrupt)
        )
        assert (subject == other) is (corruption == "time") and (year == then) is (corruption == "subject")
        first = own.tokenizer.decode(task.answers[row]).strip()
        twins = [own.tokenizer.decode(i).strip() for i in task.wrong[row][task.wrong[row] >= 0]]
        assert held[subject, year].startswith(first) and first not in twins
        assert any(held[other, then].startswith(twin) for twin in twins)


def test_planted_dated_facts_differ_in_their_time_and_are_answered():
    made = factory.plant([Dated()], seed=0)
    own = interp.load(made.model, tokenizer=made.tokenizer)
    task = tasks.planted_task(made, "dated", n=24, corruption="minimal")
    changed = task.clean.ids != task.corrupt.ids
    assert_close(changed.long().argmax(1), task.role("TIME"))
    assert changed.sum(1).tolist() == [1] * 24
    table = Dated().lookup(made.vocab)
    ids = task.clean.ids.gather(1, torch.stack([task.role("SUBJECT"), task.role("TIME")], 1)).tolist()
    assert [table[s, t] for s, t in ids] == task.answers[:, 0].tolist()
    for batch, answers in ((task.clean, task.answers), (task.corrupt, task.wrong)):
        assert_close(own.run(batch).logits[:, -1].argmax(-1), answers[:, 0])


def test_relations_of_kinds_to_the_first_member():
    own = model("words")
    task = tasks.task("fictional_ontology", own, n=24, depths=2, order="facts")
    prompts, labels, kinds = tasks.relation_examples(task, seed=1)
    assert 4 < sum(labels) < 20 and [row[-1] for row in prompts] == kinds
    for prompt, label in zip(prompts, labels, strict=True):
        text = own.tokenizer.decode(prompt).strip()
        first = re.match(r"(\w+) is a", text).group(1)
        reached = conclusion(f"{text}. {first} is a")
        assert (text.split()[-1] in reached) is label
    with pytest.raises(TaskError, match='order="facts" or "chain"'):
        tasks.relation_examples(tasks.task("fictional_ontology", own, n=4))
    with pytest.raises(TaskError, match="no role 'FACT'"):
        tasks.relation_examples(tasks.task("arithmetic", own, n=4))
