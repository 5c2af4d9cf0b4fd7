"""`orbit query`: the nearest images of a store to images, or to keys it holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from eqmodel.errors import ChannelError, Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.images import STDIN, check_named, read_images
from jobs.table import table

if TYPE_CHECKING:
    from pipelines.search import Hit, Searcher

BATCH = 256
"""Query images held in memory at once."""


def search(
    searcher: "Searcher", images: Sequence[str], keys: Sequence[str], k: int, align: bool
) -> list[tuple[str, "list[Hit]"]]:
    """(query, its neighbours) for each image, then for each key, in the order asked."""
    found: list[tuple[str, list[Hit]]] = []
    for start in range(0, len(images), BATCH):
        names = images[start : start + BATCH]
        pixels = list(read_images(names))
        check_channels(searcher, names, pixels)
        hits = searcher.search(pixels, k, align=align)
        found.extend(zip(names, hits, strict=True))
    if keys:
        found.extend(zip(keys, searcher.search_keys(list(keys), k, align=align), strict=True))
    return found


def check_channels(
    searcher: "Searcher", names: Sequence[str], images: Sequence[NDArray[Any]]
) -> None:
    """ChannelError that names the image which does not fit the store's model."""
    for name, image in zip(names, images, strict=True):
        try:
            searcher.embedder.accepts(image)
        except ChannelError as error:
            raise ChannelError(f"'{name}': {error}") from error


def as_document(found: "Sequence[tuple[str, list[Hit]]]") -> dict[str, Any]:
    """The JSON object of design: results in the order asked."""
    return {
        "results": [
            {"query": query, "neighbours": [hit.as_dict() for hit in hits]} for query, hits in found
        ]
    }


def as_text(found: "Sequence[tuple[str, list[Hit]]]") -> str:
    """One table per query, best first."""
    return "\n\n".join(f"{query}\n{neighbours(hits)}" for query, hits in found)


def neighbours(hits: "Sequence[Hit]", indent: str = "  ") -> str:
    """A table of neighbours: rank, score, where the image is, and its turn when it was asked."""
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


def draw(
    searcher: "Searcher",
    path: Path,
    images: Sequence[str],
    found: "Sequence[tuple[str, list[Hit]]]",
) -> None:
    """Write the contact sheet: a row per query; one asked by key has no picture of its own."""
    from pipelines.sheet import MAX_ROWS, write_sheet

    shown = [name for name in images if name != STDIN][:MAX_ROWS]
    pictures = dict(zip(shown, read_images(shown), strict=True))
    rows = [(pictures.get(query), hits) for query, hits in found]
    hits = [hit for _, answers in rows[:MAX_ROWS] for hit in answers]
    write_sheet(path, rows, searcher.thumbnails(hits))


@verb("orbit query STORE photo.png")
def query(
    store: Annotated[str, typer.Argument(metavar="STORE", help="folder or URL of the store")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help="image files; - reads one from standard input"),
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
    as_json: Json = False,
) -> Answer:
    """Find the nearest images of a store, whatever way up they are."""
    names, keys = images or [], key or []
    if not names and not keys:
        raise Refused("nothing to search for: name image files after STORE, or a key with --key")
    check_named(names)
    from pipelines.search import Searcher

    searcher = Searcher.open(store)
    found = search(searcher, names, keys, k, align or sheet is not None)
    if sheet is not None:
        draw(searcher, sheet, names, found)
    return Answer(as_document(found), as_text(found))


if __name__ == "__main__":
    run_alone(query)
