"""Windows: what fits is not touched; without the first key a planted sink's work is lost, with it it is not."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.edits import SinkWindow
from interp.errors import NotApplicable
from interp.measurement.registry import analyze
from interp.tasks import needles
from interp.zoo.planted import factory
from probes.attention._attention_window import random_keys


def test_one_first_key_brings_back_what_a_sink_does():
    """P83: a window alone loses the answer that is read off the first token; one first key restores it within 5 %."""
    sink = factory.FirstTokenSink()
    made = factory.plant((sink,), architecture="llama", seed=0)
    model = interp.load(made.model, tokenizer=made.tokenizer)
    task = sink.task(made.vocab, seed=0, n=8)
    behind = slice(0, None, 2)  # prompts with a BOS

    def loss(*edits):
        logits = model.run(task.tokens[behind], edits=edits).logits[:, -1].log_softmax(-1)
        return float(-logits.gather(1, task.answers[behind][:, None]).mean())

    full, alone, with_first = loss(), loss(SinkWindow("pattern", 0, 8)), loss(SinkWindow("pattern", 1, 8))
    assert alone > 2 * full
    assert with_first == pytest.approx(full, rel=0.05)
    assert loss(SinkWindow("pattern", 0, 64)) == full


@pytest.fixture(scope="module")
def retriever():
    made = factory.plant((factory.Retrieval(),), architecture="llama", seed=1)
    return interp.load(made.model, tokenizer=made.tokenizer)


def test_needles_are_found_within_the_window_alone(retriever):
    """What is left out and comes back as one mean key cannot be found either; loss and control stand beside."""
    result = analyze(retriever, "attention_window", n_prompts=8, length=48, windows=(8, 24, 64), compensate=True)
    table = result.table
    right = table[table["variant"] == "needle_accuracy"].set_index(["keys", "window"])["value"]
    assert right["all"].iloc[0] == 1.0
    assert right["window", 8] < right["window", 24] < 1.0
    assert right["window and mean", 8] <= right["window and sinks", 8] + 0.2
    rise = table[table["variant"] == "loss_rise"]
    assert sorted(set(rise["window"])) == [8, 24]  # a window in which the prompt fits is not run
    assert (rise["value"] > 0).all() and rise["p"].max() < 0.05
    own = rise.set_index(["keys", "window"])["value"]
    assert own["window", 8] > own["window", 24]
    batch = needles.hide(retriever, n=8, length=48, n_needles=3).batch
    losses = [
        torch.nn.functional.cross_entropy(retriever.run(batch, edits=e).logits[:, :-1].mT, batch.ids[:, 1:])
        for e in ([], [SinkWindow("pattern", 4, 24)])
    ]
    assert own["window and sinks", 24] == pytest.approx(float(losses[1] - losses[0]), abs=1e-5)
    with pytest.raises(NotApplicable, match="fit into every window"):
        analyze(retriever, "attention_window", n_prompts=4, length=48, windows=(64,))


def test_random_keys_are_as_many_and_the_query_is_one():
    keys = random_keys(12, 4, torch.Generator().manual_seed(0))
    assert keys.sum(1).tolist() == [1, 2, 3, *[4] * 9]
    assert keys.diagonal().all() and not keys.triu(1).any()
    assert not torch.equal(keys, random_keys(12, 4, torch.Generator().manual_seed(1)))
