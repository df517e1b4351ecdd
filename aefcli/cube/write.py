"""Writing a cube: stacks of frames in, slab by slab, into one Zarr store."""

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
from aefcli.cube.grid import grid_attrs, shape_of
from aefcli.errors import NoResources
from aefcli.extent import Period, Tile, tiles
from aefcli.sources import Source

if TYPE_CHECKING:
    import zarr
    from odc.geo.geobox import GeoBox

FORMAT = "datacube/1"
CHUNK = (32, 128, 128)  # frames, rows, columns: training reads patches through all time
SLAB = 512  # side of a unit of work: whole chunks, and about one block of a remote COG

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
