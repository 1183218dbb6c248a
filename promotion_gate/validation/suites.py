"""A team's own suite on the metadata table: Great Expectations from JSON, pandera from YAML.

Both are taken as data. What either library would run as code is refused: a row condition of Great
Expectations is evaluated by pandas, and a pandera schema in Python is a program. Refused as well is what
would make a check pass by throwing rows away, and a suite that names no check: it would always be met.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.core.errors import UsageError
from promotion_gate.validation.judged import ROWS_TOLD, Judged, Offender, State, plural
from promotion_gate.validation.survey import Survey

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 10_000_000
PANDERA_CHECKS = frozenset(
    {
        "equal_to", "not_equal_to", "greater_than", "greater_than_or_equal_to", "less_than",
        "less_than_or_equal_to", "in_range", "isin", "notin", "str_matches", "str_contains", "str_startswith",
        "str_endswith", "str_length", "unique_values_eq",
    }
)  # fmt: skip
"""The checks that pandera ships; others would have to be registered by code."""

_LISTED = 50


def load_gx_suite(path: Path) -> dict[str, Any]:
    """Read a Great Expectations suite, as that library stores it in JSON.

    Raises
    ------
    UsageError: not such a file, or it holds what would be run as code.
    """
    _require("great_expectations", "gx")
    try:
        suite: dict[str, Any] = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {str(error)[:120]}") from None
    found = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise UsageError(f"{path} has no list of expectations", "save the suite from Great Expectations 1.x")
    for key, value in _entries(suite):
        if key in ("row_condition", "condition_parser", "pass_through_filter") and value is not None:
            raise UsageError(
                f"{path} has a {key}, which pandas would evaluate as code", "leave row conditions out"
            )
        if key == "unexpected_rows_query":
            raise UsageError(f"{path} has a query, which cannot run on this table", "leave it out")
    return suite


def gx_suite(data: Survey, frame: pd.DataFrame, suite: Mapping[str, Any]) -> Iterator[Judged]:
    """Each expectation of the suite; an exception inside one leaves it unexamined."""
    # Great Expectations reports usage to its makers unless it is told not to.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
        batch = (
            context.data_sources.add_pandas("metadata")
            .add_dataframe_asset("images")
            .add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": frame})
        )
        for number, one in enumerate(suite["expectations"]):
            kind, kwargs = str(one.get("type", one.get("expectation_type", ""))), one.get("kwargs", {})
            name = f"gx.{number + 1}.{kind[:80]}"
            try:
                made = gx.ExpectationSuite(name=name, expectations=[{"type": kind, "kwargs": dict(kwargs)}])
                answer = batch.validate(made, result_format={"result_format": "COMPLETE"})
                if answer.results:
                    yield _gx_judged(data, name, kwargs, answer.results[0])
                else:
                    yield Judged.unexamined(name, "Great Expectations has no such expectation")
            except Exception as error:
                yield Judged.unexamined(name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _gx_judged(data: Survey, name: str, kwargs: Mapping[str, Any], answer: Any) -> Judged:
    raised = (answer.exception_info or {}).get("raised_exception")
    if raised or any(
        isinstance(v, dict) and v.get("raised_exception") for v in (answer.exception_info or {}).values()
    ):
        return Judged.unexamined(name, f"Great Expectations could not examine it: {_told(kwargs)}")
    found = answer.result or {}
    rows = [int(row) for row in found.get("unexpected_index_list") or [] if isinstance(row, int)]
    count = int(found.get("unexpected_count") or len(rows))
    values = found.get("partial_unexpected_list") or []
    summary = _told(kwargs)
    if not answer.success:
        seen = f"; for example {values[0]!r:.60}" if values else ""
        observed = found.get("observed_value")
        if observed is not None and not values:
            seen = f"; found {observed!r:.80}"
        summary += f": {plural(count, 'row')} otherwise{seen}" if count else f": not so{seen}"
    told = tuple(Offender(r, data.ids[r], data.label(r)) for r in rows[:ROWS_TOLD] if 0 <= r < len(data))
    return Judged(name, State.MET if answer.success else State.NOT_MET, summary, count=count, offenders=told)


def _told(kwargs: Mapping[str, Any]) -> str:
    parts = [f"{key} {value!r:.60}" for key, value in kwargs.items() if value is not None]
    return ", ".join(parts)[:200] or "the table"


def load_pandera(path: Path) -> Any:
    """Read a pandera schema of a data frame, as that library writes it in YAML.

    Raises
    ------
    UsageError: not such a file, a check that pandera does not have, or one that would drop rows.
    """
    if path.suffix.lower() == ".py":
        raise UsageError(
            f"{path} is a program, and a schema is read as data only", "write it with schema.to_yaml()"
        )
    _require("pandera", "pandera")
    import yaml

    try:
        table = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(table, dict) or not (table.get("columns") or table.get("checks")):
        raise UsageError(f"{path} is not a pandera schema with columns or checks", "write one with to_yaml()")
    for key, value in _entries(table):
        if key == "drop_invalid_rows" and value:
            raise UsageError(f"{path} has drop_invalid_rows: what fails would be dropped", "leave it out")
        if key == "check_name" and value not in PANDERA_CHECKS:
            raise UsageError(f"{path} names the check {value!r:.60}, which pandera does not have")
        if key == "checks" and isinstance(value, dict):
            foreign = sorted(str(name) for name in value if name not in PANDERA_CHECKS)
            if foreign:
                raise UsageError(f"{path} names the check {foreign[0]!r:.60}, which pandera does not have")
    from pandera.io.pandas_io import deserialize_schema

    try:
        schema: Any = deserialize_schema(table)  # type: ignore[no-untyped-call]
        return schema
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UsageError(f"{path} is not a pandera schema: {why}") from None


def pandera_schema(data: Survey, frame: pd.DataFrame, schema: Any) -> Iterator[Judged]:
    """The columns' checks that fail, each one expectation; one that stands for them all where none does."""
    from pandera.errors import SchemaErrors

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        groups = cases.groupby(["column", "check"], dropna=False, sort=True)
        for (column, check), part in list(groups)[:_LISTED]:
            rows = [int(i) for i in part["index"].dropna().tolist() if 0 <= int(i) < len(data)]
            example = part["failure_case"].iloc[0]
            yield Judged(
                f"pandera.{column if isinstance(column, str) else 'table'}.{check}"[:160],
                State.NOT_MET,
                f"{plural(len(part), 'value')} otherwise; for example {example!r:.60}",
                count=len(part),
                offenders=tuple(Offender(r, data.ids[r], data.label(r)) for r in rows[:ROWS_TOLD]),
            )
        return
    except Exception as error:
        yield Judged.unexamined("pandera", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    checks = sum(len(column.checks) for column in schema.columns.values())
    yield Judged(
        "pandera", State.MET,
        f"{plural(len(schema.columns), 'column')} with {plural(checks, 'check')} as the schema has them",
    )  # fmt: skip


def _require(module: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UsageError(f"{module} is not installed", f"pip install 'promotion-gate[{extra}]'")


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UsageError(f"no such file: {path}")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes", "is it the right file?")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            for key, inner in one.items():
                yield str(key), inner
                pending.append(inner)
        elif isinstance(one, list):
            pending.extend(one)
