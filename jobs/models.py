"""`orbit models`: the checkpoints that come with the program."""

from typing import Any

from jobs.console import Answer, Json, run_alone, verb
from jobs.table import table

FIELDS = ("name", "group", "image_size", "channels", "readout", "dim", "model_id", "recommended")


def shipped_models() -> list[dict[str, Any]]:
    """One object per shipped checkpoint, the one recommended first."""
    from eqmodel.checkpoint import shipped

    return [{name: entry[name] for name in (*FIELDS, "description")} for entry in shipped()]


@verb("orbit models --json")
def models(as_json: Json = False) -> Answer:
    """List the checkpoints that ship: what --model takes by name."""
    found = shipped_models()
    rows = [[str(model[name]) for name in FIELDS[:-1]] for model in found]
    for row, model in zip(rows, found, strict=True):
        row[0] += " (recommended)" if model["recommended"] else ""
    return Answer({"models": found}, table(FIELDS[:-1], rows))


if __name__ == "__main__":
    run_alone(models)
