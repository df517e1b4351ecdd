"""Where values go: the source's cells over a cube, and its period."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli.cube import Cube, factor
from aefcli.cube.grid import coarser
from aefcli.cube.write import SLAB
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.sources import Source

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    from odc.geo.geobox import GeoBox

_COARSE, _CELL = 1000, 1280  # metres: sources beyond the one are kept in cells of the other (sources.md)
_LATITUDE, _LONGITUDE = ("latitude", "lat", "y"), ("longitude", "lon", "x")


@dataclass(frozen=True)
class Place:
    """A source's cells over a cube's ground, and the cube's period."""

    source: Source
    cells: GeoBox
    cube: GeoBox
    period: Period

    @classmethod
    def of(cls, cube: Cube, source: Source) -> Place:
        """Its own spacing, rounded up to whole cells of the cube; text lies on the cube's own."""
        spacing = _CELL if source.gsd > _COARSE else max(source.gsd, 1)
        times = factor(spacing, cube.grid.resolution.x)
        return cls(source, coarser(cube.grid, times), cube.grid, cube.period)

    def has(self, time: int) -> bool:
        return self.source.static or self.period.start <= time < self.period.end

    def lazily(self, frames: int, read: Callable[[int, Tile], np.ndarray]) -> da.Array:
        """(time, y, x) in the table's dtype, whose blocks `read(frame, tile)` gives when they are asked for."""
        import dask.array as da

        rows, columns = (_steps(extent) for extent in self.cells.shape)

        def block(block_info: Any = None) -> np.ndarray:
            (frame, _), (top, bottom), (left, right) = block_info[None]["array-location"]
            return read(frame, Tile(top, left, bottom, right))[None]

        kind = np.dtype(self.source.dtype)
        return da.map_blocks(block, chunks=((1,) * frames, rows, columns), dtype=kind, meta=np.empty((0, 0, 0), kind))

    def dataset(self, times: Sequence[int] | np.ndarray, variables: dict[str, Any]) -> xr.Dataset:
        """Arrays (time, y, x) and numbers or words (time) as `cube` takes them; times in ms since 1970."""
        import xarray as xr
        from odc.geo.xr import xr_coords

        when = np.asarray(times, dtype="int64").astype("datetime64[ms]")
        shaped = {
            name: (("time", "y", "x") if values.ndim == 3 else ("time",), values) for name, values in variables.items()
        }
        return xr.Dataset(shaped, coords={**xr_coords(self.cells), "time": when})


def _steps(extent: int) -> tuple[int, ...]:
    return tuple(min(SLAB, extent - start) for start in range(0, extent, SLAB))


@dataclass
class Found:
    """What a reader made of files: a dataset for the cube, and what a user should know of it."""

    dataset: xr.Dataset
    notes: list[str] = field(default_factory=list)


def nothing(place: Place, files: Sequence[Path], why: str = "") -> BadInput:
    """The refusal of files that have nothing of the cube."""
    which = files[0] if len(files) == 1 else f"the {len(files)} files"
    verb = "has" if len(files) == 1 else "have"
    return BadInput(
        f"{which} {verb} nothing of {place.source.name} for the cube{why and ': '}{why}",
        f"it lies at {_where(place.cube)} and holds {place.period}",
    )


def _where(grid: GeoBox) -> str:
    west, south, east, north = grid.geographic_extent.boundingbox
    return f"{west:.3f},{south:.3f},{east:.3f},{north:.3f}"


def left_out(outside: int, of: int) -> list[str]:
    return [f"{outside} of {of} files lie outside the cube or its period"] if outside else []


# --- grids of xarray ------------------------------------------------------------------------------------------------


def over(dataset: xr.Dataset, place: Place, file: Path) -> xr.Dataset | None:
    """The part of a regular grid that the cells need, with a margin of one step; None where it lies elsewhere.

    Its axes become `lat` and `lon` (north and east in the file's own CRS, kept as the attribute `crs`), both ascending;
    longitudes count from the cube's, so that it does not matter whether the file's run to 180 or to 360.
    """
    north, east = (_axis(dataset, names, file) for names in (_LATITUDE, _LONGITUDE))
    crs = _crs(dataset, north, file)
    dataset = dataset.rename({north: "lat", east: "lon"})
    x, y = centres(place.cells, crs)
    if crs.is_geographic:
        middle = float(np.median(_unwrapped(x)))
        wrapped = middle + (dataset["lon"].to_numpy().astype("float64") - middle + 180) % 360 - 180
        dataset, x = dataset.assign_coords(lon=wrapped), middle + (x - middle + 180) % 360 - 180
    dataset = dataset.sortby(["lat", "lon"]).drop_duplicates("lon")
    for name, wanted in (("lat", y), ("lon", x)):
        axis = dataset[name].to_numpy().astype("float64")
        step = _step(axis, name, file)
        near = np.flatnonzero((axis > wanted.min() - 1.5 * step) & (axis < wanted.max() + 1.5 * step))
        if not len(near) or wanted.max() < axis[0] - step / 2 or wanted.min() > axis[-1] + step / 2:
            return None
        dataset = dataset.isel({name: near}).assign_coords({name: axis[near].round(4)})  # float32 here, float64 there
    return dataset.assign_attrs(crs=crs)


def _axis(dataset: xr.Dataset, names: Sequence[str], file: Path) -> str:
    for name in names:
        if name in dataset.dims and name in dataset.coords:
            return name
    raise BadInput(
        f"{file} has no regular axis {names[0]}; its dimensions: {', '.join(map(str, dataset.dims))}",
        "give a grid of rows and columns with coordinates",
    )


def _crs(dataset: xr.Dataset, north: str, file: Path) -> Any:
    """Degrees need no word; metres do."""
    import rioxarray  # noqa: F401 - adds .rio
    from pyproj import CRS

    stated = dataset.rio.crs
    if stated is None and north == "y":
        raise BadInput(f"{file} has no CRS", "set it, as dataset.rio.write_crs does, or give latitude and longitude")
    return CRS.from_user_input(stated or "EPSG:4326")


def _step(axis: np.ndarray, name: str, file: Path) -> float:
    steps = np.diff(axis)
    if not len(steps) or not (steps > 0).all():
        raise BadInput(f"{file} has {len(axis)} values of {name}", "at least two, all different, make a grid")
    return float(np.median(steps))


def plain(array: xr.DataArray, file: Path) -> xr.DataArray:
    """A variable as (time, lat, lon); what else it runs over is refused, unless there is one of it."""
    wanted = ("time", "lat", "lon")
    array = array.squeeze([name for name in array.dims if name not in wanted and array.sizes[name] == 1], drop=True)
    if set(array.dims) != set(wanted):
        raise BadInput(
            f"{file}: {array.name} runs over {', '.join(f'{name} ({size})' for name, size in array.sizes.items())}",
            "time, latitude and longitude are wanted: choose one of each other, or its mean",
        )
    return array.transpose(*wanted)


def centres(cells: GeoBox, crs: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y (h w) of the cells' middles in another CRS."""
    from pyproj import CRS, Transformer

    rows, columns = np.mgrid[: cells.shape[0], : cells.shape[1]] + 0.5
    a = cells.transform
    into = Transformer.from_crs(CRS.from_user_input(str(cells.crs)), crs, always_xy=True)
    x, y = into.transform(a.c + a.a * columns, a.f + a.e * rows)
    return np.asarray(x), np.asarray(y)


def _unwrapped(degrees: np.ndarray) -> np.ndarray:
    first = float(degrees.flat[0])
    return first + (degrees - first + 180) % 360 - 180


def spread(array: xr.DataArray, place: Place, crs: Any, method: str = "linear") -> np.ndarray:
    """A grid (time, lat, lon) at the cells: float32 (time, y, x), bilinear between its cells, or the nearest.

    A cell has a value where the grid's cell that it lies in has one; neighbours without take no part.
    """
    import xarray as xr

    x, y = centres(place.cells, crs)
    lon, lat = array["lon"].to_numpy(), array["lat"].to_numpy()
    if crs.is_geographic:
        middle = float(np.median(lon))
        x = middle + (x - middle + 180) % 360 - 180
    inside = np.ones(x.shape, dtype=bool)
    for wanted, axis in ((x, lon), (y, lat)):
        half = float(np.median(np.diff(axis))) / 2
        inside &= (wanted >= axis[0] - half) & (wanted <= axis[-1] + half)
    at = {
        "lon": xr.DataArray(np.clip(x, lon[0], lon[-1]), dims=("y", "x")),
        "lat": xr.DataArray(np.clip(y, lat[0], lat[-1]), dims=("y", "x")),
    }
    there = array.notnull().astype("float64")
    near = there.interp(at, method="nearest").transpose("time", "y", "x").to_numpy() > 0.5
    how: Any = method
    value, share = (
        part.interp(at, method=how).transpose("time", "y", "x").to_numpy()
        for part in (array.astype("float64").fillna(0.0), there)
    )
    whole = near & inside & (share > 0)
    return np.where(whole, value / np.where(whole, share, 1.0), np.nan).astype("float32")
