"""The door for data that no catalog has: xarray datasets as stacks, and cubes made of them, on disk or in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.grid import grid_attrs
from aefcli.cube.store import Cube, CubeSource
from aefcli.cube.write import FORMAT, Clear, Part, Parts, Stack, Work, layers_of, slabs, write
from aefcli.errors import BadInput, unknown
from aefcli.extent import Period, Tile
from aefcli.sources import SOURCES, WORDS, Source

if TYPE_CHECKING:
    import xarray as xr
    from odc.geo.geobox import GeoBox


def write_cube(path: Path, datasets: Mapping[str, xr.Dataset], period: Period, *, overwrite: bool = False) -> Path:
    """Make a cube of xarray datasets: the door for data that no catalog has.

    `datasets` maps a source's name to a dataset with dimensions (time, y, x), a CRS (rioxarray's or odc-geo's),
    square north-up cells, and a variable per band of that source, in the units that `sources` stores or with float
    variables `scale` and `offset` of (band). Optional: the source's quality layer, or `weight` (1 clear, 0 not), and
    a variable of (time) per number of its `meta`: that number, or a word such as "ascending" or "left".
    The finest dataset sets the cube's grid; the cells of the others are whole multiples of its cells. Raises BadInput
    for what does not fit.
    """
    grid, stacks, request = _checked(datasets, period)
    with ledger.build(path, request, dict, overwrite=overwrite) as build:
        if not build.complete:
            write(build, Parts(grid, period, stacks, {}, request), Work(threads=1))
    return path


def cube_of(datasets: Mapping[str, xr.Dataset], period: Period) -> Cube:
    """The cube that `write_cube` would make of the same datasets, in memory: nothing is written, all is held."""
    grid, stacks, request = _checked(datasets, period)
    attrs = {
        "aef:key": ledger.digest(request),
        "aef:grid": grid_attrs(grid),
        "aef:period": [period.start, period.end],
        "aef:sources": [stack.source.name for stack in stacks],
        "aef:request": request,
    }
    return Cube(Path("memory"), grid, period, {s.source.name: _held(s, grid) for s in stacks}, attrs)


def _held(stack: Stack, grid: GeoBox) -> CubeSource:
    """A stack as a source of an open cube: its pixels, their weight and its geometry."""
    frames, whole = np.arange(len(stack.times)), Tile(0, 0, *stack.grid.shape)
    clear = Clear(stack.source, stack.delivered, whole.shape)
    arrays: dict[str, np.ndarray] = {}
    for part in stack.read(frames, whole, 1):
        clear.add(part)
        arrays[part.name] = part.values
    return CubeSource.of(stack, grid, {**arrays, "weight": clear.weight()})


def _checked(datasets: Mapping[str, xr.Dataset], period: Period) -> tuple[GeoBox, list[Stack], dict[str, Any]]:
    """The grid of the finest, the stacks, and what is asked for."""
    stacks = []
    for name, dataset in datasets.items():
        if name not in SOURCES:
            raise unknown("source", name, SOURCES)
        stacks.append(stack_of_dataset(SOURCES[name], dataset))
    if not stacks:
        raise BadInput("a cube needs at least one source")
    grid = min((stack.grid for stack in stacks), key=lambda grid: grid.resolution.x)
    for stack in stacks:
        check_nested(stack, grid)
    request = {
        "format": FORMAT,
        "datasets": {s.source.name: fingerprint(s) for s in stacks},
        "period": str(period),
    }
    return grid, stacks, request


def stack_of_dataset(source: Source, dataset: xr.Dataset) -> Stack:
    """Check a dataset against the table and wrap it as a stack."""
    import odc.geo.xr  # noqa: F401 - adds .odc to datasets

    if source.kind == "text":
        raise BadInput(f"{source.name} is no raster", "it comes from a table of points")
    names = [band.name for band in source.bands if band.name in dataset]
    if not names:
        raise BadInput(f"the dataset of {source.name} has none of its bands {[band.name for band in source.bands]}")
    if missing := {"time", "y", "x"} - set(dataset.dims):
        raise BadInput(f"the dataset of {source.name} lacks the dimension {sorted(missing)[0]}")
    if not all(dataset.sizes[name] for name in ("time", "y", "x")):
        raise BadInput(f"the dataset of {source.name} is empty: {dict(dataset.sizes)}")
    grid = dataset.odc.geobox
    if grid is None or grid.crs is None:
        raise BadInput(
            f"the dataset of {source.name} has no CRS or no cell size",
            "dataset.rio.write_crs(...) gives the one, .rio.write_transform(...) the other where it is one cell wide",
        )
    if grid.resolution.y >= 0 or not math.isclose(grid.resolution.x, -grid.resolution.y):
        raise BadInput(f"the dataset of {source.name} is not north up with square cells", "sort y descending")
    dataset = dataset.sortby("time").transpose("time", "y", "x", ...)
    delivered = np.tile([band.name in names for band in source.bands], (dataset.sizes["time"], 1))
    layers = layers_of(source, delivered[0])
    extra = [name for name in layers if name in dataset]
    if source.quality is not None and source.quality.name not in dataset:
        layers.pop(source.quality.name)

    def read(frames: np.ndarray, tile: Tile, threads: int) -> Iterator[Part]:
        rows, columns = tile.slices
        cut = dataset[extra].isel(time=frames, y=rows, x=columns)
        return (Part(name, _stored(cut[name].to_numpy(), name, *layers[name])) for name in extra)

    def per_band(name: str, default: Sequence[float]) -> np.ndarray:
        values = np.asarray(default, dtype="float64")
        if name in dataset:
            given = dataset[name]
            values = given.to_numpy()
            if "band" in given.coords:
                found = given.reindex(band=[band.name for band in source.bands]).transpose(..., "band").to_numpy()
                values = np.where(np.isnan(found), np.asarray(default), found)
        try:
            return np.broadcast_to(values, delivered.shape).astype("float64")
        except ValueError as error:
            raise BadInput(f"{name} of {source.name} has the shape {values.shape}", "give one per band") from error

    return Stack(
        source=source,
        grid=grid,
        times=dataset["time"].to_numpy().astype("datetime64[ms]").astype("int64"),
        delivered=delivered,
        scale=per_band("scale", [band.scale for band in source.bands]),
        offset=per_band("offset", [band.offset for band in source.bands]),
        lineage={
            **{name: [""] * dataset.sizes["time"] for name in ("items", "platform", "orbit")},
            **_geometry(source, dataset),
        },
        layers=layers,
        read=read,
    )


def _geometry(source: Source, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """The variables of the source's `meta` that the dataset has, (t) each: words or float32."""
    found = {}
    for name in (name for name in source.meta if name in dataset):
        values = dataset[name].to_numpy()
        if dataset[name].dims != ("time",):
            raise BadInput(f"{name} of {source.name} has the shape {values.shape}", "give one per frame")
        words = values.dtype.kind not in "fiub"
        if words and (odd := sorted({str(value) for value in values} - set(WORDS) - {""})):
            raise unknown(f"{name} of {source.name}", odd[0], WORDS, "or give numbers")
        found[name] = values.astype(object if words else "float32")
    return found


def _stored(values: np.ndarray, name: str, dtype: str, nodata: float) -> np.ndarray:
    """Values as they are stored: NaN is nodata, fractions are rounded; what the dtype cannot hold is refused."""
    kind = np.dtype(dtype)
    if kind.kind == "f" or values.dtype == kind:
        return values.astype(kind)
    whole = np.rint(np.where(np.isnan(values), nodata, values)) if values.dtype.kind == "f" else values
    limits = np.iinfo(kind)
    if whole.size and not (limits.min <= whole.min() and whole.max() <= limits.max):
        raise BadInput(f"{name} holds {whole.min():g} to {whole.max():g}, which {dtype} cannot", "scale it first")
    return whole.astype(kind)


def check_nested(stack: Stack, grid: GeoBox) -> None:
    """All sources share the corner, and their cells are whole multiples of the cube's."""
    ratio = stack.grid.resolution.x / grid.resolution.x
    whole = math.isclose(ratio, round(ratio))
    corner = (stack.grid.transform.c, stack.grid.transform.f) == (grid.transform.c, grid.transform.f)
    same = stack.grid.crs == grid.crs
    covers = whole and all(n * round(ratio) >= m for n, m in zip(stack.grid.shape, grid.shape, strict=True))
    if not (whole and corner and same and covers):
        raise BadInput(f"{stack.source.name} does not share the corner, the CRS or whole cells with the finest source")


def fingerprint(stack: Stack) -> str:
    """A hash of times, grid and values, so that another dataset is not taken for the same request."""
    import hashlib

    sha = hashlib.sha256(f"{stack.grid}{stack.layers}".encode())
    for array in (stack.times, stack.scale, stack.offset):
        sha.update(np.ascontiguousarray(array).tobytes())
    for name, values in stack.lineage.items():
        if name in stack.source.meta and any(values):  # without them the hash is the one it was before they existed
            sha.update(f"{name}{list(map(str, values))}".encode())
    for tile in slabs(stack.grid):
        for part in stack.read(np.arange(len(stack.times)), tile, 1):
            sha.update(np.ascontiguousarray(part.values).tobytes())
    return sha.hexdigest()
