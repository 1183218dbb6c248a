"""The table of measured accuracies: what is shipped can be read, and what is wrong is refused."""

import json

import pytest

from promotion_gate.checks.registry import installed_checks
from promotion_gate.detect.accuracy import (
    TABLE,
    Figure,
    accuracy,
    accuracy_markdown,
    accuracy_table,
    in_words,
    read_table,
)
from promotion_gate.detect.statistics import wilson_interval

ROW = {
    "group": "patches",
    "models": 60,
    "rejected": 58,
    "rejected_low": 0.886,
    "rejected_high": 0.991,
    "stopped": 59,
    "low": 0.911,
    "high": 0.997,
    "target_right": 59,
    "target_of": 59,
    "source_right": 0,
    "source_of": 0,
    "rows_listed": 900,
    "rows_of": 1000,
}


def shipped():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_every_check_that_can_stop_a_candidate_by_what_it_detects_is_in_the_table():
    describing = {"per-class", "embedding-map", "provenance"}
    assert set(installed_checks()) - describing <= accuracy_table().checks.keys()
    assert accuracy("vibes") is None


def test_a_line_is_there_exactly_where_something_was_measured():
    for check in accuracy_table().checks.values():
        assert bool(check.line) == bool(check.figures)
        assert check.evasions


def test_the_shipped_intervals_are_those_of_the_counts():
    table = accuracy_table()
    told = [(f.caught, f.of, f.low, f.high) for check in table.checks.values() for f in check.figures]
    for row in (*table.gate, *table.kinds):
        told.append((row.stopped, row.models, row.low, row.high))
        told.append((row.rejected, row.models, row.rejected_low, row.rejected_high))
    for caught, of, low, high in told:
        assert (low, high) == pytest.approx(tuple(map(float, wilson_interval(caught, of))), abs=5e-4)
    assert bool(told) == bool(table.models)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(schema=2),
        lambda table: table.pop("gate"),
        lambda table: table["checks"]["patch-transplant"].pop("line"),
        lambda table: table["checks"]["patch-transplant"].update(figures=[{"what": "x"}]),
    ],
)
def test_what_is_no_table_is_refused(change, tmp_path):
    table = shipped()
    change(table)
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"accuracy\.json is not a table of accuracies"):
        read_table(path)


def measured(tmp_path):
    table = shipped()
    table["obtained"] |= {"text": "On 60 models.", "models": 60}
    table["gate"] = [ROW]
    table["checks"]["patch-transplant"]["line"] = "found 59 of 60"
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps(table))
    return read_table(path)


def test_it_is_shown_as_tables(tmp_path):
    text = accuracy_markdown(measured(tmp_path))
    assert text.startswith("On 60 models.\n")
    assert "| patches | 60 | 58 (89 to 99 %) | 59 (91 to 100 %) | 59 of 59 | – | 900 of 1000 |" in text
    assert "| `patch-transplant` | found 59 of 60 |" in text
    assert "| `spectral-signature` | not measured |" in text or accuracy("spectral-signature").line


def test_a_figure_in_words():
    assert in_words(Figure("x", 59, 60, 0.911, 0.997)) == "59 of 60 (98 %, interval 91 to 100 %)"
    assert in_words(Figure("x", 0, 0, 0.0, 1.0)) == "none to try"
