"""`python -m jobs.seed IMAGES BUCKET...`: the sample into a fresh object store.

For the compose file: makes the buckets that are not there and puts the sample's shards into IMAGES.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

from eqmodel.errors import OrbitError
from pipelines.storage import Folder

SAMPLE = Path(__file__).parent / "sample"


def seed(images: str, *others: str) -> int:
    """The number of shards that were put there; 0 when all are there already."""
    for url in (images, *others):
        scheme, bucket, *_ = urlsplit(url)
        root = Folder(f"{scheme}://{bucket}")
        if not root.exists():
            # Not mkdir: it names the region, which S3 refuses for us-east-1.
            root.fs.call_s3("create_bucket", Bucket=bucket)
    target, num = Folder(images), 0
    for shard in sorted(SAMPLE.glob("*.tar")):
        if target.stat(shard.name) is None:
            target.upload(shard, shard.name)
            num += 1
    return num


if __name__ == "__main__":
    try:
        print(f"{seed(*sys.argv[1:])} shards of the sample put into {sys.argv[1]}")
    except (OrbitError, TypeError) as error:
        sys.exit(f"orbit: {error}; python -m jobs.seed s3://images/sample s3://store is expected")
