"""Metrics as Prometheus reads them, and the shipped rules and dashboard that name them."""

import json
import re
import shutil
import subprocess
import urllib.request
from dataclasses import replace
from datetime import timedelta

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from promotion_gate.core.errors import UsageError
from promotion_gate.monitor import PredictionLog
from promotion_gate.monitor.interface import ClassShare
from promotion_gate.monitor.metrics import (
    COUNTERS,
    NAMES,
    Board,
    Deliveries,
    LogMetrics,
    resume_from,
    serve_metrics,
    shown_classes,
    text_of,
    write_metrics,
)
from promotion_gate.monitor.ready import FILES, ready_file

HOSTILE = 'st"op\\\n# HELP evil\n{model="x"} \x1b[2J ‮' + "é" * 500


def samples(board):
    return {
        (
            s.name.removeprefix("promotion_gate_"),
            *sorted((k, v) for k, v in s.labels.items() if k != "model"),
        ): s.value
        for family in text_string_to_metric_families(text_of(board).decode())
        for s in family.samples
    }


def test_what_a_look_showed_can_be_scraped(outcome, clock):
    board = Board("signs", firing={"class-share": 2})
    board.look(outcome(unseen={"new": 4}, other_versions={2: 7}, late=1))
    board.deliveries = {"pager": Deliveries(5, 2, 1)}
    board.rollbacks, board.automatic_rollbacks, board.time_to_recovery = 3, 1, 40.5
    found = samples(board)
    assert found["class_share", ("class", "class 1")] == 0.011
    assert found["class_baseline_share", ("class", "class 1")] == 0.009
    assert found["class_sigma", ("class", "class 1")] == 1.0
    assert found["predictions_total",] == 1000
    assert found["unseen_predictions",] == 4
    assert found["other_version_rows",] == 7
    assert found["alarms_firing", ("kind", "class-share")] == 2
    assert found["alarms_firing", ("kind", "rollback")] == 0
    assert found["alert_delivery_failures_total", ("receiver", "pager")] == 2
    assert found["alerts_waiting", ("receiver", "pager")] == 1
    assert found["last_look_timestamp_seconds",] == (clock.at + timedelta(hours=1)).timestamp()
    assert found["production_version",] == 3
    assert found["rollbacks",] == 3
    assert found["time_to_recovery_seconds",] == 40.5


def test_what_a_serving_process_lost_is_counted(tmp_path):
    registry = CollectorRegistry(auto_describe=False)
    with PredictionLog(tmp_path, model="signs") as log:
        registry.register(LogMetrics(log, "signs"))
        log.add("stop", 0.9)
        log.add("stop", "much")
    text = generate_latest(registry).decode()
    assert 'promotion_gate_log_rows_total{model="signs"} 1.0' in text
    assert 'promotion_gate_log_dropped_rows_total{model="signs",why="invalid"} 1.0' in text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == {"promotion_gate_log_rows", "promotion_gate_log_dropped_rows"}


def test_before_the_first_look_nothing_is_made_up():
    found = {name for name, *_ in samples(Board("signs"))}
    assert found == {"alarms_firing", "predictions_total", "looks_failed_total"}


def test_hostile_names_stay_in_their_labels(outcome):
    board = Board(HOSTILE)
    alike = [ClassShare(HOSTILE, 1, 1.0, 0.5, 0.0, 1.0), ClassShare(HOSTILE + "x", 2, 1.0, 0.5, 0.0, 1.0)]
    board.look(replace(outcome(model=HOSTILE), classes=alike))
    families = list(text_string_to_metric_families(text_of(board).decode()))
    assert {f"{f.name}_total" if f.type == "counter" else f.name for f in families} <= {
        f"{n}_total" if n in COUNTERS else n for n in NAMES
    }
    labels = [
        s.labels["class"] for f in families if f.name == "promotion_gate_class_share" for s in f.samples
    ]
    assert len(set(labels)) == 2
    assert all(len(label) <= 120 and label.isprintable() for label in labels)


def test_a_thousand_classes_do_not_make_a_thousand_series(outcome, alarm):
    many = outcome(classes=1500, predictions=2_000_000, firing=[alarm("class 3")])
    board = Board("signs", most_classes=200)
    board.look(many)
    found = samples(board)
    shown = [key for key in found if key[0] == "class_share"]
    assert len(shown) == 200
    assert ("class_share", ("class", "class 3")) in found  # the smallest share but for three, but it alarms
    assert found["classes_left_out",] == 1300
    assert found["sigma_max",] == 1499
    assert [c.name for c in shown_classes(many, 2)] == ["class 3", "class 1499"]


def test_a_window_looked_at_again_counts_once(outcome, clock):
    board = Board("signs")
    for predictions in (100, 250, 250):
        board.look(outcome(predictions=predictions, complete=False))
    clock.wait(hours=1)
    board.look(outcome(predictions=40))
    assert board.predictions == 290


def test_the_file_goes_on_counting_where_the_last_run_stopped(outcome, tmp_path, clock):
    path = tmp_path / "gate.prom"
    for predictions in (100, 250):  # the same window, by two runs
        board = Board("signs")
        resume_from(board, path)
        board.look(outcome(predictions=predictions))
        write_metrics(board, path)
    clock.wait(hours=1)
    board = Board("signs")
    resume_from(board, path)
    board.look(outcome(predictions=40))
    assert samples(board)["predictions_total",] == 290
    other = Board("other")
    resume_from(other, path)
    assert other.predictions == 0


@pytest.mark.parametrize("content", [b"", b"nonsense{", b"\xff\xfe", b"promotion_gate_predictions_total x\n"])
def test_a_file_that_is_no_metrics_is_replaced(tmp_path, content):
    path = tmp_path / "gate.prom"
    path.write_bytes(content)
    board = Board("signs")
    resume_from(board, path)
    assert board.predictions == 0


def test_a_name_that_node_exporter_would_not_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"in \.prom"):
        resume_from(Board("signs"), tmp_path / "gate.txt")
    with pytest.raises(UsageError, match="no folder"):
        resume_from(Board("signs"), tmp_path / "none" / "gate.prom")


def test_the_file_can_be_read_by_node_exporter(tmp_path):
    write_metrics(Board("signs"), tmp_path / "gate.prom")
    assert (tmp_path / "gate.prom").stat().st_mode & 0o004
    assert [p.name for p in tmp_path.iterdir()] == ["gate.prom"]


def test_over_http(outcome):
    board = Board("signs")
    server = serve_metrics(board, "127.0.0.1", 0)
    try:
        board.look(outcome())
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        assert 'promotion_gate_production_version{model="signs"} 3.0' in text
        with pytest.raises(UsageError, match=r"cannot serve metrics on 127\.0\.0\.1"):
            serve_metrics(board, "127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["nowhere.invalid", "256.1.1.1", "x" * 300])
def test_an_address_that_is_none(host):
    with pytest.raises(UsageError, match="cannot serve metrics"):
        serve_metrics(Board("signs"), host, 0)


def names_in(expression):
    return set(re.findall(r"promotion_gate_\w+", expression))


KNOWN = {f"{name}_total" if name in COUNTERS else name for name in NAMES}


def test_every_rule_names_metrics_that_exist_and_says_what_to_do():
    groups = yaml.safe_load(ready_file("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {len(rule["alert"]) > 3 for rule in rules} == {True}
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert names_in(rule["expr"])
        assert names_in(rule["expr"]) <= KNOWN
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_promtool_accepts_the_rules(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    (tmp_path / "rules.yml").write_text(ready_file("rules"))
    told = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr


RULES_TEST = """
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'promotion_gate_alarms_firing{model="signs", kind="class-share"}', values: "0x9 2x200"}
      - {series: 'promotion_gate_alarms_firing{model="calm", kind="class-share"}', values: "0x200"}
      - {series: 'promotion_gate_last_look_timestamp_seconds{model="signs"}', values: "0x200"}
      - {series: 'promotion_gate_alerts_waiting{model="signs", receiver="pager"}', values: "1x200"}
      - {series: 'promotion_gate_other_version_rows{model="signs"}', values: "10x200"}
      - {series: 'promotion_gate_window_predictions{model="signs"}', values: "0x200"}
    alert_rule_test:
      - {eval_time: 5m, alertname: PredictionsDrift, exp_alerts: []}
      - eval_time: 20m
        alertname: PredictionsDrift
        exp_alerts:
          - exp_labels: {model: signs, kind: class-share, severity: critical}
            exp_annotations:
              summary: "signs: 2 class-share alarms stand"
              description: "Look at the drift report; promotion-gate rollback signs --reason ..."
      - {eval_time: 119m, alertname: MonitorSilent, exp_alerts: []}
      - eval_time: 130m
        alertname: MonitorSilent
        exp_alerts:
          - exp_labels: {model: signs, severity: critical}
            exp_annotations:
              summary: "No look at predictions of signs for 2h 10m 0s: log or monitor stopped"
      - eval_time: 20m
        alertname: AlarmsNotDelivered
        exp_alerts:
          - exp_labels: {model: signs, receiver: pager, severity: critical}
            exp_annotations: {summary: "1 alarms of signs have not reached pager"}
      - eval_time: 40m
        alertname: OtherVersionServes
        exp_alerts:
          - exp_labels: {model: signs, severity: warning}
            exp_annotations: {summary: "Most predictions of signs are not by the version in production"}
"""


def test_the_rules_fire_when_they_should(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    (tmp_path / "rules.yml").write_text(ready_file("rules"))
    (tmp_path / "test.yml").write_text(RULES_TEST)
    told = subprocess.run([promtool, "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_promtool_accepts_the_metrics(outcome):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    board = Board("signs", deliveries={"pager": Deliveries(1, 2, 3)})
    board.look(replace(outcome(), model=HOSTILE))
    told = subprocess.run([promtool, "check", "metrics"], input=text_of(board), capture_output=True)
    assert told.returncode in (0, 3), told.stderr  # 3 is advice on names
    assert b"error while linting" not in told.stderr


def test_the_dashboard_asks_for_metrics_that_exist():
    board = json.loads(ready_file("dashboard"))
    assert board["schemaVersion"] >= 36
    assert board["uid"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 8
    variables = {v["name"] for v in board["templating"]["list"]}
    asked = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            asked |= names_in(target["expr"])
            assert names_in(target["expr"])
            assert set(re.findall(r'"\$(\w+)"', target["expr"])) <= variables
            assert target["expr"].count("(") == target["expr"].count(")")
    for variable in board["templating"]["list"]:
        asked |= names_in(str(variable.get("query", "")))
    assert asked <= KNOWN
    assert KNOWN - asked == {"promotion_gate_window_start_timestamp_seconds"}  # an internal of the file
    assert "localhost" not in ready_file("dashboard")


def test_every_ready_file_is_there():
    assert all(ready_file(what) for what in FILES)
