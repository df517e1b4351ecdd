"""A finished cube: opening it, and reading windows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import ledger
from aefcli.cube.grid import grid_from, shape_of
from aefcli.cube.write import COLLECTION, FORMAT, Stack
from aefcli.errors import BadInput, Damaged
from aefcli.extent import Period, Tile
from aefcli.sources import SOURCES, WORDS, Source

if TYPE_CHECKING:
    import zarr
    from odc.geo.geobox import GeoBox


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

    @classmethod
    def of(cls, stack: Stack, grid: GeoBox, arrays: Mapping[str, np.ndarray]) -> CubeSource:
        """What a cube of this grid would hold of a stack, with arrays instead of those of a store."""
        bands = [at for at, band in enumerate(stack.source.bands) if band.name in stack.layers]
        return cls(
            source=stack.source,
            times=stack.times,
            bands=tuple(stack.source.bands[at].name for at in bands),
            delivered=stack.delivered[:, bands],
            scale=stack.scale[:, bands],
            offset=stack.offset[:, bands],
            meta=meta_of(stack.source, stack.lineage, len(stack.times)),
            factor=stack.factor(grid),
            arrays=arrays,
        )

    def read(self, tile: Tile, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored values (t c h w) and weight (t h w) of some frames over a tile of the cube's pixels.

        Coarser sources are repeated up to the cube's spacing. The tile lies inside the cube.
        """
        *stored, weight = self.variables(tile, frames, (*self.bands, "weight"))
        return np.stack(stored, axis=1), weight

    def clear(self, tile: Tile, frames: np.ndarray) -> np.ndarray:
        """The weight alone (t h w)."""
        return self.variables(tile, frames, ("weight",))[0]

    def variables(self, tile: Tile, frames: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """Some variables (t h w) over the cube's pixels of a tile."""
        times = self.factor
        cells = Tile(tile.top // times, tile.left // times, -(-tile.bottom // times), -(-tile.right // times))
        found = _select([self.arrays[name] for name in names], np.asarray(frames), cells)
        if times == 1:
            return found
        rows = np.arange(tile.top, tile.bottom) // times - cells.top
        columns = np.arange(tile.left, tile.right) // times - cells.left
        return [values[:, rows[:, None], columns] for values in found]


def _select(arrays: Sequence[Any], frames: np.ndarray, tile: Tile) -> list[np.ndarray]:
    """Some frames of a tile from each array, on disk or in memory."""
    if all(isinstance(array, np.ndarray) for array in arrays):
        return [np.asarray(array[(frames, *tile.slices)]) for array in arrays]
    from aefcli.cube import chunks

    files = [found for array in arrays if (found := chunks.Chunks.of(array))]
    if len(files) < len(arrays):
        return [np.asarray(array.oindex[(frames, *tile.slices)]) for array in arrays]
    outs = [np.empty((len(frames), tile.bottom - tile.top, tile.right - tile.left), array.dtype) for array in arrays]
    chunks.read(files, frames, tile, outs)
    return outs


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


def without(cube: Cube, gone: Mapping[str, np.ndarray]) -> Cube:
    """The cube as if some frames of some sources, bool (t) each, had never been delivered."""
    sources = {
        name: replace(source, delivered=source.delivered & ~gone[name][:, None]) if name in gone else source
        for name, source in cube.sources.items()
    }
    return replace(cube, sources=sources)


def open_cube(path: Path | str, without: str = "") -> Cube:
    """Open a finished cube, all of it or `without` a source, of which nothing is then read.

    What is missing, unfinished or not a cube is refused in one line.

    Raises BadInput, or Damaged where its records say that it is a finished one.
    """
    path = Path(path)
    import zarr

    from aefcli.cube.chunks import CubeStore

    if not path.exists():
        raise BadInput(f"there is no cube {path}", "aef fetch --stac ... --bbox ... --period ... makes one")
    try:
        root = zarr.open_group(CubeStore(path, read_only=True), mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
        ledger.check_root(path)
        raise BadInput(f"{path} is no Zarr store", "aef fetch makes a cube") from error
    attrs: dict[str, Any] = dict(root.attrs)
    if not str(attrs.get(ledger.FORMAT_KEY, "")).startswith("datacube/"):
        ledger.check_root(path)
        raise BadInput(f"{path} is no datacube", "aef fetch makes one")
    if attrs[ledger.FORMAT_KEY] != FORMAT:
        raise BadInput(f"{path} is of format {attrs[ledger.FORMAT_KEY]}; this version reads {FORMAT}", "update aef")
    if attrs.get("state") != "complete":
        raise BadInput(f"{path} is not finished", "run the same aef fetch again: it resumes")
    with whole(path):
        grid = grid_from(attrs["aef:grid"])
        start, end = attrs["aef:period"]
        sources = {name: _open_source(root, name, grid) for name in attrs["aef:sources"] if name != without}
        return Cube(path, grid, Period(start, end), sources, {**attrs, "aef:key": attrs["aef:key"]})


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Metadata and coordinates that lack what `write` gives them, or do not decode, raise Damaged."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise Damaged(
            f"{path} holds metadata or coordinates that cannot be read: {type(error).__name__} {error}",
            f"aef verify {path} names them, aef repair {path} mends them",
        ) from error


def _open_source(root: zarr.Group, name: str, grid: GeoBox) -> CubeSource:
    from aefcli.cube import chunks

    source = SOURCES[name].of(str(root[name].attrs.get(COLLECTION, "")))
    bands = tuple(band.name for band in source.bands if f"{name}/{band.name}" in root)

    def array(key: str) -> Any:
        return root[f"{name}/{key}"]

    def values(key: str) -> np.ndarray:
        return chunks.small(array(key))

    arrays = {key: chunks.pixels(array(key)) for key in (*bands, "weight")}
    labels = [str(label) for label in values("band")]
    index = [labels.index(band) for band in bands]
    cell = float(str(array("spatial_ref").attrs["GeoTransform"]).split()[1])
    times, factor = values("time").astype("int64"), round(cell / grid.resolution.x)
    rows, columns = (-(-count // factor) for count in shape_of(grid))
    if {found.shape for found in arrays.values()} != {(len(times), rows, columns)}:
        raise ValueError(f"the arrays of {name} are not of {len(times)} frames of {rows} x {columns} cells")
    known = {key: values(key) for key in source.meta if f"{name}/{key}" in root}
    return CubeSource(
        source=source,
        times=times,
        bands=bands,
        delivered=values("delivered")[:, index].astype(bool),
        scale=values("scale")[:, index],
        offset=values("offset")[:, index],
        meta=meta_of(source, known, len(times)),
        factor=factor,
        arrays=arrays,
    )


def meta_of(source: Source, known: Mapping[str, Sequence[str] | np.ndarray], frames: int) -> np.ndarray:
    """The acquisition geometry that the table names, float32 (t, m), of what is known of it."""
    columns = [_numbers(np.asarray(known[key])) if key in known else np.zeros(frames) for key in source.meta]
    return np.array(columns, dtype="float32").reshape(len(source.meta), frames).T


def _numbers(values: np.ndarray) -> np.ndarray:
    """Acquisition geometry as numbers (t): words by their sign, what is not known 0."""
    if values.dtype.kind in "fiub":
        return np.nan_to_num(values.astype("float64"))
    return np.array([WORDS.get(str(value), 0.0) for value in values])
