"""The newcomer's tasks, one test each; and what a folder with each kind of tokenizer is read as."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import folders
import tasks

import interp


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("newcomer")
    tasks.prepare(where)
    return where


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, id=task.want, marks=[pytest.mark.slow] if task.dear else []) for task in tasks.TASKS],
)
def test_what_is_typed_works(task, place):
    outcome = tasks.run(task, place)
    assert not outcome.faults, outcome.output


def test_there_are_twenty_and_each_kind_of_checkpoint_takes_one_command_to_a_report():
    assert len(tasks.TASKS) >= 20
    kinds = {task.type.split()[2] for task in tasks.TASKS if task.steps == 1}
    assert kinds == set(folders.KINDS)


@pytest.mark.filterwarnings("ignore:the tokenizer ends text")  # some do, and it is left out
@pytest.mark.parametrize("kind", folders.KINDS)
def test_every_kind_of_tokenizer_is_found(kind, place):
    model = interp.load(str(place / kind))
    text = "mary gave a drink to"
    pieces = [str(piece).removeprefix("##") for piece in model.str_tokens(text, bos="none")]
    assert model.tokenizer is not None
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")  # and nothing before or behind
    assert model.tokens(text).ids.shape[1] - len(pieces) == {"llama": 1, "wordpiece": 1}.get(kind, 0)


def test_a_class_that_cannot_be_made_of_the_folder_is_told_and_left_out(place, tmp_path, caplog):
    folder = tmp_path / "half"
    folders.write_folder("gpt2", folder)
    (folder / "tokenizer.json").unlink()
    with caplog.at_level("WARNING", "interp"):
        assert interp.load(str(folder)).tokenizer is None
    assert "cannot be made of this folder" in caplog.text
