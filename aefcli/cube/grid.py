"""Grids: where a cube's cells lie."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aefcli.errors import BadInput
from aefcli.extent import BBox

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_SNAP = 30  # metres; every source's cells nest in it at 10 m
_WIDEST = 24  # degrees; a metre is 2% longer at the ends
_COARSEST = 1000  # metres; beyond, use cells of 1280 m (sources.md)
_LONGEST_ID = 200  # bytes; a name on disk has 255, of which some go to what stands beside it


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
    if not crs and east - bbox.west > _WIDEST:
        raise BadInput(
            f"--bbox {bbox} is {east - bbox.west:g} degrees wide, and a UTM zone holds {_WIDEST} at most",
            "ask for less, or give a --crs in metres, such as EPSG:6933",
        )
    target = _projected(crs) if crs else CRS(_zone(middle, latitude))
    outline = box(bbox.west, bbox.south, east, bbox.north, "EPSG:4326")
    extent = outline.to_crs(target, resolution=0.02).boundingbox
    if not all(map(math.isfinite, extent.bbox)):
        raise BadInput(f"--bbox {bbox} does not lie in --crs {crs}", "leave --crs out, or give another")
    step = _snap(gsd)
    low = [math.floor(value / step + 1e-9) * step for value in (extent.left, extent.bottom)]
    high = [math.ceil(value / step - 1e-9) * step for value in (extent.right, extent.top)]
    return GeoBox.from_bbox(BoundingBox(low[0], low[1], high[0], high[1], target), resolution=gsd, tight=True)


def _zone(longitude: float, latitude: float) -> str:
    """The UTM zone of WGS 84. PROJ's database gives the same, and is looked through for up to a quarter of a second."""
    return f"EPSG:{32601 + int((longitude + 180) % 360 // 6) + 100 * (latitude < 0)}"


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
    """The same corner with cells `times` as large; the last ones may reach beyond the grid's far edges."""
    from odc.geo.geobox import GeoBox
    from rasterio import Affine

    if times == 1:
        return grid
    rows, columns = (-(-count // times) for count in shape_of(grid))
    return GeoBox((rows, columns), grid.transform * Affine.scale(times), grid.crs)


def grid_like(path: Path) -> GeoBox:
    """The grid of a raster or a cube, to be shared; refused are degrees, oblong cells and south-up ones."""
    import rasterio
    from odc.geo.geobox import GeoBox
    from rasterio.errors import RasterioError

    from aefcli.cube.store import open_cube

    if not path.exists():
        raise BadInput(f"--like {path} is not there", "give a raster or a cube")
    if path.is_dir():
        return open_cube(path).grid
    try:
        # As in `read`: a file that calls itself a raster may be a recipe that opens others.
        with rasterio.open(path, driver="JP2OpenJPEG" if path.suffix.lower() == ".jp2" else "GTiff") as file:
            grid = GeoBox.from_rio(file)
    except (RasterioError, OSError) as error:
        raise BadInput(f"--like {path} is no raster: {error}", "give a raster or a cube") from error
    if grid.crs is None:
        raise BadInput(f"--like {path} has no CRS", "give a raster with one")
    _projected(str(grid.crs))
    step = grid.transform
    if not all(map(math.isfinite, step)):
        raise BadInput(f"--like {path} lies nowhere: its transform is {tuple(step)[:6]}", "give another, or --bbox")
    if step.b or step.d or step.e >= 0 or not math.isclose(step.a, -step.e):
        raise BadInput(f"--like {path} is not north up with square cells", "give another, or --bbox")
    check_gsd(step.a)
    return grid


def outline(grid: GeoBox) -> BBox:
    """The box in degrees around a grid; west above east where it lies across the antimeridian."""
    from pyproj import Transformer

    turn = Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True)
    x, y = grid.extent.boundary.segmented(max(grid.extent.boundary.length / 200, 1)).xy
    lon, lat = turn.transform(list(x), list(y))
    return box_around(lon, lat)


def box_around(lon: Sequence[float], lat: Sequence[float]) -> BBox:
    """The narrowest box around points; of longitudes on both sides of 180 degrees, across it."""
    east = [value % 360 for value in lon]
    across = max(lon) - min(lon) > 180 and 0 < max(east) - min(east) < 180  # 0: all around the globe
    west, far = (min(east), max(east)) if across else (min(lon), max(lon))
    return BBox(west, min(lat), far - 360 if across and far > 180 else far, max(lat))


def areas(path: Path) -> dict[str, tuple[BBox, str]]:
    """The polygons of a GeoJSON or GeoPackage by their ids: the box around each, and its outline as WKT in degrees.

    The id is a column `id` or `name`, or the number of the row from 1; it becomes the name of a cube.
    """
    import warnings

    import geopandas
    from pyogrio.errors import CRSError, DataSourceError
    from shapely import get_coordinates
    from shapely.errors import GEOSException

    if not path.is_file():
        raise BadInput(f"--area {path} is not there", "give a GeoJSON or GeoPackage of polygons")
    try:
        # GDAL would open whatever the file is, and what that names: other files, other hosts.
        if path.read_bytes()[:16] != b"SQLite format 3\0":
            json.loads(path.read_text())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of outlines that do not close: checked below
            table = geopandas.read_file(path)
    except (DataSourceError, CRSError, GEOSException, ValueError, RecursionError) as error:
        raise BadInput(f"--area {path} is neither GeoJSON nor GeoPackage: {error}", "give one of polygons") from error
    if table.crs is None:
        raise BadInput(f"--area {path} has no CRS", "save it with one")
    if not len(table):
        raise BadInput(f"--area {path} is empty", "it needs a polygon")
    column = next((name for name in ("id", "name") if name in table), None)
    names = [str(value) for value in (table[column] if column else range(1, len(table) + 1))]
    found = {}
    for name, shape in zip(names, table.geometry.to_crs(4326), strict=True):
        if not re.fullmatch(r"[\w-][\w.-]*", name) or len(name.encode()) > _LONGEST_ID or name in found:
            shown = name if len(name) <= 60 else name[:57] + "..."
            raise BadInput(
                f"--area {path}: {shown!r} {'comes twice' if name in found else 'is no name for a cube'}",
                f"ids become file names: letters, digits, dots, - and _, at most {_LONGEST_ID} bytes",
            )
        if shape is None or shape.geom_type not in ("Polygon", "MultiPolygon") or shape.is_empty:
            raise BadInput(f"--area {path}: {name} is no polygon", "give polygons")
        if not shape.is_valid:
            raise BadInput(f"--area {path}: the outline of {name} crosses itself", "mend it, as with ST_MakeValid")
        lon, lat = get_coordinates(shape).T.tolist()
        if not (all(abs(x) <= 180 for x in lon) and all(abs(y) <= 90 for y in lat)):
            west, south, east, north = shape.bounds
            raise BadInput(
                f"--area {path}: {name} has longitudes {west:g} to {east:g}, latitudes {south:g} to {north:g}",
                "longitudes go from -180 to 180, latitudes from -90 to 90; an area over the antimeridian is a "
                "MultiPolygon of two parts, one up to 180 and one from -180",
            )
        found[name] = (box_around(lon, lat), shape.wkt)
    return found


def grid_attrs(grid: GeoBox) -> dict[str, Any]:
    """A grid as plain JSON: WKT, affine transform (a, b, c, d, e, f) of the outer corner, (rows, columns)."""
    return {"crs": crs_of(grid).to_wkt(), "transform": list(grid.transform[:6]), "shape": list(grid.shape)}


def grid_from(attrs: Any) -> GeoBox:
    """The grid that `grid_attrs` described."""
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox
    from rasterio import Affine

    return named(GeoBox(attrs["shape"], Affine(*attrs["transform"]), CRS(attrs["crs"])))


def named(grid: GeoBox) -> GeoBox:
    """The same grid, its CRS by its EPSG code where it has one: what is written down does not hang on its spelling."""
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox

    crs = crs_of(grid)
    return GeoBox(grid.shape, grid.transform, CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs)


def crs_of(grid: GeoBox) -> Any:
    """The grid's CRS; every grid of ours has one."""
    assert grid.crs is not None
    return grid.crs


def shape_of(grid: GeoBox) -> tuple[int, int]:
    """(rows, columns)."""
    return int(grid.shape[0]), int(grid.shape[1])
