"""What an fsspec filesystem says of the objects below a path; an error is never an empty answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.addresses import SCHEMES
from pipelines.retries import is_missing, retried

PARALLEL_QUESTIONS = 16
Facts = dict[str, Any]
"""What fsspec tells of one object: name, size, type, and what its storage adds."""


def ask(fs: Any, full: str) -> Facts | None:
    """The facts of one object or folder, None when there is none. Once: nothing is retried."""
    fs.invalidate_cache()
    try:
        facts: Facts = fs.info(full)
    except FileNotFoundError as error:
        if is_missing(error):
            return None
        raise
    return facts


def listed(fs: Any, root: str, scheme: str, url: str) -> dict[str, Facts]:
    """Every object below ``root`` by its full name; {} if there is nothing."""
    if scheme in ("http", "https"):
        return _linked(fs, root, url)

    def find() -> dict[str, Facts]:
        fs.invalidate_cache()
        try:
            if scheme in SCHEMES:  # one paged listing; these raise what goes wrong
                found = fs.find(root, detail=True)
            else:  # find() would leave out what cannot be listed
                walked = fs.walk(root, detail=True, on_error="raise")
                found = {facts["name"]: facts for *_, files in walked for facts in files.values()}
        except FileNotFoundError as error:
            if is_missing(error):
                return {}
            raise
        return {name: facts for name, facts in found.items() if facts.get("type") == "file"}

    return retried(find, url)


def has_bucket(fs: Any, full: str) -> bool:
    """Whether a bucket is there: listing it says why it cannot be used. Once."""
    try:
        fs.ls(full, detail=True)
    except FileNotFoundError as error:
        if is_missing(error):
            return False
        raise
    return True


def _linked(fs: Any, root: str, url: str) -> dict[str, Facts]:
    """Every file that an http folder links to. A page of links says nothing of their content, so
    each file is asked for.
    """
    page = retried(lambda: ask(fs, root), url)
    if page is None or not str(page.get("mimetype", "")).startswith("text/html"):
        return {}

    def names() -> list[str]:
        walked = fs.walk(root + "/", detail=True, on_error="raise")
        return [facts["name"] for *_, files in walked for facts in files.values()]

    def facts_of(name: str) -> Facts | None:
        return retried(lambda: ask(fs, name), name)

    with ThreadPoolExecutor(PARALLEL_QUESTIONS) as threads:
        found = retried(names, url)
        return {n: f for n, f in zip(found, threads.map(facts_of, found), strict=True) if f}
