"""One class per situation, under the root of eqmodel; each also inherits the builtin a caller
expects.

A message is one line: what was found, what was expected, what to do.
"""

from __future__ import annotations

import signal

from eqmodel.errors import OrbitError, Refused


class SettingsError(Refused):
    """A flag, environment variable or settings file that does not fit."""


class InputError(Refused):
    """An INPUT that is not there, holds no image, or is another than the store's."""


class InputMissing(InputError, FileNotFoundError):
    """An INPUT that is not there."""


class StoreError(Refused):
    """A STORE that is not one, or that does not fit what is asked of it."""


class ModelMismatchError(StoreError):
    """A model that is not the store's."""


class FormatError(StoreError):
    """A table written in a format that this version does not know."""


class NotPublishedError(StoreError):
    """A store without a publication to search."""


class KeyNotFoundError(Refused, KeyError):
    """A key that the publication does not hold."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StorageError(OrbitError, OSError):
    """A storage that does not answer as it should, after retries."""


class AccessDenied(StorageError, PermissionError):
    """Credentials that are missing, wrong, expired or too weak."""


class ObjectMissing(StorageError, FileNotFoundError):
    """An object that is gone since it was listed."""


class ObjectChanged(StorageError):
    """An object whose content is no longer the one that was listed."""


class ListingError(OrbitError):
    """A listing that lacks too much to be believed."""


class TableError(OrbitError):
    """A table that cannot be read or written."""


class ConflictError(OrbitError):
    """Five commits in a row lost to other writers, or the store changed meanwhile."""

    exit_code = 75


class ShardFileError(OrbitError):
    """A written Parquet file that does not read back as it was written."""


class ArtifactError(OrbitError):
    """A published file that is missing, truncated or altered."""


class DamagedStoreError(OrbitError):
    """A store in which something is not what it should be."""


class RayError(OrbitError):
    """Ray could not be started or reached."""


class ClusterError(Refused):
    """A cluster that does not answer, does not fit, or does not take a job."""


class QuarantineError(OrbitError):
    """The child process of the quarantine could not do its work."""


class Rejected(OrbitError, ValueError):
    """Bytes that give no picture; the message is the reason stored in the table."""


class IncompleteError(OrbitError, RuntimeError):
    """A run that did part of its work: that part is committed, the message says what is missing."""


class StoppedError(OrbitError):
    """A run that a signal ended, after committing what was done."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; what was done is committed")
        self.exit_code = 128 + number
