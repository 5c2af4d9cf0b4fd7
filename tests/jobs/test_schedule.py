"""`orbit schedule` prints what each scheduler accepts, and refuses what none would."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cronsim import CronSim

from jobs.cli import app
from jobs.console import run
from jobs.schedules.cron import times
from pipelines.errors import SettingsError
from tests.infra.schemas import assert_hardened, assert_hardened_container, pods, validate

WORK = ["run", "s3://images/new ones", "--model", "d4-28-grey", "--out", "s3://orbit/store"]
TARGETS = ("cronjob", "raycronjob", "crontab", "systemd", "slurm")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*flags: str, work: list[str] = WORK) -> str:
        assert run(app, "orbit", ["schedule", *flags, *work]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def manifests(text: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_every_kubernetes_document_is_valid(printed: Any) -> None:
    for flags in ([], ["--pod-gpus", "1", "--pods", "0:8"], ["--secret", ""]):
        for target in ("cronjob", "raycronjob"):
            text = printed("--target", target, "--timezone", "Europe/Berlin", *flags)
            documents = list(yaml.safe_load_all(text))
            inner = [
                yaml.safe_load(body)
                for document in documents
                for body in document.get("data", {}).values()
            ]
            for document in [*documents, *inner]:
                validate(document)
            found = list(pods(documents))
            assert len(found) == (3 if target == "cronjob" else 2)
            for where, pod in found:
                assert_hardened(where, pod)


def test_the_cron_job_waits_and_forbids(printed: Any) -> None:
    found = manifests(printed("--cron", "30 2 * * 1-5", "--timezone", "Asia/Tokyo"))
    spec = found["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("30 2 * * 1-5", "Asia/Tokyo")
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["successfulJobsHistoryLimit"] == spec["failedJobsHistoryLimit"] == 3
    job = spec["jobTemplate"]["spec"]
    rayjob = yaml.safe_load(found["ConfigMap"]["data"]["rayjob.yaml"])["spec"]
    # The RayJob ends by its own deadline first, so that a night never outlives its waiting pod.
    assert rayjob["activeDeadlineSeconds"] == 8 * 3_600 < job["activeDeadlineSeconds"]
    assert job["ttlSecondsAfterFinished"] > 0
    assert rayjob["ttlSecondsAfterFinished"] > 0
    assert rayjob["shutdownAfterJobFinishes"] is True
    assert rayjob["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    pod = job["template"]["spec"]
    assert pod["containers"][0]["command"][:3] == ["python", "-m", "jobs.rayjob"]
    assert pod["serviceAccountName"] == found["RoleBinding"]["subjects"][0]["name"]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    assert found["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    accounts = {pod["serviceAccountName"], "orbit"}
    made = yaml.safe_load_all(printed())
    assert accounts <= {d["metadata"]["name"] for d in made if d["kind"] == "ServiceAccount"}


def cluster_of(text: str) -> tuple[dict[str, Any], list[str]]:
    """The Ray cluster's specification, and the words of the entrypoint."""
    inner = yaml.safe_load(manifests(text)["ConfigMap"]["data"]["rayjob.yaml"])["spec"]
    return inner["rayClusterSpec"], shlex.split(inner["entrypoint"])


def test_pods_that_come_and_go_are_asked_for(printed: Any) -> None:
    """Who asks for no workers gets one, on whatever is there when it begins: nothing, with 0:8."""
    cluster, words = cluster_of(printed("--pods", "0:8", "--pod-cpus", "3500m", "--pod-gpus", "1"))
    assert shlex.join(words[-8:]) == (
        "--workers 1:8 --cpus-per-worker 3 --gpus-per-worker 1 --ray auto"
    )
    assert cluster["enableInTreeAutoscaling"] is True
    assert_hardened_container("autoscaler", cluster["autoscalerOptions"])
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["serviceAccountName"] == "orbit"  # the driver writes with this identity
    assert head["automountServiceAccountToken"] is True
    workers = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert workers["automountServiceAccountToken"] is False

    own = ["--workers", "2:4"]
    assert cluster_of(printed("--pods", "1:8", work=[*WORK, *own]))[1][-4:] == [
        *own, "--ray", "auto"
    ]  # fmt: skip
    train = ["train", "s3://images", "--out", "/models/m"]
    assert cluster_of(printed("--pods", "1:8", work=train))[1][4:] == [*train, "--ray", "auto"]

    cluster, words = cluster_of(printed("--pods", "8"))
    assert "--workers" not in words
    assert "autoscalerOptions" not in cluster
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("8Gi", 8192), ("8G", 7630), ("512Mi", 512), ("1.5Gi", 1536)]
)
def test_memory_for_slurm_is_whole_mebibytes(printed: Any, text: str, mebibytes: int) -> None:
    assert f"#SBATCH --mem={mebibytes}M\n" in printed("--target", "slurm", "--pod-memory", text)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
@pytest.mark.parametrize("flags", [[], ["--env-file", "/etc/orbit/env", "--pod-gpus", "2"]])
def test_shellcheck_finds_nothing_in_the_scripts(printed: Any, flags: list[str]) -> None:
    crontab = printed("--target", "crontab", *flags).splitlines()[-1]
    line = crontab.split(maxsplit=5)[5].replace("\\%", "%")
    for shell, text in (("bash", printed("--target", "slurm", *flags)), ("sh", line)):
        found = subprocess.run(
            ["shellcheck", "--shell", shell, "--exclude", "SC1091", "-"], input=text,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout


def test_the_entry_point_is_the_command_on_the_cluster(printed: Any) -> None:
    found = manifests(printed())
    rayjob = yaml.safe_load(found["ConfigMap"]["data"]["rayjob.yaml"])["spec"]
    words = shlex.split(rayjob["entrypoint"])
    assert words == ["python", "-m", "jobs.accept", "75", *WORK, "--ray", "auto"]
    assert rayjob["submissionMode"] == "HTTPMode"  # the one that does not quote again
    local = manifests(printed(work=[*WORK, "--ray", "local"]))
    inner = yaml.safe_load(local["ConfigMap"]["data"]["rayjob.yaml"])["spec"]
    assert inner["entrypoint"].endswith("--ray local")
    plain = manifests(printed(work=["gc", "s3://orbit/store"]))
    inner = yaml.safe_load(plain["ConfigMap"]["data"]["rayjob.yaml"])["spec"]
    assert inner["entrypoint"] == "python -m jobs.accept 75 gc s3://orbit/store"


def test_a_ray_cron_job_carries_the_same_job(printed: Any) -> None:
    spec = manifests(printed("--target", "raycronjob", "--timezone", "Asia/Tokyo"))["RayCronJob"][
        "spec"
    ]
    assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * *", "Asia/Tokyo")
    assert spec["jobTemplate"]["shutdownAfterJobFinishes"] is True
    assert {"ttlSecondsAfterFinished", "activeDeadlineSeconds"} <= set(spec["jobTemplate"])
    assert "timeZone" not in manifests(printed("--target", "raycronjob"))["RayCronJob"]["spec"]


def test_the_crontab_line_runs_once_at_a_time(printed: Any, tmp_path: Path) -> None:
    """The line itself is run by sh, as cron does, with a program that tells how often it ran."""
    program = tmp_path / "orbit"
    program.write_text('#!/bin/sh\necho "ran $@"; [ -z "$SLOW" ] || sleep "$SLOW"; exit "$CODE"\n')
    program.chmod(0o755)
    (tmp_path / "env").write_text("CODE=75\n")
    flags = ["--target", "crontab", "--program", str(program), "--env-file", f"{tmp_path}/env"]
    work = [*WORK[:1], "s3://images/100% new", *WORK[2:]]
    text = printed(*flags, "--cron", "*/5 * * * *", "--timezone", "Europe/Berlin", work=work)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines[0] == "CRON_TZ=Europe/Berlin"
    fields = lines[1].split(maxsplit=5)
    assert fields[:5] == ["*/5", "*", "*", "*", "*"]
    command = fields[5].replace("\\%", "%")  # what cron makes of it
    assert "%" not in re.sub(r"\\%", "", fields[5])

    def start(code: int, slow: str = "") -> subprocess.Popen[str]:
        (tmp_path / "env").write_text(f"CODE={code}\nSLOW={slow}\n")
        return subprocess.Popen(["/bin/sh", "-c", command], env={"HOME": str(tmp_path),
                                "PATH": "/usr/bin:/bin"}, text=True)  # fmt: skip

    assert start(75).wait(10) == 0
    assert start(1).wait(10) == 1
    log = tmp_path / "orbit-nightly.log"
    ran = "ran run s3://images/100% new --model d4-28-grey --out s3://orbit/store\n"
    assert log.read_text() == 2 * ran
    slow = start(0, "2")
    while log.read_text() == 2 * ran:
        time.sleep(0.05)
    assert start(0).wait(10) == 0  # skipped: the other still runs
    assert slow.wait(10) == 0
    assert log.read_text() == 3 * ran


def test_without_a_zone_the_machines_is_taken(printed: Any) -> None:
    assert "CRON_TZ" not in printed("--target", "crontab")
    assert "OnCalendar=*-*-* 03:00:00\n" in printed("--target", "systemd")


def units(text: str) -> dict[str, str]:
    parts = re.split(r"^# file: (\S+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_systemd_units(printed: Any, tmp_path: Path) -> None:
    files = units(printed("--target", "systemd", "--program", "/bin/true", "--timezone", "UTC",
                          work=[*WORK[:1], 'a $b "c" 5%', *WORK[2:]]))  # fmt: skip
    assert set(files) == {"orbit-nightly.service", "orbit-nightly.timer"}
    service = files["orbit-nightly.service"]
    assert "SuccessExitStatus=75\n" in service
    assert "Type=oneshot\n" in service
    assert 'ExecStart=/bin/true run "a $$b \\"c\\" 5%%" --model' in service
    assert "Persistent=true\n" in files["orbit-nightly.timer"]
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here to read the units")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    ours = [line for line in found.stderr.splitlines() if str(tmp_path) in line]
    assert not ours, ours


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
@pytest.mark.parametrize(
    "expression", ["0 3 * * *", "*/15 1-4 * * 1-5", "30 2 1,15 * *", "0 0 1 1 *", "5 4 * * 0,6"]
)
def test_systemd_means_the_same_times_as_cron(expression: str) -> None:
    (calendar,) = times(expression, "UTC").calendars()
    start = datetime(2026, 3, 27, 23, 30)
    told = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=20",
         f"--base-time={start:%Y-%m-%d %H:%M:%S} UTC", calendar],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = [
        datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S")
        for stamp in re.findall(r"(?:Next elapse|Iter\. #\d+|Iteration #\d+): \w+ (\S+ \S+)", told)
    ]
    expected = CronSim(expression, start)
    assert found == [next(expected) for _ in found]
    assert len(found) == 20


def test_cron_means_day_or_weekday() -> None:
    assert times("0 3 1 * 1", None).calendars() == ["*-*-01 03:00:00", "Mon *-*-* 03:00:00"]


def test_the_slurm_script(printed: Any, tmp_path: Path) -> None:
    text = printed("--target", "slurm", "--pods", "3", "--pod-gpus", "4", "--pod-cpus", "16",
                   "--program", "/opt/orbit/bin/orbit")  # fmt: skip
    for line in ("--nodes=3", "--gpus-per-node=4", "--cpus-per-task=16", "--mem=8192M",
                 "--time=480", "--dependency=singleton"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "RAY_AUTH_MODE=token" in text
    assert shlex.join(WORK) + " --ray auto &" in text
    script = tmp_path / "job.sbatch"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_the_slurm_script_starts_ray_and_hands_on_codes_and_signals(
    printed: Any, tmp_path: Path
) -> None:
    """Run with stand-ins for ray, srun and python: 75 through the real accept is tested below."""
    for name, body in {
        "ray": 'echo "ray token=${#RAY_AUTH_TOKEN} $*" >> "$LOG"',
        "srun": 'echo "srun $*" >> "$LOG"',
        "python": 'case "$1" in -c) echo 0123456789abcdef;; *) trap "exit 143" TERM; '
        'echo "work $*" >> "$LOG"; sleep "$SLEEP" & wait; exit "$CODE";; esac',
    }.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    script = tmp_path / "job"
    script.write_text(printed("--target", "slurm", "--program", f"{tmp_path}/orbit"))
    log = tmp_path / "log"

    def start(code: int, sleep: str) -> subprocess.Popen[str]:
        log.write_text("")
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(log), "CODE": str(code),
                       "SLEEP": sleep, "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}  # fmt: skip
        return subprocess.Popen(["bash", str(script)], env=environment, text=True)

    assert start(3, "0").wait(20) == 3
    assert "ray token=16 start" in log.read_text()
    assert "srun --nodes=1" in log.read_text()
    held = start(0, "60")
    while "work" not in log.read_text():
        time.sleep(0.05)
    held.terminate()
    assert held.wait(20) == 143


def test_75_counts_as_success_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import accept as module

    for code, expected in ((0, 0), (75, 0), (1, 1), (2, 2), (143, 143)):
        monkeypatch.setattr("jobs.console.run", lambda *_, code=code: code)
        assert module.accept(["75", "run"]) == expected
    monkeypatch.undo()
    assert module.accept(["75", "no-such-verb"]) == 2
    assert module.accept(["75"]) == module.accept([]) == module.accept(["run", "x"]) == 2


def test_json_holds_the_files(printed: Any) -> None:
    for target in TARGETS:
        document = json.loads(printed("--target", target, "--json"))
        assert document["target"] == target
        assert len(document["files"]) == (2 if target == "systemd" else 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cron", "0 3 * *", *WORK], "has 4 fields"),
        (["--cron", "61 3 * * *", *WORK], "bad minute"),
        (["--cron", "0 3 30 2 *", *WORK], "bad day-of-month"),
        (["--cron", "", *WORK], "has 0 fields"),
        (["--cron", "0 0 L * *", *WORK], "uses L"),
        (["--cron", "0 3 */2 * 1", *WORK], "disagree"),
        (["--timezone", "europe/berlin", *WORK], "did you mean 'Europe/Berlin'"),
        (["--timezone", "Mars/Base", *WORK], "tz database"),
        (["--target", "cronjb", *WORK], "did you mean 'cronjob'"),
        (["rnu", "x"], "did you mean 'run'"),
        (["schedule", *WORK], "no verb 'schedule'"),
        (["run", "x", "--modle", "y"], "did you mean '--model'"),
        ([], "missing argument"),
        (["--name", "Nightly_1", *WORK], "--name"),
        (["--name", "a" * 40, *WORK], "33 at most"),
        (["--pods", "4:2", *WORK], "--pods"),
        (["--pod-memory", "lots", *WORK], "--pod-memory"),
        (["--image", "a b", *WORK], "--image"),
        (["--target", "slurm", "--pod-cpus", "1.5", *WORK], "whole number"),
        (["--program", "/a b/orbit", *WORK], "--program"),
        (["run", "s3://key:secret@bucket/x"], "holds a secret"),
        (["run", "https://host/a?X-Amz-Signature=secret@0123456789"], "holds a secret"),
        (["--pod-memory", "8K", *WORK], "--pod-memory"),
        (["run", "a\nb"], "control character"),
    ],
)
def test_what_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(app, "orbit", ["schedule", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert "secret@" not in err


def test_dates_that_no_month_has() -> None:
    with pytest.raises(SettingsError):
        times("0 0 31 4,6 *", None)


def test_sunday_is_zero_everywhere() -> None:
    assert times("0 3 * * 7", None).expression == "0 3 * * 0"
    assert times("0 3 * * 5-7", None).expression == "0 3 * * 0,5,6"
    assert times("0 3 * * mon-fri", None).expression == "0 3 * * 1,2,3,4,5"
    assert times("@weekly", None).expression == "0 0 * * 0"
