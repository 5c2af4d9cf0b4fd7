"""A pool of Ray actors that pull shards: the only package that imports Ray for the batch job."""

from pipelines.pool.driver import Pool, PoolSettings
from pipelines.pool.session import ray_session

__all__ = ["Pool", "PoolSettings", "ray_session"]
