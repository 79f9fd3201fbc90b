"""Needles, retrieval heads, echo and induction classes, gates: against planted truth, chance and each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose
from probe_cases import eager
from tiny_models import WINDOW, tiny

import interp
from interp.edits import KnockOut, Replace, Scale
from interp.errors import NotApplicable, TaskError
from interp.measurement.needle_answers import each_answer
from interp.measurement.rerun import Rerun
from interp.tasks import needles
from interp.tasks.haystacks import PAIRS, Format, dataset
from interp.zoo.planted import factory
from interp.zoo.planted.mechanisms.copying import MATCH_GAIN, SELF_PENALTY
from interp.zoo.trained.skills.vocabulary import tokenizer
from probes.heads import kv_budget
from probes.heads import needle_hits as measured


def planted(*mechanisms, architecture="llama", seed=1):
    made = factory.plant(mechanisms, architecture=architecture, seed=seed)
    return interp.load(made.model, tokenizer=made.tokenizer), made.truth


@pytest.fixture(scope="module")
def retriever():
    return planted(factory.Retrieval())


@pytest.fixture(scope="module")
def reader():
    """A random model that reads English."""
    words = tokenizer(max_length=512)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": None, "pad_token_id": None}
    config = transformers.LlamaConfig(**sizes, **ids, vocab_size=len(words), max_position_embeddings=512)
    return interp.load(transformers.LlamaForCausalLM(config).eval(), tokenizer=words)


@pytest.fixture(scope="module")
def random_gpt2():
    """144 heads as GPT-2 starts out."""
    torch.manual_seed(0)
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 96, "vocab_size": 200, "n_positions": 160}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=None)
    return interp.load(transformers.GPT2LMHeadModel(config).eval())


def headline(result, variant):
    return result.table[result.table["variant"] == variant].set_index("component")


@pytest.mark.parametrize(
    ("which", "source", "n_needles"), [("retriever", "tokenizer", 1), ("reader", "text", 3), ("none", "pairs", 3)]
)
def test_needles_are_where_they_are_said_to_be(request, which, source, n_needles):
    model = tiny("llama") if which == "none" else request.getfixturevalue(which)
    model = model[0] if isinstance(model, tuple) else model
    hidden = needles.hide(model, n=5, length=200, value_words=2, seed=3)
    assert hidden.source == source
    assert len(hidden.answers) == 5 * n_needles
    assert hidden.batch.ids.shape[1] <= 200
    ids = hidden.batch.ids
    for answer in hidden.answers:
        said = ids[answer.prompt, [row + 1 for row in answer.rows]].tolist()
        assert said == hidden.value(answer)
        assert answer.question[1] == answer.rows[0] + 1
        assert max(answer.keys) < hidden.context[answer.prompt] <= answer.question[0]
        assert not hidden.hay[answer.prompt, list(answer.keys)].any()
        assert 0 <= answer.depth <= 1
    if source == "tokenizer":
        before = ids[[a.prompt for a in hidden.answers], [min(a.keys) - 1 for a in hidden.answers]]
        assert model.tokenizer.convert_ids_to_tokens(before.tolist()) == ["<needle>"] * 5
    again, other = (needles.hide(model, n=5, length=200, value_words=2, seed=s) for s in (3, 4))
    assert again.describe() == hidden.describe()
    assert other.describe()["sha256"] != hidden.describe()["sha256"]


def test_the_question_is_the_beginning_of_the_needle(reader):
    hidden = needles.hide(reader, n=2, seed=0)
    answer = hidden.answers[0]
    ids = hidden.batch.ids[answer.prompt].tolist()
    begin, end = answer.question
    said = ids[min(answer.keys) - (end - begin) : max(answer.keys) + 1]
    assert said == ids[begin : end + 1]
    assert reader.tokenizer.decode(said[1:]).startswith("The code of")
    assert reader.tokenizer.unk_token_id not in ids


def test_depths_and_haystacks_of_the_callers_own(reader):
    text = "The red door is shut .\nThe sun is up .\n"
    task = Format("{key} means {value} .", "{key} means", text=text)
    hidden = needles.hide(reader, n=2, length=120, n_needles=2, depths=[0.0, 1.0], task=task)
    assert [round(a.depth) for a in sorted(hidden.answers)[:2]] == [0, 1]
    assert hidden.describe()["haystack"] == "the caller's text"
    assert min(min(a.keys) for a in hidden.answers) <= 12
    assert "sun is up" in reader.tokenizer.decode(hidden.batch.ids[0])
    with pytest.raises(TaskError, match="1 depths for 3 needles"):
        needles.hide(reader, depths=[0.5])
    with pytest.raises(TaskError, match=r"\{key\} stands in both"):
        Format("{key} is {value}", "what?")
    with pytest.raises(TaskError, match="did you mean 'prose'"):
        Format("{value}", "what?", "pros")


def test_no_room_is_said():
    with pytest.raises(
        NotApplicable, match="3 needles with their questions take .* tokens, and 16 of haystack are needed"
    ):
        needles.hide(tiny("gpt2"), length=20)
    with pytest.raises(NotApplicable, match="prose need a tokenizer"):
        needles.hide(tiny("gpt2"), task=Format("{value}", "?"))


def test_keys_and_values_are_not_in_the_haystack():
    known = dataset()
    text = " ".join([*known["sentences"], *(x for slot in known["slots"].values() for x in slot)]).lower()
    assert not set(known["words"]) & set(text.replace(",", " ").replace(".", " ").split())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "llama-gqa"])
def test_the_planted_head_is_found_and_no_other(architecture):
    model, truth = planted(factory.Retrieval(), factory.Induction(), architecture=architecture)
    ((layer, head),) = truth.roles["retrieval"]
    found = headline(interp.analyze(model, "retrieval", causal=False, seed=2), "teacher_forced")
    here = found.index == f"L{layer}H{head}"
    assert found[here]["value"].item() >= 0.95
    assert found[here]["label"].item()
    assert found[~here]["value"].max() <= 0.2
    assert not found[~here]["label"].any()


def test_chance_is_reproduced_by_a_random_model(random_gpt2):
    result = interp.analyze(random_gpt2, "retrieval", n_prompts=16, length=100)
    for variant in ("teacher_forced", "teacher_forced_nosink", "mass"):
        rows = headline(result, variant)
        assert len(rows) == 144
        assert_allclose(rows["value"].mean(), rows["null"].iloc[0], rtol=0.25, err_msg=variant)
    assert not headline(result, "teacher_forced")["label"].any()
    assert len(result.interventions) == 0
    said = interp.analyze(random_gpt2, "retrieval", n_prompts=4, length=100, decoding=True)
    assert headline(said, "decoding")["value"].isna().all()  # it says no needle at all
    hidden = needles.hide(random_gpt2, n=4, length=100, value_words=2)
    rows = np.array([row for a in hidden.answers for row in a.rows])
    assert_allclose(measured.chance(hidden).hit, np.mean(1 / (rows + 1)))
    assert_allclose(measured.chance(hidden).mass, np.mean(2 / (rows + 1)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_and_answers_are_those_of_dense_patterns_and_logits(name):
    """Values of two tokens: a hit for each that its row looks at, mass a mean over rows, an answer right in both."""
    model = tiny(name)
    hidden = needles.hide(model, n=48, length=40, value_words=2, task=PAIRS, seed=1)
    patterns, logits = eager(model, hidden.batch), model.run(hidden.batch).logits
    expected = {"hits": [], "hits_nosink": [], "mass": []}
    right, loss, either = [], [], []
    for a in hidden.answers:
        rows, value = patterns[:, a.prompt][..., list(a.rows), :], torch.tensor(hidden.value(a))  # layer head row key
        free = rows.copy()
        free[..., 0] = 0
        for kind, contest in (("hits", rows), ("hits_nosink", free)):
            expected[kind].append((contest.argmax(-1) == np.array(a.keys)).mean(-1))
        expected["mass"].append(rows[..., list(a.keys)].sum(-1).mean(-1))
        at = logits[a.prompt, list(a.rows)]
        right.append(bool((at.argmax(-1) == value).all()))
        either.append(bool((at.argmax(-1) == value).any()))
        loss.append(torch.nn.functional.cross_entropy(at, value).item())
    found = measured.teacher_forced(model, hidden)
    for kind, values in expected.items():
        assert_allclose(getattr(found, kind).mean(0), np.mean(values, 0), atol=1e-5, err_msg=kind)
    assert (np.mean(expected["hits"], 0) != np.mean(expected["hits_nosink"], 0)).any()
    ours = each_answer(Rerun(model), hidden)
    assert_allclose(ours[0], right)
    assert_allclose(ours[1], loss, rtol=1e-4)
    assert right != either


def test_decoding_and_teacher_forcing_agree_where_the_model_answers(retriever):
    result = interp.analyze(retriever[0], "retrieval", causal=False, decoding=True, max_new_tokens=1)
    assert result.provenance["data"]["accuracy"] == 1
    assert result.provenance["data"]["decoded_found"] == 1
    forced = headline(result, "teacher_forced")["value"]
    for variant in ("decoding", "decoding_all"):
        assert_allclose(headline(result, variant)["value"], forced, atol=1e-12)


def test_each_decoded_token_is_looked_for_in_the_row_that_said_it():
    """An induction head says both words of a value, one after the other, each while it looks at it."""
    model, truth = planted(factory.Induction())
    hidden = needles.hide(model, n=4, length=40, value_words=2, task=PAIRS)
    ((layer, head),) = truth.roles["induction"]
    said = measured.decode(model, hidden)
    assert said.found.all()
    assert_allclose(said.hits[:, layer, head], 1)


def test_a_head_that_retrieves_now_and_then_is_sure_to_and_not_labelled(retriever):
    """Whether a head is one of these is asked of the lower end of its interval, not of the test alone."""
    model, truth = retriever
    ((layer, head),) = truth.roles["retrieval"]
    with model.editing([Scale(f"L{layer}H{head}.q", -1.0, rows=list(range(20)))]):  # looks anywhere else there
        found = headline(interp.analyze(model, "retrieval", n_prompts=24, causal=False), "teacher_forced")
    row = found.loc[f"L{layer}H{head}"]
    assert row["value"] == pytest.approx(4 / 24)
    assert row["q"] < 0.01
    assert row["ci_low"] < 0.1
    assert not row["label"]


def test_a_needle_token_counts_once():
    best = np.array([[[5, 6, 7], [5, 5, 9]]])  # one layer, two heads, three rows
    assert_allclose(measured._hits(best, (5, 6, 7), (11, 12, 11)), [[1.0, 0.5]])
    assert_allclose(measured._hits(best, (5, 6, 7), (11, 12, 13)), [[1.0, 1 / 3]])
    assert_allclose(measured._hits(best, (5, 6, 7), (11, 12, 13), (99, 12, 99)), [[1 / 3, 0.0]])


def test_only_the_rows_of_answers_are_asked_for(retriever, monkeypatch):
    model, _ = retriever
    asked, plain = [], type(model).attention

    def spy(self, tokens, statistics, **options):
        asked.append(statistics)
        return plain(self, tokens, statistics, **options)

    monkeypatch.setattr(type(model), "attention", spy)
    hidden = needles.hide(model, n=6)
    measured.teacher_forced(model, hidden)
    (questions,) = asked  # one pass
    rows = [row for a in hidden.answers for row in a.rows]
    assert questions["top"].rows.flatten().tolist() == rows
    assert questions["mass"].query.tolist() == rows
    assert set(questions) == {"top", "mass"}


def test_masking_the_planted_head_breaks_recall_and_masking_others_does_not(retriever):
    model, truth = retriever
    sets = interp.analyze(model, "retrieval", n_random=5).interventions
    accuracy = sets[sets["metric"] == "needle_accuracy"].iloc[0]
    ((layer, head),) = truth.roles["retrieval"]
    assert accuracy["set_id"] == f"zero: L{layer}H{head}"
    assert accuracy["clean"] - accuracy["edited"] > 0.5
    assert abs(accuracy["clean"] - accuracy["random_mean"]) < 0.1
    assert accuracy["n_random"] == 5


def test_layers_that_cannot_see_the_needle_have_no_score():
    result = interp.analyze(tiny("mistral"), "retrieval", task=PAIRS, n_prompts=4)
    assert headline(result, "teacher_forced")["value"].isna().all()
    assert not headline(result, "teacher_forced")["label"].any()


def test_a_window_holds_the_query_itself():
    """A window of w sees w - 1 keys before the query: a needle w back is out of reach."""
    model = tiny("mistral")
    hidden = needles.hide(model, n=1, length=40, n_needles=1, task=PAIRS)
    for back, reached in ((WINDOW - 1, True), (WINDOW, False)):
        far = hidden.answers[0]._replace(keys=(3,), rows=(3 + back,))
        assert measured.reach_mask(model, replace(hidden, answers=(far,))).tolist() == [reached, reached]


def test_needles_by_depth_and_length(retriever):
    table = interp.analyze(retriever[0], "needle_grid", lengths=(24, 40, 10**6), n_depths=3, n_prompts=4).table
    accuracy = table[table["variant"] == "accuracy"]
    assert set(accuracy["depth"]) == {0.0, 0.5, 1.0}
    assert accuracy["length"].nunique() == 3
    assert (accuracy["value"] == 1).all()
    assert table["layer"].isna().all()
    assert_allclose(table.loc[table["variant"] == "loss", "null"], np.log(retriever[0].info.d_vocab))


def test_needles_at_the_beginning_are_lost_where_it_cannot_be_seen(retriever):
    model, truth = retriever
    ((layer, head),) = truth.roles["retrieval"]
    with model.editing([KnockOut(f"L{layer}H{head}.pattern", keys=list(range(16)))]):
        table = interp.analyze(model, "needle_grid", lengths=(40,), n_depths=2, n_prompts=4).table
    accuracy = table[table["variant"] == "accuracy"].set_index("depth")["value"]
    assert accuracy[0.0] < 0.5
    assert accuracy[1.0] == 1


@pytest.mark.parametrize("architecture", ["llama", "llama-gqa"])
def test_echo_and_induction_heads_are_told_apart(architecture):
    model, truth = planted(factory.Induction(), factory.DuplicateToken(), architecture=architecture)
    result = interp.analyze(model, "echo_induction", n_prompts=8)
    roles = headline(result, "echo")["role"]
    expected = dict.fromkeys(roles.index, "local")
    for role, name in (("induction", "induction"), ("duplicate_token", "echo")):
        ((layer, head),) = truth.roles[role]
        expected[f"L{layer}H{head}"] = name
    assert roles.to_dict() == expected
    budget = kv_budget(result, lengths=(10, 1000), window=95)
    kept, total = 2, model.info.n_layers * model.info.n_kv_heads
    assert budget["kept_whole"].tolist() == [kept, kept]
    assert_allclose(budget["share"], [1.0, (kept * 1000 + (total - kept) * 100) / (total * 1000)])
    by_rank = kv_budget(result, lengths=(1000,), window=95, ratios=(1 / len(roles), 0.0))
    assert by_rank["kept_whole"].item() == 1


@dataclass(frozen=True, kw_only=True)
class Both(factory.Induction):
    """One head that looks at earlier copies of the current token and at what followed them."""

    share: float

    def write(self, sketch, places):
        words = sketch.vocab.words
        token, head = sketch.basis("token", words), sketch.head(places["induction"])
        head.match(token, sketch.basis("previous", words) + self.share * token, gain=MATCH_GAIN)
        head.offset(0, gain=-SELF_PENALTY)
        head.park()
        head.move(token, sketch.basis("copied"))


@pytest.mark.parametrize(("share", "larger"), [(0.95, "induction"), (1.0, "echo")])
def test_a_head_of_both_classes_is_of_the_larger_mass(share, larger):
    model, truth = planted(Both(share=share))
    result = interp.analyze(model, "echo_induction", n_prompts=8)
    ((layer, head),) = truth.roles["induction"]
    rows = {name: headline(result, name).loc[f"L{layer}H{head}"] for name in ("echo", "induction")}
    assert all(row["label"] for row in rows.values())
    assert max(rows, key=lambda name: rows[name]["value"]) == larger
    assert {row["role"] for row in rows.values()} == {larger}


def test_chance_of_echo_and_induction(random_gpt2):
    result = interp.analyze(random_gpt2, "echo_induction", n_prompts=12)
    for variant in ("echo", "induction"):
        rows = headline(result, variant)
        assert_allclose(rows["value"].mean(), rows["null"].iloc[0], atol=0.002)
        assert set(rows["role"]) == {"local"}
    alone = interp.analyze(random_gpt2, "echo_induction", n_prompts=2, lengths=(20, 20), copies=2)
    queries = np.arange(21, 41)
    assert_allclose(headline(alone, "echo")["null"].iloc[0], np.mean(1 / (queries + 1)))


def test_gates_rank_the_planted_head_first(retriever):
    model, truth = retriever
    ((layer, head),) = truth.roles["retrieval"]
    table = interp.analyze(model, "retrieval_gates", n_prompts=8, steps=20, lr=0.1).table.set_index("component")
    gates = table["value"]
    assert table["rank"].idxmin() == gates.idxmax()
    assert gates.idxmax() == f"L{layer}H{head}"  # no other head shares its keys and values
    assert gates.max() > 0.5
    assert gates.drop(gates.idxmax()).max() < 0.1
    assert all(p.grad is None for p in model.torch_module.parameters())


def test_with_every_gate_closed_heads_write_what_they_do_on_the_first_and_last_keys():
    """One step so large that all gates are at 0 in the second: the distance is then that of streaming attention."""
    model, sinks, recent = tiny("llama"), 2, 8
    sizes = {"n_prompts": 3, "length": 40, "task": PAIRS, "sinks": sinks, "recent": recent}
    found = interp.analyze(model, "retrieval_gates", **sizes, steps=2, lr=1.0, penalty=1e3)
    assert_allclose(found.table["value"], 0)
    hidden = needles.hide(model, n=3, length=40, n_needles=3, task=PAIRS)
    i = torch.arange(hidden.batch.ids.shape[1])
    lost = (i[:, None] - i >= recent) & (i >= sinks)
    streams = [
        Replace(
            f"L{x}.z",
            model.run(hidden.batch, edits=[KnockOut(f"L{x}.pattern", pairs=lost)], capture=[f"L{x}.z"])[f"L{x}.z"],
        )
        for x in range(2)
    ]
    whole, streaming = (
        model.run(hidden.batch, edits=e, capture=["L1.resid_post"])["L1.resid_post"] for e in ((), streams)
    )
    far = [a for a in hidden.answers if min(a.rows) - max(a.keys) >= recent and min(a.keys) >= sinks]
    rows = tuple(torch.tensor([(a.prompt, row) for a in far for row in a.rows]).T)
    distance = (streaming[rows] - whole[rows]).square().sum(-1).mean() / whole[rows].square().sum(-1).mean()
    assert found.provenance["data"]["distance"] == pytest.approx(float(distance), rel=1e-3)
