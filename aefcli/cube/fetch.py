"""Fetch: a request into a plan, a plan into lazy reads of an archive, written as a cube.

Sources: `sources.md`, `stores.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.derive import slope_and_aspect
from aefcli.cube.frames import DECIDED, Frame, frames_of, is_doubtful, keep, offset_of
from aefcli.cube.grid import check_gsd, coarser, factor, grid_attrs, grid_from, grid_of, shape_of
from aefcli.cube.grow import FinishedCube
from aefcli.cube.load import Loading, load
from aefcli.cube.offsets import doubts
from aefcli.cube.room import check_room, chunks_in, fewest
from aefcli.cube.store import open_cube
from aefcli.cube.write import FORMAT, Part, Parts, Progress, Stack, Work, Written, layers_of, masked, reach, write
from aefcli.errors import BadInput, Damaged, unknown
from aefcli.extent import BBox, Period, Tile, to_ms
from aefcli.sources import INPUTS, SOURCES, Band, Source

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from aefcli.stac import Catalog


_MARGIN = 0.001  # degrees beyond the box in which neighbours of its cells are looked for
_LOOK = (256, 256)  # cells of a coarse look at an item
_DEGREES, _METRES = 0.05, 111_320.0  # cells below the first are in degrees, each so many metres along a meridian


@dataclass(frozen=True)
class Request:
    """A fetch as typed. `grid`, if given, is the cube's and `bbox` its outline; `area` is WKT in degrees in the box."""

    catalog: str
    bbox: BBox
    period: Period
    sources: tuple[str, ...] = ()  # none: the inputs that the catalog offers without credentials
    gsd: float = 10.0
    crs: str | None = None
    resampling: str | None = None  # none: bilinear, or average where the asset is finer by 2 or more
    grid: GeoBox | None = None
    area: str | None = None
    collections: Mapping[str, str] = field(default_factory=dict)  # by source, instead of the usual ones
    bands: tuple[str, ...] = ()  # none: all; those of sources that have none of these too
    max_cloud: float | None = None  # per cent of an item, as its catalog states it
    loader: str = "odc"
    on_missing: str = "fail"  # or mask; no part of what a cube is, so that a fetch that failed goes on with it

    def as_dict(self) -> dict[str, Any]:
        """What makes a cube what it is, as plain JSON. What is left at its default is left out, but for the oldest."""
        from aefcli.stac import public

        later = {
            "grid": grid_attrs(self.grid) if self.grid is not None else None,
            "area": self.area,
            "collections": dict(sorted(self.collections.items())),
            "bands": sorted(self.bands),
            "max_cloud": self.max_cloud,
            "loader": self.loader if self.loader != "odc" else None,
        }
        return {
            "format": FORMAT,
            "catalog": public(self.catalog) if "://" in self.catalog else _resolved(self.catalog),
            "bbox": [self.bbox.west, self.bbox.south, self.bbox.east, self.bbox.north],
            "period": "/".join(when.isoformat() for when in self.period.dates()),
            "sources": sorted(self.sources),
            "gsd": float(self.gsd),
            "crs": self.crs,
            "resampling": self.resampling,
            **{key: value for key, value in later.items() if value not in (None, [], {})},
        }

    def with_attached(self, attached: Mapping[str, Any]) -> dict[str, Any]:
        """As `as_dict`, of a cube to which sources were attached."""
        return self.as_dict() | ({"attached": dict(attached)} if attached else {})

    @classmethod
    def from_dict(cls, request: Mapping[str, Any]) -> Request:
        """The request that `as_dict` wrote down."""
        from datetime import datetime

        start, end = (to_ms(datetime.fromisoformat(when)) for when in request["period"].split("/"))
        same = ("gsd", "crs", "resampling", "area", "collections", "max_cloud", "loader")
        return cls(
            catalog=request["catalog"],
            bbox=BBox(*request["bbox"]),
            period=Period(start, end),
            sources=tuple(request["sources"]),
            bands=tuple(request.get("bands", ())),
            grid=grid_from(request["grid"]) if "grid" in request else None,
            **{key: request[key] for key in same if key in request},
        )

    def source(self, name: str, collection: str) -> Source:
        """The source as this collection has it, with the bands that are asked for."""
        known = SOURCES[name].of(collection)
        asked = tuple(band for band in known.bands if band.name in self.bands)
        return replace(known, bands=asked or known.bands)


def _resolved(catalog: str) -> str:
    """A catalog's file by its whole path, whether it is there or not; the name of a known catalog as it is."""
    from aefcli.stac import NAMED

    return catalog if catalog in NAMED else os.path.realpath(catalog)


@dataclass(frozen=True)
class Fetched:
    """What a fetch ended with. `notes`: sources left out, with the reason; `missing`: assets that were masked."""

    path: Path
    frames: dict[str, int]
    items: int
    notes: tuple[str, ...]
    written: int  # units made by this call
    adopted: int = 0  # units taken from the cube that was there
    missing: tuple[str, ...] = ()


def fetch(
    request: Request,
    out: Path,
    *,
    work: Work | None = None,
    overwrite: bool = False,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Search, plan and write a cube; resume one that was cut off; leave a finished one alone.

    A finished cube of the same request for a shorter period grows; with `refresh` a finished one is searched for anew
    and grows by what is new. Raises BadInput before anything is written, RemoteFailed (resumable) when data cannot be
    read.
    """
    grid = check(request, out)
    before = None if overwrite else FinishedCube.at(out)
    attached = before.attached if before else {}
    asked = request.with_attached(attached)
    work = work or Work()

    @cache
    def search() -> dict[str, Any]:
        reach(work)  # before anything is written
        return planned(request, out, attached)[0]

    if before and not grows(before, asked, refresh, search):
        before = None
    with ledger.build(out, asked, lambda: frozen_of(search()), overwrite=overwrite or before is not None) as build:
        items = build.plan["items"] if build.complete else addressed(build.plan, search)
        with plan_of(out):
            stacks = stacks_of(items, grid, request)
        done = Written(0, 0, masked(build))
        if not build.complete:
            tables, old = {}, None
            if before:
                kept = [before.stack(name) for name in before.rasters if name in attached]
                stacks, tables, old = [*map(before.joined, stacks), *kept], before.tables, before.old()
            parts = Parts(grid, request.period, stacks, tables, asked)
            done = write(build, parts, work, progress, old)
    frames = {stack.source.name: len(stack.times) for stack in stacks}
    count = sum(map(len, items.values()))
    notes = [*build.plan["notes"], *(doubts(open_cube(out)) if done.made else [])]
    return Fetched(out, frames, count, tuple(notes), done.made, done.adopted, done.missing)


def grows(
    before: FinishedCube, asked: Mapping[str, Any], refresh: bool, search: Callable[[], Mapping[str, Any]]
) -> bool:
    """Whether a finished cube is to grow: by a longer period that holds its own, or by what a new search finds.

    An asset that was masked is always looked for again.
    """
    old = before.record
    if ledger.canonical(old.request) == ledger.canonical(asked):
        return refresh and (bool(before.attrs.get("aef:missing")) or frozen_of(search())["items"] != old.plan["items"])
    rest = [{key: value for key, value in request.items() if key != "period"} for request in (old.request, asked)]
    if ledger.canonical(rest[0]) != ledger.canonical(rest[1]):
        return False
    (start, end), (begin, finish) = (request["period"].split("/") for request in (old.request, asked))
    return bool(begin <= start and end <= finish)  # ISO dates in one zone sort as they follow


def check(request: Request, out: Path | None = None) -> GeoBox:
    """The cube's grid; refuses what no catalog could answer, before anything is asked of one.

    Of a cube that is to be written to `out`, also what no disk there could hold, whichever source it is of.
    """
    check_gsd(request.gsd)
    for name in (*request.sources, *request.collections):
        if name not in SOURCES:
            raise unknown("source", name, SOURCES)
        if not SOURCES[name].collections and name not in request.collections:
            raise BadInput(f"no catalog has {name}: it comes from files", "aef attach CUBE --source brings it in")
    asked = request.sources or [name for name, source in SOURCES.items() if source.collections]
    known = {band.name for name in asked for band in SOURCES[name].bands}
    for band in request.bands:
        if band not in known:
            raise unknown("--band", band, known)
    if request.max_cloud is not None and not 0 <= request.max_cloud <= 100:
        raise BadInput(f"--max-cloud {request.max_cloud:g} is not between 0 and 100", "it is in per cent")
    for option, value, allowed in (
        ("--loader", request.loader, ("odc", "stackstac")),
        ("--on-missing", request.on_missing, ("fail", "mask")),
        ("--resampling", request.resampling or "bilinear", ("nearest", "bilinear")),
    ):
        if value not in allowed:
            raise unknown(option, value, allowed)
    grid = request.grid if request.grid is not None else grid_of(request.bbox, request.gsd, request.crs)
    if out is not None:
        names = request.sources or (*INPUTS, *request.collections)
        coarsest = max(factor(SOURCES[name].gsd, grid.resolution.x) for name in names)
        check_room(out, fewest(shape_of(grid), coarsest))
    return grid


@contextmanager
def plan_of(path: Path) -> Iterator[None]:
    """What a plan on disk lacks, or holds of other types, raises Damaged."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(
            f"{ledger.records_of(path) / 'plan.json'} is no plan: {type(error).__name__} {error}",
            "--overwrite plans anew",
        ) from error


def planned(request: Request, out: Path, attached: Container[str] = ()) -> tuple[dict[str, Any], list[Stack]]:
    """The plan of a cube that its disk can hold, and its stacks."""
    found = plan(request, attached)
    stacks = stacks_of(found["items"], check(request), request)
    check_room(out, chunks_in(stacks))
    return found, stacks


def plan(request: Request, attached: Container[str] = ()) -> dict[str, Any]:
    """What the ledger freezes: the items of each source, trimmed to what reading them needs, and the notes.

    Sources that are `attached` are fetched only if they are named.
    """
    from aefcli.stac import open_catalog

    catalog = open_catalog(request.catalog)
    free, barred = catalog.offers(request.collections, request.sources)
    chosen = request.sources or tuple(name for name in free if name not in attached)
    notes = [f"{name}: {reason}" for name, reason in barred.items() if not request.sources]
    planned: dict[str, list[dict[str, Any]]] = {}
    for name in chosen:
        if name not in free:
            raise BadInput(
                f"{catalog.reference} does not give {name}: {barred[name]}", "leave it out, or name another --stac"
            )
        source = request.source(name, free[name])
        margin = _MARGIN if any(band.derived for band in source.bands) else 0.0
        found = catalog.search(free[name], request.bbox.wider(margin), None if source.static else request.period)
        near = [item for item in found if _within(item, request.area)]
        items, dropped = keep(near, source, request.period, request.max_cloud)
        why = "".join(f"; {count} {reason}" for reason, count in dropped.items())
        if items:
            trimmed = [_trim(item, source, catalog) for item in sorted(items, key=lambda item: item.id)]
            planned[name] = [_decided(item, source, request) for item in trimmed]
            if why:
                notes.append(f"{name}: left out{why}")
        else:
            notes.append(f"{name}: 0 items of {free[name]} in {request.bbox} and {request.period}{why}")
    if not planned:
        raise BadInput(
            f"nothing to fetch: {'; '.join(notes) or 'the catalog offers no source'}",
            "widen --bbox or --period",
        )
    return {"items": planned, "notes": notes}


def frozen_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The plan as it is written down: its addresses without their queries, where signatures live.

    `keyed` names the sources whose addresses had some.
    """
    bare = {name: _bare(items) for name, items in found["items"].items()}
    keyed = [name for name, items in bare.items() if items != found["items"][name]]
    return {**found, "items": bare, **({"keyed": keyed} if keyed else {})}


def _bare(value: Any) -> Any:
    """JSON whose addresses have neither query nor user."""
    from aefcli.stac import plain

    if isinstance(value, dict):
        return {key: _bare(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_bare(part) for part in value]
    return plain(value) if isinstance(value, str) and "://" in value else value


def addressed(frozen: Mapping[str, Any], search: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The items of a frozen plan, whose addresses have the queries that the catalog gives them now.

    What was signed when work began may have expired since; the items stay those of the plan. An asset that the catalog
    names no longer keeps its bare address.
    """
    if not frozen.get("keyed"):
        return frozen["items"]
    fresh = {
        (name, item["id"], key): asset["href"]
        for name, items in search()["items"].items()
        for item in items
        for key, asset in item["assets"].items()
    }

    def href(name: str, item: Mapping[str, Any], key: str) -> str:
        bare = str(item["assets"][key]["href"])
        now = fresh.get((name, item["id"], key), bare)
        return now if _bare(now) == bare else bare

    return {
        name: [
            {**item, "assets": {key: {**asset, "href": href(name, item, key)} for key, asset in item["assets"].items()}}
            for item in items
        ]
        for name, items in frozen["items"].items()
    }


def _within(item: pystac.Item, area: str | None) -> bool:
    """Whether the item touches the area (WKT in degrees); all do where there is none."""
    from shapely import from_wkt
    from shapely.geometry import shape

    return area is None or item.geometry is None or bool(shape(item.geometry).intersects(from_wkt(area)))


def _names(source: Source) -> dict[str, tuple[str, ...]]:
    """The names that catalogs have for each of the source's assets, by the first of them."""
    named = [band.assets for band in source.bands] + ([source.quality.assets] if source.quality else [])
    return {names[0]: names for names in named}


def _decided(item: pystac.Item, source: Source, request: Request) -> dict[str, Any]:
    """The item as plain JSON; where only its pixels tell its offset, with what a coarse look at them says."""
    from odc.geo.geobox import GeoBox

    if source.name == "sentinel-2" and is_doubtful(item):
        key = source.bands[0].assets[0]
        grid = check(request)
        look = GeoBox.from_bbox(grid.boundingbox, shape=_LOOK, crs=grid.crs)
        frame = frames_of([item], source)[0]
        numbers, _ = load([frame], key, source.dtype, source.nodata, "nearest", look, Loading(mask=True))
        item.properties[DECIDED] = offset_of(numbers)
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def _trim(item: pystac.Item, source: Source, catalog: Catalog) -> pystac.Item:
    """The item with the assets that this source reads, each under the first of its names, and no links."""
    item = item.clone()
    item.properties.pop(DECIDED, None)  # ours to say
    found = {first: next((key for key in names if key in item.assets), None) for first, names in _names(source).items()}
    item.assets = {first: item.assets[key] for first, key in found.items() if key}
    for asset in item.assets.values():
        catalog.vet(asset.href)
    item.clear_links()
    return item


def stacks_of(items: Mapping[str, Sequence[Mapping[str, Any]]], grid: GeoBox, request: Request) -> list[Stack]:
    """The planned items of each source as stacks that read from the archive, in the order of the table of sources."""
    return [_stack_of_items(name, items[name], grid, request) for name in SOURCES if name in items]


def _stack_of_items(name: str, items: Sequence[Mapping[str, Any]], grid: GeoBox, request: Request) -> Stack:
    """The frames of one source as a stack whose slabs are read from the archive when asked for."""
    import pystac

    from aefcli.stac import sound

    # As `plan` left them, they need no migration, which would take most of the time.
    found = [sound(pystac.Item.from_dict(dict(item), migrate=False, preserve_dict=False)) for item in items]
    source = request.source(name, str(found[0].collection_id))
    frames = frames_of(found, source)
    cells = coarser(grid, factor(source.gsd, grid.resolution.x))
    delivered: np.ndarray = np.array([frame.delivered for frame in frames], dtype=bool)
    return Stack(
        source=source,
        collection=str(found[0].collection_id or ""),
        grid=cells,
        times=np.array([frame.time for frame in frames], dtype="int64"),
        delivered=delivered,
        scale=np.array([frame.scale for frame in frames]),
        offset=np.array([frame.offset for frame in frames]),
        lineage={
            "items": [",".join(item.id for item in frame.items) for frame in frames],
            "platform": [str(frame.items[0].properties.get("platform", "")) for frame in frames],
            "orbit": [frame.orbit for frame in frames],
        },
        layers=layers_of(source, [any(column) for column in zip(*delivered, strict=True)]),
        read=Archive(tuple(frames), source, cells, request.resampling, request.loader, request.on_missing == "mask"),
    )


@dataclass(frozen=True)
class Archive:
    """Reads slabs of one source from the files that its frames' items name."""

    frames: tuple[Frame, ...]
    source: Source
    grid: GeoBox
    resampling: str | None
    loader: str
    mask: bool | frozenset[str]

    def __call__(self, which: np.ndarray, tile: Tile, threads: int) -> Iterator[Part]:
        frames, grid = [self.frames[index] for index in which], self.grid[tile.slices]
        with ThreadPoolExecutor(threads) as pool:
            loading = Loading(self.loader, self.mask, pool)
            yield from self._parts(frames, grid, loading)

    def _parts(self, frames: Sequence[Frame], grid: GeoBox, loading: Loading) -> Iterator[Part]:
        if any(band.derived for band in self.source.bands):
            yield from self._terrain(frames, grid, loading)
            return
        for index, band in enumerate(self.source.bands):
            if any(frame.delivered[index] for frame in frames):
                yield self._part(band, frames, grid, loading)
        if (quality := self.source.quality) is not None:
            key, kind, nodata = quality.assets[0], quality.dtype, quality.nodata
            values, missing = load(frames, key, kind, nodata, "nearest", grid, loading)
            yield Part(quality.name, values, tuple(missing))

    def _part(self, band: Band, frames: Sequence[Frame], grid: GeoBox, loading: Loading) -> Part:
        key, kind, nodata = band.assets[0], self.source.dtype, self.source.nodata
        having = next(item for frame in frames for item in frame.items if key in item.assets)
        how = self.resampling or _resampling(having, key, band.gsd, grid.resolution.x)
        if self.source.kind == "categorical":
            how = "nearest"
        values, missing = load(frames, key, kind, nodata, how, grid, loading)
        return Part(band.name, values, tuple(missing))

    def _terrain(self, frames: Sequence[Frame], grid: GeoBox, loading: Loading) -> Iterator[Part]:
        """Elevation and what follows from it, read with a cell of margin so that slabs meet without a seam."""
        height = self._part(self.source.bands[0], frames, grid.pad(1), loading)
        each = [slope_and_aspect(values, grid.resolution.x) for values in height.values]
        for band in self.source.bands:
            yield Part(band.name, np.stack([bands[band.name] for bands in each]), height.missing)


def _resampling(item: pystac.Item, key: str, gsd: float, target: float) -> str:
    """Average where the asset is at least twice as fine as the grid, else bilinear."""
    asset = item.assets[key]
    affine = asset.extra_fields.get("proj:transform") or item.properties.get("proj:transform")
    native = abs(affine[0]) if affine else gsd
    if native < _DEGREES:
        native *= _METRES
    return "average" if target >= 2 * native else "bilinear"
