"""The cube as a store: writing it slab by slab, and opening it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.grid import grid_attrs, grid_from, shape_of
from aefcli.errors import BadInput, Damaged, NoResources, unknown
from aefcli.extent import Period, Tile, tiles
from aefcli.sources import SOURCES, Source

if TYPE_CHECKING:
    import xarray as xr
    import zarr
    from odc.geo.geobox import GeoBox

FORMAT = "datacube/1"
CHUNK = (32, 128, 128)  # frames, rows, columns: training reads patches through all time
SLAB = 512  # side of a unit of work: whole chunks, and about one block of a remote COG
_WORDS = {"ascending": 1.0, "descending": -1.0, "right": 1.0, "left": -1.0}  # of acquisition geometry, as numbers

Progress = Callable[[int, int], None]
Reader = Callable[[slice, Tile], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Stack:
    """One source ready to be written: t frames on a grid, with the function that reads any slab of it."""

    source: Source
    grid: GeoBox
    times: np.ndarray  # int64 (t), ms since 1970 UTC, ascending
    delivered: np.ndarray  # bool (t, band)
    scale: np.ndarray  # float64 (t, band)
    offset: np.ndarray
    lineage: Mapping[str, Sequence[str] | np.ndarray]  # (t) each; acquisition geometry as words or as numbers
    layers: Mapping[str, tuple[str, float]]  # variable -> (dtype, nodata)
    read: Reader


def layers_of(source: Source, delivered: Sequence[bool]) -> dict[str, tuple[str, float]]:
    """Variables of a source's group: the bands that any frame has, its quality layer, the weight."""
    layers = {
        band.name: (source.dtype, source.nodata) for band, there in zip(source.bands, delivered, strict=True) if there
    }
    if source.quality is not None:
        layers[source.quality.name] = (source.quality.dtype, source.quality.nodata)
    return {**layers, "weight": ("uint8", 0)}


def write_cube(path: Path, datasets: Mapping[str, xr.Dataset], period: Period, *, overwrite: bool = False) -> Path:
    """Make a cube of xarray datasets: the door for data that no catalog has.

    `datasets` maps a source's name to a dataset with dimensions (time, y, x), a CRS (rioxarray's or odc-geo's),
    square north-up cells, and a variable per band of that source, in the units that `sources` stores or with float
    variables `scale` and `offset` of (band). Optional: the source's quality layer, or `weight` (1 clear, 0 not), and
    a variable of (time) per number of its `meta`: that number, or a word such as "ascending" or "left".
    The finest dataset sets the cube's grid; the cells of the others are whole multiples of its cells. Raises BadInput
    for what does not fit.
    """
    stacks = []
    for name, dataset in datasets.items():
        if name not in SOURCES:
            raise unknown("source", name, SOURCES)
        stacks.append(_stack_of_dataset(SOURCES[name], dataset))
    if not stacks:
        raise BadInput("a cube needs at least one source")
    grid = min((stack.grid for stack in stacks), key=lambda grid: grid.resolution.x)
    for stack in stacks:
        _check_nested(stack, grid)
    request = {
        "format": FORMAT,
        "datasets": {s.source.name: _fingerprint(s) for s in stacks},
        "period": str(period),
    }
    with ledger.build(path, request, dict, overwrite=overwrite) as build:
        if not build.complete:
            write(build, stacks, grid, period, {"aef:request": request}, 1, None)
    return path


def _stack_of_dataset(source: Source, dataset: xr.Dataset) -> Stack:
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

    def read(when: slice, tile: Tile) -> dict[str, np.ndarray]:
        rows, columns = tile.slices
        part = dataset[extra].isel(time=when, y=rows, x=columns)
        return {name: _stored(part[name].to_numpy(), name, *layers[name]) for name in extra}

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
        if words and (odd := sorted({str(value) for value in values} - set(_WORDS) - {""})):
            raise unknown(f"{name} of {source.name}", odd[0], _WORDS, "or give numbers")
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


def _check_nested(stack: Stack, grid: GeoBox) -> None:
    """All sources share the corner, and their cells are whole multiples of the cube's."""
    ratio = stack.grid.resolution.x / grid.resolution.x
    whole = math.isclose(ratio, round(ratio))
    corner = (stack.grid.transform.c, stack.grid.transform.f) == (grid.transform.c, grid.transform.f)
    same = stack.grid.crs == grid.crs
    covers = whole and all(n * round(ratio) >= m for n, m in zip(stack.grid.shape, grid.shape, strict=True))
    if not (whole and corner and same and covers):
        raise BadInput(f"{stack.source.name} does not share the corner, the CRS or whole cells with the finest source")


def _fingerprint(stack: Stack) -> str:
    """A hash of times, grid and values, so that another dataset is not taken for the same request."""
    import hashlib

    sha = hashlib.sha256(f"{stack.grid}{stack.layers}".encode())
    for array in (stack.times, stack.scale, stack.offset):
        sha.update(np.ascontiguousarray(array).tobytes())
    for name, values in stack.lineage.items():
        if name in stack.source.meta and any(values):  # without them the hash is the one it was before they existed
            sha.update(f"{name}{list(map(str, values))}".encode())
    for tile in tiles(shape_of(stack.grid), SLAB):
        for values in stack.read(slice(None), tile).values():
            sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def write(
    build: ledger.Build,
    stacks: Sequence[Stack],
    grid: GeoBox,
    period: Period,
    attrs: Mapping[str, Any],
    workers: int,
    progress: Progress | None,
) -> int:
    """Template, then every unit not yet in the ledger, then the closing metadata. Returns the units written."""
    import dask

    root = {
        ledger.FORMAT_KEY: FORMAT,
        "aef:key": build.key,
        "aef:grid": grid_attrs(grid),
        "aef:period": [period.start, period.end],
        "aef:sources": [stack.source.name for stack in stacks],
        **attrs,
    }
    try:
        build.template(lambda path: _template(path, stacks, root))
        units = {f"{s.source.name}/{w.start}/{t.top}/{t.left}": (s, w, t) for s in stacks for w, t in _units(s)}
        todo = build.remaining(units)
        with _quiet_warps(), dask.config.set(scheduler="threads", num_workers=workers):
            for done, name in enumerate(todo):
                if progress:
                    progress(len(units) - len(todo) + done, len(units))
                stack, when, tile = units[name]
                build.record(name, _write_slab(build.store, stack, when, tile))
        if progress and todo:
            progress(len(units), len(units))
        build.finish(_close)
    except OSError as error:
        raise NoResources(
            f"cannot write {build.store}: {error.strerror or error}", "make room, then run again"
        ) from error
    return len(todo)


@contextmanager
def _quiet_warps() -> Iterator[None]:
    """Hide "Dataset has no geotransform", which rasterio says of its own scratch rasters when several threads warp.

    It means to hide that itself, by changing the process's filters from each thread at once. Files without a
    georeference are refused where they are opened.
    """
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _close(path: Path) -> None:
    """Consolidate the metadata, so that a plain `xarray.open_zarr` of a group does not warn; `complete` comes last."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        zarr.consolidate_metadata(path, zarr_format=3)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["state"] = "complete"
    ledger.write_atomically(path / "zarr.json", json.dumps(document, indent=2).encode())


def _units(stack: Stack) -> Iterator[tuple[slice, Tile]]:
    """Units of work: whole chunks of time and space."""
    for start in range(0, len(stack.times), CHUNK[0]):
        for tile in tiles(shape_of(stack.grid), SLAB):
            yield slice(start, min(start + CHUNK[0], len(stack.times))), tile


def _template(path: Path, stacks: Sequence[Stack], root: Mapping[str, Any]) -> None:
    """Everything but the pixels: groups, coordinates, lineage, empty arrays."""
    import zarr

    zarr.create_group(path, attributes={**root, "state": "building"})
    for stack in stacks:
        _group(path, stack)


def _group(path: Path, stack: Stack) -> None:
    """One source's group. Chunks of nodata are written like others: an absent one means "not done"."""
    import dask.array as da
    import xarray as xr
    from odc.geo.xr import xr_coords
    from zarr.codecs import BloscCodec, Crc32cCodec

    shape = (len(stack.times), *stack.grid.shape)
    dims = ("time", "y", "x")
    coords = xr_coords(stack.grid)
    variables: dict[str, Any] = {
        name: (
            dims,
            da.full(shape, fill, dtype=dtype, chunks=CHUNK),
            {} if math.isnan(fill) else {"nodata": fill},
        )
        for name, (dtype, fill) in stack.layers.items()
    }
    per_band = {"scale": stack.scale, "offset": stack.offset, "delivered": stack.delivered.astype("uint8")}
    variables |= {name: (("time", "band"), values) for name, values in per_band.items()}
    variables |= {
        name: ("time", values if isinstance(values, np.ndarray) else np.array(values, dtype=object))
        for name, values in stack.lineage.items()
    }
    dataset = xr.Dataset(
        variables,
        coords={
            **coords,
            "time": stack.times.astype("datetime64[ms]"),
            "band": np.array([band.name for band in stack.source.bands], dtype=object),
        },
    )
    codecs = (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
    chunks = tuple(min(size, whole) for size, whole in zip(CHUNK, shape, strict=True))
    encoding: dict[str, Any] = {
        name: {"chunks": chunks, "compressors": codecs, "fill_value": fill, "grid_mapping": "spatial_ref"}
        for name, (_, fill) in stack.layers.items()
    }
    encoding["time"] = {"units": "milliseconds since 1970-01-01", "dtype": "int64"}
    dataset.to_zarr(path, group=stack.source.name, mode="a", encoding=encoding, compute=False, consolidated=False)


def _write_slab(store: Path, stack: Stack, when: slice, tile: Tile) -> list[Path]:
    """Read one unit and write it; returns the chunk files, which the ledger hashes."""
    import zarr

    slab = stack.read(when, tile)
    slab["weight"] = _weight(slab, stack.source, stack.delivered[when])
    files = []
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, (_, nodata) in stack.layers.items():
            values = slab.get(name, nodata)  # a band that none of these frames has is written all the same
            array = zarr.open_array(store / stack.source.name / name, mode="r+")
            array[(when, *tile.slices)] = values
            files += chunk_files(store / stack.source.name / name, array, (when, *tile.slices))
    return files


def chunk_files(path: Path, array: zarr.Array, region: Sequence[slice]) -> list[Path]:
    """The files that hold a region of whole chunks of an unsharded array on disk."""
    counts = [range(part.start // size, -(-part.stop // size)) for part, size in zip(region, array.chunks, strict=True)]
    grid = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1).reshape(-1, len(counts))
    return [path.joinpath("c", *map(str, index)) for index in grid]


def _weight(slab: Mapping[str, np.ndarray], source: Source, delivered: np.ndarray) -> np.ndarray:
    """uint8 (t, y, x): 1 where every band that the frame has was delivered and the product calls the pixel clear.

    `delivered` (t, band) says which bands a frame has: a radar pass has one pair of polarisations or the other.
    """
    each = [
        valid(slab[band.name], source.nodata) | ~delivered[:, index, None, None]
        for index, band in enumerate(source.bands)
        if band.name in slab
    ]
    clear: np.ndarray = np.stack(each).all(axis=0) & np.asarray(delivered.any(axis=1))[:, None, None]
    if "weight" in slab:
        clear &= slab["weight"] > 0
    if source.quality is not None and source.quality.name in slab:
        clear &= source.quality.clear(slab[source.quality.name])
    return clear.astype("uint8")


def valid(stored: np.ndarray, nodata: float) -> np.ndarray:
    """True where a value was delivered. NaN is never one, whatever the provider's nodata."""
    delivered = np.ones(stored.shape, bool) if math.isnan(nodata) else stored != nodata
    return delivered & np.isfinite(stored) if stored.dtype.kind == "f" else delivered


@dataclass(frozen=True)
class CubeSource:
    """One source of an open cube. Arrays are read when asked for."""

    source: Source
    times: np.ndarray  # int64 (t), ms since 1970 UTC, ascending
    bands: tuple[str, ...]  # those that any frame has, in the order of the table
    delivered: np.ndarray  # bool (t, c)
    scale: np.ndarray  # float64 (t, c)
    offset: np.ndarray
    meta: np.ndarray  # float32 (t, m), the acquisition geometry that the table names; 0 where it is not known
    factor: int  # cells of the cube per cell of the source
    arrays: Mapping[str, zarr.Array | np.ndarray]

    def read(self, tile: Tile, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored values (t c h w) and weight (t h w) of some frames over a tile of the cube's pixels.

        Coarser sources are repeated up to the cube's spacing. The tile lies inside the cube.
        """
        stored = [self._over(tile, frames, name) for name in self.bands]
        return np.stack(stored, axis=1), self.clear(tile, frames)

    def clear(self, tile: Tile, frames: np.ndarray) -> np.ndarray:
        """The weight alone (t h w)."""
        return self._over(tile, frames, "weight")

    def _over(self, tile: Tile, frames: np.ndarray, name: str) -> np.ndarray:
        """One variable (t h w) over the cube's pixels of a tile."""
        times = self.factor
        cells = Tile(tile.top // times, tile.left // times, -(-tile.bottom // times), -(-tile.right // times))
        values = _select(self.arrays[name], frames, cells)
        if times == 1:
            return values
        rows = np.arange(tile.top, tile.bottom) // times - cells.top
        columns = np.arange(tile.left, tile.right) // times - cells.left
        return values[:, rows[:, None], columns]


def _select(array: Any, frames: np.ndarray, tile: Tile) -> np.ndarray:
    """Some frames of a tile, from Zarr or from memory."""
    chosen = array if isinstance(array, np.ndarray) else array.oindex
    return np.asarray(chosen[(frames, *tile.slices)])


@dataclass(frozen=True)
class Cube:
    """An open, finished cube."""

    path: Path
    grid: GeoBox
    period: Period
    sources: Mapping[str, CubeSource]
    attrs: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.attrs["aef:key"])

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid.shape[0], self.grid.shape[1]


def open_cube(path: Path) -> Cube:
    """Open a finished cube; what is missing, unfinished or not a cube is refused in one line."""
    import zarr

    if not path.exists():
        raise BadInput(f"there is no cube {path}", "aef fetch --stac ... --bbox ... --period ... makes one")
    try:
        root = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(f"{path} is no Zarr store", "aef fetch makes a cube") from error
    attrs: dict[str, Any] = dict(root.attrs)
    if not str(attrs.get(ledger.FORMAT_KEY, "")).startswith("datacube/"):
        raise BadInput(f"{path} is no datacube", "aef fetch makes one")
    if attrs[ledger.FORMAT_KEY] != FORMAT:
        raise BadInput(f"{path} is of format {attrs[ledger.FORMAT_KEY]}; this version reads {FORMAT}", "update aef")
    if attrs.get("state") != "complete":
        raise BadInput(f"{path} is not finished", "run the same aef fetch again: it resumes")
    grid = grid_from(attrs["aef:grid"])
    start, end = attrs["aef:period"]
    sources = {name: _open_source(root, name, grid) for name in attrs["aef:sources"]}
    return Cube(path, grid, Period(start, end), sources, attrs)


def _open_source(root: zarr.Group, name: str, grid: GeoBox) -> CubeSource:
    source = SOURCES[name]
    bands = tuple(band.name for band in source.bands if f"{name}/{band.name}" in root)

    def array(key: str) -> Any:
        return root[f"{name}/{key}"]

    def values(key: str) -> np.ndarray:
        return np.asarray(array(key)[:])

    arrays = {key: array(key) for key in (*bands, "weight")}
    if len({found.shape for found in arrays.values()}) != 1:
        raise Damaged(f"the arrays of {name} differ in shape", "fetch it again with --overwrite")
    labels = [str(label) for label in values("band")]
    index = [labels.index(band) for band in bands]
    cell = float(str(array("spatial_ref").attrs["GeoTransform"]).split()[1])
    times = values("time").astype("int64")
    known = [_numbers(values(key)) if f"{name}/{key}" in root else np.zeros(len(times)) for key in source.meta]
    return CubeSource(
        source=source,
        times=times,
        bands=bands,
        delivered=values("delivered")[:, index].astype(bool),
        scale=values("scale")[:, index],
        offset=values("offset")[:, index],
        meta=np.array(known, dtype="float32").reshape(len(source.meta), len(times)).T,
        factor=round(cell / grid.resolution.x),
        arrays=arrays,
    )


def _numbers(values: np.ndarray) -> np.ndarray:
    """Acquisition geometry as numbers (t): words by their sign, what is not known 0."""
    if values.dtype.kind in "fiub":
        return np.nan_to_num(values.astype("float64"))
    return np.array([_WORDS.get(str(value), 0.0) for value in values])
