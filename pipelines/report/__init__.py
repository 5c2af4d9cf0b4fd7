"""The report: what the collection holds, as one HTML page and as the same facts in JSON."""

from pipelines.report.facts import FORMAT_VERSION, THROUGHPUT, build_document
from pipelines.report.findings import Findings, Rejected, read_rejects
from pipelines.report.invariance import Invariance, audit_sample
from pipelines.report.map import CollectionMap, draw_map
from pipelines.report.page import render_page
from pipelines.report.plots import write_plots
from pipelines.report.recipe import described
from pipelines.report.schema import SCHEMA, schema

__all__ = [
    "FORMAT_VERSION",
    "SCHEMA",
    "THROUGHPUT",
    "CollectionMap",
    "Findings",
    "Invariance",
    "Rejected",
    "audit_sample",
    "build_document",
    "described",
    "draw_map",
    "read_rejects",
    "render_page",
    "schema",
    "write_plots",
]
