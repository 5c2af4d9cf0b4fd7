"""Duplicates: byte-equal by digest, near ones by embedding, turned and mirrored copies among them.

| file | holds |
|---|---|
| looks.py | thumbnails as they are compared |
| rings.py | a fingerprint that no turn moves: proposals beside those of the embedding |
| sampling.py | values between pixels |
| correlating.py | how well two pictures agree that lie over each other |
| polar.py | all turns of two pictures at once |
| aligning.py | turn, scale and shift between two pictures |
| agreeing.py | whether two pictures laid over each other are one |
| stars.py | groups out of confirmed pairs |
| finding.py | ``find_duplicates``, from neighbours to groups |
| section.py | its section of report.json |
"""

from pipelines.duplicates.finding import (
    DuplicateGroup,
    DuplicateOptions,
    Duplicates,
    find_duplicates,
)
from pipelines.duplicates.looks import Thumbnails
from pipelines.duplicates.section import report_section
from pipelines.duplicates.stars import Member

__all__ = [
    "DuplicateGroup",
    "DuplicateOptions",
    "Duplicates",
    "Member",
    "Thumbnails",
    "find_duplicates",
    "report_section",
]
