"""Flags that several verbs share, each said once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.config import EmbedSettings

Store = Annotated[str, typer.Argument(metavar="STORE", help="folder or URL of the store")]
Text = str | None


@dataclass(frozen=True)
class EmbedFlags:
    """What `orbit run` and `orbit embed` take. None and False: not given, so that the
    environment (ORBIT_WORKERS=4) and the TOML file of --config are asked."""

    source: Annotated[
        Text,
        typer.Argument(
            metavar="INPUT", help="folder or URL of tar or Parquet shards, or of images"
        ),
    ] = None
    model: Annotated[
        Text, typer.Option(metavar="MODEL", help="shipped name (orbit models), folder or URL")
    ] = None
    out: Annotated[Text, typer.Option(metavar="STORE", help="folder or URL of the store")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell the plan, change nothing")] = (
        False
    )
    limit: Annotated[
        int | None, typer.Option(help="embed so many shards at most; the others next time")
    ] = None
    workers: Annotated[
        Text, typer.Option(metavar="MIN[:MAX]", help="Ray actors [default: what fits]")
    ] = None
    cpus_per_worker: Annotated[
        float | None, typer.Option(help="CPUs of each, which its torch threads follow")
    ] = None
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of each [default: 1 where there are GPUs]")
    ] = None
    memory_per_worker: Annotated[
        Text, typer.Option(metavar="SIZE", help="memory that Ray sets aside for each, such as 4G")
    ] = None
    ray: Annotated[
        Text, typer.Option(metavar="local|auto|URL", help="the Ray to work on [default: local]")
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(help="images encoded at once [default: measured, 256 at most]")
    ] = None
    precision: Annotated[
        Text,
        typer.Option(
            metavar="float32|bf16",
            help="of the encoder; bf16 is another model, with its own model_id [default: float32]",
        ),
    ] = None
    allow_inexact: Annotated[
        bool,
        typer.Option("--allow-inexact", help="bf16 also with an invariance error above 1e-3"),
    ] = False
    reduced_jpeg: Annotated[
        bool,
        typer.Option(
            "--reduced-jpeg", help="decode JPEG straight to a smaller size: faster, not exact"
        ),
    ] = False
    compile: Annotated[
        bool,
        typer.Option("--compile", help="torch.compile, on CPUs for which there is no machine code"),
    ] = False
    image_column: Annotated[
        Text, typer.Option(help="Parquet column with the image bytes [default: image]")
    ] = None
    key_column: Annotated[Text, typer.Option(help="Parquet column with the keys")] = None
    label_column: Annotated[Text, typer.Option(help="Parquet column with the labels")] = None
    thumbnail_share: Annotated[
        float | None, typer.Option(help="share of the images kept as thumbnails [default: 1]")
    ] = None
    max_reject_share: Annotated[
        float | None, typer.Option(help="share of rejects past which it fails [default: 0.05]")
    ] = None
    max_attempts: Annotated[
        int | None, typer.Option(help="tries of a shard that fails [default: 4]")
    ] = None
    deadline: Annotated[
        float | None,
        typer.Option(help="seconds without progress after which a worker is stuck [default: 300]"),
    ] = None
    buckets: Annotated[
        int | None,
        typer.Option(help="hash buckets of a folder of images, fixed at first [default: 1024]"),
    ] = None
    new_model: Annotated[
        bool,
        typer.Option(
            "--new-model", help="embed with another model beside the live one; see --go-live"
        ),
    ] = False
    go_live: Annotated[
        bool,
        typer.Option("--go-live", help="with --new-model: let queries go over to it at once"),
    ] = False
    add_input: Annotated[
        Text,
        typer.Option(metavar="NAME", help="hold this INPUT too, its sources under NAME/"),
    ] = None
    allow_vanish: Annotated[
        bool,
        typer.Option("--allow-vanish", help="drop rows though a fifth of the shards is gone"),
    ] = False
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file with any of these settings")
    ] = None

    def settings(self) -> "EmbedSettings":
        """Flags over environment over file over defaults. SettingsError where one does not fit."""
        from pipelines.config import settings_from

        given = {
            name: value
            for name, value in vars(self).items()
            if value is not None and value is not False
        }
        named = {"source": "input", "out": "store", "deadline": "deadline_s"}
        file = given.pop("config", None)
        return settings_from({named.get(name, name): v for name, v in given.items()}, file=file)
