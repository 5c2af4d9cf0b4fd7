"""Shards: what one worker reads at a time. List them, stream their samples, prove their end."""

from pipelines.shards.listing import list_shards
from pipelines.shards.reading import read_shard
from pipelines.shards.types import Damage, Item, ReadOptions, Sample, Shard

__all__ = ["Damage", "Item", "ReadOptions", "Sample", "Shard", "list_shards", "read_shard"]
