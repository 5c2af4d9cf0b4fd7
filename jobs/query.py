"""`orbit query`: the nearest images of a store to images, or to keys it holds."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from eqmodel.errors import ChannelError, Refused
from jobs.answers import Writer, check_out
from jobs.console import Answer, Json, run_alone, verb
from jobs.images import check_named, expand, read_images
from jobs.table import table

if TYPE_CHECKING:
    from pipelines.errors import IncompleteError
    from pipelines.search import Hit, Only, Searcher

BATCH = 256
"""Query images held in memory at once."""


@dataclass(frozen=True)
class Wish:
    """How many neighbours, turned or not, and which count."""

    k: int
    align: bool
    only: "Only"
    min_score: float | None

    def asked(self) -> dict[str, Any]:
        """As the searcher takes it."""
        return {
            "k": self.k,
            "align": self.align,
            "only": self.only,
            "min_score": self.min_score,
        }


def search(
    searcher: "Searcher",
    images: Sequence[str],
    inside: Collection[str],
    keys: Sequence[str],
    wish: Wish,
) -> "Iterator[list[tuple[str, list[Hit] | str]]]":
    """Batches of (query, its neighbours): each image, then each key, in the order asked.

    An image that cannot be read is Refused, but for one that was found in a folder.
    """
    for start in range(0, len(images), BATCH):
        names = images[start : start + BATCH]
        answers: dict[str, list[Hit] | str] = {}
        pixels: dict[str, NDArray[Any]] = {}
        for name in names:
            try:
                (pixels[name],) = read_images([name])
                check_channels(searcher, name, pixels[name])
            except (Refused, OSError) as error:
                if name not in inside:
                    raise
                pixels.pop(name, None)
                answers[name] = " ".join(str(error).split())
        hits = searcher.search(list(pixels.values()), **wish.asked())
        answers |= dict(zip(pixels, hits, strict=True))
        yield [(name, answers[name]) for name in names]
    for start in range(0, len(keys), BATCH):
        part = list(keys[start : start + BATCH])
        yield list(zip(part, searcher.search_keys(part, **wish.asked()), strict=True))


def check_channels(searcher: "Searcher", name: str, image: NDArray[Any]) -> None:
    """ChannelError that names the image which does not fit the store's model."""
    try:
        searcher.embedder.accepts(image)
    except ChannelError as error:
        raise ChannelError(f"'{name}': {error}") from error


def as_document(found: "Sequence[tuple[str, list[Hit] | str]]") -> dict[str, Any]:
    """The JSON object of design: results in the order asked."""
    return {
        "results": [
            {"query": query, "neighbours": [], "error": hits}
            if isinstance(hits, str)
            else {"query": query, "neighbours": [hit.as_dict() for hit in hits]}
            for query, hits in found
        ]
    }


def as_text(found: "Sequence[tuple[str, list[Hit] | str]]") -> str:
    """One table per query, best first."""
    parts = [
        f"{query}\n{f'  {hits}' if isinstance(hits, str) else neighbours(hits)}"
        for query, hits in found
    ]
    return "\n\n".join(parts)


def neighbours(hits: "Sequence[Hit]", indent: str = "  ") -> str:
    """A table of neighbours: rank, score, where the image is, and its turn when it was asked."""
    if not hits:
        return f"{indent}no image passes"
    posed = any(hit.pose is not None for hit in hits)
    header = ["", "score", "key", "source", "label", "cluster", *(["pose"] if posed else [])]
    rows = [
        [str(rank), f"{hit.score:.4f}", hit.key, hit.source, hit.label or "-", cluster(hit)]
        + ([pose_text(hit.pose)] if posed else [])
        for rank, hit in enumerate(hits, start=1)
    ]
    return table(header, rows, indent)


def cluster(hit: "Hit") -> str:
    return "-" if hit.cluster is None else str(hit.cluster)


def pose_text(pose: dict[str, Any] | None) -> str:
    """How the hit is turned to become the query, in words."""
    if pose is None:
        return "-"
    angle = f"{pose['angle_degrees']:g} deg"
    if not pose["mirror"]:
        return "as it is" if pose["angle_degrees"] == 0 else f"turned {angle}"
    return "mirrored" if pose["angle_degrees"] == 0 else f"mirrored, turned {angle}"


def draw(searcher: "Searcher", path: Path, found: "Sequence[tuple[str, list[Hit] | str]]") -> None:
    """Write the contact sheet: a row per query; one asked by key has the picture of its image."""
    from pipelines.sheet import MAX_ROWS, write_sheet

    asked = [(query, hits) for query, hits in found if not isinstance(hits, str)]
    rows = [(picture_of(searcher, query), hits) for query, hits in asked[:MAX_ROWS]]
    rows += [(None, hits) for _, hits in asked[MAX_ROWS:]]
    shown = [hit for _, hits in rows[:MAX_ROWS] for hit in hits]
    write_sheet(path, rows, searcher.thumbnails(shown))


def picture_of(searcher: "Searcher", query: str) -> "Any":
    """The pixels of an image, the thumbnail of a key."""
    try:
        return next(iter(read_images([query])))
    except (Refused, OSError):
        return searcher.picture_of_key(query)


def report(
    found: "Sequence[tuple[str, list[Hit] | str]]", num_failed: int, words: str
) -> "IncompleteError | None":
    """The error of a folder in which some images could not be read."""
    from pipelines.errors import IncompleteError

    first = next((f"{name}: {hits}" for name, hits in found if isinstance(hits, str)), "")
    if not num_failed:
        return None
    told = "1 image" if num_failed == 1 else f"{num_failed:,} images"
    return IncompleteError(f"{told} could not be asked; the first: {first}{words}")


@dataclass(frozen=True)
class Filters:
    """Which images count."""

    label: Annotated[str | None, typer.Option(help="only images with this label")] = None
    source: Annotated[str | None, typer.Option(help="only images of this shard")] = None
    cluster: Annotated[int | None, typer.Option(help="only images in this cluster")] = None
    min_score: Annotated[
        float | None, typer.Option(min=-1.0, max=1.0, help="none that scores less")
    ] = None


@verb("orbit query STORE photo.png")
def query(
    store: Annotated[str, typer.Argument(metavar="STORE", help="folder or URL of the store")],
    filters: Filters,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="image files, or folders of them; - reads one from standard input",
        ),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="search from an image of the store, by its key")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="neighbours per query")] = 10,
    align: Annotated[
        bool, typer.Option("--align", help="tell how each neighbour is turned to match")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="write a contact sheet of the answers to this PNG")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="write the answers to this .parquet or .jsonl instead"),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Find the nearest images of a store, whatever way up they are."""
    names, keys = images or [], key or []
    if not names and not keys:
        raise Refused("nothing to search for: name image files after STORE, or a key with --key")
    names, inside = expand(names)
    check_named(names)
    if out is not None:
        check_out(out)
    from pipelines.search import Only, Searcher

    searcher = Searcher.open(store)
    only = Only(filters.label, filters.source, filters.cluster)
    wish = Wish(k, align or sheet is not None, only, filters.min_score)
    batches = search(searcher, names, inside, keys, wish)
    if out is not None:
        return written(out, batches, searcher, sheet)
    found = [answer for batch in batches for answer in batch]
    if sheet is not None:
        draw(searcher, sheet, found)
    failed = sum(isinstance(hits, str) for _, hits in found)
    return Answer(as_document(found), as_text(found), report(found, failed, ""))


def written(
    out: Path,
    batches: "Iterator[list[tuple[str, list[Hit] | str]]]",
    searcher: "Searcher",
    sheet: Path | None,
) -> Answer:
    """Write the answers to a file, batch by batch, and tell how many there are."""
    from pipelines.sheet import MAX_ROWS

    shown: list[tuple[str, list[Hit] | str]] = []
    failed: list[tuple[str, list[Hit] | str]] = []
    with Writer(out) as writer:
        for batch in batches:
            writer.write(batch)
            shown += batch[: MAX_ROWS - len(shown)] if sheet is not None else []
            failed += [answer for answer in batch if isinstance(answer[1], str)][: 1 - len(failed)]
    if sheet is not None:
        draw(searcher, sheet, shown)
    told = f"{out}: {writer.num_neighbours:,} neighbours of {writer.num_queries:,} queries"
    words = f"; the others are in {out}"
    return Answer(writer.as_document(), told, report(failed, writer.num_failed, words))


if __name__ == "__main__":
    run_alone(query)
