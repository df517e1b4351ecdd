"""Sites put together: what the sensors record of all of them, as stored, on one rectangle; and the same in memory.

Owns the way from a site's own pixels to a product's grid, where cells of 20 and 30 m may lie across two sites.
Sites are made one after the other and passes in blocks, so that little more than the result is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.extent import Period
from aefcli.simulate import Imagined, others
from aefcli.simulate.canvas import Canvas, blank
from aefcli.simulate.kinds import WATER
from aefcli.simulate.labels import tables
from aefcli.simulate.land import EPSG, Grid, Site, draw_site
from aefcli.simulate.latents import latents
from aefcli.simulate.optics import ground_classes, kind_on, recorded
from aefcli.simulate.passes import LANDSAT, LAYERS, S1, S2, Pass, passes
from aefcli.simulate.radar import speckled
from aefcli.simulate.sky import classes, widened
from aefcli.sources import SOURCES

if TYPE_CHECKING:
    import xarray as xr

_AT_ONCE = 400_000  # pixels of one band of a site's passes: what processors keep at hand
_HELD = 60_000_000  # and of all sites' passes


def draw_sites(seed: int, grid: Grid, years: tuple[int, int]) -> list[Site]:
    return [draw_site(seed, site, grid.size, *years) for site in range(grid.sites)]


def blocks(plan: Sequence[Pass], grid: Grid) -> Iterator[Sequence[Pass]]:
    """Passes of one collection, so many at a time as memory allows."""
    rows, cols = grid.shape(10)
    many = max(1, min(_AT_ONCE // grid.size**2, _HELD // (rows * cols)))
    for name in LAYERS:
        own = [one for one in plan if one.collection == name]
        for first in range(0, len(own), many):
            yield own[first : first + many]


def observe(seed: int, grid: Grid, land: Sequence[Site], plan: Sequence[Pass]) -> dict[str, np.ndarray]:
    """What passes of one collection bring: asset key -> values as stored (frame, row, column), each at its own gsd."""
    return _OBSERVE[plan[0].collection](seed, grid, land, plan)


def _sentinel_2(seed: int, grid: Grid, land: Sequence[Site], plan: Sequence[Pass]) -> dict[str, np.ndarray]:
    days, second = (np.array([getattr(one, name) for one in plan]) for name in ("day", "orbit"))
    layers = LAYERS[S2]
    stored = {layer.key: blank(grid, len(plan), layer) for layer in layers if layer.gsd == 10}
    names = ("swir16", "cloud", "shadow", "haze", "water", "leaves")
    coarse = {name: Canvas(grid, 2, len(plan)) for name in names}
    for site in land:
        seen, sky = recorded(seed, site, plan)
        there = site.swath | (second == 0)[:, None, None]
        row, col = grid.corner(site.number)
        place = (slice(None), slice(row, row + grid.size), slice(col, col + grid.size))
        for layer, band in zip(layers[:4], seen, strict=False):
            stored[layer.key][place] = np.where(there, layer.stored(band), layer.nodata)
        ground = ground_classes(site, days)[:, site.parcel]
        for name, stack in zip(names, (seen[4], *sky.flags(), ground == 6, ground == 4), strict=True):
            coarse[name].add(site.number, stack, there)
    stored["swir16"] = layers[4].stored(coarse["swir16"].mean())
    means = {name: coarse[name].mean() for name in names[1:]}
    scl = np.where(means["water"] > 0.5, 6, np.where(means["leaves"] > 0.5, 4, 5))
    for name, flagged in classes(means["cloud"], means["shadow"], means["haze"]).items():
        scl[flagged] = {"cloud": 9, "thin": 8, "shadow": 3, "haze": 10}[name]
    return stored | {"scl": np.where(np.isnan(means["cloud"]), 0, scl).astype("uint8")}


def _sentinel_1(seed: int, grid: Grid, land: Sequence[Site], plan: Sequence[Pass]) -> dict[str, np.ndarray]:
    stored = {layer.key: blank(grid, len(plan), layer) for layer in LAYERS[S1]}
    for site in land:
        row, col = grid.corner(site.number)
        for layer, band in zip(LAYERS[S1], speckled(seed, site, plan), strict=True):
            stored[layer.key][:, row : row + grid.size, col : col + grid.size] = layer.stored(band)
    return stored


def _landsat(seed: int, grid: Grid, land: Sequence[Site], plan: Sequence[Pass]) -> dict[str, np.ndarray]:
    days, layers = np.array([one.day for one in plan]), LAYERS[LANDSAT]
    names = (*(layer.key for layer in layers[:6]), "cloud", "shadow", "haze", "water")
    coarse = {name: Canvas(grid, 3, len(plan)) for name in names}
    for site in land:
        seen, sky = recorded(seed, site, plan)
        water = (kind_on(site, days) == WATER).T[:, site.parcel]
        for name, stack in zip(names, (*seen, *sky.flags(), water), strict=True):
            coarse[name].add(site.number, stack)
    means = {name: canvas.mean() for name, canvas in coarse.items()}
    stored = {layer.key: layer.stored(means[layer.key]) for layer in layers[:6]}
    return stored | {"qa_pixel": layers[6].stored(_qa_pixel(means))}


def _qa_pixel(means: Mapping[str, np.ndarray]) -> np.ndarray:
    """QA_PIXEL, float32, composed to the values that Collection 2 uses: 21824 is clear land; NaN beyond the sites."""
    flags = classes(means["cloud"], means["shadow"], means["haze"])
    cloud = flags["cloud"]
    near = (widened(cloud) | flags["thin"]) & ~cloud
    value = np.full(cloud.shape, 21824)
    value[means["water"] > 0.5] |= 1 << 7
    value[near] |= 1 << 1
    value[flags["haze"]] |= (1 << 2) | (1 << 15)
    value[flags["shadow"]] |= (1 << 4) | (1 << 11)
    value[cloud] = 21824 - (1 << 6) + (1 << 3) + (1 << 9)
    return np.where(np.isnan(means["cloud"]), np.nan, value).astype(np.float32)


_OBSERVE = {S2: _sentinel_2, S1: _sentinel_1, LANDSAT: _landsat}


# ---------------------------------------------------------------------------------------------------------- in memory


def imagine(seed: int, grid: Grid, years: tuple[int, int]) -> Imagined:
    """The world in memory; arguments as `aefcli.simulate.imagine` has checked them."""
    land = draw_sites(seed, grid, years)
    plan = passes(seed, *years)
    datasets = {}
    for name, collection in (("sentinel-2", S2), ("sentinel-1", S1), ("landsat", LANDSAT)):
        datasets[name] = _images(seed, grid, land, name, [one for one in plan if one.collection == collection])
    for name, raster in others.rasters(seed, grid, land, years).items():
        datasets[name] = _dataset(grid, raster.gsd, raster.times, raster.bands, raster.notes)
    return Imagined(
        datasets=datasets,
        points={"text": others.captions(seed, grid, land, years)},
        truth=tables(seed, grid, land, years),
        oracle=_oracle(grid, land, years),
        period=Period.parse(f"{years[0]}:{years[1]}"),
    )


def _images(seed: int, grid: Grid, land: Sequence[Site], name: str, plan: Sequence[Pass]) -> xr.Dataset:
    """All passes of an imaging source, its coarser bands repeated up to the finest."""
    source, layers = SOURCES[name], LAYERS[plan[0].collection]
    gsd = min(layer.gsd for layer in layers)
    shape = (len(plan), *grid.shape(gsd))
    band_of = {layer.key: next((b.name for b in source.bands if layer.key in b.assets), layer.key) for layer in layers}
    arrays = {band_of[layer.key]: np.empty(shape, layer.dtype) for layer in layers}
    first = 0
    for block in blocks(plan, grid):
        found = observe(seed, grid, land, block)
        for layer in layers:
            times = layer.gsd // gsd
            stack = found.pop(layer.key)
            arrays[band_of[layer.key]][first : first + len(block)] = stack.repeat(times, 1).repeat(times, 2)
        first += len(block)
    notes: dict[str, tuple[str, list[Any]]] = {}
    if scaled := {band_of[layer.key]: layer for layer in layers if layer.scale is not None}:
        notes |= {
            "scale": ("band", [scaled[band].scale for band in scaled]),
            "offset": ("band", [scaled[band].offset for band in scaled]),
            "band": ("band", list(scaled)),
        }
    if name == "sentinel-1":
        notes["orbit"] = ("time", [("ascending", "descending")[one.orbit] for one in plan])
    times_of = np.array([one.when.replace(tzinfo=None) for one in plan], "datetime64[ms]")
    return _dataset(grid, gsd, times_of, arrays, notes)


def _dataset(
    grid: Grid,
    gsd: int,
    times: np.ndarray,
    bands: Mapping[str, np.ndarray],
    notes: Mapping[str, tuple[str, list[Any]]],
) -> xr.Dataset:
    """Arrays (time, y, x) with their instants, their grid and its CRS."""
    import xarray as xr
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_coords
    from rasterio import Affine

    shape = next(iter(bands.values())).shape[1:]
    box = GeoBox(shape, Affine(*grid.transform(gsd)), f"EPSG:{EPSG}")
    coords = {"time": times, **xr_coords(box)}
    variables = {name: (("time", "y", "x"), values) for name, values in bands.items()}
    extra = dict(notes)
    if "band" in extra:
        coords["band"] = extra.pop("band")[1]
    return xr.Dataset({**variables, **extra}, coords)


def _oracle(grid: Grid, land: Sequence[Site], years: tuple[int, int]) -> np.ndarray:
    """Latents of all sites; NaN where none lies."""
    out: np.ndarray | None = None
    for site in land:
        row, col = grid.corner(site.number)
        found = np.stack([latents(site, year) for year in range(years[1] - years[0] + 1)])
        if out is None:
            out = np.full((*found.shape[:2], *grid.shape(10)), np.nan, np.float32)
        out[:, :, row : row + grid.size, col : col + grid.size] = found[:, :, site.parcel]
    assert out is not None, "a world has a site"
    return out
