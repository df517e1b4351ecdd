"""Catalogs and searches: from what the user typed to STAC items.

Owns the named catalogs, the three shapes a catalog comes in (API, static, item collection), searching with
retries and bounds, and which hrefs may be opened. Reads no pixels. Only this module and `cube` reach the network.
Traps and their sources: `sources.md`.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlparse

import pystac
import requests
from pystac.stac_io import DefaultStacIO
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from aefcli.errors import AefError, BadInput, RemoteFailed
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
        """Sources by collection: those that anybody can read, and those that are not, with the reason.

        Sources that no catalog has are in neither.
        """
        barred = _NEEDS_CREDENTIALS.get(self.reference, {})
        free, other = {}, {}
        for name, source in SOURCES.items():
            if not source.collections:
                continue
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
            for child, _, _ in self.root.walk():
                if isinstance(child, pystac.Collection) and child.id == collection:
                    yield from child.get_items(recursive=True)  # many lay them out by year or tile

    def vet(self, href: str) -> str:
        """The href if it may be opened; else BadInput."""
        return _vet(href, self.href)


def _vet(href: str, home: str) -> str:
    """The href if a catalog at `home` may name it: https, the catalog's own host, or inside its folder on disk."""
    try:
        parts, base = urlparse(href), urlparse(home)
        host = parts.hostname or ""
    except ValueError as error:
        raise BadInput(f"the catalog names {href!r}, which is no address: {error}") from error
    if any(ord(letter) < 32 for letter in href) or "@" in parts.netloc or href.startswith("/vsi"):
        raise BadInput(f"the catalog names {href!r}, which is no plain file or https address")
    at_home = host != "" and host == base.hostname
    if parts.scheme == "https" and (at_home or _is_public(host)):
        return href
    if parts.scheme == "http" == base.scheme and at_home:
        return href
    if parts.scheme == "" == base.scheme and Path(href).is_absolute():
        inside = Path(home).resolve().parent
        if Path(href).resolve().is_relative_to(inside):
            return href
    raise BadInput(
        f"the catalog names {href!r}, which lies outside of it",
        "hrefs must be https to a public host, or inside the catalog's folder",
    )


def _is_public(host: str) -> bool:
    """False for this machine and private networks, in any spelling that a resolver takes for a number."""
    name = host.rstrip(".")
    if not name.isascii() or "%" in name or name.endswith((".localhost", ".local", ".internal")):
        return False
    try:
        address = ipaddress.ip_address(name if ":" in name else socket.inet_aton(name))
    except (OSError, ValueError):
        return "." in name  # a name; one of a single label is of the local network
    return (getattr(address, "ipv4_mapped", None) or address).is_global


def open_catalog(reference: str) -> Catalog:
    """Open a named catalog, a STAC API, or a static catalog, collection or item collection (path or URL)."""
    href = NAMED.get(reference, reference)
    if "@" in urlparse(href).netloc:
        raise BadInput("--stac holds a user name or password", "give the address without them")
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
            return Catalog(reference, href, Client.open(href, stac_io=_ApiIO(href)))
        if kind in ("Catalog", "Collection"):
            opened = pystac.STACObject.from_file(href, stac_io=_StaticIO(href))
            assert isinstance(opened, pystac.Catalog)
            opened._stac_io = _StaticIO(href)  # else linked files are read by pystac's own, whatever they are
            opened.set_root(opened)
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
    """Page through a search, and stop at a page that brings nothing new: some `next` links point to themselves.

    Asks to the period's very end: a search is closed and in whole seconds, and `search` drops what lies outside.
    """
    start, end = (f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in period.dates())
    offered = {link.extra_fields.get("method", "GET") for link in client.get_links("search")}
    search = client.search(
        method="GET" if offered == {"GET"} else "POST",
        collections=[collection],
        bbox=box,
        datetime=f"{start}/{end}",
        limit=_PAGE,
    )
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


class _ApiIO(StacApiIO):
    """pystac-client's requests, with retries and a timeout; `next` links and redirects are vetted."""

    def __init__(self, home: str) -> None:
        super().__init__(max_retries=_RETRY, timeout=_TIMEOUT)
        self.home = home
        self.session.hooks["response"].append(_vet_redirect)

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        _vet(source.href if isinstance(source, pystac.Link) else str(source), self.home)
        return super().read_text(source, *args, **kwargs)


class _StaticIO(DefaultStacIO):
    """Reads the files of a static catalog: those that it may name, and no others."""

    def __init__(self, home: str) -> None:
        super().__init__()
        self.home = home

    def read_text_from_href(self, href: str) -> str:
        _vet(href, self.home)
        return _get(href) if urlparse(href).scheme else Path(href).read_text()


def _read_json(href: str, local: bool) -> dict[str, Any]:
    with _reaching(href):
        try:
            document = json.loads(Path(href).read_text() if local else _get(href))
        except ValueError as error:
            raise BadInput(f"--stac {href!r} is not JSON", "give a STAC catalog or an API's root") from error
    if not isinstance(document, dict):
        raise BadInput(f"--stac {href!r} is not STAC: its JSON is no object")
    return document


def _get(href: str) -> str:
    with requests.Session() as session:
        session.mount("http", requests.adapters.HTTPAdapter(max_retries=_RETRY))
        session.hooks["response"].append(_vet_redirect)
        answer = session.get(href, timeout=_TIMEOUT)
        if answer.status_code in (401, 403):
            raise BadInput(f"{href} answers {answer.status_code}: it wants credentials")
        if 400 <= answer.status_code < 500:
            raise BadInput(f"{href} answers {answer.status_code}", "check the address")
        answer.raise_for_status()
        return answer.text


def _vet_redirect(response: requests.Response, **_: Any) -> None:
    if response.is_redirect:
        _vet(urljoin(response.url, response.headers["location"]), response.url)


class _reaching:
    """Turns what the libraries raise about an unreachable or broken catalog into one line."""

    def __init__(self, href: str) -> None:
        self.href = href

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pystac.STACError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # pystac hides what went wrong with a linked file
        if isinstance(error, AefError):
            raise error
        if isinstance(error, APIError | requests.RequestException | OSError):
            if isinstance(error, OSError) and not urlparse(self.href).scheme:
                raise BadInput(f"cannot read {self.href}: {error}") from error
            raise RemoteFailed(f"cannot read {self.href}: {error}", "run the same command again") from error
        # What pystac raises about documents that lack what STAC demands, or hold another type of it.
        if isinstance(
            error, pystac.STACError | pystac.STACTypeError | KeyError | ValueError | TypeError | AttributeError
        ):
            raise BadInput(f"{self.href} is not valid STAC: {error}") from error


def keep(items: list[pystac.Item], source: Source) -> tuple[list[pystac.Item], int]:
    """The items of the platforms that the source takes, and how many others there were."""
    wanted = [item for item in items if not source.platforms or item.properties.get("platform") in source.platforms]
    return wanted, len(items) - len(wanted)
