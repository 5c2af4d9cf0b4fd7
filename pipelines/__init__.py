"""From a bucket of images to a searchable, invariant index: storage, shards, table, index, report.

For notebooks: ``from pipelines import open_store``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.store import open_store

__all__ = ["open_store"]


def __getattr__(name: str) -> Any:
    if name != "open_store":
        raise AttributeError(f"module 'pipelines' has no attribute '{name}'")
    from pipelines.store import open_store

    return open_store
