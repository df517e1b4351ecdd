"""Fetch: a request into a plan, a plan into lazy reads of an archive, written as a cube.

Sources: `sources.md`, `stores.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.frames import Frame, frames_of
from aefcli.cube.grid import check_gsd, coarser, factor, grid_of
from aefcli.cube.load import Loading, load
from aefcli.cube.write import FORMAT, Progress, Stack, layers_of, write
from aefcli.errors import BadInput, unknown
from aefcli.extent import BBox, Period, Tile
from aefcli.sources import SOURCES, Source

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from aefcli.stac import Catalog


@dataclass(frozen=True)
class Request:
    """A fetch as typed."""

    catalog: str
    bbox: BBox
    period: Period
    sources: tuple[str, ...] = ()  # none: all that the catalog offers without credentials
    gsd: float = 10.0
    crs: str | None = None
    resampling: str | None = None  # none: bilinear, or average where the asset is finer by 2 or more

    def as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "catalog": str(Path(self.catalog).resolve()) if Path(self.catalog).is_file() else self.catalog,
            "bbox": [self.bbox.west, self.bbox.south, self.bbox.east, self.bbox.north],
            "period": "/".join(when.isoformat() for when in self.period.dates()),
            "sources": sorted(self.sources),
            "gsd": float(self.gsd),
            "crs": self.crs,
            "resampling": self.resampling,
        }


@dataclass(frozen=True)
class Fetched:
    """What a fetch ended with. `notes`: sources left out, with the reason."""

    path: Path
    frames: dict[str, int]
    items: int
    notes: tuple[str, ...]
    written: int  # units written by this call


def fetch(
    request: Request,
    out: Path,
    *,
    workers: int = 4,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Search, plan and write a cube; resume one that was cut off; leave a finished one alone.

    Raises BadInput before anything is written, RemoteFailed (resumable) when data cannot be read.
    """
    from aefcli.stac import open_catalog

    check_gsd(request.gsd)
    for name in request.sources:
        if name not in SOURCES:
            raise unknown("source", name, SOURCES)
        if not SOURCES[name].collections:
            raise BadInput(f"no catalog has {name}: it comes from files", "leave it out")
    grid = grid_of(request.bbox, request.gsd, request.crs)
    asked = request.as_dict()
    with ledger.build(out, asked, lambda: _plan(open_catalog(request.catalog), request), overwrite=overwrite) as build:
        plan = build.plan
        stacks = [_stack_of_items(name, items, grid, request) for name, items in plan["items"].items()]
        written = 0
        if not build.complete:
            written = write(build, stacks, grid, request.period, {"aef:request": asked}, workers, progress)
    frames = {stack.source.name: len(stack.times) for stack in stacks}
    return Fetched(out, frames, sum(map(len, plan["items"].values())), tuple(plan["notes"]), written)


def _plan(catalog: Catalog, request: Request) -> dict[str, Any]:
    """What the ledger freezes: the items of each source, trimmed to what reading them needs, and the notes."""
    from aefcli.stac import keep

    free, barred = catalog.offers()
    chosen = request.sources or tuple(free)
    notes = [f"{name}: {reason}" for name, reason in barred.items() if not request.sources]
    planned: dict[str, list[dict[str, Any]]] = {}
    for name in chosen:
        if name not in free:
            raise BadInput(
                f"{request.catalog} does not give {name}: {barred[name]}",
                "leave it out, or name another --stac",
            )
        found = catalog.search(free[name], request.bbox, request.period)
        items, dropped = keep(found, SOURCES[name])
        usable = [item for item in items if _is_usable(item, SOURCES[name])]
        if usable:
            planned[name] = [_trim(item, SOURCES[name], catalog) for item in usable]
        elif not items:
            others = f"; {dropped} of other platforms" if dropped else ""
            notes.append(f"{name}: 0 items of {free[name]} in {request.bbox} and {request.period}{others}")
        if len(usable) < len(items):
            notes.append(f"{name}: {len(items) - len(usable)} items left out, without bands or a quality layer")
    if not planned:
        raise BadInput(
            f"nothing to fetch: {'; '.join(notes) or 'the catalog offers no source'}",
            "widen --bbox or --period",
        )
    return {"items": planned, "notes": notes}


def _names(source: Source) -> dict[str, tuple[str, ...]]:
    """The names that catalogs have for each of the source's assets, by the first of them."""
    named = [band.assets for band in source.bands] + ([source.quality.assets] if source.quality else [])
    return {names[0]: names for names in named}


def _is_usable(item: pystac.Item, source: Source) -> bool:
    """Whether the item has a band of the source and, if the source has a quality layer, what says which are clear."""
    band = any(key in item.assets for band in source.bands for key in band.assets)
    return band and (source.quality is None or any(key in item.assets for key in source.quality.assets))


def _trim(item: pystac.Item, source: Source, catalog: Catalog) -> dict[str, Any]:
    """The item with the assets that this source reads, each under the first of its names, and no links."""
    item = item.clone()
    found = {first: next((key for key in names if key in item.assets), None) for first, names in _names(source).items()}
    item.assets = {first: item.assets[key] for first, key in found.items() if key}
    for asset in item.assets.values():
        catalog.vet(asset.href)
    item.clear_links()
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def _stack_of_items(name: str, items: Sequence[Mapping[str, Any]], grid: GeoBox, request: Request) -> Stack:
    """The frames of one source as a stack whose slabs are read from the archive when asked for."""
    import pystac

    source = SOURCES[name]
    frames = frames_of([pystac.Item.from_dict(dict(item)) for item in items], source)
    cells = coarser(grid, factor(source.gsd, request.gsd))
    delivered: np.ndarray = np.array([frame.delivered for frame in frames], dtype=bool)

    def read(when: slice, tile: Tile) -> dict[str, np.ndarray]:
        return _read_items(frames[when], source, cells[tile.slices], request)

    return Stack(
        source=source,
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
        read=read,
    )


def _read_items(frames: Sequence[Frame], source: Source, grid: GeoBox, request: Request) -> dict[str, np.ndarray]:
    """One slab: every variable of the source for these frames on this grid, read in parallel by odc-stac and dask."""
    slab: dict[str, np.ndarray] = {}
    for index, band in enumerate(source.bands):
        having = [frame.items[0] for frame in frames if frame.delivered[index]]
        if having:
            how = request.resampling or _resampling(having[0], band.assets[0], band.gsd, grid.resolution.x)
            slab[band.name], _ = load(frames, band.assets[0], source.dtype, source.nodata, how, grid, Loading())
    quality = source.quality
    if quality is not None:
        slab[quality.name], _ = load(
            frames, quality.assets[0], quality.dtype, quality.nodata, "nearest", grid, Loading()
        )
    return slab


def _resampling(item: pystac.Item, key: str, gsd: float, target: float) -> str:
    """Average where the asset is at least twice as fine as the grid, else bilinear."""
    asset = item.assets[key]
    affine = asset.extra_fields.get("proj:transform") or item.properties.get("proj:transform")
    announced = (asset.extra_fields.get("raster:bands") or [{}])[0].get("spatial_resolution")
    native = abs(affine[0]) if affine else announced or gsd
    return "average" if target >= 2 * native else "bilinear"
