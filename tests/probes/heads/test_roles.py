"""Successor, copying, suppression, movers, sources and relations against truth."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from numpy.testing import assert_allclose
from scipy.stats import binom
from scipy.stats import t as t_distribution

import interp
from interp import data, tasks, zoo
from interp.decompose import attribute
from interp.edits import ForcePattern
from interp.errors import NotApplicable, TaskError
from interp.measurement import source_attribution as _attributed
from interp.measurement.answers import derangements
from interp.results import stats
from interp.sites import Site
from interp.zoo.planted import factory
from interp.zoo.trained.skills import facts, vocabulary
from probes.heads import ordinals as _ordinals
from probes.heads._successor import _profile, tail

SIZES = (7, 12, 10, 20, 26)


def variant(result, name, of):
    rows = result.table[(result.table["analysis"] == name) & (result.table["variant"] == of)]
    return rows.set_index("component")


@pytest.fixture(scope="module")
def default():
    return interp.load("zoo:default")


@pytest.fixture(scope="module")
def counted(default):
    return interp.analyze(default, "successor")


@pytest.fixture(scope="module")
def untrained():
    """A random model with the vocabulary of the rich zoo model."""
    torch.manual_seed(0)
    sizes = {"n_layer": 4, "n_head": 8, "n_embd": 128, "n_positions": 128, "vocab_size": len(vocabulary.tokens())}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=None)
    return interp.load(transformers.GPT2LMHeadModel(config).eval(), tokenizer=vocabulary.tokenizer(max_length=128))


def five_classes():
    starts = np.cumsum([0, *SIZES])
    return tuple(tuple(range(a, a + n)) for a, n in zip(starts, SIZES, strict=False))


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow), "llama-gqa"])
def test_the_planted_successor_head_scores_one_and_all_others_chance(architecture):
    planted = factory.plant(
        [factory.Successor(classes=five_classes())], architecture=architecture, n_words=sum(SIZES) + 5, n_layers=4
    )
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    found = interp.analyze(model, "successor")
    ((layer, head),) = planted.truth.roles["successor"]
    rows = variant(found, "successor", "full")
    here = rows.index == f"L{layer}H{head}"
    assert rows[here]["value"].item() >= 0.95
    assert rows[here]["label"].item()
    assert rows[~here]["value"].max() <= 0.2
    assert not rows[~here]["label"].any()
    assert_allclose(rows["null"], sum((n - 1) / n for n in SIZES) / (sum(SIZES) - len(SIZES)), rtol=1e-12)
    assert_allclose(rows["null"].iloc[0], 0.066, atol=5e-4)  # the value of the reference notes
    assert variant(found, "successor", "ov_embed")["value"].max() <= 0.25  # the order is behind MLP 0
    for offset in ("-2", "-1", "+0", "+2"):
        assert variant(found, "successor", f"offset {offset}")[here]["value"].item() < 0.2
    assert len(found.interventions) == 0  # its words make no lists
    assert found.provenance["data"]["coverage"]["class 0"]["space"] == [7, 7]


def test_heads_of_a_random_model_score_chance(untrained):
    found = interp.analyze(untrained, "successor")
    for name in ("full", "ov_mlp0", "ov_embed"):
        rows = variant(found, "successor", name)
        assert not rows["label"].any()
        assert rows["q"].min() > 0.01
        assert_allclose(rows["value"].mean(), rows["null"].mean(), atol=0.012)


def test_the_tail_is_that_of_independent_labels():
    chance = np.repeat([1 / 7, 1 / 12, 1 / 26], [6, 11, 25])
    rng = np.random.default_rng(0)
    hits = (rng.random((20000, len(chance))) < chance).sum(1)
    ours = tail(chance)
    assert_allclose(ours[0], 1)
    assert_allclose(ours[:8], [(hits >= k).mean() for k in range(8)], atol=0.015)
    # A head's picks are fixed and labels permuted within the class: its tail is no heavier.
    picks, labels = rng.integers(0, 26, 25), np.arange(1, 26)
    permuted = np.array([(rng.permutation(labels) == picks).sum() for _ in range(20000)])
    assert (permuted >= 4).mean() <= tail(np.full(25, 1 / 26))[4] + 0.005


def test_the_heads_that_count_in_the_trained_model_and_the_double_dissociation(counted):
    rows = variant(counted, "successor", "full")
    assert set(rows.index[rows["label"].fillna(False)]) == {"L2H6", "L2H11"}
    assert variant(counted, "successor", "offset +0").loc["L2H6", "value"] < 0.05
    copying = counted.provenance["data"]["copying_heads"]
    assert set(copying) == {"L3H3", "L3H4", "L3H6", "L3H7"}
    assert counted.provenance["data"]["ordinal_accuracy"] > 0.95
    sets = counted.interventions
    sets = sets[sets["set_id"].str.startswith("mean at END") & (sets["n_random"] > 0)]
    sets = sets[sets["control"] == "same layers"].set_index(["k", "metric"])
    ordinal, copy = sets.xs("ordinal_accuracy", level=1), sets.xs("copy_accuracy", level=1)
    assert ordinal.loc[2, "edited"] < 0.5  # successor heads away: lists break,
    assert copy.loc[2, "edited"] > 0.95  # copying does not;
    assert copy.loc[4, "edited"] < 0.1  # copying heads away: the reverse
    assert ordinal.loc[4, "edited"] > 0.85
    assert (sets[sets.index.get_level_values(1).str.endswith("accuracy")]["random_mean"] > 0.95).all()


def test_one_head_with_two_jobs_is_seen_when_it_is_removed_everywhere(counted):
    """L2H6 is the previous-token head as well: this is why the dissociation is shown at END."""
    sets = counted.interventions
    everywhere = sets[sets["set_id"].eq("zero everywhere: L2H6 L2H11") & sets["metric"].eq("copy_accuracy")]
    assert everywhere["edited"].item() < 0.5


def test_a_word_by_which_nothing_is_counted_is_not_applicable(default):
    with pytest.raises(NotApplicable, match="no ordinal class"):
        interp.analyze(default, "successor", classes={"nonsense": ["qqqqq", "zzzzzz"]})
    with pytest.raises(NotApplicable, match="tokenizer"):
        interp.analyze(interp.load(zoo.load("planted-induction")[0]), "successor")


def test_gaps_and_wrap_around_are_kept_apart(default):
    days = ["Monday", "Tuesday", "qqqqqqq", "Thursday", "Friday", "Saturday", "Sunday"]
    (found,), coverage = _ordinals.find(default, {"days": days})
    assert coverage["days"]["space"] == [6, 7]
    assert found.has(1).tolist() == [True, False, True, True, True, False]
    shipped = {c.name: c for c in _ordinals.find(default)[0]}
    assert shipped["days"].wraps.tolist() == [False] * 6 + [True]
    assert not shipped["numbers"].wraps.any()
    # what heads would write that go on to the next word, and from the last to the first
    chosen = {c.name: np.tile((c.rank + 1) % c.size, (4, 12, 1)) for c in shipped.values()}
    frames = {r["variant"].iloc[0]: r["value"] for r in _profile(default, list(shipped.values()), chosen, seed=0)}
    assert (frames["wrap"] == 1).all()
    assert (frames["offset +1"] == 1).all()
    listed = _ordinals.lists(default, list(shipped.values()), n=24, bos="default", seed=0)
    assert listed is not None
    comma = vocabulary.index()[","]
    ends = listed.batch.ids[torch.arange(24), listed.batch.mask.sum(1) - 1]
    assert (ends == comma).all()


def test_copying_and_suppressing_heads_of_the_factory():
    planted = factory.plant([factory.Copy(), factory.AntiCopy()], architecture="gpt2", seed=1)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    for name, role, score, sign in (
        ("copying", "copy", "own_top", 1),
        ("copy_suppression", "anti_copy", "own_bottom", -1),
    ):
        found = interp.analyze(model, name)
        rows = variant(found, name, score)
        ((layer, head),) = planted.truth.roles[role]
        here = rows.index == f"L{layer}H{head}"
        assert rows[here]["value"].item() == 1
        assert rows[~here]["value"].max() < 0.2
        assert list(rows["label"]) == list(here)
        assert variant(found, name, "effective_ratio")[here]["value"].item() * sign > 0.9


def test_no_head_of_a_random_model_copies_or_suppresses(untrained):
    """But for tied embeddings, which make the ratio of raw embeddings lean to one side."""
    for name, score in (("copying", "own_top"), ("copy_suppression", "own_bottom")):
        rows = variant(interp.analyze(untrained, name), name, score)
        assert not rows["label"].any()
        assert_allclose(rows["value"].mean(), rows["null"].mean(), atol=0.005)


def test_the_trained_models_induction_heads_copy(default):
    rows = variant(interp.analyze(default, "copying"), "copying", "own_top")
    assert set(rows.nlargest(4, "value").index) == {"L3H3", "L3H4", "L3H6", "L3H7"}
    assert rows.loc["L3H6", "label"]
    # Heads of layer 0 that write for later heads look like suppression without being labelled: a lead, not a finding.
    low = variant(interp.analyze(default, "copy_suppression"), "copy_suppression", "own_bottom")
    assert low["q"].min() < 0.01
    assert not low["label"].any()


def test_planted_movers_and_their_sources():
    planted = factory.plant([factory.TwoHop(), factory.Fact()], architecture="gpt2", seed=3)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    found = interp.analyze(model, "movers", task=tasks.planted_task(planted, "two_hop", n=32))
    rows = variant(found, "movers", "mover")
    ((layer, head),) = planted.truth.roles["name_mover"]
    assert list(rows.index[rows["label"]]) == [f"L{layer}H{head}"]
    assert variant(found, "movers", "attention").loc[f"L{layer}H{head}", "value"] > 0.9
    told = variant(
        interp.analyze(model, "direct_attribution", task=tasks.planted_task(planted, "fact", n=32)),
        "direct_attribution",
        "total",
    )
    ((layer, head),) = planted.truth.roles["fact_mover"]
    assert list(told.index[told["label"]]) == [f"L{layer}H{head}"]
    assert told.loc[f"L{layer}H{head}", "role"] == "subject"


def test_a_head_is_of_the_subject_of_the_relation_or_mixed_by_where_its_logits_come_from():
    """One planted head reads the subject: of the relation where another token has that name, mixed if none is pure."""
    planted = factory.plant([factory.Fact()], architecture="gpt2", seed=3)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    task = tasks.planted_task(planted, "fact", n=16)
    ((layer, head),) = planted.truth.roles["fact_mover"]
    known = sorted(set(task.answers.flatten().tolist()))  # an answer is compared with the other prompts' answers
    others = torch.tensor([[a for a in known if a != own] for own in task.answers.flatten().tolist()])
    direct = attribute(model, task.clean, task.answers, wrong=others).heads
    for options, role in (
        ({"subject": "SUBJECT"}, "subject"),
        ({"subject": "END"}, "relation"),
        ({"subject": "SUBJECT", "ratio": 1e9}, "mixed"),
    ):
        found = interp.analyze(model, "direct_attribution", task=task, **options)
        rows = variant(found, "direct_attribution", "total")
        assert rows.loc[f"L{layer}H{head}", "role"] == role
        assert rows.loc[f"L{layer}H{head}", "value"] == pytest.approx(float(direct[layer, head].mean()), rel=1e-4)
        assert rows["role"].notna().sum() == rows["label"].sum() == 1


def test_the_anti_copying_twin_of_a_mover_is_negative(default):
    """Right and wrong exchanged: every mover becomes a negative one, with the same size."""
    from dataclasses import replace

    task = tasks.task("ioi", default, n=16)
    found = interp.analyze(default, "movers", task=task)
    direct = attribute(default, task.clean, task.answers, wrong=task.wrong)
    mlps = sum(v for c, v in zip(direct.terms, direct.values, strict=True) if c.kind == "mlp")
    assert found.provenance["data"]["mlp_share"] == pytest.approx(float(mlps.mean() / direct.logit.mean()), rel=1e-4)
    rows = variant(found, "movers", "mover")
    assert set(rows.index[rows["label"]]) <= {"L3H3", "L3H4", "L3H6", "L3H7"}
    assert rows.loc["L3H6", "role"] == "mover"
    other = interp.analyze(default, "movers", task=replace(task, answers=task.wrong, wrong=task.answers))
    swapped = variant(other, "movers", "other")
    assert_allclose(swapped["value"], -rows["value"], atol=1e-5)


def test_direct_attributions_of_sources_sum_to_the_heads(default):
    found = interp.analyze(default, "direct_attribution", n_prompts=24)
    parts = [variant(found, "direct_attribution", of)["value"] for of in ("subject", "relation", "start")]
    assert_allclose(sum(parts), variant(found, "direct_attribution", "total")["value"], atol=1e-4)
    # Most is written by the last MLP: heads' direct effects are small here, though without L2H6 no fact is known.
    mlps = variant(found, "direct_attribution", "mlp")["value"]
    assert mlps["M3"] > 5 * variant(found, "direct_attribution", "total")["value"].max()


def test_what_cannot_be_attributed_is_refused(default):
    with pytest.raises(NotApplicable, match="no prompt holds"):
        interp.analyze(default, "movers", task="facts", n_prompts=8)
    with pytest.raises(TaskError, match="no role for a subject"):
        interp.analyze(default, "direct_attribution", task="greater_than", n_prompts=8)


def test_the_test_against_exchanges_is_two_sided():
    """Both ends of Student's prediction interval, and what is as far below is as sure as what is above."""
    null = np.random.default_rng(0).normal(size=(6, 1, 3))
    value = np.array([[4.0, -4.0, 0.0]]) + null.mean(0)
    score = stats.Interval(value, *(np.zeros_like(value),) * 3, 10)
    found = _attributed.null_columns(score, list(null[:, None]), whole=10.0, able=True)
    t = (np.abs(value - null.mean(0)) - 0.1) / (null.std(0, ddof=1) * np.sqrt(1 + 1 / 6))
    assert_allclose(found["p"], np.minimum(1, 2 * t_distribution.sf(t, df=5)), rtol=1e-9)
    assert_allclose(found["null"], null.mean(0))
    assert (_attributed.null_columns(score, list(null[:, None]), whole=10.0, able=False)["p"] == 1).all()


def test_exchanges_leave_no_prompt_its_own_answer():
    for order in derangements(9, draws=8, seed=0):
        assert (order != torch.arange(9)).all()
        assert order.sort().values.tolist() == list(range(9))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_planted_relation_is_read_off_the_weights_as_off_activations(architecture):
    fact = factory.Fact(facts=tuple((i, i + 20) for i in range(15)))
    planted = factory.plant([fact], architecture=architecture, n_layers=3)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    words = [planted.tokenizer.decode([planted.vocab.word(i)]) for i in range(planted.vocab.n_words)]
    found = interp.analyze(model, "relations", pairs={"fact": [(words[a], words[b]) for a, b in fact.facts]}, k=1)
    rows = variant(found, "relations", "static")
    rows = rows[rows["relation"] == "fact"]
    ((layer, head),) = planted.truth.roles["fact_mover"]
    assert list(rows.index[rows["label"]]) == [f"L{layer}H{head}"]
    assert rows.loc[f"L{layer}H{head}", "value"] == 1
    assert rows.drop(f"L{layer}H{head}")["value"].max() <= 0.2
    assert found.provenance["data"]["static_dynamic_pearson"]["fact"] >= 0.95


def test_an_anti_copying_head_suppresses_what_it_reads():
    planted = factory.plant([factory.Copy(), factory.AntiCopy()], architecture="gpt2", seed=1, noise=0.0)
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    words = [planted.tokenizer.decode([i]) for i in planted.vocab.words[:12]]
    found = interp.analyze(model, "relations", pairs={"copy": [(w, w) for w in words]}, dynamic=False)
    names = {role: "L{}H{}".format(*planted.truth.roles[role][0]) for role in ("copy", "anti_copy")}
    for of, role in (("static", "copy"), ("suppression", "anti_copy")):
        values = variant(found, "relations", of)["value"]
        assert values[names[role]] == 1
        assert (values.drop(names[role]) == 0).all()  # most write nothing at all: a tie counts against the target
    rows = variant(found, "relations", "static")
    assert_allclose(rows["p"].to_numpy(float), binom.sf(np.rint(rows["value"] * 12) - 1, 12, rows["null"]), rtol=1e-9)


def test_dynamic_scores_are_those_of_a_head_made_to_look_at_the_word_in_every_context(default):
    known = [(s, a) for (s, relation), a in facts.table().items() if relation == "colour"][:10]
    found = interp.analyze(default, "relations", pairs={"colour": known})
    rows = variant(found, "relations", "dynamic")
    rows = rows[rows["relation"] == "colour"]
    unknown = default.tokenizer.unk_token_id
    templates = ["{source}", *data.read_json(data.path("relations", "relations.json"))["templates"]]
    texts = [[t.format(source=s) for s, _ in known] for t in templates]
    batches = [b for b in map(default.batch, texts) if not (b.ids == unknown).any()]
    assert len(batches) == 5
    target = torch.tensor([default.batch([a]).ids[0, -1] for _, a in known])
    for layer, head in ((2, 6), (2, 11), (0, 9)):
        hits = []
        for batch in batches:
            row = torch.nn.functional.one_hot(torch.tensor(batch.ids.shape[1] - 1), batch.ids.shape[1]).float()
            edit = ForcePattern(Site("pattern", layer, head=head), row.expand(len(known), -1), positions=-1)
            out = default.run(batch, edits=[edit], capture=[f"L{layer}.head_out"])[f"L{layer}.head_out"][:, -1, head]
            logits = default.weights().unembed(out, fold_norm=True)
            above = (logits > logits.gather(1, target[:, None])).sum(1)
            hits.append((above < found.provenance["data"]["k"]).double())
        assert rows.loc[f"L{layer}H{head}", "value"] == pytest.approx(float(torch.stack(hits).mean()))
        assert rows.loc[f"L{layer}H{head}", "n"] == 50


def test_facts_of_the_trained_model_are_behind_one_head(default):
    known = [(s, a) for (s, relation), a in facts.table().items() if relation == "colour"]
    found = interp.analyze(default, "relations", pairs={"colour": known})
    rows = variant(found, "relations", "static")
    rows = rows[rows["relation"] == "colour"]
    assert list(rows.index[rows["label"]]) == ["L2H6"]
    assert found.provenance["data"]["coverage"] == {"colour": [48, 48]}
    with pytest.raises(NotApplicable, match="10 pairs"):
        interp.analyze(default, "relations", pairs={"colour": known[:3]})


def test_tables_have_every_head_once(counted):
    for _, rows in counted.table.groupby("variant"):
        assert len(rows) == 48
        assert rows["component"].is_unique
    assert pd.api.types.is_bool_dtype(counted.table["label"].dropna())
