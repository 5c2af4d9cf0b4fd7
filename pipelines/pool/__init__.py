"""A pool of Ray actors that pull shards: the only package that imports Ray for the batch job."""

from pipelines.pool.driver import Pool
from pipelines.pool.growth import Growth, largest_node, memory_there
from pipelines.pool.session import ray_session
from pipelines.pool.settings import PoolSettings

__all__ = ["Growth", "Pool", "PoolSettings", "largest_node", "memory_there", "ray_session"]
