"""The made-up world on disk: COGs, STAC items as earth-search lays them out, collections and the table of labels."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period
from aefcli.simulate.labels import truth_table
from aefcli.simulate.land import EPSG, NORTH, WEST, Grid, degrees, draw_climate, draw_land, stream
from aefcli.simulate.optics import landsat, sentinel_2
from aefcli.simulate.passes import LANDSAT, LAYERS, S1, S2, Layer, Scene, passes
from aefcli.simulate.radar import sentinel_1

Box = tuple[float, float, float, float]  # W, S, E, N in degrees
Years = tuple[int, int]  # first and last, both included
Progress = Callable[[int, int], None]

CATALOG, LABELS = "catalog.json", "labels.parquet"
SENSORS = {S2: sentinel_2, S1: sentinel_1, LANDSAT: landsat}
_EXTENSIONS = {
    S2: ("eo/v1.1.0", "grid/v1.1.0", "mgrs/v1.0.0", "sat/v1.0.0", "view/v1.0.0"),
    S1: ("sar/v1.0.0", "sat/v1.0.0", "view/v1.0.0"),
    LANDSAT: ("eo/v1.1.0", "landsat/v1.1.1", "sat/v1.0.0", "view/v1.0.0"),
}


def write(out: Path, seed: int, grid: Grid, years: Years, progress: Progress | None) -> tuple[Box, int, int]:
    """Make the world beside `out`, then put it in its place; its box, its items and its points."""
    _check_free(out)
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


def _check_free(out: Path) -> None:
    """`out` may be new, empty, or hold other things; never another world."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file", "name a folder")
    for name in (CATALOG, LABELS, *LAYERS):
        if (out / name).exists():
            other = out.with_name(out.name + "-2")
            raise BadInput(f"{out} already holds {name}", f"name another folder, such as {other}")


def _move(made: Path, out: Path) -> None:
    """Put the finished world in its place; the catalog goes last, so that no kill leaves one that lies."""
    if not out.exists():
        made.rename(out)
        return
    for name in (*LAYERS, LABELS, CATALOG):
        (made / name).rename(out / name)


def _write(folder: Path, seed: int, grid: Grid, years: Years, progress: Progress | None) -> tuple[Box, int, int]:
    """Everything, into `folder`."""
    count = years[1] - years[0] + 2
    land, climate = draw_land(seed, grid, count), draw_climate(seed, grid.sites, count)
    plan = passes(seed, *years)
    ids: dict[str, list[str]] = {name: [] for name in LAYERS}
    with rasterio.Env():
        for done, at in enumerate(plan, 1):
            rng = stream(seed, 7 + list(LAYERS).index(at.collection), at.when.year, at.turn, at.orbit)
            scene = SENSORS[at.collection](rng, grid, land, climate, at)
            _save(folder, scene, grid)
            ids[at.collection].append(scene.id)
            if progress:
                progress(done, len(plan))
        labels = truth_table(seed, grid, land, *years)
        box = _bbox(grid)
    labels.to_parquet(folder / LABELS, index=False)
    span = Period.parse(f"{years[0]}:{years[1]}")
    for name, items in ids.items():
        _dump(folder / name / "collection.json", _collection(name, box, span, items))
    _dump(folder / CATALOG, _catalog(seed))
    return box, len(plan), len(labels)


def _save(folder: Path, scene: Scene, grid: Grid) -> None:
    """One item's COGs and then its JSON, in a folder of its own."""
    home = folder / scene.at.collection / scene.id
    home.mkdir(parents=True)
    for layer in LAYERS[scene.at.collection]:
        _write_cog(home / f"{layer.key}.tif", scene.pixels[layer.key], layer, grid)
    _dump(home / f"{scene.id}.json", _item(scene, grid))


def _write_cog(path: Path, pixels: np.ndarray, layer: Layer, grid: Grid) -> None:
    height, width = pixels.shape
    profile = {"driver": "COG", "compress": "deflate", "overview_resampling": "nearest", "count": 1}
    place = {"crs": f"EPSG:{EPSG}", "transform": Affine(*grid.transform(layer.gsd)), "nodata": layer.nodata}
    with rasterio.open(path, "w", height=height, width=width, dtype=layer.dtype, **profile, **place) as file:
        file.write(pixels, 1)


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- STAC


def _outline(grid: Grid, edge: tuple[float, float]) -> tuple[list[list[float]], list[float]]:
    """The covered quadrilateral as a closed ring (lon, lat), and its W, S, E, N."""
    height, width = (10 * pixels for pixels in grid.span)
    east = np.array([0, edge[0] * width, edge[1] * width, 0, 0]) + WEST
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
    ring, box = _outline(grid, scene.edge)
    collection, done = scene.at.collection, f"{scene.at.when + timedelta(hours=11):%Y-%m-%dT%H:%M:%S.000Z}"
    when = f"{scene.at.when:%Y-%m-%dT%H:%M:%S}.{scene.at.when.microsecond // 1000:03d}Z"
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
        "assets": {layer.key: _asset(layer, grid) for layer in LAYERS[collection]},
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
        "links": [_link("root", "./catalog.json"), *(_link("child", f"./{name}/collection.json") for name in LAYERS)],
    }
