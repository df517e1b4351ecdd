"""The made-up world on disk: COGs, STAC items as earth-search lays them out, collections and tables beside them.

    catalog.json                          sentinel-2-c1-l2a/, sentinel-1-rtc/, landsat-c2-l2/, cop-dem-glo-30/
    labels.parquet, labels-TASK.parquet   the truth: `labels.labels` lists the tasks
    nlcd_YEAR.tif, captions.parquet       what no catalog has: for `aef attach` and `aef text`

ERA5-Land, GEDI, GRACE and PALSAR-2 exist in memory alone (`aefcli.simulate.imagine`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period
from aefcli.simulate import VERSION, others
from aefcli.simulate.labels import TASKS, tables
from aefcli.simulate.land import EPSG, NORTH, WEST, Grid, Site, degrees
from aefcli.simulate.passes import DEM, LANDSAT, LAYERS, S1, S2, Layer, Pass, passes
from aefcli.simulate.properties import PROPERTIES
from aefcli.simulate.world import blocks, draw_sites, observe

Box = tuple[float, float, float, float]  # W, S, E, N in degrees
Years = tuple[int, int]  # first and last, both included
Progress = Callable[[int, int], None]

CATALOG, LABELS, CAPTIONS = "catalog.json", "labels.parquet", "captions.parquet"
_TERRAIN = "Copernicus_DSM_COG_10_N46_00_E015_00_DEM"
_ELEVATION = Layer("data", "Elevation", 30, "float32", -32767)
_ASSETS = {**LAYERS, DEM: (_ELEVATION,)}
_EXTENSIONS = {
    S2: ("eo/v1.1.0", "grid/v1.1.0", "mgrs/v1.0.0", "sat/v1.0.0", "view/v1.0.0"),
    S1: ("sar/v1.0.0", "sat/v1.0.0", "view/v1.0.0"),
    LANDSAT: ("eo/v1.1.0", "landsat/v1.1.1", "sat/v1.0.0", "view/v1.0.0"),
    DEM: (),
}


@dataclass(frozen=True)
class Scene:
    """One item: its pixels as stored, by asset key, each the whole rectangle."""

    id: str
    collection: str
    when: datetime
    pixels: dict[str, np.ndarray]
    properties: dict[str, Any]


def write(out: Path, seed: int, grid: Grid, years: Years, progress: Progress | None) -> tuple[Box, int, int]:
    """Make the world beside `out`, then put it in its place; its box, its items and its points."""
    _check_free(out, years)
    # Beside a new folder, inside one that exists: always on the same disk, where a rename is atomic.
    made = (out if out.exists() else out.parent) / f".{out.name}.making"
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        told = _write(made, seed, grid, years, progress)
        _move(made, out)
    except OSError as error:
        raise NoResources(f"cannot write the world {out}: {error}", "free some space or name another folder") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return told


def _names(years: Years) -> list[str]:
    """Everything that a world puts into its folder; the catalog last, so that no kill leaves one that lies."""
    maps = [f"nlcd_{year}.tif" for year in range(years[0], years[1] + 1)]
    return [*_ASSETS, *maps, CAPTIONS, *(f"labels-{task}.parquet" for task in TASKS), LABELS, CATALOG]


def _check_free(out: Path, years: Years) -> None:
    """`out` may be new, empty, or hold other things; never another world."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file", "name a folder")
    for name in reversed(_names(years)):
        if (out / name).exists():
            other = out.with_name(out.name + "-2")
            raise BadInput(f"{out} already holds {name}", f"name another folder, such as {other}")


def _move(made: Path, out: Path) -> None:
    """Put the finished world in its place."""
    if not out.exists():
        made.rename(out)
        return
    for name in _names((2015, 2035)):
        if (made / name).exists():
            (made / name).rename(out / name)


def _write(folder: Path, seed: int, grid: Grid, years: Years, progress: Progress | None) -> tuple[Box, int, int]:
    """Everything, into `folder`."""
    land, plan = draw_sites(seed, grid, years), passes(seed, *years)
    ids: dict[str, list[str]] = {name: [] for name in _ASSETS}
    with rasterio.Env():
        for done, scene in enumerate(_scenes(seed, grid, land, plan), 1):
            _save(folder, scene, grid)
            ids[scene.collection].append(scene.id)
            if progress:
                progress(done, len(plan) + 1)
        for year, codes in enumerate(others.coarse_map(seed, grid, land, years), years[0]):
            _write_tif(folder / f"nlcd_{year}.tif", codes, Layer("nlcd", "", 30, "uint8", 0), grid)
        box = _bbox(grid)
    truth = tables(seed, grid, land, years)
    made = {"aef:simulate": VERSION, "seed": seed, "sites": grid.sites, "size": grid.size, "years": list(years)}
    for task, table in truth.items():
        table.attrs = made
        table.to_parquet(folder / f"labels-{task}.parquet", index=False)
    shutil.copyfile(folder / "labels-cover.parquet", folder / LABELS)
    others.captions(seed, grid, land, years).to_parquet(folder / CAPTIONS, index=False)
    span = Period.parse(f"{years[0]}:{years[1]}")
    for name, items in ids.items():
        _dump(folder / name / "collection.json", _collection(name, box, span, items))
    _dump(folder / CATALOG, _catalog(seed))
    return box, len(plan) + 1, len(truth["cover"])


def _scenes(seed: int, grid: Grid, land: list[Site], plan: list[Pass]) -> Iterator[Scene]:
    """Every item: the passes, and the elevation model."""
    for block in blocks(plan, grid):
        found = observe(seed, grid, land, block)
        for frame, at in enumerate(block):
            pixels = {key: stack[frame] for key, stack in found.items()}
            name, properties = PROPERTIES[at.collection](at, pixels)
            yield Scene(name, at.collection, at.when, pixels, properties)
    # Cells that hold no site are at the height of the plain: elevation has no gaps.
    height, since = others.elevation(grid, land)["elevation"][0], plan[0].when.replace(month=1, day=1, hour=0, minute=0)
    yield Scene(_TERRAIN, DEM, since, {"data": height}, {"gsd": 30})


def _save(folder: Path, scene: Scene, grid: Grid) -> None:
    """One item's COGs and then its JSON, in a folder of its own."""
    home = folder / scene.collection / scene.id
    home.mkdir(parents=True)
    for layer in _ASSETS[scene.collection]:
        _write_tif(home / f"{layer.key}.tif", scene.pixels[layer.key], layer, grid)
    _dump(home / f"{scene.id}.json", _item(scene, grid))


def _write_tif(path: Path, pixels: np.ndarray, layer: Layer, grid: Grid) -> None:
    height, width = pixels.shape
    profile = {"driver": "COG", "compress": "deflate", "overview_resampling": "nearest", "count": 1}
    place = {"crs": f"EPSG:{EPSG}", "transform": Affine(*grid.transform(layer.gsd)), "nodata": layer.nodata}
    with rasterio.open(path, "w", height=height, width=width, dtype=layer.dtype, **profile, **place) as file:
        file.write(pixels, 1)


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- STAC


def _outline(grid: Grid) -> tuple[list[list[float]], list[float]]:
    """The sites' rectangle as a closed ring (lon, lat), and its W, S, E, N."""
    height, width = (10 * pixels for pixels in grid.span)
    east = np.array([0, width, width, 0, 0]) + WEST
    north = NORTH - np.array([0, 0, height, height, 0])
    lon, lat = degrees(east, north)
    return np.stack([lon, lat], -1).tolist(), [*map(float, (lon.min(), lat.min(), lon.max(), lat.max()))]


def _bbox(grid: Grid) -> Box:
    """The box of all sites in degrees, rounded outward to four decimals (11 m at the most)."""
    height, width = (10 * pixels for pixels in grid.span)
    box = (WEST, NORTH - height, WEST + width, NORTH)
    west, south, east, north = (1e4 * degrees for degrees in transform_bounds(f"EPSG:{EPSG}", "EPSG:4326", *box))
    return math.floor(west) / 1e4, math.floor(south) / 1e4, math.ceil(east) / 1e4, math.ceil(north) / 1e4


def _asset(layer: Layer, grid: Grid) -> dict[str, Any]:
    band: dict[str, Any] = {"nodata": layer.nodata, "data_type": layer.dtype, "spatial_resolution": layer.gsd}
    if layer.scale is not None:
        band |= {"scale": layer.scale, "offset": layer.offset}
    asset = {
        "href": f"./{layer.key}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "title": layer.title,
        "gsd": layer.gsd,
        "proj:shape": list(grid.shape(layer.gsd)),
        "proj:transform": grid.transform(layer.gsd),
        "raster:bands": [band],
        "roles": ["data"] if layer.name else ["data", "cloud"],
    }
    if layer.name and layer.dtype == "uint16":
        asset["eo:bands"] = [{"name": layer.name, "common_name": layer.key}]
    return asset


def _link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href, "type": "application/geo+json" if rel == "item" else "application/json"}


def _item(scene: Scene, grid: Grid) -> dict[str, Any]:
    """The item beside its assets, as earth-search lays it out."""
    ring, box = _outline(grid)
    collection, done = scene.collection, f"{scene.when + timedelta(hours=11):%Y-%m-%dT%H:%M:%S.000Z}"
    when = f"{scene.when:%Y-%m-%dT%H:%M:%S}.{scene.when.microsecond // 1000:03d}Z"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            f"https://stac-extensions.github.io/{name}/schema.json"
            for name in ("projection/v2.0.0", "raster/v1.1.0", *_EXTENSIONS[collection])
        ],
        "id": scene.id,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": box,
        "properties": {"datetime": when, "created": done, "updated": done, "proj:code": f"EPSG:{EPSG}"}
        | scene.properties,
        "links": [
            _link("root", "../../catalog.json"),
            _link("collection", "../collection.json"),
            _link("parent", "../collection.json"),
        ],
        "assets": {layer.key: _asset(layer, grid) for layer in _ASSETS[collection]},
    }


def _collection(name: str, box: Box, span: Period, items: list[str]) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": f"A made-up world seen by a sensor like that of {name}.",
        "license": "CC0-1.0",
        "extent": {
            "spatial": {"bbox": [list(box)]},
            "temporal": {
                "interval": [[f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in Period(span.start, span.end - 1000).dates()]]
            },
        },
        "links": [
            _link("root", "../catalog.json"),
            _link("parent", "../catalog.json"),
            *(_link("item", f"./{item}/{item}.json") for item in items),
        ],
    }


def _catalog(seed: int) -> dict[str, Any]:
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": f"made-up-world-{seed}",
        "description": "A made-up world. Scores on it say nothing of any real place.",
        "aef:simulate": VERSION,
        "links": [_link("root", "./catalog.json"), *(_link("child", f"./{name}/collection.json") for name in _ASSETS)],
    }
