"""A task's document that is not of the form is refused, with the field and what is expected."""

import pytest

from interp import data
from interp.errors import SchemaError
from interp.tasks.build import task_names
from interp.tasks.forms import FORMS, check_form

GOOD = {"family": "lookup", "templates": ["{x} is"], "rows": [{"slots": {"x": "a"}, "answers": ["b"]}]}


def test_shipped_tasks_are_of_the_form():
    shipped = [n for n in task_names() if (data.root() / n / "task.json").is_file()]
    for name in shipped:
        check_form(data.read_json(data.path(name, "task.json")), name)
    assert len(shipped) > 10


@pytest.mark.parametrize("field", FORMS)
@pytest.mark.parametrize("value", [3.5, {"a": 1}, [None], [{"text": 3}], True])
def test_another_form(field, value):
    with pytest.raises(SchemaError, match=f"x: {field} is .*; expected "):
        check_form({**GOOD, field: value}, "x")


def test_what_is_no_mapping():
    check_form(GOOD, "x")
    for value in (None, 3, []):
        with pytest.raises(SchemaError, match="x: a task is names and values"):
            check_form(value, "x")
