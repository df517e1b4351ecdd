"""A made-up archive of Sentinel-2: three passes over two tiles that overlap, with every pixel known."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine

from aefcli.cube import Request
from aefcli.extent import BBox, Period

AUGUST = Period.parse("2023-08")
KEYS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "B11": "swir16", "scl": "scl"}

ORIGIN = (500040.0, 5100000.0)
SIDE, OVERLAP = 64, 16
TO_DEGREES = Transformer.from_crs(32633, 4326, always_xy=True)
DAYS = ("2023-08-10", "2023-08-13", "2023-08-15")
CATALOG = "items.json"


@dataclass(frozen=True)
class Toy:
    """A made-up archive in a folder: its items as JSON, and its pixels by (item, band)."""

    folder: Path
    items: list[dict[str, Any]]
    pixels: dict[tuple[str, str], np.ndarray]

    @property
    def catalog(self) -> Path:
        return self.folder / CATALOG

    def saved(self, items: list[dict[str, Any]], name: str = "other.json") -> Path:
        path = self.folder / name
        path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        return path

    def over(self, url: str) -> list[dict[str, Any]]:
        return to_server(self.items, self.folder, url)


def corners(left: float, top: float, width: float, height: float) -> BBox:
    """A box in degrees whose outline lies inside the one in metres."""
    x, y = [left, left + width, left, left + width], [top, top, top - height, top - height]
    longitude, latitude = TO_DEGREES.transform(x, y)
    west, east = sorted(longitude)[1:3]
    south, north = sorted(latitude)[1:3]
    return BBox(west, south, east, north)


TOY_BOX = corners(ORIGIN[0] + 330, ORIGIN[1] - 330, 5700, 3000)


def toy_item(folder: Path, day: str, tile: int) -> dict[str, Any]:
    """One item of the archive as JSON; its files are named, not written."""
    name = f"S2A_33T{'WM' if tile == 0 else 'XM'}_{day.replace('-', '')}_0_L2A"
    left = ORIGIN[0] + tile * (SIDE - OVERLAP) * 60
    west, south, east, north = rasterio.warp.transform_bounds(
        "EPSG:32633", "EPSG:4326", left, ORIGIN[1] - SIDE * 60, left + SIDE * 60, ORIGIN[1]
    )
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v1.0.0/schema.json"],
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": [west, south, east, north],
        "geometry": {"type": "Polygon", "coordinates": [ring([west, south, east, north])]},
        "properties": {
            "datetime": f"{day}T09:57:{50 - tile}Z",  # the eastern tile comes first in time, and last by id
            "platform": "sentinel-2a",
            "grid:code": name[4:9],
            "s2:datatake_id": f"GS2A_{day.replace('-', '')}T095031_042547_N05.09",
            "s2:processing_baseline": "05.09",
            "proj:epsg": 32633,
        },
        "links": [],
        "assets": {key: {"href": str(folder / name / f"{band}.tif")} for band, key in KEYS.items()},
    }


def make_toy(folder: Path) -> Toy:
    """The archive, written into a folder."""
    made = Toy(folder, [toy_item(folder, day, tile) for day in DAYS for tile in (0, 1)], {})
    rng = np.random.default_rng(0)
    for number, item in enumerate(made.items):
        (folder / item["id"]).mkdir()
        for band in KEYS:
            high = 12 if band == "scl" else 4000
            values = rng.integers(0 if band == "scl" else 1, high, (SIDE, SIDE)).astype(
                "uint8" if high == 12 else "uint16"
            )
            values[:, 30 : 30 + 3 * number] = 0  # a wedge without data
            write_tif(
                folder / item["id"] / f"{band}.tif", values, left=ORIGIN[0] + (number % 2) * (SIDE - OVERLAP) * 60
            )
            made.pixels[item["id"], band] = values
    made.saved(made.items, CATALOG)
    return made


def write_tif(path: Path, values: np.ndarray, *, left: float, **options: Any) -> None:
    profile = {
        "driver": "GTiff",
        "height": SIDE,
        "width": SIDE,
        "count": 1,
        "dtype": values.dtype,
        "crs": "EPSG:32633",
        "transform": Affine(60, 0, left, 0, -60, ORIGIN[1]),
        "nodata": 0,
        "tiled": True,
        "blockxsize": 32,
        "blockysize": 32,
        **options,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)


def toy_request(toy: Toy | Path | str, **changes: Any) -> Request:
    catalog = str(toy.catalog if isinstance(toy, Toy) else toy)
    return Request(
        **{"catalog": catalog, "bbox": TOY_BOX, "period": AUGUST, "gsd": 60, "sources": ("sentinel-2",), **changes}
    )


def ring(box: list[float]) -> list[list[float]]:
    west, south, east, north = box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def to_server(items: list[dict[str, Any]], root: Path, url: str) -> list[dict[str, Any]]:
    moved = copy.deepcopy(items)
    for item in moved:
        for asset in item["assets"].values():
            asset["href"] = asset["href"].replace(str(root), url)
    return moved


def canvas(toy: Toy, band: str, day: str, grid: GeoBox) -> np.ndarray:
    """What a frame must hold where the tiles overlap: the first in time, which is the eastern."""
    whole = np.zeros((SIDE, 2 * SIDE - OVERLAP), int)
    for tile in (0, 1):  # the later one is written over
        item = toy.items[2 * DAYS.index(day) + tile]
        left = tile * (SIDE - OVERLAP)
        part, values = whole[:, left : left + SIDE], toy.pixels[item["id"], band]
        part[values > 0] = values[values > 0]
    left, top = round((grid.transform.c - ORIGIN[0]) / 60), round((ORIGIN[1] - grid.transform.f) / 60)
    return whole[top : top + grid.shape[0], left : left + grid.shape[1]]
