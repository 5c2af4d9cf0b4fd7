"""The root of every error Orbit raises on purpose, and the ones the model raises.

A message is one line: what was found, what was expected, what to do.
"""


class OrbitError(Exception):
    """Root of all errors of the project; ``exit_code`` is what the command returns for it."""

    exit_code = 1


class Refused(OrbitError, ValueError):
    """Refused before any work was done."""

    exit_code = 2


class GroupError(Refused):
    """A group that does not exist, or that does not fit."""


class SizeError(Refused):
    """An image size on which the network would not be equivariant."""


class ChannelError(Refused):
    """Images whose number of channels does not fit the model."""


class CheckpointError(Refused):
    """A checkpoint that is missing, unreadable, altered, or drifted."""


class TrainingError(OrbitError, RuntimeError):
    """A training that ran but whose result must not be used."""
