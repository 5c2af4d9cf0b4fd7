"""Schedulers of machines: a crontab line, a systemd service and timer, a Slurm batch script."""

from __future__ import annotations

import re
import shlex

from jobs.schedules.job import ScheduledJob


def crontab(job: ScheduledJob) -> str:
    """Comment lines, CRON_TZ where a zone was named, and one line for `crontab -e`.

    flock keeps two runs apart; 75 is no failure; % would end a crontab command, so it is escaped.
    """
    lock, log = f'"$HOME/.{job.name}.lock"', f'"$HOME/{job.name}.log"'
    command = shlex.join((job.program, *job.command))
    limit = f"timeout --signal=TERM --kill-after=60 {job.deadline_s}"
    line = f"flock --nonblock --conflict-exit-code 75 {lock} {limit} {command}"
    if job.env_file:
        line = f"set -a; . {shlex.quote(job.env_file)}; set +a; {line}"
    line = f"{line} >> {log} 2>&1 || [ $? -eq 75 ]".replace("%", "\\%")
    text = [f"# {job.words}", "# Still running at the next time: skipped. Add with: crontab -e"]
    if job.times.zone:
        text += [
            "# CRON_TZ is read by cronie (Red Hat, SUSE, Arch). Debian's and Ubuntu's cron ignore",
            "# it and take the machine's zone: use --target systemd there.",
            f"CRON_TZ={job.times.zone}",
        ]
    return "\n".join([*text, f"{job.times.expression} {line}", ""])


def systemd(job: ScheduledJob) -> dict[str, str]:
    """File name -> content of a service and its timer. systemd never runs a service twice."""
    command = " ".join(systemd_word(word) for word in (job.program, *job.command))
    environment = f"EnvironmentFile={job.env_file}\n" if job.env_file else ""
    service = f"""\
[Unit]
Description={systemd_text(job.words)}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={job.user}
{environment}Environment=XDG_CACHE_HOME=/var/cache/{job.name} RAY_USAGE_STATS_ENABLED=0
CacheDirectory={job.name}
ExecStart={command}
SuccessExitStatus=75
TimeoutStartSec={job.deadline_s}
# SIGTERM goes to the command alone: it commits what is done and stops its workers itself.
KillMode=mixed
TimeoutStopSec=60
Nice=10
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
PrivateTmp=yes
"""
    calendars = "".join(f"OnCalendar={line}\n" for line in job.times.calendars())
    timer = f"""\
[Unit]
Description=When {job.name}.service runs

[Timer]
{calendars}Persistent=true
AccuracySec=1min
Unit={job.name}.service

[Install]
WantedBy=timers.target
"""
    return {f"{job.name}.service": service, f"{job.name}.timer": timer}


def systemd_word(word: str) -> str:
    """One word of ExecStart: % and $ doubled, quoted where it must be."""
    word = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def systemd_text(text: str) -> str:
    """One line of text for a unit file."""
    return " ".join(text.split()).replace("%", "%%").rstrip("\\")


def slurm(job: ScheduledJob) -> str:
    """A batch script: one Ray over the nodes of the job, token on, then the command on it."""
    size, minutes = job.size, -(-job.deadline_s // 60)
    gpus = f"#SBATCH --gpus-per-node={size.gpus}\n" if size.gpus else ""
    file = shlex.quote(job.env_file or "")
    source = f"# shellcheck source=/dev/null\nset -a; . {file}; set +a\n" if job.env_file else ""
    python = shlex.quote(re.sub(r"orbit$", "python", job.program))
    ray = shlex.quote(re.sub(r"orbit$", "ray", job.program))
    command = shlex.join(job.command)
    start = f"{ray} start --disable-usage-stats --num-cpus={size.cpus} --num-gpus={size.gpus}"
    return f"""\
#!/bin/bash
# {job.words}
# Nightly, by Slurm itself (scrontab -e; the zone is the controller's):
#   {job.times.expression} sbatch {job.name}.sbatch
#SBATCH --job-name={job.name}
#SBATCH --dependency=singleton
#SBATCH --nodes={size.max_workers}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={size.cpus}
#SBATCH --mem={size.mebibytes}M
{gpus}#SBATCH --time={minutes}
#SBATCH --signal=B:TERM@60
#SBATCH --output={job.name}-%j.log
# No other job of this name runs beside it (singleton). One minute before the time is up it is told
# to stop, and commits what is done. Exit 75 (other writers were faster) counts as success. Slurm
# ends the Ray processes with the job.
set -euo pipefail
{source}export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$({python} -c 'import secrets; print(secrets.token_hex(32))')

head=$(hostname --ip-address | awk '{{print $1}}')
port=$((20000 + SLURM_JOB_ID % 20000))
{start} --head --node-ip-address="$head" --port="$port" --include-dashboard=false
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$(hostname -s)" --export=ALL \\
        {start} --address="$head:$port" --block &
fi

# The command runs in the background so that this shell hears SIGTERM and can hand it on.
{python} -m jobs.accept 75 {command} &
work=$!
trap 'kill -TERM "$work" 2>/dev/null || true' TERM
code=0
wait "$work" || code=$?
while kill -0 "$work" 2>/dev/null; do code=0; wait "$work" || code=$?; done
exit "$code"
"""
