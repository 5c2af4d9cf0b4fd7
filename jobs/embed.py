"""`orbit embed`: bring the embeddings table to what INPUT holds now; no index, no report."""

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import EmbedFlags
from jobs.metering import Metered, MetricsFile
from jobs.progress import progress
from jobs.summaries import embed_text


@verb("orbit embed s3://bucket/images --model d4-28-grey --out s3://bucket/store")
def embed(flags: EmbedFlags, metrics_file: MetricsFile = None, as_json: Json = False) -> Answer:
    """Embed what is new or changed in INPUT; the first stage of `orbit run`."""
    from pipelines.batch import embed_input

    settings = flags.settings()
    with Metered("embed", settings.store, metrics_file) as metered, progress() as show:
        summary = embed_input(settings, show)
        metered.note(summary)
    return Answer(summary.as_dict(), embed_text(summary), summary.failure)


if __name__ == "__main__":
    run_alone(embed)
