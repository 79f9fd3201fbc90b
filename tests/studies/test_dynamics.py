"""Training dynamics over checkpoint folders, here of untrained models and of one that was built to copy."""

import pytest
import torch

import interp
from interp import zoo
from interp.errors import ModelLoadError, TaskError
from interp.studies.dynamics import dynamics
from interp.zoo.planted.factory import Induction, plant
from interp.zoo.trained import curriculum


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three checkpoints: copying is absent, absent, and there."""
    folder = tmp_path_factory.mktemp("run")
    copying = plant([Induction()], n_layers=2)
    untrained = copying.model.__class__(copying.model.config)
    for step, model in ((0, untrained), (400, untrained), (800, copying.model)):
        model.save_pretrained(folder / f"step-{step:05d}")
    return folder, copying.tokenizer


def test_checkpoints_are_listed_in_order(run, tmp_path):
    folder, _ = run
    assert [step for step, _ in zoo.checkpoints("default", within=folder)] == [0, 400, 800]
    assert zoo.checkpoints("default", within=tmp_path) == []
    assert zoo.checkpoints("planted-all") == []


def test_a_rise_is_found_and_drawn(run):
    folder, tokenizer = run
    found = dynamics(zoo.checkpoints("default", within=folder), tokenizer=tokenizer, n_prompts=6)
    table = found.table.set_index("step")
    assert found.rise() == (400, 800)
    assert table["induction"][800] >= 0.95 and table["accuracy"][800] >= 0.95 and table["loss"][800] <= 0.1
    assert table["induction"][400] <= 0.2 and table["accuracy"][400] <= 0.2 and table["loss"][400] >= 3.0
    figure = found.plot()
    assert [annotation.text for annotation in figure.layout.annotations] == ["step 400", "step 800"]
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == 2 and maps[0].z.max() <= 0.2 and maps[1].z.max() >= 0.95
    assert {(trace.zmin, trace.zmax) for trace in maps} == {(0.0, 1.0)}


def test_one_checkpoint_has_no_dynamics(run):
    with pytest.raises(TaskError, match="two checkpoints or more, got 1"):
        dynamics(zoo.checkpoints("default", within=run[0])[:1])


def test_a_revision_is_one_checkpoint(run, monkeypatch, tmp_path):
    model = curriculum.build("sibling", seed=0)
    model.save_pretrained(tmp_path)
    run[1].save_pretrained(tmp_path)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "step-00400")
    monkeypatch.setattr(zoo, "folder", lambda _name: tmp_path)
    last, early = interp.load("zoo:default"), interp.load("zoo:default", revision="step-00400")
    assert last.info.weights_sha256 != early.info.weights_sha256
    assert early.run([[0, 4, 5]]).logits.abs().max() == 0.0
    assert last.run([[0, 4, 5]]).logits.abs().max() > 0.0
    with pytest.raises(ModelLoadError, match=r"no revision 'step-00500': it has step-00400"):
        interp.load("zoo:default", revision="step-00500")
    monkeypatch.undo()
    with pytest.raises(ModelLoadError, match="it has no training checkpoints"):
        interp.load("zoo:planted-all", revision="step-00400")
