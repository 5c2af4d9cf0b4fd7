"""The stores of tests/pipelines, for tests at full size."""

from tests.pipelines.conftest import _one_torch_thread, embedded

__all__ = ["_one_torch_thread", "embedded"]
