"""Grids: where a cube's cells lie."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aefcli.errors import BadInput
from aefcli.extent import BBox

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_SNAP = 30  # metres; every source's cells nest in it at 10 m
_COARSEST = 1000  # metres; beyond, use cells of 1280 m (sources.md)


def grid_of(bbox: BBox, gsd: float, crs: str | None = None) -> GeoBox:
    """The cube's grid: UTM (or `crs`), north up, snapped outward to 30 m, or to `gsd` metres if that is larger."""
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox
    from odc.geo.geom import BoundingBox, box

    east = bbox.east if bbox.west < bbox.east else bbox.east + 360
    middle = (bbox.west + east) / 2
    latitude = (bbox.south + bbox.north) / 2
    if not crs and not -80 <= latitude <= 84:
        raise BadInput(f"--bbox {bbox} lies beyond the UTM zones", "give a --crs in metres, such as EPSG:3413 or 3031")
    target = _projected(crs) if crs else CRS.utm((middle + 180) % 360 - 180, latitude)
    outline = box(bbox.west, bbox.south, east, bbox.north, "EPSG:4326")
    extent = outline.to_crs(target, resolution=0.02).boundingbox
    if not all(map(math.isfinite, extent.bbox)):
        raise BadInput(f"--bbox {bbox} does not lie in --crs {crs}", "leave --crs out, or give another")
    step = _snap(gsd)
    low = [math.floor(value / step + 1e-9) * step for value in (extent.left, extent.bottom)]
    high = [math.ceil(value / step - 1e-9) * step for value in (extent.right, extent.top)]
    return GeoBox.from_bbox(BoundingBox(low[0], low[1], high[0], high[1], target), resolution=gsd, tight=True)


def _projected(crs: str) -> Any:
    from odc.geo import CRS
    from pyproj.exceptions import CRSError

    try:
        found = CRS(crs)
    except (CRSError, ValueError) as error:
        raise BadInput(f"--crs {crs!r} is no coordinate reference system", "give one such as EPSG:32633") from error
    if not found.projected or "metre" not in {axis.unit_name for axis in found.proj.axis_info}:
        raise BadInput(f"--crs {crs!r} is not in metres", "give a projected one such as EPSG:32633")
    return found


def check_gsd(gsd: float) -> float:
    if not (math.isfinite(gsd) and 1 <= gsd <= _COARSEST):
        raise BadInput(f"--gsd {gsd:g} is not between 1 and {_COARSEST} metres", "--gsd is in metres, not degrees")
    return gsd


def _snap(gsd: float) -> float:
    """Metres to which the box is snapped: the spacing of the coarsest source on a cube of this gsd."""
    return factor(_SNAP, gsd) * gsd


def factor(source_gsd: float, gsd: float) -> int:
    """How many cells of the cube make one of the source: the smallest whole number that reaches its spacing."""
    return max(1, math.ceil(source_gsd / gsd - 1e-9))


def coarser(grid: GeoBox, times: int) -> GeoBox:
    """The same corner and extent with cells `times` as large."""
    return grid if times == 1 else grid.zoom_out(times)


def grid_attrs(grid: GeoBox) -> dict[str, Any]:
    """A grid as plain JSON: WKT, affine transform (a, b, c, d, e, f) of the outer corner, (rows, columns)."""
    return {"crs": crs_of(grid).to_wkt(), "transform": list(grid.transform[:6]), "shape": list(grid.shape)}


def grid_from(attrs: Any) -> GeoBox:
    """The grid that `grid_attrs` described."""
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox
    from rasterio import Affine

    crs = CRS(attrs["crs"])
    named = CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs  # what writes a grid's CRS down spells it by its name
    return GeoBox(attrs["shape"], Affine(*attrs["transform"]), named if named == crs else crs)


def crs_of(grid: GeoBox) -> Any:
    """The grid's CRS; every grid of ours has one."""
    assert grid.crs is not None
    return grid.crs


def shape_of(grid: GeoBox) -> tuple[int, int]:
    """(rows, columns)."""
    return int(grid.shape[0]), int(grid.shape[1])
