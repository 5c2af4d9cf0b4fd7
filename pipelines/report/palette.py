"""Colours of the report: the same cluster or label has the same one on the page and in plots."""

PALETTE = (
    *("#3b6fb6", "#e8853b", "#3d9a6a", "#c8474c", "#8a63b5", "#17a2b0", "#c9a227", "#d5659a"),
    *("#7d6b5d", "#7a9a2e", "#6f86f0", "#b8572a", "#2c8a7d", "#a8417c", "#98923a", "#5a6b85"),
)
FAINT = "#9a968f"
"""Of what is in no cluster, and of labels beyond the palette."""


def colour_of(cluster: int) -> str:
    """The colour of a cluster's id."""
    return PALETTE[cluster % len(PALETTE)] if cluster >= 0 else FAINT
