"""The one training loop: a recipe fixes the weights, whether the run was interrupted or not."""

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.zoo.trained import backcopy, copying, curriculum, modular, paragraphs, plan, train
from interp.zoo.trained.skills.plan import SIZES, Options

PACKAGE = Path(train.__file__).parents[2]


@pytest.fixture
def rich(monkeypatch):
    """Function that makes the recipe of a tiny rich model."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setitem(SIZES, "micro", {**shape, "head_dim": 8, "intermediate_size": 16})

    def make(seed=0, penalty=0.0, **options):
        return curriculum.recipe(Options("micro", seed, steps=20, tokens_per_step=800, penalty=penalty), **options)

    return make


@pytest.fixture
def recipe(request):
    """The recipe of a model of each kind; all have 20 steps."""
    if request.param == "rich":
        return request.getfixturevalue("rich")()
    if request.param == "modular":
        return modular.recipe("modular-addition", steps=20)
    if request.param == "paragraphs":
        few = replace(paragraphs.PARAGRAPHS["paragraphs"], n_distinct=700, times=4)
        request.getfixturevalue("monkeypatch").setitem(paragraphs.PARAGRAPHS, "paragraphs", few)
        return paragraphs.recipe("paragraphs", steps=20)
    if request.param == "backcopy":
        return backcopy.recipe("bigram-backcopy-relu", steps=20)
    return copying.recipe("positional-shortcut", steps=20)


def weights(recipe, out, **options):
    return train.train(recipe, out=out, **options)[0].state_dict()


@pytest.mark.parametrize("recipe", ["rich", "copying", "modular", "paragraphs", "backcopy"], indirect=True)
def test_an_interrupted_run_ends_with_the_same_weights(recipe, tmp_path):
    whole = weights(recipe, tmp_path / "whole")
    weights(recipe, tmp_path / "parts", stop_after=9)
    parts = weights(recipe, tmp_path / "parts")
    untrained = recipe.model().state_dict()
    for name, value in whole.items():
        assert torch.equal(value, parts[name])
        assert not torch.equal(value, untrained[name])


@pytest.mark.parametrize("recipe", ["rich", "copying"], indirect=True)
def test_another_seed_gives_other_weights(recipe, rich, tmp_path):
    other = rich(seed=1) if "size" in recipe.facts else copying.recipe("positional-shortcut", seed=1, steps=20)
    one, two = weights(recipe, tmp_path / "one", stop_after=1), weights(other, tmp_path / "two", stop_after=1)
    assert not any(torch.equal(value, two[name]) for name, value in one.items() if value.ndim > 1)


def test_checkpoints_are_dense_early_and_hold_the_weights_of_their_step(rich, tmp_path):
    recipe = rich(checkpoints=4)
    weights(recipe, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000", "step-00002", "step-00009", "step-00020"]
    early = weights(rich(), tmp_path / "early", stop_after=2)
    saved = type(recipe.model()).from_pretrained(tmp_path / "step-00002", local_files_only=True).state_dict()
    assert all(torch.equal(value.half(), saved[name]) for name, value in early.items())


def test_a_run_does_not_go_on_from_the_state_of_another(rich, tmp_path):
    train.train(rich(), out=tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="belongs to another run"):
        train.train(rich(seed=1), out=tmp_path)


def test_the_command_goes_on_with_the_options_of_the_interrupted_run(rich, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", lambda recipe, *, out: pytest.fail(f"{recipe.facts}"))
    recipe = rich(seed=3)
    train.TrainingRun.begin(recipe).save(tmp_path / train.STATE)
    with pytest.raises(pytest.fail.Exception, match="'seed': 3, 'steps': 20"):
        train.main(["micro", "--out", str(tmp_path), "--seed", "5", "--steps", "7"])


def test_minutes_become_steps_of_the_last_stage(rich):
    lessons = rich().data(1.0)
    assert lessons.batch(13).rows.tokens.shape[1] == 256  # the mixed stage, whose rows are the dearest
    assert rich().data(0.0).batch(13).rows.tokens.shape[1] == 96
    assert train.steps_for(1.0, rich()) > 20


def test_heads_are_penalised_in_the_mixed_stage_alone(rich):
    """By the sum over heads of the square root of the norm of what stands in their query and output weights."""
    model, heads = rich().model(), []
    for layer in model.model.layers:
        q, o = layer.self_attn.q_proj.weight.detach(), layer.self_attn.o_proj.weight.detach()
        heads += [torch.cat([q[8 * h : 8 * h + 8].flatten(), o[:, 8 * h : 8 * h + 8].flatten()]) for h in range(2)]
    wanted = sum(head.norm().sqrt().item() for head in heads)
    for done, step, weight in ((1.0, 13, 0.1), (0.0, 13, 0.0), (1.0, 14, 0.0)):  # until 70 % of the 20 steps
        lesson = rich(penalty=0.1).data(done).batch(step)
        logits = model(lesson.tokens).logits
        with_it, without = (curriculum.lesson_loss(model, logits, replace(lesson, penalty=p))[0] for p in (weight, 0.0))
        assert curriculum.lesson_loss(model, logits, lesson)[0].item() == with_it.item()
        assert (with_it - without).item() == pytest.approx(weight * wanted, rel=1e-4)


def test_copying_warms_up_and_ends_at_zero():
    rates = copying.learning_rates(3e-3, steps=50)
    warm_up = 50 // 10 + 1
    rise = [3e-3 * (0.01 + 0.99 * step / warm_up) for step in range(warm_up)]
    fall = [3e-3 * (1 + math.cos(math.pi * step / (50 - warm_up))) / 2 for step in range(50 - warm_up)]
    assert rates == pytest.approx(rise + fall, rel=1e-6)


def test_copying_learns_its_block_length(tmp_path):
    """In 20 steps the loss on the first copy falls at least below that of the uniform guess it begins with."""
    recipe = copying.recipe("positional-shortcut", steps=20)
    run = train.TrainingRun.begin(recipe)
    losses = [train.update(run)["first copy"].item() for _ in range(20)]
    n_words = plan.COPYING["positional-shortcut"].n_words
    assert losses[-1] < math.log(n_words + 4) < losses[0] + 0.1


def test_the_copying_script_writes_a_folder_that_loads(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train.main(["positional-shortcut", "--out", str(tmp_path), "--steps", "2"])
    assert capsys.readouterr().out == (tmp_path / "README.md").read_text()
    assert not (tmp_path / train.STATE).exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", local_files_only=True)
    assert model.dtype == torch.float16
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True))


def test_there_is_one_loop():
    """A new model is a new recipe."""
    loops = {
        path.relative_to(PACKAGE).as_posix()
        for path in (PACKAGE / "zoo").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "backward"
    }
    assert loops == {"zoo/trained/loop.py"}
