"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra is installed.

One span for the verb, one for each of its stages. Without both, nothing is imported and nothing
happens. What is sent holds names and numbers, no path of an image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.secrets import redacted
from pipelines.telemetry.runs import run_name

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_MS = 5_000
_tracers: list[Any] = []


def wanted() -> bool:
    """Whether the environment asks for traces."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(os.environ.get(name) for name in ENDPOINTS)


@contextmanager
def span(name: str, **facts: Any) -> Iterator[Any]:
    """A span around the ``with``; yields it, or None where there are no traces."""
    if not wanted():
        yield None
        return
    tracer = _tracer()
    if tracer is None:
        yield None
        return
    attributes = {f"orbit.{key}": _plain(value) for key, value in facts.items()}
    attributes["orbit.run"] = run_name()
    with tracer.start_as_current_span(f"orbit {name}", attributes=attributes) as found:
        yield found


class StageSpans:
    """A span for each stage of a progress, ended when another stage begins."""

    def __init__(self) -> None:
        self._tracer = _tracer() if wanted() else None
        self._stage: str | None = None
        self._span: Any = None

    def note(self, stage: str, done: int, total: int | None) -> None:
        """So far has it come."""
        if self._tracer is None:
            return
        if stage != self._stage:
            self.close()
            self._stage, self._span = stage, self._tracer.start_span(f"orbit {stage}")
        self._span.set_attribute("orbit.done", done)
        if total is not None:
            self._span.set_attribute("orbit.total", total)

    def close(self) -> None:
        """End the stage that runs."""
        if self._span is not None:
            self._span.end()
            self._span = self._stage = None


def flush_traces() -> None:
    """Send what was not sent yet; a collector that does not answer costs five seconds at most."""
    for tracer_provider in _tracers[1:]:
        tracer_provider.force_flush(FLUSH_MS)


def _tracer() -> Any:
    if not _tracers:
        _tracers.extend(_made())
    return _tracers[0] if _tracers else None


def _made() -> list[Any]:
    """[tracer, provider], or [None] when the packages are not there."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        from pipelines.telemetry.logs import log

        log().event("traces", note="install orbit-embeddings[traces] to send traces")
        return [None]
    name = os.environ.get("OTEL_SERVICE_NAME", "orbit")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=FLUSH_MS / 1000)))
    return [provider.get_tracer("orbit"), provider]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool)) else redacted(str(value))
