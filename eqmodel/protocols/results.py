"""Result files, one per seed of a recipe on a protocol, and their mean and standard deviation."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eqmodel.errors import Refused

FORMAT = "orbit-evaluation-1"
READINGS = 1  # raised when a reading is computed in another way: older results are made again
LABEL_FREE, BASELINE, CEILING, MODEL = "label-free", "baseline", "supervised ceiling", "checkpoint"


@dataclass(frozen=True)
class Result:
    """Everything one seed showed. ``made_from`` fixes what was computed: the same is not made
    again. Readings are shares of 1 or relative errors; a curve is a list over components.
    """

    protocol: str
    recipe: str
    kind: str
    seed: int
    limit: int | None
    made_from: str
    num_train: int
    num_test: int
    draw_sha256: str
    model_id: str | None
    config: dict[str, Any] | None
    readings: dict[str, float]
    curves: dict[str, list[float]]
    seconds: dict[str, float]
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """The seeds of one recipe on one protocol."""

    results: tuple[Result, ...]

    @property
    def protocol(self) -> str:
        return self.results[0].protocol

    @property
    def recipe(self) -> str:
        return self.results[0].recipe

    @property
    def kind(self) -> str:
        return self.results[0].kind

    @property
    def limit(self) -> int | None:
        return self.results[0].limit

    @property
    def seeds(self) -> list[int]:
        return [result.seed for result in self.results]

    def values(self, reading: str) -> list[float]:
        """The reading of each seed that has it."""
        return [r.readings[reading] for r in self.results if reading in r.readings]

    def mean(self, reading: str) -> float | None:
        found = self.values(reading)
        return statistics.fmean(found) if found else None

    def std(self, reading: str) -> float | None:
        """Of the sample; None for a single seed."""
        found = self.values(reading)
        return statistics.stdev(found) if len(found) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        names = dict.fromkeys(name for result in self.results for name in result.readings)
        return {
            "recipe": self.recipe,
            "kind": self.kind,
            "seeds": self.seeds,
            "mean": {name: self.mean(name) for name in names},
            "std": {name: self.std(name) for name in names},
            "runs": [result.as_dict() for result in self.results],
        }


def identity(*parts: Any) -> str:
    """16 hex digits that fix what a result or a checkpoint was made from."""
    content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def path_of(out: Path, protocol: str, recipe: str, seed: int, limit: int | None) -> Path:
    """Where the result of one seed lies."""
    name = f"seed-{seed}" if limit is None else f"seed-{seed}-limit-{limit}"
    return out / protocol / recipe / f"{name}.json"


def write(path: Path, result: Result) -> None:
    """Write a result file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(result.as_dict(), indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def read(path: Path) -> Result | None:
    """The result in a file; None when it is no result file of this format."""
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            return None
        return Result(**document)
    except (OSError, ValueError, TypeError):
        return None


def read_all(folder: Path) -> list[Row]:
    """Every result below a folder, as rows. Raises Refused when there is none."""
    found = [result for path in sorted(folder.rglob("*.json")) if (result := read(path))]
    if not found:
        raise Refused(
            f"{folder} holds no result of an evaluation: expected the folder that was given to "
            "'orbit evaluate PROTOCOL --out'"
        )
    return rows(found)


def rows(found: Sequence[Result]) -> list[Row]:
    """Results grouped by protocol, recipe and limit, seeds in order."""
    grouped: defaultdict[tuple[str, str, str, int | None], list[Result]] = defaultdict(list)
    for result in found:
        grouped[result.protocol, result.recipe, result.kind, result.limit].append(result)
    return [Row(tuple(sorted(group, key=lambda r: r.seed))) for group in grouped.values()]


def versions() -> dict[str, str]:
    """What computed the figures."""
    import numpy
    import scipy
    import sklearn
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scipy": str(scipy.__version__),
        "scikit-learn": str(sklearn.__version__),
    }
