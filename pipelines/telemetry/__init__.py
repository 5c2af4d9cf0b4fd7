"""What a run tells while it works: log lines, metrics, traces; never a secret.

Nothing here imports Ray; a worker's metrics are in ``pool/meters.py``.
"""

from pipelines.telemetry.logs import Log, log, use_log, worker_log
from pipelines.telemetry.runs import new_run_name, run_name, take_run_name
from pipelines.telemetry.traces import StageSpans, flush_traces, span

__all__ = [
    "Log",
    "StageSpans",
    "flush_traces",
    "log",
    "new_run_name",
    "run_name",
    "span",
    "take_run_name",
    "use_log",
    "worker_log",
]
