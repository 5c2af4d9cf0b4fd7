"""Whether a receipt is to be believed: the file that it names is there, byte for byte."""

from __future__ import annotations

import hashlib

from pipelines.errors import ObjectChanged, ObjectMissing
from pipelines.etags import Proof
from pipelines.storage import Folder
from pipelines.table.records import Receipt

SMALL = 4 << 20
"""Bytes of a file that is read whole."""


def is_there(folder: Folder, receipt: Receipt) -> bool:
    """Whether the receipt's file has the recorded size and digest, and with them its rows: they
    were counted in the very bytes of that digest, read back from the worker's disk.

    On S3 the ETag of an object put whole is its MD5, so nothing is read; elsewhere, and where the
    ETag is none, the file is read once. StorageError when the storage does not answer.
    """
    entry = folder.stat(receipt.path)
    if entry is None or entry.size != receipt.size:
        return False
    if Proof(folder.address(receipt.path)).wanted(entry.etag) and entry.etag == receipt.md5:
        return True
    try:
        return _digest(folder, receipt, entry.etag) == receipt.sha256
    except (ObjectChanged, ObjectMissing):
        return False


def _digest(folder: Folder, receipt: Receipt, etag: str) -> str:
    """SHA-256 of the file; a small one is read whole, which costs the driver a third as much."""
    if receipt.size <= SMALL:
        return hashlib.sha256(folder.read(receipt.path, etag=etag)).hexdigest()
    digest = hashlib.sha256()
    with folder.stream(receipt.path, etag) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
