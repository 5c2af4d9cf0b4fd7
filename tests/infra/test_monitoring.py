"""Alerts and dashboard: every expression parses, every metric is one that somebody gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from pipelines.server.metrics import Metrics
from pipelines.server.published import published_gauges
from pipelines.table import PublicationRow

INFRA = Path(__file__).parents[2] / "infra"
RULES: list[dict[str, Any]] = yaml.safe_load((INFRA / "monitoring" / "rules.yaml").read_text())[
    "groups"
][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((INFRA / "monitoring" / "dashboard.json").read_text())
ALERTS = Path(__file__).with_name("alerts.yaml")
OTHERS = {
    "up", "kube_job_status_failed", "kube_job_status_start_time",
    "kube_job_status_completion_time", "kube_cronjob_status_last_successful_time",
    "node_systemd_unit_state",
}  # fmt: skip
"""Of Prometheus itself, kube-state-metrics and node_exporter."""


DRIFT = {
    "verdict": "unfit",
    "distribution_distance": 0.01,
    "distribution_threshold": 0.02,
    "arrivals_distance": 0.06,
    "arrivals_threshold": 0.02,
    "unfamiliar_share": 0.3,
}


def row(**facts: Any) -> PublicationRow:
    return PublicationRow(
        "p", "m", 3, recall_at_10=0.995, facts=facts, created=datetime(2026, 11, 1, tzinfo=UTC)
    )


def of_the_server() -> set[str]:
    source = (INFRA.parent / "pipelines" / "server").rglob("*.py")
    named = {name for file in source for name in re.findall(r'"(orbit_\w+)"', file.read_text())}
    full = row(num_seen=4, num_embedded=3, num_rejected=1, num_damaged_shards=0, num_added=1,
               num_removed=0, num_changed=0, mean_shift=0.1, drift=DRIFT)  # fmt: skip
    told = Metrics().text(published_gauges(full))
    named |= set(re.findall(r"^# TYPE (\w+)", told, re.M))
    return named | {"orbit_search_seconds_bucket"}


def of_runs() -> set[str]:
    """What runs leave (orbit_run_*), and what their workers count in Ray (ray_orbit_*)."""
    pipelines = INFRA.parent / "pipelines"
    left = (pipelines / "telemetry" / "metrics.py").read_text()
    counted = (pipelines / "pool" / "meters.py").read_text()
    names = {f"orbit_run_{name}" for name in re.findall(r'told(?:\.each)?\(\s*"(\w+)"', left)}
    names |= {f"ray_{name}" for name in re.findall(r'"(orbit_\w+)"', counted)}
    return names | {"ray_orbit_shard_seconds_bucket"}


def metrics_of(expression: str) -> set[str]:
    found = promql_parser.parse(expression)
    named = re.findall(r'__name__=~"(\w+)\(_total\)\?"', expression)
    plain = re.sub(r'__name__=~"[^"]*"', "", found.prettify())
    return {*named, *re.findall(r"\b((?:orbit|kube|node|ray)_\w+|up)\b(?=[\s\[{)]|$)", plain)}


def expressions() -> list[tuple[str, str]]:
    rules = [(rule["alert"], rule["expr"]) for rule in RULES]
    return rules + [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_every_expression_asks_for_metrics_that_there_are(name: str, expression: str) -> None:
    asked = metrics_of(expression)
    assert asked, name
    assert asked <= of_the_server() | of_runs() | OTHERS, name


def test_every_alert_says_what_to_do() -> None:
    runbook = (INFRA / "RUNBOOK.md").read_text()
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"infra/RUNBOOK.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in runbook
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
    wanted = {"OrbitRunFailed", "OrbitNoPublication", "OrbitRejects", "OrbitDrift", "OrbitRecall"}
    assert wanted <= {rule["alert"] for rule in RULES}


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here")
def test_alerts_in_the_nights_of_a_store(tmp_path: Path) -> None:
    """Prometheus' own evaluation over made-up series: when each alert comes, and when it ends."""
    shutil.copy(INFRA / "monitoring" / "rules.yaml", tmp_path)
    told = subprocess.run(
        ["promtool", "test", "rules", shutil.copy(ALERTS, tmp_path)], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_published_gauges() -> None:
    full = row(num_seen=200, num_embedded=190, num_rejected=10, num_damaged_shards=2,
               num_added=5, num_removed=10, num_changed=5, mean_shift=0.25,
               drift=DRIFT)  # fmt: skip
    values = {name: value for name, _, _, value in published_gauges(full)}
    assert values == {
        "orbit_publication_created_timestamp_seconds": datetime(
            2026, 11, 1, tzinfo=UTC
        ).timestamp(),
        "orbit_publication_recall_at_10": 0.995,
        "orbit_publication_embedded_images": 190,
        "orbit_publication_damaged_shards": 2,
        "orbit_publication_reject_share": 0.05,
        "orbit_publication_changed_share": 0.1,
        "orbit_publication_mean_shift": 0.25,
        "orbit_publication_drift_ratio": 3.0,
        "orbit_publication_unfamiliar_share": 0.3,
        "orbit_publication_model_unfit": 1.0,
    }
    unknown = {**DRIFT, "verdict": "first", "distribution_distance": None, "arrivals_threshold": 0}
    told = {name: value for name, _, _, value in published_gauges(row(drift=unknown))}
    assert told["orbit_publication_model_unfit"] == 0
    assert "orbit_publication_drift_ratio" not in told
    first = {name for name, *_ in published_gauges(row(num_seen=0))}
    assert first == {
        "orbit_publication_created_timestamp_seconds",
        "orbit_publication_recall_at_10",
    }
    text = Metrics().text(published_gauges(full))
    assert "orbit_publication_created_timestamp_seconds 1793491200\n" in text
