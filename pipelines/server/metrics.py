"""Counts of a server as Prometheus text; counted in the event loop, so without a lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Requests by route and status, and how long searches took."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets = [0] * len(BUCKETS)
        self._count, self._sum_s = 0, 0.0

    def request(self, method: str, route: str, status: int) -> None:
        """Count one answer. ``route`` is the pattern, never the path a stranger chose."""
        self._requests[method, route, status] += 1

    def search(self, seconds: float) -> None:
        """Count the time of one search that was answered."""
        self._count, self._sum_s = self._count + 1, self._sum_s + seconds
        for place, bound in enumerate(BUCKETS):
            self._buckets[place] += seconds <= bound

    def text(self, gauges: Iterable[tuple[str, str, str, float]]) -> str:
        """The exposition format; ``gauges`` are (name, type, help, value)."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Iterable[tuple[str, str, str, float]]) -> Iterator[str]:
        yield from _head("orbit_requests_total", "counter", "Requests answered.")
        for (method, route, status), count in sorted(self._requests.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            yield f"orbit_requests_total{{{labels}}} {count}"
        name = "orbit_search_seconds"
        yield from _head(name, "histogram", "Seconds from a whole body to its neighbours.")
        for bound, count in zip(BUCKETS, self._buckets, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self._count}'
        yield f"{name}_sum {self._sum_s:.6f}"
        yield f"{name}_count {self._count}"
        for gauge, kind, words, value in gauges:
            yield from _head(gauge, kind, words)
            yield f"{gauge} {value:.15g}"


def _head(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"
