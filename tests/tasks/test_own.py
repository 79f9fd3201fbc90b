"""One's own prompts as a task, and metrics of one's own: against the task they copy, and what is refused."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import tiny

import interp
from interp.errors import TaskError
from interp.patching.activations import activation_patching
from interp.tasks import metrics


@pytest.fixture(scope="module")
def default():
    return interp.load("zoo:default")


@pytest.fixture(scope="module")
def words(default):
    """Texts of two prompts of a task of the package, and their answers."""
    task, text = interp.task("ioi", default, n=2), default.tokenizer.decode
    clean, corrupt = (
        [text(ids[mask][1:]) for ids, mask in zip(b.ids, b.mask, strict=True)] for b in (task.clean, task.corrupt)
    )
    return task, clean, corrupt, *([text([int(i)]) for i in ids[:, 0]] for ids in (task.answers, task.wrong))


def test_texts_of_a_task_give_the_task_back(default, words):
    task, clean, corrupt, right, wrong = words
    own = interp.pair(default, clean, corrupt, right, wrong, roles={"END": -1, "FIRST": 1, "LATE": [3, 4]})
    for side in ("clean", "corrupt"):
        assert torch.equal(getattr(own, side).ids, getattr(task, side).ids)
    assert torch.equal(own.answers[:, 0], task.answers[:, 0])
    assert torch.equal(own.wrong[:, 0], task.wrong[:, 0])
    assert {name: at.tolist() for name, at in own.roles.items()} == {
        "END": (own.lengths - 1).tolist(),
        "FIRST": [1, 1],
        "LATE": [3, 4],
    }
    single = interp.PromptTask.of(default, clean=clean[0], corrupt=corrupt[0], answers=right[0], wrong=wrong[0])
    assert torch.equal(single.clean.ids[0], own.clean.ids[0][own.clean.mask[0]])
    named = interp.pair(default, clean[0], corrupt[0], right[0], roles={"PLACE": "at"})
    assert default.tokenizer.decode([int(named.clean.ids[0, named.roles["PLACE"]])]) == "at"
    assert named.metric == "prob"


def test_several_answers_and_ids():
    own = interp.pair(tiny("gpt2"), [[5, 6, 7], [5, 6, 9, 8]], [[5, 9, 7], [5, 1, 9, 8]], [[3, 4], 2], wrong=11)
    assert own.answers.tolist() == [[3, 4], [2, -1]]
    assert own.wrong.tolist() == [[11], [11]]
    assert own.end.tolist() == [2, 3]


def test_what_is_no_pair_is_refused_with_a_way_out(default, words):
    _, clean, corrupt, right, wrong = words
    for message, arguments, options in (
        ("15 tokens, the corrupted one 16", (clean[0], corrupt[0] + " to", right[0], wrong[0]), {}),
        ("2 clean prompts and 1 corrupted", (clean, corrupt[0], right, wrong), {}),
        ("the same tokens", (clean, clean, right, wrong), {}),
        ("is a right and a wrong answer", (clean[0], corrupt[0], right[0], right[0]), {}),
        ("entries of `answer` for 2 prompts", (clean, corrupt, [right[0]], wrong), {}),
        ("role 'X': the token 'zebra' stands not among", (clean[0], corrupt[0], right[0]), {"roles": {"X": "zebra"}}),
        ("position 15 is outside prompt 0 of 15", (clean[0], corrupt[0], right[0]), {"roles": {"X": 15}}),
        ("got float", (clean[0], corrupt[0], 1.5), {}),
    ):
        with pytest.raises(TaskError, match=message):
            interp.pair(default, *arguments, **options)
    with pytest.raises(TaskError, match="interp.pair"):
        activation_patching(default, (clean[0], corrupt[0]))


class _Spaced:
    """A tokenizer in which words are one token behind a space alone."""

    unk_token_id, unk_token = None, None

    def __call__(self, text, **_):
        return {"input_ids": [7] if text == " Mary" else [8] if text == "Tom" else [1, 2]}

    def convert_ids_to_tokens(self, ids):
        return [f"t{i}" for i in ids]

    def decode(self, ids):
        return "".join(self.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    ("text", "form"), [("Mary", "' Mary' is one"), (" Tom", "'Tom' is one"), ("x", "' x' is not one")]
)
def test_the_form_of_an_answer_that_is_one_token_is_named(text, form):
    from interp.decompose.answers import token_id

    model = interp.load(tiny("gpt2").torch_module, tokenizer=_Spaced())
    assert token_id(model, " Mary") == 7
    with pytest.raises(TaskError, match=form):
        token_id(model, text)


def difference(logits, task):
    rows = torch.arange(len(logits))
    return logits[rows, task.answers[:, 0]] - logits[rows, task.wrong[:, 0]]


def test_a_metric_of_ones_own_is_used_wherever_a_named_one_is(default, words):
    from circuits import edge_attribution, faithfulness, node_attribution, path_patching

    task = words[0]
    for method, options in (
        (activation_patching, {"nodes": "mlps"}),
        (path_patching, {"senders": "mlps"}),
    ):
        own, named = (method(default, task, metric=m, **options) for m in (difference, "logit_diff"))
        assert_allclose(own.table["value"], named.table["value"], atol=1e-4)
        assert own.table["unit"].unique().tolist() == [own.provenance["metric"]] == ["difference"]
    nodes = [node_attribution(default, task, metric=m).prompts for m in (difference, "logit_diff")]
    assert_allclose(*nodes, atol=1e-4)
    edges = [edge_attribution(default, task, method="eap", metric=m).graph for m in (difference, "logit_diff")]
    assert_allclose(edges[0].scores, edges[1].scores, atol=1e-4)
    verdicts = [faithfulness(default, task, edges[0], metric=m) for m in (difference, "logit_diff")]
    assert_allclose(verdicts[0].full, verdicts[1].full, atol=1e-5)


def test_a_metric_that_is_none_is_refused_and_says_what_it_is_called_with(default, words):
    task = words[0]
    for metric, message in (
        (lambda logits, task: logits.mean(), r"gave shape \(\); expected one value per prompt"),
        (lambda logits, task: logits[:, -1, 3], "is called with logits at END"),
        (lambda logits, task: 1.0, "gave float; expected a tensor"),
        (3, "got int"),
    ):
        with pytest.raises(TaskError, match=message):
            activation_patching(default, task, metric=metric, nodes="mlps")
    from interp.patching.nodes import node_attribution

    with pytest.raises(TaskError, match="has no gradient"):
        node_attribution(default, task, metric=lambda logits, task: logits.argmax(-1))


def test_names_of_metrics():
    def kl(logits, task):
        return logits[:, 0]

    assert metrics.name_of(metrics.kl) == metrics.name_of("kl") == "kl"
    assert metrics.name_of(kl) == f"{__name__}.kl"
    assert metrics.description(kl) != metrics.description(lambda logits, task: logits[:, 1])
