"""Log lines, metrics and traces of the command as others read them; and no secret in any."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eqmodel.errors import Refused
from jobs.console import complain
from jobs.sample import FOLDER
from pipelines import open_store
from pipelines.secrets import HIDDEN
from pipelines.telemetry import log, run_name, take_run_name, use_log
from pipelines.telemetry.metrics import MetricsPlace, run_metrics
from tests.jobs.conftest import SHIPPED, Orbit

ORBIT = Path(sys.executable).with_name("orbit")
CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary/AKIA+secret0123456789abcdefghij",
    "AWS_SESSION_TOKEN": "canary-session-0123456789",
    "ORBIT_TOKEN": "canary-orbit-token-0123456789",
    "RAY_AUTH_TOKEN": "canary0ray0token0123456789abcdef",
}


@pytest.fixture(autouse=True)
def _text_again() -> Any:
    yield
    use_log(None, {})


def lines(text: str) -> list[dict[str, Any]]:
    """Every line as the JSON object it has to be."""
    return [json.loads(line) for line in text.splitlines()]


def test_lines_are_json_with_the_run(orbit: Orbit, tmp_path: Path) -> None:
    outcome = orbit("status", tmp_path / "nothing", "--log-format", "json")
    assert (outcome.code, outcome.stdout) == (2, "")
    found = lines(outcome.stderr)
    assert [(line["event"], line["level"], line["exit_code"]) for line in found] == [
        ("error", "error", 2)
    ]
    assert found[0]["run"] == run_name()
    assert "is not a store" in found[0]["message"]


def test_the_format_is_checked_and_comes_from_the_environment_too(
    orbit: Orbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = orbit("models", "--log-format", "xml")
    assert wrong.code == 2
    assert "expected text or json" in wrong.stderr
    monkeypatch.setenv("ORBIT_LOG_FORMAT", "json")
    assert lines(orbit("status", "/nowhere").stderr)


def test_each_run_of_a_process_has_a_name_of_its_own() -> None:
    names = [take_run_name(), take_run_name()]
    assert len(set(names)) == 2
    assert run_name() == names[1]


def test_records_and_errors_lose_their_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    use_log("json", {})
    logging.getLogger("pipelines.retries").info("signed with %s", CANARIES["AWS_SESSION_TOKEN"])
    log().line("x", url="https://me:hunter2@host/a?sig=abcdef", key=CANARIES["ORBIT_TOKEN"])
    use_log("text", {})
    complain(f"denied: {CANARIES['AWS_SECRET_ACCESS_KEY']}")
    told = capsys.readouterr().err
    assert told.count(HIDDEN) == 5
    for secret in [*CANARIES.values(), "hunter2", "abcdef"]:
        assert secret not in told


def test_a_file_that_cannot_be_is_refused_before_any_work(orbit: Orbit, tmp_path: Path) -> None:
    outcome = orbit(
        "run", FOLDER, "--model", SHIPPED, "--out", tmp_path / "store",
        "--metrics-file", tmp_path / "missing" / "x.prom",
    )  # fmt: skip
    assert outcome.code == 2
    assert "--metrics-file" in outcome.stderr
    assert not (tmp_path / "store").exists()


def test_a_url_with_a_password_is_refused_before_any_work(orbit: Orbit, tmp_path: Path) -> None:
    outcome = orbit(
        "run", "https://me:hunter2@host/images", "--model", SHIPPED, "--out", tmp_path / "store"
    )
    assert outcome.code == 2
    assert "holds a secret" in outcome.stderr
    assert "hunter2" not in outcome.stderr


def test_a_refused_run_leaves_its_exit_code(tmp_path: Path) -> None:
    place = MetricsPlace.of(tmp_path / "orbit.prom", {})
    place.give(
        run_metrics("run", "s3://u:pw-secret@b/s", None, Refused("no"), time.time()), "orbit-run"
    )
    text = (tmp_path / "orbit.prom").read_text()
    assert 'orbit_run_exit_code{store="s3://***@b/s",verb="run"} 2.0' in text
    assert "orbit_run_success" in text
    assert "pw-secret" not in text


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_run_tells_everything_and_no_secret(tmp_path: Path) -> None:
    """A real run in a process of its own, with canaries in its environment."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes((FOLDER / "clothes-0.tar").read_bytes())
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    rays = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets want a short path
    places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "RAY_TMPDIR": str(rays)}
    environment = clean | CANARIES | places
    command = [
        str(ORBIT), "run", str(tmp_path / "in"), "--model", SHIPPED, "--out",
        str(tmp_path / "store"), "--clusters", "5", "--workers", "1", "--json",
        "--log-format", "json", "--metrics-file", str(tmp_path / "orbit.prom"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen: set[str] = set()
    listening: set[tuple[str, str]] = set()
    watcher = threading.Thread(target=look_at, args=(process, seen, listening))
    watcher.start()
    try:
        stdout, stderr = process.communicate(timeout=500)
    finally:
        process.kill()
        watcher.join()
    assert process.returncode == 0, stderr
    document = json.loads(stdout)

    told = lines(stderr)
    assert len({line["run"] for line in told}) == 1
    events = {line["event"] for line in told}
    assert {"progress", "commit"} <= events
    commit = next(line for line in told if line["event"] == "commit")
    assert (commit["shards"], commit["table_version"]) == (1, document["table_version"])

    text = (tmp_path / "orbit.prom").read_text()
    metrics = {
        (sample.name, *sorted(set(sample.labels.items()) - {("store", str(tmp_path / "store"))})):
        sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip
    run = ("verb", "run")
    assert metrics["orbit_run_images", ("kind", "encoded"), run] == 400
    assert metrics["orbit_run_success", run] == 1
    assert metrics["orbit_run_read_bytes", run] == (tmp_path / "in" / "a.tar").stat().st_size
    assert metrics["orbit_run_seconds", ("part", "commit"), run] == pytest.approx(
        document["commit_s"]
    )
    assert metrics["orbit_run_shard_seconds", ("phase", "encode"), run] > 0
    assert metrics["orbit_publication_recall_at_10",] == document["recall_at_10"]

    assert any("raylet" in line for line in seen)
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    assert {address for _, address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    logs = [path for path in rays.rglob("*") if path.is_file()]
    assert any(path.name == "raylet.out" for path in logs)
    rows = open_store(str(tmp_path / "store")).embeddings().to_pylist()
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    told_by = {"stdout": stdout, "stderr": stderr, "metrics": text, "table": repr(rows)}
    told_by |= {f"arguments {number}": line for number, line in enumerate(seen)}
    told_by |= {str(path): repr(path.read_bytes()) for path in [*files, *logs]}
    shutil.rmtree(rays)
    for name, secret in CANARIES.items():
        assert not [where for where, part in told_by.items() if secret in part], name


def look_at(
    process: "subprocess.Popen[str]", seen: set[str], listening: set[tuple[str, str]]
) -> None:
    """While the process lives: every command line of this machine, which any user could see, and
    the addresses at which it and its children listen."""
    while process.poll() is None:
        with suppress(psutil.Error):
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
            for one in family:
                with suppress(psutil.Error):
                    found = one.net_connections("inet")
                    name = one.name()
                    listening |= {(name, c.laddr.ip) for c in found if c.status == "LISTEN"}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        time.sleep(1.0)


def test_watching_tells_what_changes_until_it_is_stopped(
    orbit: Orbit, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = {"run": "r1", "shards_done": 3, "shards_total": 8, "table_version": 1}
    answers = iter([[], [], [beats], KeyboardInterrupt])

    def runs(self: Any) -> Any:
        found = next(answers)
        if found is KeyboardInterrupt:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr("pipelines.store.Store.runs_at_work", runs)
    outcome = orbit("status", store, "--watch", "--every", "0.1")
    assert outcome.code == 130
    assert outcome.stdout.count(" UTC\n") == 2
    assert "run r1, shards_done 3, shards_total 8" in outcome.stdout
    assert orbit("status", store, "--watch", "--json").code == 2


def test_runs_at_work_are_those_that_were_heard_of_lately(store: Path) -> None:
    opened = open_store(str(store))
    heartbeat = next((store / "runs").glob("*/heartbeat.json"))
    beat = json.loads(heartbeat.read_text())
    try:
        heartbeat.write_text(json.dumps(beat | {"time": datetime.now(UTC).isoformat()}))
        assert [run["run"] for run in opened.runs_at_work()] == [heartbeat.parent.name]
        heartbeat.write_text(json.dumps(beat | {"time": "2026-01-01T00:00:00+00:00"}))
        assert opened.runs_at_work() == []
    finally:
        heartbeat.write_text(json.dumps(beat))


@pytest.mark.integration
def test_traces_reach_a_collector_and_nothing_happens_without_one(store: Path) -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    try:
        command = [str(ORBIT), "index", str(store)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert b"orbit index" in b"".join(bodies)
    code = "import sys; from jobs.cli import app; from jobs.console import run; " \
           "run(app, 'orbit', ['models']); sys.exit('opentelemetry' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
