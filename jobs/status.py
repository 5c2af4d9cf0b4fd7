"""`orbit status`: what a store holds, and which publication is live."""

from typing import Any

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store


@verb("orbit status s3://bucket/store")
def status(store: Store, as_json: Json = False) -> Answer:
    """Tell what a store holds: models, counts, the live publication and its report."""
    from pipelines import open_store

    found = open_store(store).status()
    return Answer(found, as_text(found))


def as_text(found: dict[str, Any]) -> str:
    """One fact per line; what is nested is told as `a.b`."""
    facts = flat(found)
    width = max((len(name) for name, _ in facts), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts)


def flat(found: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) pairs of nested objects, in their order."""
    pairs: list[tuple[str, str]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            pairs += [(prefix + name, point(entry)) for entry in value]
        elif isinstance(value, list):
            pairs.append((prefix + name, ", ".join(map(str, value)) or "none"))
        elif isinstance(value, float):
            pairs.append((prefix + name, f"{value:.4g}"))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs.append((prefix + name, f"{value:,}"))
        else:
            pairs.append((prefix + name, "-" if value is None else str(value)))
    return pairs


def point(entry: dict[str, Any]) -> str:
    """One point of a curve on a line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in entry.items())


if __name__ == "__main__":
    run_alone(status)
