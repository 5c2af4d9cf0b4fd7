"""The sample that ships with the project: 2,000 turned and mirrored images of clothes."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Holds the tar shards and `copies.json`; can be given as INPUT as it lies."""

QUERIES = FOLDER.with_name("sample_queries")
"""Holds 20 images of the same kind that are in no shard."""
