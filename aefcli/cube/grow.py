"""Growing a finished cube: more frames from the archive, sources from elsewhere.

A grown cube is built beside the old one and takes its place at the end (`ledger`). Units of the old one that would be
the same are adopted; other frames that it holds are read from it, and only new ones from the archive. The result is
what a fetch of everything at once would have written, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.dataset import check_nested, fingerprint, stack_of_dataset
from aefcli.cube.grid import coarser, grid_from, shape_of
from aefcli.cube.write import (
    COLLECTION,
    Old,
    Part,
    Parts,
    Reader,
    Stack,
    Work,
    chunks_of,
    group_of,
    made,
    storing,
    units_of,
    write,
)
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.sources import source as source_of

if TYPE_CHECKING:
    import xarray as xr
    import zarr


def add_source(
    path: Path, name: str, dataset: xr.Dataset, about: Mapping[str, Any], *, overwrite: bool = False
) -> bool:
    """Attach a source to a finished cube: a dataset as `write_cube` takes them, or a table (point) where it is text.

    `about` says where it comes from, as plain JSON. False if the cube has the very same; what is damaged of it is then
    written again. Raises BadInput where it does not fit, or where the cube has the source already and `overwrite` is
    not asked for; the cube is then untouched.
    """
    record = ledger.read(path)
    if record is None or not record.finished:
        raise BadInput(f"{path} is no finished cube with its records", "aef fetch makes one")
    source = source_of(name)
    stack = None if source.kind == "text" else stack_of_dataset(source, dataset)
    print_ = fingerprint(stack) if stack else _fingerprint_of_table(dataset)
    if record.request.get("attached", {}).get(name, {}).get("sha256") == print_:
        return _mended(path, record, name, stack, dataset)
    cube = FinishedCube.at(path, apart=name)
    assert cube is not None
    if stack:
        check_nested(stack, cube.grid)
    if name in cube.sources and not overwrite:
        raise BadInput(f"{path} has {name} already", "--overwrite replaces it")
    request = {**cube.record.request, "attached": {**cube.attached, name: {**about, "sha256": print_}}}
    stacks = [*map(cube.stack, cube.rasters), *([stack] if stack else [])]
    tables = cube.tables | ({} if stack else {name: dataset})
    with ledger.build(path, request, lambda: cube.record.plan, overwrite=True) as build:
        if not build.complete:
            write(build, Parts(cube.grid, cube.period, stacks, tables, request), Work(1), None, cube.old())
    return True


def _mended(path: Path, record: ledger.Record, name: str, stack: Stack | None, dataset: xr.Dataset) -> bool:
    """Write what is gone or damaged of a source that the cube has, of the very same dataset; whether anything was.

    Whatever else is wrong with the cube stays as it is.
    """
    faults = [fault for fault in ledger.verify(path)[0] if fault.path.startswith(f"{name}/")]
    if not faults:
        return False
    wrong = {fault.unit for fault in faults}
    with ledger.reopen(path) as build, storing(path), TemporaryDirectory(dir=build.records) as folder:
        if None in wrong:
            group_of(Path(folder), stack) if stack else dataset.to_zarr(folder, group=name, consolidated=False)
        rest = [fault.path for fault in faults if fault.unit is None]
        ledger.put_back(record, Path(folder), rest, "attach it with --overwrite")
        units = {unit: of for unit, of in units_of([stack] if stack else []).items() if unit in wrong}
        for unit, files, _ in made(path, units, Work(1)):
            build.record(unit, files)
    return True


def _fingerprint_of_table(table: xr.Dataset) -> str:
    return ledger.digest({key: [str(part) for part in np.ravel(table[key].values)] for key in sorted(map(str, table))})


@dataclass(frozen=True)
class FinishedCube:
    """A finished cube from which another is made: what it holds, and what its records say.

    Of the source `apart`, which is to be replaced, nothing is read.
    """

    path: Path
    record: ledger.Record
    attrs: Mapping[str, Any]
    apart: str = ""
    _groups: dict[str, Group] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, apart: str = "") -> FinishedCube | None:
        """The one at this path, if there is one. Raises Damaged where a file is gone, or metadata are not its own."""
        from aefcli.cube.store import open_cube

        ledger.settle(path)
        record = ledger.read(path)
        if not record or not record.finished:
            return None
        ledger.check_root(path)
        ledger.hold(record, apart=apart)
        return cls(path, record, open_cube(path, without=apart).attrs, apart)

    @property
    def grid(self) -> Any:
        return grid_from(self.attrs["aef:grid"])

    @property
    def period(self) -> Period:
        return Period(*self.attrs["aef:period"])

    @property
    def sources(self) -> tuple[str, ...]:
        """All that it holds, that which is to be replaced too."""
        return (*self.attrs["aef:sources"], *self.attrs.get("aef:points", ()))

    @property
    def rasters(self) -> tuple[str, ...]:
        return tuple(name for name in self.attrs["aef:sources"] if name != self.apart)

    @property
    def attached(self) -> dict[str, Any]:
        """What was attached to it, by source."""
        return dict(self.record.request.get("attached", {}))

    @cached_property
    def tables(self) -> dict[str, xr.Dataset]:
        import xarray as xr

        return {
            name: xr.open_zarr(self.path, group=name, consolidated=False, chunks=None).load()
            for name in self.attrs.get("aef:points", ())
            if name != self.apart
        }

    def group(self, name: str) -> Group | None:
        """What its group of that source says, if it has one."""
        if name not in self._groups and name in self.rasters:
            self._groups[name] = Group.read(self.path, name)
        return self._groups.get(name)

    def stack(self, name: str) -> Stack:
        """One of its sources, as a stack for another cube."""
        group = self.group(name)
        assert group is not None
        known = source_of(name).of(group.collection)
        bare = replace(known, bands=tuple(known.band(label) for label in group.labels))
        return Stack(
            source=bare,
            grid=coarser(self.grid, group.factor(self.grid)),
            times=group.times,
            delivered=group.delivered,
            scale=group.scale,
            offset=group.offset,
            lineage=group.lineage,
            layers=group.layers,
            read=_FromCube(self.path / name, group.layers, tuple(range(len(group.times)))),
            collection=group.collection,
        )

    def joined(self, stack: Stack) -> Stack:
        """The same stack, whose frames that this cube has are read from here."""
        name, places = stack.source.name, self._places(stack)
        group = self.group(name)
        if group is None or all(place is None for place in places):
            return stack
        here = _FromCube(self.path / name, group.layers, places)
        return replace(stack, read=_Joined(here, stack.read, stack.layers))

    def lacking(self, stack: Stack) -> float:
        """The share of the stack's frames that this cube does not have."""
        places = self._places(stack)
        return sum(place is None for place in places) / len(places)

    def old(self) -> Old:
        return Old(self.record, self._same, self.apart)

    def _places(self, stack: Stack) -> tuple[int | None, ...]:
        """Where this cube has each frame of the stack, whole and with its numbers read alike."""
        group = self.group(stack.source.name)
        if group is None or group.labels != tuple(band.name for band in stack.source.bands):
            return (None,) * len(stack.times)
        lost = {asset.rpartition("/")[0] for asset in self.attrs.get("aef:missing", ())}
        known = {
            frame: place
            for place, frame in enumerate(_frames(group))
            if not lost & set(str(group.lineage["items"][place]).split(","))
        }
        return tuple(known.get(frame) for frame in _frames(stack))

    def _same(self, stack: Stack, when: slice) -> bool:
        """Whether the chunks of these frames are here as the other cube would have them."""
        group = self.group(stack.source.name)
        shape = (len(stack.times), *shape_of(stack.grid))
        return (
            group is not None
            and group.layers == stack.layers
            and group.chunks == chunks_of(shape)
            and group.shape[1:] == shape[1:]
            and min(when.start + group.chunks[0], len(group.times)) == when.stop
            and self._places(stack)[when] == tuple(range(when.start, when.stop))
        )


@dataclass(frozen=True)
class Group:
    """A source's group: all but the pixels."""

    times: np.ndarray
    delivered: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    labels: tuple[str, ...]
    lineage: Mapping[str, np.ndarray]
    layers: Mapping[str, tuple[str, float]]
    cell: float
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    collection: str

    @classmethod
    def read(cls, path: Path, name: str) -> Group:
        import zarr

        from aefcli.cube.chunks import CubeStore, small

        store = CubeStore(path, read_only=True)
        group = zarr.open_group(store, path=name, mode="r", zarr_format=3, use_consolidated=False)
        arrays: dict[str, zarr.Array] = dict(group.arrays())
        layers = {key: (str(array.dtype), array.fill_value.item()) for key, array in arrays.items() if array.ndim == 3}
        along = [key for key, array in arrays.items() if _dims(array) == ("time",) and key != "time"]
        return cls(
            times=small(arrays["time"]).astype("int64"),
            delivered=small(arrays["delivered"]).astype(bool),
            scale=small(arrays["scale"]),
            offset=small(arrays["offset"]),
            labels=tuple(str(label) for label in small(arrays["band"])),
            lineage={key: _words(small(arrays[key])) for key in along},
            layers=layers,
            cell=float(str(arrays["spatial_ref"].attrs["GeoTransform"]).split()[1]),
            shape=arrays["weight"].shape,
            chunks=arrays["weight"].chunks,
            collection=str(group.attrs.get(COLLECTION, "")),
        )

    def factor(self, grid: Any) -> int:
        return round(self.cell / grid.resolution.x)


def _dims(array: zarr.Array) -> tuple[str | None, ...]:
    return tuple(getattr(array.metadata, "dimension_names", None) or ())


def _words(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind in "fiub" else np.array([str(value) for value in values], dtype=object)


def _frames(of: Stack | Group) -> list[Any]:
    """Each frame as what it is made of: its instant, its items, what was delivered, how its numbers are read."""
    numbers = (array.tolist() for array in (of.delivered, of.scale, of.offset))
    each = zip(of.times.tolist(), of.lineage["items"], *numbers, strict=True)
    return [(time, str(items), *map(tuple, rest)) for time, items, *rest in each]


@dataclass(frozen=True)
class _FromCube:
    """Reads frames from the group of a finished cube; `places` says which one each of a stack's is there, if any."""

    group: Path
    layers: Mapping[str, tuple[str, float]]
    places: tuple[int | None, ...]

    def has(self, frames: np.ndarray) -> np.ndarray:
        return np.array([self.places[frame] is not None for frame in frames], dtype=bool)

    def __call__(self, frames: np.ndarray, tile: Tile, threads: int) -> Iterator[Part]:
        return (Part(name, self.one(name, frames, tile)) for name in self.layers)

    def one(self, name: str, frames: np.ndarray, tile: Tile) -> np.ndarray:
        """One variable of frames that the cube has."""
        import zarr

        from aefcli.cube import chunks

        places = np.array([self.places[frame] for frame in frames], dtype="int64")
        store = chunks.CubeStore(self.group.parent, read_only=True)
        array = chunks.pixels(zarr.open_array(store, path=f"{self.group.name}/{name}", mode="r"))
        out = np.empty((len(places), *tile.shape), array.dtype)
        if found := chunks.Chunks.of(array):
            chunks.read([found], places, tile, [out])
        else:
            out[...] = array.oindex[(places, *tile.slices)]
        return out


@dataclass(frozen=True)
class _Joined:
    """Reads the frames that a cube has from there, and the others from the archive."""

    here: _FromCube
    archive: Reader
    layers: Mapping[str, tuple[str, float]]

    def __call__(self, frames: np.ndarray, tile: Tile, threads: int) -> Iterator[Part]:
        known = self.here.has(frames)
        left = dict(self.layers)
        if not known.all():
            for part in self.archive(frames[~known], tile, threads):
                if left.pop(part.name, None):
                    yield Part(part.name, self._whole(part.name, frames, known, tile, part.values), part.missing)
        for name in left:
            yield Part(name, self._whole(name, frames, known, tile, None))

    def _whole(
        self, name: str, frames: np.ndarray, known: np.ndarray, tile: Tile, fresh: np.ndarray | None
    ) -> np.ndarray:
        """One variable of all the frames. What the archive gives has no weight yet: that follows from the rest."""
        dtype, nodata = self.layers[name]
        values = np.full((len(frames), *tile.shape), 1 if name == "weight" else nodata, dtype)
        if known.any() and name in self.here.layers:
            values[known] = self.here.one(name, frames[known], tile)
        if fresh is not None:
            values[~known] = fresh
        return values
