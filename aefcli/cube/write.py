"""Writing a cube: stacks of frames in, slab by slab, into one Zarr store."""

from __future__ import annotations

import ctypes
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.grid import grid_attrs, named, shape_of
from aefcli.errors import BadInput, NoResources
from aefcli.extent import Period, Tile, tiles
from aefcli.sources import Source, valid

if TYPE_CHECKING:
    import xarray as xr
    import zarr
    from odc.geo.geobox import GeoBox

FORMAT = "datacube/1"
COLLECTION = "aef:collection"  # attribute of a group
CHUNK = (32, 128, 128)  # frames, rows, columns: training reads patches through all time
SLAB = 1024  # side of a unit of work: whole chunks. Blocks of 512 px off the cube's grid are read 2.7 times at 512

_PACKERS = 2  # threads that pack chunks: one beside the readers, two when they are done

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """One variable of some frames of a source over a tile, (t, y, x), and the assets that were masked in it."""

    name: str
    values: np.ndarray
    missing: tuple[str, ...] = ()


Reader = Callable[[np.ndarray, Tile, int], Iterator[Part]]  # indices of frames, cells, threads


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
    collection: str = ""  # of a catalog, if it comes from one: the source's numbers may hang on it

    def factor(self, grid: GeoBox) -> int:
        """Cells of a cube's grid per cell of this one."""
        return round(self.grid.resolution.x / grid.resolution.x)


@dataclass(frozen=True)
class Old:
    """A finished cube whose units may be adopted: its records, and which frames of its sources are those of a stack;
    none of the source `apart`, which is replaced.
    """

    record: ledger.Record
    same: Callable[[Stack, slice], bool]
    apart: str = ""

    def has(self, unit: str, stack: Stack, when: slice) -> bool:
        return unit in self.record.units and stack.source.name != self.apart and self.same(stack, when)


def layers_of(source: Source, delivered: Sequence[bool]) -> dict[str, tuple[str, float]]:
    """Variables of a source's group: the bands that any frame has, its quality layer, the weight."""
    layers = {
        band.name: (source.dtype, source.nodata) for band, there in zip(source.bands, delivered, strict=True) if there
    }
    if source.quality is not None:
        layers[source.quality.name] = (source.quality.dtype, source.quality.nodata)
    return {**layers, "weight": ("uint8", 0)}


@dataclass(frozen=True)
class Parts:
    """All that a cube is made of."""

    grid: GeoBox
    period: Period
    stacks: Sequence[Stack]
    points: Mapping[str, xr.Dataset]  # tables such as texts, written whole
    request: Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """Who makes the slabs: threads of this process, or a dask cluster, by its address or its number of processes."""

    threads: int = 4
    dask: str | None = None


@dataclass(frozen=True)
class Written:
    """What a write ended with: units made and units adopted by it, and the assets masked in the whole cube."""

    made: int
    adopted: int
    missing: tuple[str, ...]


def write(
    build: ledger.Build, parts: Parts, work: Work, progress: Progress | None = None, old: Old | None = None
) -> Written:
    """Template, then every unit not yet in the ledger, then the closing metadata. What `old` has is adopted."""
    with storing(build.store):
        build.template(lambda path: template(path, parts, build.key))
        units = units_of(parts.stacks)
        todo = build.remaining(units)
        if old:
            same = [name for name in todo if old.has(name, *units[name][:2])]
            ledger.hold(old.record, old.record.units, old.apart)  # what is damaged is not carried on
            for name in same:
                build.adopt(name, old.record)
        left = build.remaining(units)
        for done, (name, files, missing) in enumerate(made(build.store, {name: units[name] for name in left}, work)):
            build.record(name, files, {"missing": missing} if missing else None)
            if progress:
                progress(len(units) - len(left) + done + 1, len(units))
        missing = masked(build)
        build.finish(lambda path: close(path, missing))
    return Written(len(left), len(todo) - len(left), missing)


def masked(build: ledger.Build) -> tuple[str, ...]:
    """The assets, as "item/asset", that were masked anywhere in the cube."""
    return tuple(sorted({asset for about in build.about().values() for asset in about.get("missing", ())}))


@contextmanager
def storing(store: Path) -> Iterator[None]:
    """A disk that refuses, as one line."""
    try:
        yield
    except OSError as error:
        raise NoResources(
            f"cannot write {store}: {error.strerror or error}", "make room or give leave, then run again"
        ) from error


def made(
    store: Path, units: Mapping[str, tuple[Stack, slice, Tile]], work: Work
) -> Iterator[tuple[str, list[Path], tuple[str, ...]]]:
    """Make units, a few in flight so that memory is bounded: each with its files and masked assets, as it gets done."""
    names = iter(units)
    running: dict[Future[tuple[list[Path], tuple[str, ...]]], str] = {}

    def start() -> None:
        for name in islice(names, at_once - len(running)):
            running[pool.submit(write_slab, store, *units[name], work.threads)] = name

    with quiet_warps(), _executor(work) as (pool, at_once):
        try:
            start()
            while running:
                ready = [
                    (running.pop(done), *done.result()) for done in wait(running, return_when=FIRST_COMPLETED).done
                ]
                start()  # so that the next is made while these are hashed
                yield from ready
        finally:
            for future in running:
                future.cancel()


@contextmanager
def _executor(work: Work) -> Iterator[tuple[Executor, int]]:
    """What runs units, and how many at a time. After an error nobody waits for the rest."""
    if work.dask is None:
        with _abandoned(ThreadPoolExecutor(1)) as pool:
            yield pool, 1
        return
    with cluster(work) as client:
        count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        with _abandoned(client.get_executor(pure=False, retries=3)) as pool:
            yield pool, 2 * count  # one at work and one waiting on each


@contextmanager
def _abandoned(pool: Executor) -> Iterator[Executor]:
    from aefcli.cube.read import abandon

    done = False
    try:
        yield pool
        done = True
    finally:
        if not done:
            abandon()
        pool.shutdown(wait=done)


def reach(work: Work) -> None:
    """Refuse a scheduler that does not answer."""
    if work.dask is not None and (not work.dask.isdecimal() or int(work.dask) < 1):
        with cluster(work):
            pass


@contextmanager
def cluster(work: Work) -> Iterator[Any]:
    """A client of the cluster at an address, or of one started here with so many processes."""
    import dask
    from distributed import Client, LocalCluster

    from aefcli.stac import plain

    assert work.dask is not None
    if not work.dask.isdecimal():
        try:
            client = Client(work.dask, timeout="10s")
        except (OSError, ValueError) as error:
            raise BadInput(
                f"no dask scheduler answers at {plain(work.dask)!r}", "--dask takes an address or a number"
            ) from error
        with client:
            yield client
        return
    if int(work.dask) < 1:
        raise BadInput(f"--dask {work.dask} is no cluster", "give processes from 1, or a scheduler's address")
    # A worker may die as often as it likes: whoever comes after makes its unit again.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 100}),
        LocalCluster(n_workers=int(work.dask), threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def quiet_warps() -> Iterator[None]:
    """Hide "Dataset has no geotransform", which rasterio says of its own scratch rasters when several threads warp.

    It means to hide that itself, by changing the process's filters from each thread at once. Files without a
    georeference are refused where they are opened.
    """
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def close(path: Path, missing: Sequence[str]) -> None:
    """Consolidate the metadata, so that a plain `xarray.open_zarr` of a group does not warn; `complete` comes last."""
    import zarr

    zarr.consolidate_metadata(path, zarr_format=3)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"] |= {"state": "complete", **({"aef:missing": list(missing)} if missing else {})}
    ledger.write_atomically(path / "zarr.json", json.dumps(document, indent=2).encode())


def units_of(stacks: Sequence[Stack]) -> dict[str, tuple[Stack, slice, Tile]]:
    """All units of work by their names."""
    return {
        f"{stack.source.name}/{when.start}-{when.stop}/{tile.top}-{tile.bottom}/{tile.left}-{tile.right}": (
            stack,
            when,
            tile,
        )
        for stack in stacks
        for when, tile in _units(stack)
    }


def slabs(grid: GeoBox) -> Iterator[Tile]:
    """The units of work in space. A sliver at the edge would cost as many files opened as a whole one."""
    return tiles(shape_of(grid), SLAB, SLAB // 4)


def _units(stack: Stack) -> Iterator[tuple[slice, Tile]]:
    """Units of work: whole chunks of time and space."""
    for start in range(0, len(stack.times), CHUNK[0]):
        for tile in slabs(stack.grid):
            yield slice(start, min(start + CHUNK[0], len(stack.times))), tile


def template(path: Path, parts: Parts, key: str) -> None:
    """Everything but the pixels: groups, coordinates, lineage, empty arrays, tables."""
    import zarr

    root = {
        ledger.FORMAT_KEY: FORMAT,
        "aef:key": key,
        "aef:grid": grid_attrs(named(parts.grid)),
        "aef:period": [parts.period.start, parts.period.end],
        "aef:sources": [stack.source.name for stack in parts.stacks],
        **({"aef:points": list(parts.points)} if parts.points else {}),
        "aef:request": json.loads(ledger.canonical(parts.request)),  # in the order in which it is read again
    }
    zarr.create_group(path, attributes={**root, "state": "building"})
    for stack in parts.stacks:
        group_of(path, stack)
    for name, table in parts.points.items():
        table.to_zarr(path, group=name, mode="a", consolidated=False)


def codecs(dtype: str) -> tuple[Any, ...]:
    """Compressed, and with a checksum: without one a flipped bit may pass for data (stores.md).

    Training reads a cube many times: LZ4 unpacks several times as fast as Zstandard, and packs measurements nearly as
    small. Classes it does not.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    packed = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    if dtype == "uint8":
        packed = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    return packed, Crc32cCodec()


def chunks_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The chunks of an array of this shape."""
    return tuple(min(size, whole) for size, whole in zip(CHUNK, shape, strict=True))


def group_of(path: Path, stack: Stack) -> None:
    """One source's group. Chunks of nodata are written like others: an absent one means "not done"."""
    import xarray as xr
    import zarr
    from odc.geo.xr import xr_coords
    from xarray.backends.zarr import FillValueCoder

    per_band = {"scale": stack.scale, "offset": stack.offset, "delivered": stack.delivered.astype("uint8")}
    variables: dict[str, Any] = {name: (("time", "band"), values) for name, values in per_band.items()}
    variables |= {
        name: ("time", values if isinstance(values, np.ndarray) else np.array(values, dtype=object))
        for name, values in stack.lineage.items()
    }
    dataset = xr.Dataset(
        variables,
        coords={
            **xr_coords(named(stack.grid)),
            "time": stack.times.astype("datetime64[ms]"),
            "band": np.array([band.name for band in stack.source.bands], dtype=object),
        },
        attrs={COLLECTION: stack.collection} if stack.collection else {},
    )
    encoding = {"time": {"units": "milliseconds since 1970-01-01", "dtype": "int64"}}
    dataset.to_zarr(path, group=stack.source.name, mode="a", encoding=encoding, consolidated=False)
    shape = (len(stack.times), *stack.grid.shape)
    for name, (dtype, fill) in stack.layers.items():  # by Zarr: xarray makes empty arrays of dask's, at some length
        zarr.create_array(
            path,
            name=f"{stack.source.name}/{name}",
            shape=shape,
            dtype=dtype,
            chunks=chunks_of(shape),
            compressors=codecs(dtype),
            fill_value=fill,
            dimension_names=("time", "y", "x"),
            attributes={
                **({} if math.isnan(fill) else {"nodata": fill}),
                "coordinates": "spatial_ref",
                "grid_mapping": "spatial_ref",
                **({"_FillValue": FillValueCoder.encode(np.nan, np.dtype(dtype))} if dtype.startswith("float") else {}),
            },
        )


def write_slab(store: Path, stack: Stack, when: slice, tile: Tile, threads: int) -> tuple[list[Path], tuple[str, ...]]:
    """Read one unit and write it; returns the chunk files, which the ledger hashes, and the assets masked.

    A variable at a time, one being written while the next is read: a whole slab would be many times as much memory.
    """
    import zarr

    from aefcli.cube import chunks

    _tame_malloc()
    missing: set[str] = set()

    def put(name: str, values: np.ndarray | float) -> list[Future[Path]]:
        array = chunks.Chunks.of(zarr.open_array(store / stack.source.name / name, mode="r"))
        assert array is not None, "not as `template` made it"
        return chunks.write(array, when, tile, np.broadcast_to(values, (when.stop - when.start, *tile.shape)), pool)

    left: dict[str, np.ndarray | float] = {name: nodata for name, (_, nodata) in stack.layers.items()}
    clear = Clear(stack.source, stack.delivered[when], tile.shape)
    files: list[Path] = []
    with ThreadPoolExecutor(_PACKERS) as pool:
        running: list[Future[Path]] = []
        for part in stack.read(np.arange(when.start, when.stop), tile, threads):
            files += [file.result() for file in running]  # no more than two variables in memory
            missing |= set(part.missing)
            written = part.name != "weight" and left.pop(part.name, None) is not None
            running = put(part.name, part.values) if written else []
            clear.add(part)
            del part  # its memory is free once it is written
        left["weight"] = clear.weight()
        # A band that none of these frames has is written all the same.
        running += [file for name, values in left.items() for file in put(name, values)]
        files += [file.result() for file in running]
    give_back_memory()
    return files, tuple(sorted(missing))


@cache
def _tame_malloc() -> None:
    """Have glibc keep the memory of blocks and chunks for the next ones, in few heaps.

    It gives each thread a heap of its own, which keeps what it ever held: a tenth of the peak. And it hands blocks of
    half a megabyte back at once, to get them again page by page: two thirds of all page faults.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        for name, value in ((-8, 2), (-3, 4 << 20), (-1, 64 << 20)):  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(name, value)


def give_back_memory() -> None:
    """Have glibc return to the system what it keeps of what is free, which would grow from slab to slab."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def packed(stack: Stack, frames: np.ndarray, tile: Tile, threads: int) -> int:
    """Bytes that some frames of a tile take in a cube: reads them."""
    import zarr

    shape = (len(frames), *tile.shape)
    clear = Clear(stack.source, stack.delivered[frames], tile.shape)
    variables: dict[str, Any] = {name: nodata for name, (_, nodata) in stack.layers.items()}
    for part in stack.read(frames, tile, threads):
        clear.add(part)
        variables[part.name] = part.values
    variables["weight"] = clear.weight()
    size = 0
    for name, (dtype, nodata) in stack.layers.items():
        array = zarr.create_array(
            zarr.storage.MemoryStore(),
            shape=shape,
            dtype=dtype,
            chunks=chunks_of(shape),
            compressors=codecs(dtype),
            fill_value=nodata,
        )
        array[...] = variables[name]
        size += array.nbytes_stored()
    return size


def chunk_files(path: Path, array: zarr.Array, region: Sequence[slice]) -> list[Path]:
    """The files that hold a region of whole chunks of an unsharded array on disk."""
    counts = [range(part.start // size, -(-part.stop // size)) for part, size in zip(region, array.chunks, strict=True)]
    grid = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1).reshape(-1, len(counts))
    return [path.joinpath("c", *map(str, index)) for index in grid]


class Clear:
    """What says which pixels of some frames are clear: every band that a frame has was delivered, and the product calls
    them clear. A radar pass has one pair of polarisations or the other: `delivered` (t, band) says which bands.
    """

    def __init__(self, source: Source, delivered: np.ndarray, shape: tuple[int, int]) -> None:
        self.source, self.delivered = source, delivered
        some = np.asarray(delivered.any(axis=1))[:, None, None]
        self.pixels = np.broadcast_to(some, (len(delivered), *shape)).copy()

    def add(self, part: Part) -> None:
        names = [band.name for band in self.source.bands]
        for frame, values in enumerate(part.values):  # one by one, to be sparing with memory
            if part.name in names and self.delivered[frame, names.index(part.name)]:
                self.pixels[frame] &= valid(values, self.source.nodata)
            if self.source.quality is not None and self.source.quality.name == part.name:
                self.pixels[frame] &= self.source.quality.clear(values)
            if part.name == "weight":
                self.pixels[frame] &= values > 0

    def weight(self) -> np.ndarray:
        """uint8 (t, y, x): 1 clear, 0 not."""
        return self.pixels.view("uint8")
