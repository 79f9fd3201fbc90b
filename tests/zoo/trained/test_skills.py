"""The skills are right by construction, their splits apart, and the training resumes exactly."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest
import torch
from tolerance import assert_equal_to_rounding
from torch.testing import assert_close

from interp import texts as corpus
from interp.errors import InterpError
from interp.zoo.trained.curriculum import build
from interp.zoo.trained.measure import repeated_tokens
from interp.zoo.trained.skills import CONTEXT, SKILLS, facts, lexicon, plan, skill_items, vocabulary
from interp.zoo.trained.skills.judge import skill_accuracy
from interp.zoo.trained.skills.plan import Options
from interp.zoo.trained.skills.report import card_text, failures, skill_scores
from interp.zoo.trained.skills.rows import GROUPS, KINDS, PACKED, batch, skill_losses
from interp.zoo.trained.train import main
from interp.zoo.trained.words import WORDS

SPLITS = ("train", "held-out")
LIST_SEPARATORS = 2


@pytest.fixture(scope="module")
def fast():
    return vocabulary.tokenizer()


def words(tokens) -> list[str]:
    return [vocabulary.tokens()[i] for i in tokens]


def items(name, *, n=120, seed=3, splits=SPLITS):
    return [item for split in splits for item in skill_items(name, n=n, seed=seed, split=split)]


def prompts(name, split, *, n):
    """Everything up to the last answer, separators apart."""
    chosen = slice(1, None, LIST_SEPARATORS) if name.startswith("ordinals") else slice(0, -1)
    return {item.tokens[chosen] for item in skill_items(name, n=n, seed=0, split=split)}


# The tokenizer


def test_the_vocabulary_has_no_duplicates_and_begins_like_the_other_zoo_tokenizers():
    tokens = vocabulary.tokens()
    assert len(set(tokens)) == len(tokens)
    assert tokens[:4] == ("<bos>", "<eos>", "<pad>", "<unk>")
    assert tokens[4 : 4 + len(WORDS)] == WORDS


@pytest.mark.parametrize(
    "members",
    [
        *lexicon.CLASSES.values(),
        lexicon.YEARS,
        lexicon.PEOPLE,
        lexicon.SUBJECTS,
        lexicon.STRANGERS,
        lexicon.CITIES,
        WORDS,
    ],
)
def test_every_member_is_one_token_wherever_it_stands(fast, members):
    for word in members:
        assert len(fast(word)["input_ids"]) == 2
        assert words(fast(f"a {word}({word}, {word}.")["input_ids"]).count(word) == 3


def test_names_have_one_role_each():
    names = (*lexicon.PEOPLE, *lexicon.SUBJECTS, *lexicon.STRANGERS, *lexicon.CITIES)
    assert len(set(names)) == len(names)


def test_bos_is_added_and_the_saved_tokenizer_is_the_same(fast, tmp_path):
    from transformers import AutoTokenizer

    fast.save_pretrained(tmp_path)
    text = "While Zangax stayed, 1732 days:\n    return self.unheardOf"
    ids = fast(text)["input_ids"]
    assert ids[0] == fast.bos_token_id and fast.unk_token_id not in ids
    assert AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)(text)["input_ids"] == ids


def test_the_corpus_holds_hardly_anything_the_tokenizer_does_not_know(fast):
    text = "\n".join(corpus.sources("held-out").values())[:200_000]
    ids = fast(text, verbose=False)["input_ids"]
    assert ids.count(fast.unk_token_id) / len(ids) < 1e-3


def test_spelling_a_prompt_gives_the_ids_the_generators_write(fast):
    for name in ("ordinals", "ioi", "greater-than", "facts-memory", "facts-context", "facts-conflict"):
        for item in items(name, n=30):
            assert tuple(fast(" ".join(words(item.tokens[1:])))["input_ids"]) == item.tokens


# Every skill


@pytest.mark.parametrize("name", SKILLS)
@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_give_the_same_items_and_another_seed_others(name, split):
    first = skill_items(name, n=8, seed=1, split=split)
    assert first == skill_items(name, n=8, seed=1, split=split)
    assert first != skill_items(name, n=8, seed=2, split=split)


@pytest.mark.parametrize("name", SKILLS)
def test_places_are_inside_the_sequence_and_hold_right_answers(name):
    for item in items(name):
        assert item.skill == name
        assert item.tokens[0] == 0 and len(item.tokens) <= CONTEXT
        assert item.places and set(item.places) <= set(item.loss)
        assert all(1 <= place < len(item.tokens) for place in item.loss)
        assert len(item.answers) == len(item.places)
        for place, right in zip(item.places, item.answers, strict=True):
            assert item.tokens[place] in right
        for right, wrong in zip(item.answers, item.foils, strict=False):
            assert not set(right) & set(wrong)


def test_unknown_skills_are_refused():
    with pytest.raises(InterpError, match="did you mean 'needles'"):
        skill_items("needle", n=1, seed=0)


# Each skill


def test_repeats_repeat_blocks_of_varied_length():
    lengths = set()
    for item in items("repeats"):
        period = len(item.tokens) - item.places[0] + 1
        lengths.add(period)
        block = item.tokens[-2 * period : -period]
        assert block == item.tokens[-period:] and len(set(block)) == period
    assert min(lengths) < 8 and max(lengths) > 150 and len(lengths) > 40


@pytest.mark.parametrize("name", ["ordinals", "ordinals-wrap"])
def test_successors_follow_in_their_class_and_lists_wrap_only_apart(name):
    cyclic = {word for c in lexicon.CYCLIC for word in lexicon.CLASSES[c]}
    wrapped = 0
    for item in items(name):
        members = words(item.tokens[1::LIST_SEPARATORS])
        known = next(c for c in lexicon.CLASSES.values() if members[0] in c)
        steps = [known.index(b) - known.index(a) for a, b in zip(members, members[1:], strict=False)]
        assert set(steps) <= {1, 1 - len(known)}
        wrapped += min(steps) < 0
        assert name == "ordinals" or members[0] in cyclic
    assert wrapped == (0 if name == "ordinals" else len(items(name)))


def test_the_one_who_receives_is_the_name_said_once():
    orders = set()
    for item in items("ioi"):
        said = [word for word in words(item.tokens[:-1]) if word in lexicon.PEOPLE]
        (answer,), (foil,) = words(item.answers[0]), words(item.foils[0])
        assert sorted(said) == sorted([answer, foil, foil])
        orders.add(said[0] == answer)
    assert orders == {True, False}


def test_years_are_later_or_not_and_all_are_counted():
    for item in items("greater-than"):
        began = next(word for word in reversed(words(item.tokens[:-2])) if word.isdigit())
        assert all(int(year) > int(began) for year in words(item.answers[0]))
        assert all(int(year) <= int(began) for year in words(item.foils[0]))
        assert len(item.answers[0]) + len(item.foils[0]) == 100


def test_facts_from_memory_are_those_of_the_table():
    assert len(facts.table()) == len(lexicon.SUBJECTS) * len(facts.RELATIONS)
    for item in items("facts-memory"):
        prompt = words(item.tokens[:-1])
        subject = next(word for word in prompt if word in lexicon.SUBJECTS)
        (answer,) = words(item.answers[0])
        assert any(answer == facts.table()[subject, r.name] and answer in r.attributes for r in facts.RELATIONS)


def test_held_out_templates_are_new_but_made_of_trained_parts():
    for relation in facts.RELATIONS:
        trained, new = facts.templates(relation, "train"), facts.templates(relation, "held-out")
        assert new and not set(trained) & set(new)
        for part in (*facts.OPENINGS[1:], *relation.cores):
            assert any(part in template for template in trained)


def test_facts_from_context_were_told_of_the_one_asked_for():
    for item in items("facts-context"):
        said = words(item.tokens[1:])
        asked = [word for word in said if word in lexicon.STRANGERS]
        statements = " ".join(said).split(" . ")
        assert statements[asked.index(asked[-1])] == statements[-1]
        assert len(statements) == len(set(asked)) + 1


def test_conflicts_go_by_the_wording():
    seen = set()
    for item in items("facts-conflict"):
        prompt = words(item.tokens[1:-1])
        (answer,), (foil,) = words(item.answers[0]), words(item.foils[0])
        seen.add(prompt[0])
        assert (answer in prompt) is (prompt[0] == "Suppose")
        assert (foil in prompt) is (prompt[0] == "Rumour")
    assert seen == {"Suppose", "Rumour"}


def test_needles_are_told_once_and_asked_for_once():
    for item in items("needles", n=60):
        assert len(item.tokens) == 256
        for place, (value,) in zip(item.places, item.answers, strict=True):
            told = item.tokens[place - 5 : place + 1]
            assert words(told[:3]) == ["The", "code", "of"]
            early = item.tokens[: item.places[0] - 5]
            assert sum(early[i : i + 6] == told for i in range(len(early))) == 1
            assert value == told[-1]


# The splits


@pytest.mark.parametrize("name", ["ordinals", "ordinals-wrap", "greater-than", "facts-memory", "facts-conflict"])
def test_prompts_are_in_one_split_only(name):
    trained, new = prompts(name, "train", n=2000), prompts(name, "held-out", n=500)
    assert new and not trained & new


def test_held_out_pairs_were_never_trained():
    def pairs(split):
        return {frozenset((*i.answers[0], *i.foils[0])) for i in skill_items("ioi", n=2000, seed=0, split=split)}

    def bound(split):
        made = skill_items("needles", n=60, seed=0, split=split)
        return {i.tokens[p - 2 : p + 1] for i in made for p in i.places}

    assert not pairs("train") & pairs("held-out")
    assert not bound("train") & bound("held-out")


def test_modules_are_in_one_split_only():
    trained, new = corpus.sources("train"), corpus.sources("held-out")
    assert len(trained) > 60 and len(new) > 4
    assert not set(trained) & set(new)


# Batches and training


def test_mixed_rows_hold_every_skill_and_mark_only_its_answers():
    rows = batch(Random(0), plan.STAGES[-1], n_tokens=256 * 64)
    assert rows.tokens.shape == rows.groups.shape == (64, 256)
    marked = set(rows.groups.unique().tolist())
    assert marked == set(range(len(GROUPS)))
    assert {*KINDS, *PACKED} - {"packed"} == set(SKILLS)
    named = {vocabulary.index()[name] for name in lexicon.PEOPLE}
    assert set(rows.tokens[rows.groups == GROUPS.index("ioi")].tolist()) <= named
    assert rows.groups[:, 0].sum() == 0


def test_losses_are_means_over_the_tokens_of_each_skill():
    rows = batch(Random(0), plan.STAGES[0], n_tokens=960)
    logits = torch.zeros(*rows.tokens.shape, 1500)
    losses, counts = skill_losses(logits, rows)
    expected = torch.tensor(1500.0).log()
    assert_equal_to_rounding(losses[counts > 0], expected.expand(int((counts > 0).sum())), depth=int(counts.max()))
    assert counts.sum() == rows.tokens[:, 1:].numel()


@pytest.fixture
def micro(monkeypatch):
    shape = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
    )
    monkeypatch.setitem(plan.SIZES, "micro", shape)
    return Options("micro", steps=20, tokens_per_step=800)


def test_stages_end_when_passed_or_when_their_time_is_up():
    slow, quick = plan.Progress(), plan.Progress()
    for step in range(1000):
        slow.advance((step + 1) / 1000, 7.3)
        quick.advance((step + 1) / 1000, 0.1)
        assert slow.stage == sum(stage.until <= (step + 1) / 1000 for stage in plan.STAGES[:-1])
        assert quick.stage == min(step + 1, len(plan.STAGES) - 1)


def test_copying_comes_first_and_long_repeats_are_not_forgotten():
    assert [stage.mixed for stage in plan.STAGES] == [False] * (len(plan.STAGES) - 1) + [True]
    assert plan.STAGES[0].periods[0] >= 16 and plan.STAGES[-1].until == 1.0
    last = plan.Progress(stage=len(plan.STAGES) - 1)
    assert {last.stage_at(step).length for step in range(plan.LONG_EVERY)} == {256, 400}
    assert all(stage.periods[1] + 16 <= (stage.pool or 1000) for stage in plan.STAGES)


def test_an_untrained_model_has_no_skill_and_the_card_says_so(micro, fast):
    model = build("micro", seed=0).eval()
    measured = skill_scores(model, fast, n=4)
    assert measured["repeats"]["accuracy"] < 0.05
    assert abs(measured["ioi"]["logit difference"]) < 0.5
    assert any(line.startswith("needles") for line in failures(measured))
    card = card_text(model, measured, title="micro", run=vars(micro), minutes=0.0, command="python")
    assert all(f"| {name} |" in card for name in SKILLS)
    assert "Not kept: repeats" in card


def test_a_model_that_knows_has_accuracy_one(micro, monkeypatch):
    def oracle(tokens, **_):
        next_token = torch.nn.functional.one_hot(tokens.roll(-1, dims=1), 1500)
        return SimpleNamespace(logits=next_token * 30.0)

    model = build("micro", seed=0)
    monkeypatch.setattr(model, "forward", oracle)
    for name, known in SKILLS.items():
        got = skill_accuracy(model, None, name, n=8)
        assert_close(got["accuracy"], 1.0)
        if known.contrast == "logit difference":
            assert_close(got[known.contrast], 30.0)
        elif known.contrast:
            assert_close(got[known.contrast], 1.0, atol=1e-4, rtol=0)


def test_a_foreign_tokenizer_is_refused(micro):
    from interp.zoo.trained.tokenizer import word_tokenizer

    with pytest.raises(InterpError, match="tokenizer has others"):
        skill_accuracy(build("micro", seed=0), word_tokenizer(), "ioi", n=1)


def test_the_older_measurements_read_the_new_vocabulary_too():
    tokens = repeated_tokens(batch=1, period=8, repeats=2, n_words=len(WORDS), generator=torch.Generator())
    assert set(words(tokens[0, 1:].tolist())) <= set(WORDS)


def test_the_script_writes_a_folder_that_loads(micro, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = "--steps 2 --tokens-per-step 400 --items 2 --checkpoints 2".split()
    main(["micro", "--out", str(tmp_path), *options])
    assert capsys.readouterr().out == (tmp_path / "README.md").read_text()
    assert not (tmp_path / "training.pt").exists()
    for folder in (tmp_path, tmp_path / "step-00000", tmp_path / "step-00002"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
        assert model.dtype == torch.float16
        assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True))
