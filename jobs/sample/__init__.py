"""The sample that ships with the project: 2,000 turned and mirrored images of clothes."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Holds the tar shards, `copies.json` and `query/` (images that are in no shard)."""
