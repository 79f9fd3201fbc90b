"""Edits that start at a layer: the very numbers of whole runs, fewer layers, and a whole run where that is not so."""

from __future__ import annotations

import pytest
import torch
from tiny_models import MOST, ragged, tiny

import interp
from interp.edits import Ablate
from interp.measurement.rerun import Rerun
from interp.model import editing


@pytest.fixture
def starts(monkeypatch):
    """Layer at which each run of a model starts, 0 for whole ones."""
    found = []

    def watch(model):
        plain = type(model).run

        def run(self, tokens, **options):
            found.append(0 if options.get("start") is None else options["start"][0])
            return plain(self, tokens, **options)

        monkeypatch.setattr(type(model), "run", run)
        return found

    return watch


@pytest.mark.parametrize("architecture", MOST)
@pytest.mark.parametrize("lengths", [(20, 20), (20, 13)])
def test_logits_are_those_of_whole_runs(architecture, lengths):
    model, batch = tiny(architecture), ragged(20, "left", lengths=lengths)
    rerun = Rerun.of_heads(model, [(1, 0), (1, 1)])
    for edits in ([], [Ablate("L1H0.z")], [Ablate("L0H1.z")], [Ablate("L1H1.z", positions=-1)], []):
        whole = model.run(batch, edits=edits).logits
        torch.testing.assert_close(rerun(batch, edits), whole, rtol=0, atol=0, equal_nan=True)


def test_layers_below_the_edits_run_once(starts):
    model = tiny("llama")
    seen = starts(model)
    batches = [ragged(20, "left", lengths=(20, 20)), ragged(12, "left", lengths=(12, 12))]
    rerun = Rerun.of_heads(model, [(1, 3)])
    for batch in batches:
        rerun(batch)
        rerun(batch, [Ablate("L1H3.z")])
        rerun(batch, [Ablate("L1H0.z"), Ablate("L0H0.z")])
    assert seen == [0, 1, 1, 0] * 2  # the clean run, the trial of the residual, above it, below it


def test_runs_are_whole_without_a_clean_one_first_and_from_the_first_layer(starts):
    model, batch = tiny("llama"), ragged(20, "left", lengths=(20, 20))
    seen = starts(model)
    Rerun(model, 1)(batch, [Ablate("L1H0.z")])
    lowest = Rerun.of_heads(model, [(0, 1), (1, 1)])
    lowest(batch)
    lowest(batch, [Ablate("L0H1.z")])
    assert seen == [0, 0, 0]


def test_an_edit_of_a_context_below_is_kept():
    model, batch = tiny("llama"), ragged(20, "left", lengths=(20, 20))
    edits = [Ablate("L1H0.z")]
    expected = model.run(batch, edits=[Ablate("L0H0.z"), *edits]).logits
    with editing(model, [Ablate("L0H0.z")]):
        rerun = Rerun(model, 1)
        rerun(batch)
        torch.testing.assert_close(rerun(batch, edits), expected, rtol=0, atol=0)


def test_analyses_of_a_model_under_edits_still_ablate():
    model = interp.load("zoo:planted-induction")
    with editing(model, [Ablate("L0H0.z")]):
        found = interp.analyze(model, "induction", n_prompts=8, n_lengths=4, n_random=2)
    assert (found.interventions["metric"] == "second_copy_accuracy").any()
