"""What report.json holds, field by field, as a JSON Schema that lies beside every report."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

SCHEMA = "report.schema.json"


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of report.json; every field has a description."""
    found: dict[str, Any] = json.loads((files("pipelines") / "templates" / SCHEMA).read_bytes())
    return found
