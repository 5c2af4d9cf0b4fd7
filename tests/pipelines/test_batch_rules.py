"""Settings, and what is refused or never deleted: without Ray, without a model."""

from pathlib import Path

import pytest

from pipelines import guards
from pipelines.config import EmbedSettings, settings_from
from pipelines.errors import InputError, ListingError, ModelMismatchError, SettingsError, StoreError
from pipelines.shards import Item, Shard
from pipelines.storage import Folder
from pipelines.summary import EmbedSummary, Planned, RunSummary
from pipelines.table import Counts, EmbeddingTable, TableIdentity

PLACES = {"input": "in", "model": "d4-28-grey", "store": "out"}
FIELDS = {
    "num_seen", "num_embedded", "num_rejected", "num_added", "num_removed", "num_encoded",
    "num_damaged_shards", "images_per_s", "efficiency", "efficiency_total", "startup_s",
    "steady_s", "commit_s", "elapsed_s", "limit", "model_id", "table_version",
    "fetch_per_s", "decode_per_s", "model_per_s", "core_us",
}  # fmt: skip


def test_flags_go_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "orbit.toml"
    file.write_text('workers = "1"\nlimit = 7\nmax_attempts = 9\n')
    environment = {"ORBIT_WORKERS": "2", "ORBIT_LIMIT": "8", "ORBIT_ALLOW_VANISH": "true"}
    found = settings_from(PLACES | {"workers": "3:4"}, environment, file)
    assert (found.workers, found.limit, found.max_attempts) == ("3:4", 8, 9)
    assert found.allow_vanish is True
    assert found.batch_size is None
    assert settings_from(PLACES, {"ORBIT_BATCH_SIZE": "64"}).batch_size == 64


@pytest.mark.parametrize(
    ("flags", "environment", "toml", "message"),
    [
        ({"limit": 0}, {}, "", "--limit 0: expected 1 or more"),
        ({"thumbnail_share": 2.0}, {}, "", "--thumbnail-share 2.0: expected a share"),
        ({"ray": "remote"}, {}, "", "--ray remote: expected local, auto or an address"),
        ({"deadline_s": 0.0}, {}, "", "--deadline 0.0: expected 0.1 or more"),
        ({}, {"ORBIT_LIMIT": "many"}, "", "ORBIT_LIMIT=many: expected int"),
        ({}, {"ORBIT_NEW_MODEL": "maybe"}, "", "ORBIT_NEW_MODEL=maybe: expected bool"),
        ({}, {}, "colour = 1", "no setting 'colour'"),
        ({}, {}, "colour =", "not readable as TOML"),
        ({"model": None}, {}, "", "missing --model, expected for example"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, flags: dict[str, object], environment: dict[str, str], toml: str, message: str
) -> None:
    file = tmp_path / "orbit.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError) as caught:
        settings_from(PLACES | flags, environment, file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def folder_shard(source: str, count: int) -> Shard:
    items = tuple(Item(f"{source}/{n}.png", "e", 1) for n in range(count))
    return Shard(source, "e", count, "folder", items)


def test_the_missing_share_counts_shards_and_for_folders_images() -> None:
    known = {f"s{n}": 10 for n in range(10)}
    tars = [Shard(f"s{n}", "e", 1, "tar") for n in range(10)]
    assert guards.missing_share(tars, known) == 0
    assert guards.missing_share(tars[3:], known) == pytest.approx(0.3)
    assert guards.missing_share([], known) == 1
    buckets = [folder_shard(f"s{n}", 5) for n in range(10)]
    assert guards.missing_share(buckets, known) == pytest.approx(0.5)


class KnownTable:
    """What the guards ask of a table."""

    identity = TableIdentity("m", "/data/a", 4, 2, "d4")

    def __init__(self, tmp_path: Path, sources: int) -> None:
        class File:
            num_seen = 1

        self._known = {f"s{n}": File() for n in range(sources)}

    def known(self) -> object:
        return self._known


@pytest.mark.parametrize(("left", "allowed"), [(8, True), (7, False), (0, False)])
def test_a_listing_that_lacks_more_than_a_fifth_is_not_believed(
    tmp_path: Path, left: int, allowed: bool
) -> None:
    table: EmbeddingTable = KnownTable(tmp_path, 10)  # type: ignore[assignment]
    shards = [Shard(f"s{n}", "e", 1, "tar") for n in range(left)]
    if allowed:
        guards.check_listing("in", shards, table, False)
        return
    with pytest.raises(ListingError, match="nothing was removed") as caught:
        guards.check_listing("in", shards, table, False)
    assert caught.value.exit_code == 1
    guards.check_listing("in", shards, table, True)


def test_an_empty_bucket_is_refused_for_a_new_store() -> None:
    with pytest.raises(InputError, match="no tar, Parquet or image file found") as caught:
        guards.check_listing("in", [], None, False)
    assert caught.value.exit_code == 2


def test_another_input_and_another_model_are_refused(tmp_path: Path) -> None:
    table: EmbeddingTable = KnownTable(tmp_path, 1)  # type: ignore[assignment]
    guards.check_input(table, "/data/a")
    with pytest.raises(InputError, match="made from /data/a"):
        guards.check_input(table, "/data/b")
    store = Folder(str(tmp_path))
    guards.check_model(store, None, "a", False)
    guards.check_model(store, "a", "a", False)
    guards.check_model(store, "b", "a", True)
    with pytest.raises(ModelMismatchError, match="made with model b, a was given"):
        guards.check_model(store, "b", "a", False)


def test_a_store_is_an_empty_folder_or_a_store_outside_input(tmp_path: Path) -> None:
    source = Folder(str(tmp_path / "in"))
    guards.check_places(source, Folder(str(tmp_path / "new")))
    guards.check_places(source, Folder(str(tmp_path / "no" / "such" / "store")))
    guards.check_places(source, Folder("s3://bucket/store"))
    (tmp_path / "in" / "x").mkdir(parents=True)
    (tmp_path / "in-store").mkdir()
    guards.check_places(source, Folder(str(tmp_path / "in-store")))
    file = tmp_path / "file"
    file.write_text("")
    for place, message in (
        (tmp_path / "in" / "store", "inside INPUT"),
        (tmp_path / "in", "inside INPUT"),
        (file, "a file was found"),
        (tmp_path / "file" / "store", "is a file, a folder expected"),
        (tmp_path, "neither a store nor an empty folder"),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            guards.check_places(source, Folder(str(place)))
        assert caught.value.exit_code == 2


def test_the_summary_has_the_fields_of_the_design() -> None:
    nothing = EmbedSummary("m", 3, Counts(5, 4, 1, 0, 2), Planned(0, 0, 0, 2, 0))
    document = nothing.as_dict()
    assert set(document) == FIELDS
    assert document["num_seen"] == 5
    assert document["images_per_s"] is document["efficiency"] is document["limit"] is None
    run = RunSummary(nothing, 0.99, "p1", "/store/report.html").as_dict()
    assert set(run) == FIELDS | {"recall_at_10", "publication", "report"}
    assert EmbedSettings(**PLACES).max_attempts == 4
