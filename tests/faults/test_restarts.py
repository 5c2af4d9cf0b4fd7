"""What the kill run counts as restarts: no more than starting took."""

from pathlib import Path
from typing import Any

import pytest

from .machines import Driver

TOLD = """\
1010.0 worker-0 is ready after 4.00 s as process 11
1011.0 worker-1 is ready after 5.00 s as process 12
1020.0 worker-0 died after 14.00 s: it was killed
1026.0 worker-2 is ready after 4.00 s as process 13
1030.0 worker-1 died after 24.00 s: it was killed
1045.0 worker-3 died after 15.00 s, while loading: its machine went
1050.0 worker-4 is ready after 5.00 s as process 14
1060.0 worker-4 died after 15.00 s: it was killed
1064.0 worker-5 died after 4.00 s, while loading: nothing came after it
"""


def test_only_starting_counts_as_a_restart(tmp_path: Path) -> None:
    """Not the pause of 2 s before worker-2, nor that worker-3's end was noticed late."""
    output = tmp_path / "out"
    output.write_text(TOLD)
    process: Any = None
    driver = Driver(process, output, started=1000.0)
    assert driver.ready == {11, 12, 13, 14}
    usual = 4.5
    assert driver.restarts() == pytest.approx((11.0, (4.0 + usual + 5.0) / 2))
