"""Images for training: read once from a bucket, kept on disk, looked at as if they were a list."""

from pipelines.training.reading import Part, read_images
from pipelines.training.stored import StoredImages

__all__ = ["Part", "StoredImages", "read_images"]
