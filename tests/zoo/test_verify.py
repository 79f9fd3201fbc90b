"""`interp zoo verify` of a trained model and of what the planted models do."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from interp.cli.zoo import app
from interp.zoo.trained import curriculum
from interp.zoo.trained.skills import SKILLS, vocabulary


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_an_untrained_model_keeps_no_promise(tmp_path):
    curriculum.build("sibling", seed=0).save_pretrained(tmp_path)
    vocabulary.tokenizer().save_pretrained(tmp_path)
    done = invoke("verify", tmp_path, "--items", 2)
    assert done.exit_code == 1
    assert all(f"| {name} |" in done.output for name in SKILLS)
    assert "not kept: repeats: accuracy" in done.output
    assert "not kept: ioi: logit difference" in done.output


def test_a_model_without_skills_is_a_matter_of_usage():
    done = invoke("verify", "zoo:planted-induction")
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert "was not taught the skills; what can be verified" in said
    assert invoke("verify", "zoo:default", "--behaviour").exit_code == 2


def test_behaviour_is_judged_and_written(tmp_path):
    out = tmp_path / "behaviour.csv"
    options = ("--seeds", 1, "--architecture", "llama", "-a", "copy", "--markdown", "--out", out)
    done = invoke("verify", "--behaviour", *options)
    assert done.exit_code == 0, done.output
    assert "| copy | alone |" in done.output and "| copy | together |" in done.output
    assert pd.read_csv(out)["kept"].tolist() == [True, True]


def test_dictionaries_are_judged_and_written(tmp_path):
    out = tmp_path / "dictionaries.csv"
    done = invoke("verify", "--dictionaries", "--seeds", 1, "-a", "random", "--markdown", "--out", out)
    assert done.exit_code == 0, done.output
    assert "| zipf | random | 1 | 0 |" in done.output
    assert pd.read_csv(out)["case"].tolist() == ["uncorrelated", "correlated", "hierarchical", "zipf"]
    for other in (("--circuits",), ("--architecture", "llama")):
        assert invoke("verify", "--dictionaries", *other).exit_code == 2


@pytest.mark.parametrize("name", ["zoo:defalt", "no-such-model"])
def test_unknown_models_are_refused(name):
    assert invoke("verify", name).exit_code != 0
