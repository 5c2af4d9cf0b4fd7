"""Jobs on a Ray cluster that others run: the code packed, submitted, followed, stopped."""

from pipelines.cluster.code import Code, pack_code
from pipelines.cluster.connection import Connection, connect, find_token
from pipelines.cluster.submission import Cluster, Job

__all__ = ["Cluster", "Code", "Connection", "Job", "connect", "find_token", "pack_code"]
