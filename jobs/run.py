"""`orbit run`: the main job and the nightly one: embed what is new, then publish it."""

from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import EmbedFlags
from jobs.metering import Metered, MetricsFile
from jobs.progress import progress
from jobs.publications import PublishFlags
from jobs.summaries import run_text


@verb("orbit run s3://bucket/images --model d4-28-grey --out s3://bucket/store")
def run(
    flags: EmbedFlags,
    publish: PublishFlags,
    metrics_file: MetricsFile = None,
    as_json: Json = False,
) -> Answer:
    """Embed what is new or changed in INPUT, then publish index, clusters and report.

    With nothing new it does nothing, and says so.
    """
    from pipelines.batch import run_input

    settings = flags.settings()
    with Metered("run", settings.store, metrics_file) as metered, progress() as show:
        summary = run_input(settings, publish.options(), show)
        metered.note(summary.embed)
    return Answer(summary.as_dict(), run_text(summary), summary.failure)


if __name__ == "__main__":
    run_alone(run)
