"""Catalogs: opening them, which of their collections serves a source, and searching."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlparse, urlsplit

import pystac
from pystac_client import Client

from aefcli.errors import BadInput, RemoteFailed, unknown
from aefcli.extent import BBox, Period
from aefcli.sources import INPUTS, SOURCES, Source
from aefcli.stac.hrefs import plain, public, vet
from aefcli.stac.table import Table, boxes
from aefcli.stac.web import MOST_TABLE, ApiIO, StaticIO, Web, reaching, read_local

NAMED = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
}
# Buckets in which a named catalog's files lie: those whose reader pays, by collection, and those that anybody reads.
_PAID = {
    "earth-search": {
        "landsat-c2-l2": "usgs-landsat",
        "sentinel-2-l1c": "sentinel-s2-l1c",
        "sentinel-1-grd": "sentinel-s1-l1c",
    }
}
_OPEN = {"earth-search": ("copernicus-dem-30m", "copernicus-dem-90m")}
_FILES = "no catalog has it: it comes from files, by aef attach"
_PAGE = 100  # earth-search answers 502 on large pages
_MOST_PAGES = 10_000


@dataclass(frozen=True)
class Offer:
    """What a catalog has for one source."""

    source: str
    collections: tuple[str, ...]  # that can serve it, the best first
    default: str  # the one that is read unless another is named; empty where there is none
    note: str  # why it is barred or absent, or what is special; empty where there is nothing to say


@dataclass(frozen=True)
class Catalog:
    """A catalog that was opened: `reference` as typed and `href` of its root, both without what is secret in them."""

    reference: str
    href: str
    root: Client | pystac.Catalog | tuple[pystac.Item, ...] | Table

    @property
    def known(self) -> str:
        """Its name among the named catalogs, also where its address was typed; empty for others."""
        return next((name for name, href in NAMED.items() if self.href.rstrip("/") == href), "")

    @cached_property
    def collections(self) -> frozenset[str]:
        """The ids of the collections it lists."""
        if isinstance(self.root, tuple):
            return frozenset(item.collection_id or "" for item in self.root)
        with reaching(self.href):
            if isinstance(self.root, Table):
                return self.root.collections()
            if isinstance(self.root, Client):
                return frozenset(_until_repeated(found.id for found in self.root.get_collections()))
            return frozenset(child.id for child in _walk(self.root) if isinstance(child, pystac.Collection))

    def collection_of(self, source: Source) -> str | None:
        """The collection to read this source from: the first of its own that the catalog lists."""
        return next((name for name in source.collections if name in self.collections), None)

    def offers(
        self, overrides: Mapping[str, str] | None = None, sources: Collection[str] = ()
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Collections by source: of those that can be read here and now, and why of the others.

        It speaks of `sources`; if none are named, of the inputs and of those in `overrides`, which names the collection
        of some: one that the catalog does not list is refused.
        """
        overrides = overrides or {}
        for name, collection in overrides.items():
            if name not in SOURCES:
                raise unknown("source", name, SOURCES)
            if collection not in self.collections:
                raise unknown(f"collection of {self.reference}", collection, self.collections)
        free, other = {}, {}
        for name in sources or dict.fromkeys((*INPUTS, *overrides)):
            source = SOURCES[name]
            chosen = overrides[name] if name in overrides else self.collection_of(source)
            if chosen is None:
                none = f"the catalog has none of {', '.join(source.collections)}"
                other[name] = none if source.collections else _FILES
            elif reason := self._barred(chosen):
                other[name] = reason
            else:
                free[name] = chosen
        return free, other

    def listing(self) -> list[Offer]:
        """What this catalog has for each source of the table."""
        free, other = self.offers(sources=SOURCES)
        found = []
        for name, source in SOURCES.items():
            there = tuple(known for known in (*source.collections, *source.knowingly) if known in self.collections)
            notes = [other[name]] if name in other else []
            notes += [f"only if named: {known}" for known in source.knowingly if known in there]
            notes += [why for known in there if (why := self._barred(known)) and why not in notes]
            found.append(Offer(name, there, free.get(name, ""), "; ".join(notes)))
        return found

    def _barred(self, collection: str) -> str:
        """Why a collection cannot be read now, or nothing."""
        if collection not in _PAID.get(self.known, {}):
            return ""
        missing = missing_credentials()
        return f"{collection} is paid for by its reader: set {missing}" if missing else ""

    def search(self, collection: str, bbox: BBox, period: Period | None) -> list[pystac.Item]:
        """Items of one collection that touch the box and lie in the period, each id once, hrefs absolute.

        Without a period all of them: a static source (`Source.static`) is searched so, and `keep` chooses the years.
        """
        with reaching(self.href):
            found = {item.id: sound(item) for item in self._candidates(collection, bbox, period)}
            items = [item for item in found.values() if period is None or period.start <= instant(item) < period.end]
            for item in items:
                item.make_asset_hrefs_absolute()
                for asset in item.assets.values():
                    asset.href = self._over_https(asset.href)
            return [item for item in items if _touches(item, bbox)]

    def _over_https(self, href: str) -> str:
        """The web address of what lies in a bucket that anybody may read."""
        match = re.fullmatch(r"s3://([a-z0-9.-]+)/([^?#]+)", href)
        if match and match[1] in _OPEN.get(self.known, ()):
            return f"https://{match[1]}.s3.amazonaws.com/{match[2]}"
        return href

    def _candidates(self, collection: str, bbox: BBox, period: Period | None) -> Iterator[pystac.Item]:
        if isinstance(self.root, tuple):
            yield from (item for item in self.root if (item.collection_id or "") == collection)
        elif isinstance(self.root, Table):
            yield from self.root.items(collection, bbox, period)
        elif isinstance(self.root, Client):
            for box in boxes(bbox):
                yield from _pages(self.root, collection, box, period)
        else:
            for child in _walk(self.root):
                if isinstance(child, pystac.Collection) and child.id == collection:
                    for part in _walk(child):  # many lay them out by year or tile
                        yield from part.get_items()

    def vet(self, href: str) -> str:
        """The href if it may be opened; else BadInput. Where the reader pays, an address in that bucket may be."""
        match = re.fullmatch(r"s3://([a-z0-9.-]+)/([\w./=-]+)", href, re.ASCII)
        if match and match[1] in _PAID.get(self.known, {}).values() and ".." not in match[2]:
            return href
        return vet(href, self.href)


def missing_credentials() -> str:
    """The variables of AWS that are wanting where the reader pays, by name; nothing where none is."""
    missing = []
    if os.environ.get("AWS_REQUEST_PAYER") != "requester":
        missing.append("AWS_REQUEST_PAYER=requester")
    home = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    keys = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not os.environ.get(name)]
    if keys and not home.is_file():
        missing.append(f"{' and '.join(keys)} (or AWS_PROFILE and its file)")
    return ", ".join(missing)


# ---------------------------------------------------------------- opening


def open_catalog(reference: str) -> Catalog:
    """Open a named catalog, a STAC API, or a static catalog, collection, item collection or stac-geoparquet file.

    `reference` is a name, a path or a URL. What its query holds goes to its own origin and to nobody else.
    """
    typed = NAMED.get(reference, reference)
    try:
        parts = urlparse(typed)
        local = parts.scheme not in ("http", "https")
        there = not local or Path(typed).is_file()
    except (ValueError, OSError) as error:  # half a host in brackets, a name too long for a file
        raise BadInput(f"--stac {_typed(reference)} is neither a path nor an address", "check it") from error
    if "@" in parts.netloc:
        raise BadInput("--stac holds a user name or password", "give the address without them")
    if not there:
        raise BadInput(
            f"--stac {_typed(reference)} is no file, URL or known catalog",
            f"known catalogs: {', '.join(sorted(NAMED))}",
        )
    href = str(Path(typed).resolve()) if local else public(typed)
    name = public(reference)
    web = Web(typed)
    with reaching(href):
        if _is_parquet(href):
            return Catalog(name, href, Table(href if local else web.get(typed, MOST_TABLE)))
        document = _parse(read_local(Path(href)) if local else web.get(typed), href)
        kind = document.get("type")
        if kind == "FeatureCollection":
            items = [_item(feature, href) for feature in document.get("features", [])]
            return Catalog(name, href, tuple(items))
        if "conformsTo" in document:
            return Catalog(name, href, Client.open(href, stac_io=ApiIO(web)))
        if kind in ("Catalog", "Collection"):
            opened = StaticIO(web).stac_object_from_dict(document, href=href)
            assert isinstance(opened, pystac.Catalog)
            opened._stac_io = StaticIO(web)  # else linked files are read by pystac's own, whatever they are
            opened.set_root(opened)
            return Catalog(name, href, opened)
    raise BadInput(f"--stac {name!r} is not STAC: it holds {kind or 'no type'}", "give a catalog or an API's root")


def _typed(reference: str) -> str:
    """What was typed and is nothing, as it may be shown: it may be an address with keys whose https:// is missing."""
    bare = plain(reference).rpartition("@")[2]
    return repr(bare if len(bare) <= 80 else bare[:77] + "...")


def _parse(text: bytes, href: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--stac {href!r} is not JSON", "give a STAC catalog or an API's root") from error
    if not isinstance(document, dict):
        raise BadInput(f"--stac {href!r} is not STAC: its JSON is no object")
    return document


def _item(feature: dict[str, Any], href: str) -> pystac.Item:
    """An item of a collection at `href`, to which its hrefs are relative if it does not say where it is."""
    item = sound(pystac.Item.from_dict(feature, preserve_dict=False))
    item.set_self_href(item.get_self_href() or href)
    return item


def sound(item: pystac.Item) -> pystac.Item:
    """The item, if what fetching reads of it is of the types that STAC demands. Raises ValueError or TypeError.

    pystac takes items as they are; what is wrong with one would come to light anywhere after.
    """
    from numpy import isfinite
    from shapely import get_coordinates
    from shapely.geometry import shape

    fields = [item.properties, *(asset.extra_fields for asset in item.assets.values())]
    for what, value, fits in (
        ("id", item.id, isinstance(item.id, str) and item.id),
        ("collection", item.collection_id, isinstance(item.collection_id, str | None)),
        ("bbox", item.bbox, item.bbox is None or (_numbers(item.bbox) and len(item.bbox) in (4, 6))),
        *(("href", asset.href, isinstance(asset.href, str)) for asset in item.assets.values()),
        *(
            (key, value[key], _numbers(value[key]) and len(value[key]) >= least)
            for value in fields
            for key, least in (("proj:transform", 6), ("proj:shape", 2), ("proj:bbox", 4))
            if value.get(key) is not None
        ),
        *(
            (key, value[key], isinstance(value[key], kind))
            for value in fields
            for key, kind in (("proj:epsg", int), ("proj:code", str), ("sat:orbit_state", str))
            if value.get(key) is not None
        ),
    ):
        if not fits:
            raise ValueError(f"the {what} of item {_typed(str(item.id))} is {_typed(repr(value))}")
    if item.geometry is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that are none
            if not isfinite(get_coordinates(shape(item.geometry))).all():
                raise ValueError(f"the geometry of item {_typed(item.id)} holds numbers that are not finite")
    return item


def _numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and abs(value) < 1e300 for value in values
    )


def _is_parquet(href: str) -> bool:
    return urlsplit(href).path.lower().endswith((".parquet", ".geoparquet"))


def instant(item: pystac.Item) -> int:
    """When the item was acquired, in ms since 1970 UTC; the start where it names a range."""
    from aefcli.extent import to_ms

    when = item.datetime or item.common_metadata.start_datetime
    if when is None:
        raise BadInput(f"item {item.id} has neither datetime nor start_datetime")
    return to_ms(when)


# ---------------------------------------------------------------- searching


def _pages(client: Client, collection: str, box: list[float], period: Period | None) -> Iterator[pystac.Item]:
    """Page through a search, and stop at a page that brings nothing new: some `next` links point to themselves.

    Asks to the period's very end: a search is closed and in whole seconds, and `search` drops what lies outside.
    """
    offered = {link.extra_fields.get("method", "GET") for link in client.get_links("search")}
    search = client.search(
        method="GET" if offered == {"GET"} else "POST",
        collections=[collection],
        bbox=box,
        datetime="/".join(f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in period.dates()) if period else None,
        limit=_PAGE,
    )
    seen: set[str] = set()
    for number, page in enumerate(search.pages(), 1):
        new = [item for item in page.items if item.id not in seen]
        if not new:
            return
        if number > _MOST_PAGES:
            raise RemoteFailed(f"the search for {collection} does not end: {len(seen)} items in {_MOST_PAGES} pages")
        seen.update(item.id for item in new)
        yield from new


def _until_repeated(names: Iterator[str]) -> Iterator[str]:
    """The names up to the first that comes again: lists of collections loop as searches do."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return
        seen.add(name)
        yield name


def _walk(root: pystac.Catalog) -> Iterator[pystac.Catalog]:
    """A static catalog and all below it, each once: links may lead back."""
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        catalog = waiting.pop()
        place = catalog.get_self_href() or str(id(catalog))
        if place not in seen:
            seen.add(place)
            yield catalog
            waiting += reversed(list(catalog.get_children()))


def _touches(item: pystac.Item, bbox: BBox) -> bool:
    from shapely.geometry import box, shape

    if item.geometry is None:
        return True
    outline = shape(item.geometry)
    return any(outline.intersects(box(*part)) for part in boxes(bbox))
