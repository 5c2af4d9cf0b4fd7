"""Bytes as they came against the ETag, where that is the MD5 of the object.

On S3 it is for every object that was put whole and is not encrypted with a key of its own. Where it
is not, the same bytes come a second time: two transfers that agree are the object, and the bucket
is remembered as one whose ETags say nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

ALTERED = "the bytes that came are not those that were stored"
_MD5 = re.compile(r"[0-9a-f]{32}")
_no_md5: set[str] = set()


class Proof:
    """Tells of the bytes of one object whether they are the ones that its ETag promises."""

    def __init__(self, url: str) -> None:
        self._bucket = "/".join(url.split("/")[:3])
        self._met: set[str] = set()

    def wanted(self, etag: str) -> bool:
        """Whether there is anything to compare with."""
        known = self._bucket.startswith("s3://") and self._bucket not in _no_md5
        return known and _MD5.fullmatch(etag) is not None

    def holds(self, etag: str, digest: str) -> bool:
        """Whether bytes with this MD5 are the object. True too when the same came before."""
        if not self.wanted(etag) or digest == etag:
            return True
        if digest in self._met:
            _no_md5.add(self._bucket)
            return True
        self._met.add(digest)
        return False


def md5() -> Any:
    """A new MD5: it finds accidents, it is no protection."""
    return hashlib.md5(usedforsecurity=False)


def md5_of(parts: Iterable[bytes]) -> str:
    """MD5 of some bytes, given in parts."""
    digest = md5()
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest())
