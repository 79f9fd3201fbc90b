"""What is stored by anybody: broken files are named, large ones refused, questions end."""

from __future__ import annotations

import json
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp.errors import SchemaError
from interp.results import runs, sql
from interp.results.results import Result, frame
from interp.results.sql import ask

TABLES = {"results": pd.DataFrame({"value": [1, 2, 3]})}


def stored(folder, name="good.parquet"):
    return Result(frame([{"analysis": "sink", "value": 0.5}]), {"run_id": "abc"}).save(folder / name)


def test_broken_files_are_named_and_leftovers_and_other_json_passed_over(tmp_path):
    stored(tmp_path)
    stored(tmp_path, "damaged.json")
    content = json.loads((tmp_path / "damaged.json").read_text())
    (tmp_path / "damaged.json").write_text(json.dumps({**content, "rows": 3}))
    (tmp_path / "half.json").write_text('{"provenance": ')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / ".interp-7-left.parquet").write_bytes((tmp_path / "good.parquet").read_bytes())
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "gone.json").symlink_to("none")
    found = runs.runs(tmp_path)
    assert found.table["path"].tolist() == ["good.parquet"]
    assert set(found.skipped) == {"damaged.json", "half.json", "folder.parquet", "gone.json"}
    assert "is damaged: ValueError" in found.skipped["damaged.json"]
    assert found.query("SELECT count(*) AS n FROM results")["n"].tolist() == [1]


def test_a_table_of_millions_of_rows_is_refused_by_its_size(tmp_path):
    column = pa.array([0.5]).take(pa.array([0] * 10))
    chunks = pa.chunked_array([column] * 300_000)
    table = pa.table({"value": chunks}, metadata={b"interp.provenance": b"{}", b"interp.interventions": b"[]"})
    pq.write_table(table, tmp_path / "bomb.parquet")
    started = time.process_time()
    with pytest.raises(SchemaError, match="3000000 rows of .*; at most 2000000 rows"):
        Result.load(tmp_path / "bomb.parquet")
    assert time.process_time() - started < 0.5
    assert set(runs.runs(tmp_path).skipped) == {"bomb.parquet"}


def test_a_question_ends(monkeypatch):
    started = time.monotonic()
    with pytest.raises(SchemaError, match=r"took longer than 0.3 s"):
        ask("SELECT count(*) FROM range(1000000000) a, range(10) b WHERE a.range % 7 = b.range", TABLES, seconds=0.3)
    assert time.monotonic() - started < 5  # by itself it runs for half a minute
    monkeypatch.setattr(sql, "MOST_ROWS", 2000)
    with pytest.raises(SchemaError, match="more than 2000 rows; add a LIMIT"):
        ask("SELECT * FROM range(5000)", TABLES)
    assert len(ask("SELECT * FROM range(1999)", TABLES)) == 1999
    monkeypatch.setattr(sql, "MEMORY", 10_000_000)
    with pytest.raises(SchemaError, match="more than 10 MB"):
        ask("SELECT repeat('x', 20000000) AS x", TABLES)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "0 questions"),
        ("SELECT 1; SELECT 2", "2 questions"),
        ("DROP TABLE results", "DROP is no question"),
        ("SET threads = 1", "SET is no question"),
        ("CALL enable_logging()", "CALL is no question"),
        ("SELECT * FROM enable_logging()", "enable_logging is about DuckDB's own log"),
        ("SELECT * FROM read_text('/etc/passwd')", "DuckDB: "),
        ("SELECT * FROM TABLES", "DuckDB: "),
        ("SELECT (", "DuckDB: "),
    ],
)
def test_what_is_no_question(question, message):
    with pytest.raises(SchemaError, match=message):
        ask(question, TABLES)


def test_cells_that_json_has_no_place_for():
    answer = ask("SELECT '\\xC3\\xA9'::BLOB AS b, [1, 2] AS l, {'k': 1} AS s, 3 AS n, uuid() AS u, NULL AS z", TABLES)
    (row,) = json.loads(sql.plain_cells(answer).to_json(orient="records"))
    assert (row["b"], row["l"], row["s"], row["n"], row["z"]) == ("é", [1, 2], {"k": 1}, 3, None)
