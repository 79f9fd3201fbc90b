"""A result survives being stored, refuses what its schema does not have, and never leaves half a file."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from interp.errors import InterpError, SchemaError
from interp.results.results import COLUMNS, INTERVENTION_COLUMNS, Result, frame

PROVENANCE = {"run_id": "0f", "model": {"name": "tiny — ünïcode"}, "call": {"passed": {"seed": 1}}, "seed": 1}


def rows(analysis="induction", n=4):
    return [
        {
            "analysis": analysis,
            "variant": "score" if i % 2 else "other",
            "layer": i,
            "head": None if i == 2 else 3,
            "component": f"L{i}H3",
            "value": 0.1 * i + 1e-17,
            "ci_low": 0.0 if i else None,
            "ci_high": 1.0,
            "p": None if i == 1 else 1e-12,
            "q": 1.0,
            "n": 64,
            "unit": "probability",
            "label": None if i == 3 else bool(i % 2),
        }
        for i in range(n)
    ]


def result(analysis="induction", **provenance):
    sets = [{"analysis": analysis, "set_id": "mean: L0H3", "k": 1, "metric": "loss_nats", "clean": 1.5, "edited": 2.5}]
    table = frame(rows(analysis), extra={"label": "boolean"})
    return Result(table, PROVENANCE | provenance, frame(sets, interventions=True))


def test_every_declared_column_in_order_with_its_type():
    table = result().table
    assert list(table.columns) == [*COLUMNS, "label"]
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS | {"label": "boolean"}
    assert table["position"].isna().all()
    empty = frame([])
    assert {name: str(kind) for name, kind in empty.dtypes.items()} == COLUMNS
    assert list(frame([], interventions=True).columns) == list(INTERVENTION_COLUMNS)


def test_parquet_round_trip(tmp_path):
    before = result()
    path = before.save(tmp_path / "r.parquet")
    after = Result.load(path)
    assert_frame_equal(after.table, before.table, check_exact=True)
    assert_frame_equal(after.interventions, before.interventions, check_exact=True)
    assert after.provenance == before.provenance
    again = Result.load(after.save(tmp_path / "again.parquet"))
    assert_frame_equal(again.table, before.table, check_exact=True)


def test_parquet_round_trip_without_rows(tmp_path):
    before = Result(frame([]), {"a": [1, None, "x"]})
    after = Result.load(before.save(tmp_path / "r.parquet"))
    assert_frame_equal(after.table, before.table)
    assert_frame_equal(after.interventions, before.interventions)
    assert after.provenance == before.provenance


def test_json_holds_everything_and_null_where_nothing_applies(tmp_path):
    before = result()
    document = json.loads(before.save(tmp_path / "r.json").read_text(encoding="utf-8"))
    assert list(document) == ["provenance", "rows", "interventions"]
    assert document["provenance"] == PROVENANCE
    table = frame(document["rows"], extra={"label": "boolean"})
    assert_frame_equal(table, before.table, rtol=1e-14)
    assert_frame_equal(frame(document["interventions"], interventions=True), before.interventions)
    assert document["rows"][2]["head"] is None
    assert document["rows"][1]["p"] is None


def test_csv_holds_the_table(tmp_path):
    before = result()
    read = pd.read_csv(before.save(tmp_path / "r.csv"))
    assert_frame_equal(frame(read, extra={"label": "boolean"}), before.table, rtol=1e-12)


def test_saving_again_replaces(tmp_path):
    path = tmp_path / "r.parquet"
    result().save(path)
    result(seed=2).save(path)
    assert Result.load(path).provenance["seed"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"valeu": 1.0}, "undeclared column 'valeu'; did you mean 'value'"),
        ({"p": 1.5}, "invalid table"),
        ({"q": -0.1}, "invalid table"),
        ({"ci_low": 0.5, "ci_high": 0.4}, "ci_low above ci_high"),
        ({"layer": "three"}, "a column does not have its declared type"),
        ({"layer": 1.5}, "a column does not have its declared type"),
    ],
)
def test_what_the_schema_refuses(row, message):
    with pytest.raises(SchemaError, match=message):
        frame([row])


def test_a_column_must_be_declared_for_interventions_too():
    with pytest.raises(SchemaError, match="undeclared column 'value'"):
        frame([{"value": 1.0}], interventions=True)


@pytest.mark.parametrize("name", ["r.parq", "r", "r.parquet.gz", "r.xlsx"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(SchemaError, match=r"end it in .parquet, .csv, .json"):
        result().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_no_such_folder(tmp_path, suffix):
    with pytest.raises(InterpError, match="no folder"):
        result().save(tmp_path / "missing" / f"r{suffix}")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(InterpError, match="it is a folder"):
        result().save(tmp_path / "r.csv")


def test_an_unwritable_folder(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("interp.files.targets.tempfile.NamedTemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(InterpError, match=r"cannot write .*r.csv.*Permission denied"):
        result().save(tmp_path / "r.csv")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bad")])
@pytest.mark.parametrize("earlier", [True, False])
def test_half_a_file_is_never_seen(tmp_path, monkeypatch, error, earlier):
    path = tmp_path / "r.parquet"
    if earlier:
        result().save(path)

    def fail(self, target):
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(Result, "_write_parquet", fail)
    with pytest.raises(InterpError if isinstance(error, OSError) else type(error)) as caught:
        result(seed=9).save(path)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"] * earlier
    if earlier:
        assert Result.load(path).provenance["seed"] == 1


def test_files_can_be_read_by_others(tmp_path):
    path = result().save(tmp_path / "r.csv")
    assert os.stat(path).st_mode & 0o777 == 0o644  # noqa: PTH116


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"", "cannot read"), (b"not parquet at all", "cannot read")],
)
def test_what_cannot_be_loaded(tmp_path, content, message):
    path = tmp_path / "r.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SchemaError, match=message):
        Result.load(path)


def test_someone_elses_parquet_is_refused(tmp_path):
    path = tmp_path / "r.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(SchemaError, match="holds no provenance: not written by interp"):
        Result.load(path)


def test_concat_keeps_every_row_and_call():
    one, two = result("induction", seconds=1.0), result("sink", seconds=2.0)
    joined = Result.concat([one, two])
    assert len(joined.table) == len(one.table) + len(two.table)
    assert list(joined.table["analysis"].unique()) == ["induction", "sink"]
    assert len(joined.interventions) == 2
    assert {name: str(kind) for name, kind in joined.table.dtypes.items()} == COLUMNS | {"label": "boolean"}
    assert joined.provenance["model"] == PROVENANCE["model"]
    assert [call["seconds"] for call in joined.provenance["calls"]] == [1.0, 2.0]
    assert "seconds" not in joined.provenance


def test_concat_of_different_extra_columns():
    other = Result(frame([{"analysis": "b", "rank": 3}], extra={"rank": "Int64"}), PROVENANCE)
    joined = Result.concat([result(), other]).table
    assert joined["rank"].isna().tolist() == [True] * 4 + [False]
    assert joined["label"].isna().tolist() == [False, False, False, True, True]


def test_concat_of_a_joined_result_loses_nothing():
    inner = Result.concat([result("a", seconds=1.0), result("b", seconds=2.0)])
    outer = Result.concat([inner, result("c", seconds=3.0)])
    assert "1.0" in json.dumps(outer.provenance)
    assert "3.0" in json.dumps(outer.provenance)
    with pytest.raises(SchemaError, match="nothing to join"):
        Result.concat([])


def test_top():
    found = result()
    assert found.top(k=1)["value"].tolist() == [pytest.approx(0.2)]  # the first variant is the headline
    assert found.top("induction", variant="score")["layer"].tolist() == [3, 1]
    with pytest.raises(SchemaError, match="no analysis 'inductoin'.*'induction'"):
        found.top("inductoin")
    with pytest.raises(SchemaError, match="no variant 'scores' of 'induction'; did you mean 'score'"):
        found.top(variant="scores")


def test_a_notebook_shows_names_as_text():
    table = frame([{"analysis": "<script>", "variant": "v", "value": 1.0}])
    shown = Result(table, {})._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert repr(result()) == "<Result induction: 4 rows on tiny — ünïcode>"
