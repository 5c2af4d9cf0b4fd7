"""Whether a receipt is to be believed: the file that it names is there, byte for byte."""

from __future__ import annotations

import hashlib

from pipelines.errors import ObjectChanged, ObjectMissing
from pipelines.etags import Proof
from pipelines.storage import Folder
from pipelines.table.records import Receipt


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
    digest = hashlib.sha256()
    try:
        with folder.stream(receipt.path, entry.etag) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (ObjectChanged, ObjectMissing):
        return False
    return digest.hexdigest() == receipt.sha256
