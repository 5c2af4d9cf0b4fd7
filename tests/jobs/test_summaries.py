"""What a run says of its speed, in words."""

from dataclasses import replace

from jobs.summaries import speed_lines
from pipelines.efficiency import Ideal
from pipelines.summary import Clock, EmbedSummary, Planned
from pipelines.table import Counts, Receipt

RECEIPT = Receipt(
    source="a.tar", etag="1", path="p", size=1, sha256="", num_rows=900, num_embedded=900,
    num_rejected=0, num_encoded=900, damaged=False, stats="", worker="w", pid=1, in_bytes=5,
    core_s={"encode": 1.8, "decode": 0.9, "upload": 0.0001, "whole": 3.6},
)  # fmt: skip
SUMMARY = EmbedSummary(
    "m", 1, Counts(900, 900, 0, 0, 1), Planned(1, 0, 0, 0, 5), (RECEIPT,),
    clock=Clock(1.0, 3.0, 0.1, 6.0), ideal=Ideal(2.4, "cpu", None, 9000.4, 4500.0), cores=2.0,
)  # fmt: skip


def test_the_speed_its_share_of_the_limit_and_the_parts_alone() -> None:
    assert speed_lines(SUMMARY) == [
        "speed    300 images/s, 80% of what the processor here can do (40% with start and end)",
        "alone    decode 9,000/s, model 4,500/s",
        "cores    us an image: outside 2,667, encode 2,000, decode 1,000, other 1,000",
    ]
    networked = replace(SUMMARY, ideal=Ideal(1.5, "network", 600.0, 9000.0, 4500.0))
    assert "50% of what the network" in speed_lines(networked)[0]
    assert speed_lines(networked)[1] == "alone    fetch 600/s, decode 9,000/s, model 4,500/s"


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert speed_lines(replace(SUMMARY, ideal=None)) == ["speed    300 images/s"]
    assert speed_lines(replace(SUMMARY, landed=())) == []
