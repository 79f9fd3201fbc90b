"""One tidy table with provenance, for everything: what every analysis returns, stores and shows.

A table has one row per observation and the columns of `COLUMNS`; an analysis declares any further ones. Interventions
(ablating a set of heads, say) have a second table, `INTERVENTION_COLUMNS`. Both travel with the provenance in one
parquet file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.environment import human_bytes
from interp.errors import SchemaError, first_line, nearest
from interp.files.marks import PROVENANCE
from interp.results.files import atomic_write, writable, write_csv

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCHEMA_VERSION = 1
COLUMNS: dict[str, str] = {
    "analysis": "str",
    "variant": "str",
    "layer": "Int64",
    "head": "Int64",
    "component": "str",
    "position": "Int64",
    "value": "float64",
    "se": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "null": "float64",
    "p": "float64",
    "q": "float64",
    "n": "Int64",
    "unit": "str",
}
INTERVENTION_COLUMNS: dict[str, str] = {
    "analysis": "str",
    "set_id": "str",
    "k": "Int64",
    "control": "str",
    "metric": "str",
    "clean": "float64",
    "edited": "float64",
    "random_mean": "float64",
    "random_sd": "float64",
    "n_random": "Int64",
}
MOST_ROWS, MOST_BYTES = 2_000_000, 2**31 - 1
"""Of a stored table that is read back."""
_META = PROVENANCE
_META_INTERVENTIONS = b"interp.interventions"


def frame(
    rows: pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    extra: Mapping[str, str] | None = None,
    interventions: bool = False,
) -> pd.DataFrame:
    """Rows as a checked table: every declared column in order, missing ones NA, none undeclared.

    Raises:
        SchemaError: an undeclared column, or values outside their range (p and q in [0, 1], ci_low <= ci_high).
    """
    dtypes = dict(INTERVENTION_COLUMNS if interventions else COLUMNS) | dict(extra or {})
    table = pd.DataFrame(rows)
    for name in table.columns:
        if name not in dtypes:
            raise SchemaError(f"undeclared column {name!r}; {nearest(str(name), dtypes)}")
    table = table.reindex(columns=list(dtypes))
    try:
        table = table.astype(dtypes)
    except (ValueError, TypeError) as error:
        raise SchemaError(f"a column does not have its declared type: {error}") from error
    return _valid_table(table, interventions)


def _valid_table(table: pd.DataFrame, interventions: bool) -> pd.DataFrame:
    import pandera.pandas as pa

    unit_interval = pa.Column("float64", pa.Check.in_range(0, 1), nullable=True)
    checks: dict[str, pa.Column] = {} if interventions else {"p": unit_interval, "q": unit_interval}
    interval_check = pa.Check(lambda t: ~(t["ci_low"] > t["ci_high"]), error="ci_low above ci_high")
    schema = pa.DataFrameSchema(checks, checks=None if interventions else interval_check, strict=False)
    try:
        return schema.validate(table)
    except pa.errors.SchemaError as error:
        raise SchemaError(f"invalid table: {error}") from error


@dataclass(frozen=True, eq=False)
class Result:
    """A table, the table of interventions (may be empty), and where they came from.

    Attributes:
        table: long frame with the columns of `COLUMNS`, one row per observation.
        provenance: plain data: call, model, tokens, seed, versions, device, time.
        interventions: long frame with the columns of `INTERVENTION_COLUMNS`.
    """

    table: pd.DataFrame
    provenance: dict[str, Any]
    interventions: pd.DataFrame = field(default_factory=lambda: frame([], interventions=True))

    def __repr__(self) -> str:
        """One line: analyses, rows, model."""
        names = ", ".join(self.table["analysis"].unique())
        return f"<Result {names}: {len(self.table)} rows on {self.provenance.get('model', {}).get('name')}>"

    def _repr_html_(self) -> str:
        """For a notebook: what was found, the headline rows with labelled ones first, and how many rows there are."""
        from interp.results.shown import html_of

        return html_of(self.table, self.provenance)

    def top(self, analysis: str | None = None, *, variant: str | None = None, k: int = 10) -> pd.DataFrame:
        """Rows with the k largest values of one variant of one analysis (its headline one unless said)."""
        table = self.table
        names = list(table["analysis"].unique())
        name = names[0] if analysis is None else analysis
        if name not in names:
            raise SchemaError(f"no analysis {name!r} in this result; {nearest(name, names)}")
        table = table[table["analysis"] == name]
        kind = table["variant"].iloc[0] if variant is None else variant
        if kind not in set(table["variant"]):
            raise SchemaError(f"no variant {kind!r} of {name!r}; {nearest(kind, table['variant'].unique())}")
        return table[table["variant"] == kind].nlargest(k, "value")

    def plot(self, analysis: str | None = None, *, variant: str | None = None) -> go.Figure:
        """What the analysis draws of one variant (its first unless said): a map, layer by head; returned, not shown.

        Its title names the model, the analysis, n and the null.
        """
        from interp.plots.titles import heading, provenance_of, titled
        from interp.results.figures import figure_of

        rows = self.top(analysis, variant=variant, k=len(self.table))
        first = rows.iloc[0]
        figure = figure_of(str(first["analysis"]), str(first["variant"]))(rows)
        return titled(figure, heading(rows, provenance_of(self.provenance, str(first["analysis"]))))

    def save(self, path: str | os.PathLike[str], *, force: bool = False, quote: bool = False) -> Path:
        """Write to `.parquet` (table, interventions, provenance), `.json` (the same) or `.csv` (table alone).

        The file appears whole or not at all. `force` replaces a file that is not an earlier result; `quote` keeps a
        spreadsheet from executing text of a `.csv` (see `write_csv`).

        Raises:
            SchemaError: an unknown suffix.
            InterpError: the file cannot be written, or is somebody else's.
        """
        target = writable(path, force=force)
        writers: dict[str, Callable[[Path], object]] = {
            ".parquet": self._write_parquet,
            ".csv": lambda p: write_csv(self.table, p, quote=quote),
            ".json": lambda p: p.write_text(self.to_json(), encoding="utf-8"),
        }
        return atomic_write(target, writers[target.suffix], force=force)

    def to_json(self) -> str:
        """One JSON document: provenance, rows, interventions; what does not apply is null."""
        document = {
            "provenance": self.provenance,
            "rows": _records(self.table),
            "interventions": _records(self.interventions),
        }
        return json.dumps(document, ensure_ascii=False, allow_nan=False)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrow = pa.Table.from_pandas(self.table, preserve_index=False)
        meta = {
            _META: json.dumps(self.provenance).encode(),
            _META_INTERVENTIONS: json.dumps(_records(self.interventions)).encode(),
        }
        pq.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **meta}), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Result from a parquet file written by `save`.

        Raises:
            SchemaError: not such a file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(Path(path), thrift_string_size_limit=MOST_BYTES) as file:
                meta = file.schema_arrow.metadata or {}
                _check_size(os.fspath(path), file.metadata)
                table = file.read().to_pandas() if _META in meta else pd.DataFrame()
        except (OSError, pa.ArrowException, OverflowError) as error:
            raise SchemaError(f"cannot read {os.fspath(path)!r}: {first_line(error)}") from error
        if _META not in meta:
            raise SchemaError(f"{os.fspath(path)!r} holds no provenance: not written by interp")
        try:
            provenance, rows = json.loads(meta[_META]), json.loads(meta[_META_INTERVENTIONS])
        except (KeyError, ValueError, RecursionError) as error:
            raise SchemaError(f"{os.fspath(path)!r} is damaged: {type(error).__name__}: {error}") from error
        missing = [name for name in COLUMNS if name not in table]
        if missing or not isinstance(provenance, dict):
            raise SchemaError(f"{os.fspath(path)!r} is no result: {missing[0] if missing else 'provenance'} is missing")
        return cls(table, provenance, frame(rows, interventions=True))

    @classmethod
    def concat(cls, results: Sequence[Result]) -> Result:
        """Several analyses of one model as one result; provenance keeps every call under `calls`."""
        if not results:
            raise SchemaError("nothing to join: no results")
        tables = pd.concat([r.table for r in results], ignore_index=True)
        interventions = [r.interventions for r in results if len(r.interventions)]
        effects = pd.concat(interventions, ignore_index=True) if interventions else frame([], interventions=True)
        common = {k: v for k, v in results[0].provenance.items() if all(r.provenance.get(k) == v for r in results)}
        own = [{k: v for k, v in r.provenance.items() if k not in common} for r in results]
        return cls(tables, {**common, "calls": own}, effects)


def _check_size(path: str, metadata: Any) -> None:
    """Refuse a table that is too large to be one of ours, before it is read.

    Raises:
        SchemaError: says how large it is.
    """
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if metadata.num_rows > MOST_ROWS or size > MOST_BYTES:
        raise SchemaError(
            f"cannot read {path!r}: {metadata.num_rows} rows of {human_bytes(size)}; at most {MOST_ROWS} rows and "
            f"{human_bytes(MOST_BYTES)} are read"
        )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=15))
