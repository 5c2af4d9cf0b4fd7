"""What `orbit run` and `orbit embed` say at the end, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.summary import EmbedSummary, RunSummary


def embed_text(summary: "EmbedSummary") -> str:
    """A few lines on the table after the run, and on what the run did."""
    if summary.dry_run:
        return plan_text(summary)
    counts = summary.counts
    lines = [
        f"table    {counts.num_seen:,} images seen: {counts.num_embedded:,} embedded, "
        f"{counts.num_rejected:,} rejected, in {counts.num_shards:,} shards "
        f"(model {summary.model_id}, version {summary.table_version})"
    ]
    if counts.num_damaged_shards:
        lines.append(f"damaged  {counts.num_damaged_shards:,} shards: their whole part was kept")
    if summary.planned.nothing:
        return "\n".join(["nothing to do: the store holds what INPUT holds", *lines])
    lines.append(
        f"this run {summary.num_added:,} images added, {summary.num_removed:,} removed, "
        f"{summary.num_encoded:,} encoded in {summary.clock.elapsed_s:.1f} s"
    )
    return "\n".join([*lines, *speed_lines(summary)])


LIMITS = {"cpu": "the processor", "gpu": "the GPU", "network": "the network"}


def speed_lines(summary: "EmbedSummary") -> list[str]:
    """The speed, what share of the machine's limit it is, the parts by themselves, and what the
    cores did; nothing when none was measured.
    """
    facts = summary.as_dict()
    if facts["images_per_s"] is None:
        return []
    line = f"speed    {facts['images_per_s']:,.0f} images/s"
    if facts["efficiency"] is None:
        return [line]
    line += f", {facts['efficiency']:.0%} of what {LIMITS[facts['limit']]} here can do"
    line += f" ({facts['efficiency_total']:.0%} with start and end)"
    parts = [(name, facts[f"{name}_per_s"]) for name in ("fetch", "decode", "model")]
    told = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in parts if rate is not None)
    spent = sorted(facts["core_us"].items(), key=lambda phase: -phase[1])
    shares = ", ".join(f"{name} {each:,.0f}" for name, each in spent if each >= 0.5)
    return [line, f"alone    {told}", f"cores    us an image: {shares}"]


def plan_text(summary: "EmbedSummary") -> str:
    """What a run would do."""
    plan = summary.planned
    return (
        f"plan     {plan.num_added:,} new, {plan.num_changed:,} changed, "
        f"{plan.num_vanished:,} vanished, {plan.num_unchanged:,} unchanged shards; "
        f"{plan.num_bytes / 1e6:,.1f} MB to read; nothing was changed"
    )


def run_text(summary: "RunSummary") -> str:
    """The same, and the publication that is live now."""
    lines = [embed_text(summary.embed)]
    if summary.publication is not None:
        recall = "" if summary.recall_at_10 is None else f"recall@10 {summary.recall_at_10:.3f}"
        state = "live    " if summary.live else "waiting "
        lines.append(f"{state} publication {summary.publication}, {recall}".rstrip(", "))
        if not summary.live:
            lines.append(f"         make it live with: orbit publish STORE {summary.publication}")
    if summary.report is not None:
        lines.append(f"report   {summary.report}")
    return "\n".join(lines)
