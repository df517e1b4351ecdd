"""Catalogs and searches: from what the user typed to STAC items.

Owns the named catalogs, the three shapes a catalog comes in (API, static, item collection), searching with
retries and bounds, and which hrefs may be opened. Reads no pixels. Only this module and `cube` reach the network.
Traps and their sources: `sources.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pystac
import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from aefcli.errors import BadInput, RemoteFailed
from aefcli.extent import BBox, Period
from aefcli.sources import SOURCES, Source

NAMED = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
}
# What a named catalog lists but gives only to those who pay for the requests.
_NEEDS_CREDENTIALS = {"earth-search": {"landsat-c2-l2": "AWS requester pays"}}
_TIMEOUT = (10, 60)  # seconds to connect, to read
_PAGE = 100  # earth-search answers 502 on large pages
_RETRY = Retry(
    total=6,
    backoff_factor=0.5,
    status_forcelist=[408, 429, 500, 502, 503, 504],
    allowed_methods=None,  # searches are POSTs, and repeat safely
    respect_retry_after_header=True,
)


@dataclass(frozen=True)
class Catalog:
    """A catalog that was opened: `reference` as typed, `href` of its root."""

    reference: str
    href: str
    root: Client | pystac.Catalog | tuple[pystac.Item, ...]

    @cached_property
    def collections(self) -> frozenset[str]:
        """The ids of the collections it lists."""
        if isinstance(self.root, tuple):
            return frozenset(item.collection_id or "" for item in self.root)
        with _reaching(self.href):
            if isinstance(self.root, Client):
                return frozenset(found.id for found in self.root.get_collections())
            return frozenset(child.id for child, _, _ in self.root.walk() if isinstance(child, pystac.Collection))

    def collection_of(self, source: Source) -> str | None:
        """The collection to read this source from: the first of its own that the catalog lists."""
        return next((name for name in source.collections if name in self.collections), None)

    def offers(self) -> tuple[dict[str, str], dict[str, str]]:
        """Sources by collection: those that anybody can read, and those that are not, with the reason."""
        barred = _NEEDS_CREDENTIALS.get(self.reference, {})
        free, other = {}, {}
        for name, source in SOURCES.items():
            collection = self.collection_of(source)
            if collection is None:
                other[name] = f"the catalog has none of {', '.join(source.collections)}"
            elif collection in barred:
                other[name] = f"{collection} needs credentials: {barred[collection]}"
            else:
                free[name] = collection
        return free, other

    def search(self, collection: str, bbox: BBox, period: Period) -> list[pystac.Item]:
        """Items of one collection that touch the box and lie in the period, each id once, hrefs absolute and vetted."""
        with _reaching(self.href):
            found = {item.id: item for item in self._candidates(collection, bbox, period)}
        items = [item for item in found.values() if period.start <= instant(item) < period.end]
        for item in items:
            item.make_asset_hrefs_absolute()
        return [item for item in items if _touches(item, bbox)]

    def _candidates(self, collection: str, bbox: BBox, period: Period) -> Iterator[pystac.Item]:
        if isinstance(self.root, tuple):
            yield from (item for item in self.root if item.collection_id == collection)
        elif isinstance(self.root, Client):
            for box in _boxes(bbox):
                yield from _pages(self.root, collection, box, period)
        else:
            for child, _, items in self.root.walk():
                if isinstance(child, pystac.Collection) and child.id == collection:
                    yield from items

    def vet(self, href: str) -> str:
        """The href if it may be opened: inside the folder of a catalog on disk, https, or the catalog's own host."""
        parts, home = urlparse(href), urlparse(self.href)
        if any(ord(letter) < 32 for letter in href) or parts.username or "/vsi" in href:
            raise BadInput(f"the catalog names {href!r}, which is no plain file or https address")
        if parts.scheme == "https" or (parts.scheme == "http" == home.scheme and parts.netloc == home.netloc):
            return href
        if parts.scheme == "" and home.scheme == "":
            inside = Path(self.href).resolve().parent
            if Path(href).resolve().is_relative_to(inside):
                return href
        raise BadInput(
            f"the catalog names {href!r}, which lies outside of it",
            "hrefs must be https or inside the catalog's folder",
        )


def open_catalog(reference: str) -> Catalog:
    """Open a named catalog, a STAC API, or a static catalog, collection or item collection (path or URL)."""
    href = NAMED.get(reference, reference)
    local = urlparse(href).scheme not in ("http", "https")
    if local and not Path(href).is_file():
        raise BadInput(
            f"--stac {reference!r} is no file, URL or known catalog",
            f"known catalogs: {', '.join(sorted(NAMED))}",
        )
    document = _read_json(href, local)
    if local:
        href = str(Path(href).resolve())
    kind = document.get("type")
    with _reaching(href):
        if kind == "FeatureCollection":
            collection = pystac.ItemCollection.from_dict(document)
            for item in collection.items:
                item.set_self_href(item.get_self_href() or href)
            return Catalog(reference, href, tuple(collection.items))
        if "conformsTo" in document:
            io = StacApiIO(max_retries=_RETRY, timeout=_TIMEOUT)
            return Catalog(reference, href, Client.open(href, stac_io=io))
        if kind in ("Catalog", "Collection"):
            opened = pystac.STACObject.from_file(href)
            assert isinstance(opened, pystac.Catalog)
            return Catalog(reference, href, opened)
    raise BadInput(f"--stac {reference!r} is not STAC: it holds {kind or 'no type'}", "give a catalog or an API's root")


def instant(item: pystac.Item) -> int:
    """When the item was acquired, in ms since 1970 UTC; the start where it names a range."""
    from aefcli.extent import to_ms

    when = item.datetime or item.common_metadata.start_datetime
    if when is None:
        raise BadInput(f"item {item.id} has neither datetime nor start_datetime")
    return to_ms(when)


def _pages(client: Client, collection: str, box: list[float], period: Period) -> Iterator[pystac.Item]:
    """Page through a search, and stop at a page that brings nothing new: some `next` links point to themselves."""
    search = client.search(collections=[collection], bbox=box, datetime=period.iso(), limit=_PAGE)
    seen: set[str] = set()
    for page in search.pages():
        new = [item for item in page.items if item.id not in seen]
        if not new:
            return
        seen.update(item.id for item in new)
        yield from new


def _boxes(bbox: BBox) -> list[list[float]]:
    """The box as one, or two across the antimeridian."""
    if bbox.west < bbox.east:
        return [[bbox.west, bbox.south, bbox.east, bbox.north]]
    return [[bbox.west, bbox.south, 180.0, bbox.north], [-180.0, bbox.south, bbox.east, bbox.north]]


def _touches(item: pystac.Item, bbox: BBox) -> bool:
    from shapely.geometry import box, shape

    if item.geometry is None:
        return True
    outline = shape(item.geometry)
    return any(outline.intersects(box(*part)) for part in _boxes(bbox))


def _read_json(href: str, local: bool) -> dict[str, Any]:
    with _reaching(href):
        try:
            text = Path(href).read_text() if local else _get(href)
            document = json.loads(text)
        except ValueError as error:
            raise BadInput(f"--stac {href!r} is not JSON", "give a STAC catalog or an API's root") from error
    if not isinstance(document, dict):
        raise BadInput(f"--stac {href!r} is not STAC: its JSON is no object")
    return document


def _get(href: str) -> str:
    with requests.Session() as session:
        session.mount("http", requests.adapters.HTTPAdapter(max_retries=_RETRY))
        answer = session.get(href, timeout=_TIMEOUT)
        if answer.status_code in (401, 403):
            raise BadInput(f"{href} answers {answer.status_code}: it wants credentials")
        answer.raise_for_status()
        return answer.text


class _reaching:
    """Turns what the libraries raise about an unreachable or broken catalog into one line."""

    def __init__(self, href: str) -> None:
        self.href = href

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pystac.STACTypeError | pystac.STACError | KeyError) and not isinstance(error, BadInput):
            raise BadInput(f"{self.href} is not valid STAC: {error}") from error
        if isinstance(error, APIError | requests.RequestException | OSError):
            raise RemoteFailed(f"cannot read {self.href}: {error}", "run the same command again") from error


def keep(items: list[pystac.Item], source: Source) -> tuple[list[pystac.Item], int]:
    """The items of the platforms that the source takes, and how many others there were."""
    wanted = [item for item in items if not source.platforms or item.properties.get("platform") in source.platforms]
    return wanted, len(items) - len(wanted)
