"""`orbit embed`: bring the embeddings table to what INPUT holds now; no index, no report."""

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import EmbedFlags
from jobs.progress import progress
from jobs.summaries import embed_text


@verb("orbit embed s3://bucket/images --model d4-28-grey --out s3://bucket/store")
def embed(flags: EmbedFlags, as_json: Json = False) -> Answer:
    """Embed what is new or changed in INPUT; the first stage of `orbit run`."""
    from pipelines.batch import embed_input

    with progress() as show:
        summary = embed_input(flags.settings(), show)
    return Answer(summary.as_dict(), embed_text(summary), summary.failure)


if __name__ == "__main__":
    run_alone(embed)
