"""`interp circuit --roles`: what kinds of file are read, and that others are refused before a model is loaded."""

import pytest

import interp
from circuits.graph.roles import role_names
from interp.cli.circuit import _roles
from interp.cli.main import main


def test_a_table_or_what_detect_wrote(tmp_path):
    table, found = tmp_path / "roles.csv", tmp_path / "heads.parquet"
    table.write_text("component,role\nL0H4,previous token\nM1,recall\n", encoding="utf-8")
    assert role_names(_roles(table)) == {"L0H4": ("previous token",), "M1": ("recall",)}
    interp.analyze(interp.load("zoo:planted-induction"), "previous_token", n_prompts=4).save(found)
    assert role_names(_roles(found)) == {"L0H4": ("previous token",)}
    assert _roles(None) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head,role\nL0H4,x\n", "without a column 'component'"),
        ("component,role\nL0X4,x\n", "cannot read component 'L0X4'"),
        ("", "no table of roles"),
        ('component,role\n"L0H4', "no table of roles"),
        (None, "No such file"),
    ],
)
def test_other_files_are_refused(text, said, tmp_path, capsys):
    path = tmp_path / "roles.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        main(["circuit", "zoo:default", "--task", "ioi", "--roles", str(path)])
    assert done.value.code != 0
    assert said in capsys.readouterr().err
