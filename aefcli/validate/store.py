"""A Zarr store under examination: what it holds, how others open it, and its vectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aefcli import field as fields
from aefcli import ledger, published
from aefcli.errors import AefError, BadInput
from aefcli.extent import Period, Tile
from aefcli.published.vectors import BROKEN, Vectors, check_block
from aefcli.validate import files, stated, where
from aefcli.validate.check import COLUMNS, ROWS, UNSAID, Check, bad, hold, none, ok
from aefcli.validate.vectors import LENGTH, Block, Content, foreign, tile_of

if TYPE_CHECKING:
    import xarray as xr
    import zarr

_LONGEST = 1 << 25  # values of a coordinate, which every open reads as a whole
_COUNTED = 1 << 18  # chunks that a plain open may make tasks of
_FLOAT_LENGTH = {"float16": 2e-3, "float32": 1e-4}  # by which storing them as floats may change lengths


@dataclass
class Store:
    """A Zarr group with embeddings; `ours` if it calls itself a field of ours."""

    path: Path
    root: zarr.Group
    array: zarr.Array
    period: Period | None
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return "embedding field" if self.ours else "Zarr store"

    @cached_property
    def ours(self) -> bool:
        return str(self.attrs.get(ledger.FORMAT_KEY, "")).startswith("embedding-field/")

    @cached_property
    def attrs(self) -> dict[str, Any]:
        return dict(self.root.attrs)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the array of embeddings says."""
        return dict(self.array.attrs)

    @cached_property
    def names(self) -> tuple[str, ...]:
        found: Any = getattr(self.array.metadata, "dimension_names", None) or self.values.get("_ARRAY_DIMENSIONS") or ()
        return tuple(str(name) for name in found)

    @cached_property
    def opened(self) -> tuple[Vectors | None, str]:
        """As its reader opens it, or what the reader has to say."""
        try:
            return published.open_vectors(self.path, self.period), ""
        except BadInput as error:
            if "--period" not in error.hint:
                return None, str(error)
        try:
            return published.open_vectors(self.path, UNSAID), ""
        except BadInput as error:
            return None, str(error)

    @cached_property
    def decoded(self) -> xr.Dataset:
        """Coordinates as CF means them; values as stored."""
        import xarray as xr

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the check of a plain open counts them
            clock = xr.coders.CFDatetimeCoder(time_unit="ms")
            return xr.open_zarr(self.path, chunks=None, mask_and_scale=False, decode_times=clock, decode_coords="all")

    @cached_property
    def mapping(self) -> dict[str, Any]:
        """The CF grid mapping."""
        for name in (self.values.get("grid_mapping"), "spatial_ref", "crs"):
            if isinstance(name, str) and name in self.root:
                return dict(self.root[name].attrs)
        return {}

    @cached_property
    def said(self) -> dict[str, Any]:
        return {**self.attrs, **self.values}

    @property
    def coded(self) -> bool:
        """Whether the array holds AEF's codes: int8 that no scales go with."""
        return self.array.dtype == np.int8 and (self.ours or "scales" not in self.root)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        sizes = {name.lower(): size for name, size in zip(self.names, self.array.shape, strict=True)}
        found = [next((sizes[name] for name in known if name in sizes), None) for known in (ROWS, COLUMNS)]
        if found[0] is None or found[1] is None:
            raise ValueError(f"of its dimensions {self.names} none are rows and columns")
        return found[0], found[1]

    @property
    def count(self) -> int:
        """How many chunks the array has."""
        return math.prod(-(-size // cut) for size, cut in zip(self.array.shape, self.array.chunks, strict=True))

    def part(self, name: str) -> zarr.Array | None:
        """The array of that name, if there is one."""
        import zarr

        found = self.root.get(name)
        return found if isinstance(found, zarr.Array) else None

    def line(self, known: Sequence[str]) -> np.ndarray | None:
        """The coordinate along rows or columns, float64; None where there is none."""
        name = next((name for name in self.names if name.lower() in known), "")
        found = self.part(name)
        return None if found is None or len(found.shape) != 1 else np.asarray(found[:], dtype="float64")

    def metadata(self, quick: bool) -> Iterator[Check]:
        steps: dict[str, Callable[[Store], Iterator[Check]]] = {
            "plain open": _plain,
            "opens": _opens,
            "CRS": where.crs,
            "transform": where.transform,
            "coordinates": where.coordinates,
            "bbox": where.extent,
            "periods": stated.periods,
            "extrapolated": stated.extrapolated,
            "labels": stated.labels,
            "type and nodata": stated.numbers,
            "quantisation": stated.quantisation,
            "attributes": stated.attributes,
            "conventions": stated.conventions,
            "geoemb": stated.geoemb,
            "metadata": files.consolidated,
            "state": files.state,
            "checksums": files.checksums,
            "chunks": files.chunks,
            "ledger": partial(files.records, quick=quick),
            "STAC item": files.item_beside,
        }
        for name, step in steps.items():
            try:
                yield from step(self)
            except (AefError, *BROKEN) as error:
                yield bad(name, f"cannot be read: {type(error).__name__} {error}")

    thinned = None  # overviews are not looked for in Zarr

    @property
    def content(self) -> Content | None:
        if self.ours and self.names == ("time", "embedding", "y", "x"):
            return own_vectors(self)
        vectors = self.opened[0]
        return foreign(vectors) if vectors else None


def _plain(store: Store) -> Iterator[Check]:
    """As anybody opens it, without this package."""
    import rioxarray  # noqa: F401 - adds .rio
    import xarray as xr

    name = str(store.array.basename)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # dask, which the usual open asks, takes gigabytes to count the chunks of a mosaic of the Earth.
        plain = xr.open_zarr(store.path) if store.count < _COUNTED else xr.open_zarr(store.path, chunks=None)
    told = [each for each in caught if not issubclass(each.category, DeprecationWarning | PendingDeprecationWarning)]
    if told:
        yield bad("plain open", f"xarray.open_zarr warns {len(told)} times, first {str(told[0].message)[:160]}")
    else:
        bare = [str(dim) for dim in plain[name].dims if dim not in plain.coords]
        shown = f"xarray.open_zarr has {name} {dict(plain[name].sizes)}, no warning"
        shown += f", no coordinate {', '.join(bare)}" if bare else ""
        yield hold("plain open", not (bare and store.ours), shown)
    crs = plain.rio.crs or plain[name].rio.crs
    if crs is None and not store.ours:
        yield none("rioxarray", "it finds no CRS")
        store.notes.append("rioxarray finds no CRS: a grid mapping by CF would tell it")
    else:
        yield hold("rioxarray", crs is not None, f"it finds {'no CRS' if crs is None else crs.to_string()[:60]}")
    if not store.coded:
        yield none("nodata as NaN", f"values of {store.array.dtype} are what they are")
    elif store.ours or "_FillValue" in store.values:
        masked, fill = plain[name], plain[name].encoding.get("_FillValue")
        shown = f"a plain open gives {masked.dtype} and takes {fill} for NaN, to be {fields.NODATA}"
        yield hold("nodata as NaN", masked.dtype.kind == "f" and fill == fields.NODATA, shown)
    else:
        yield none("nodata as NaN", "it has no _FillValue")
        store.notes.append(f"a plain open shows nodata as {fields.NODATA}: the attribute _FillValue is missing")


def _opens(store: Store) -> Iterator[Check]:
    vectors, said = store.opened
    if vectors is None:
        yield bad("opens", said)
        return
    store.notes.extend(vectors.notes)
    yield ok("opens", f"{vectors.decoding.partition(';')[0]}; {vectors.dimensions} dimensions")
    if not store.ours and store.names and not {"embedding", "embeddings"} & set(store.names):
        store.notes.append(f"its dimensions are {', '.join(store.names)}; ours time, embedding, y, x")


def own_vectors(store: Store) -> Content:
    """The vectors of a field of ours, straight from its arrays, so that a fault in its metadata hides none in them."""
    root, array = store.root, store.array
    sources = tuple(name for name, _ in sorted(root.arrays()) if name.startswith("observations_"))
    uncertainty = store.part("uncertainty")

    def read(tile: Tile, time: int) -> Block:
        window = (time, *tile.slices)
        counts = {name: np.asarray(root[name][window]) for name in sources}  # type: ignore[index]
        spread = None if uncertainty is None else np.asarray(uncertainty[window])
        return Block(np.asarray(array[(time, slice(None), *tile.slices)]), counts=counts, uncertainty=spread)

    def numbers(name: str) -> Any:
        found = store.part(name)
        return None if found is None else np.asarray(found[...]).tolist()

    block = (array.chunks[-2], array.chunks[-1])
    return Content(
        shape=store.shape,
        times=array.shape[0],
        tile=tile_of(store.shape, block, array.shape[1]),
        dimensions=array.shape[1],
        coded=array.dtype == np.int8,
        ours=True,
        tolerance=_FLOAT_LENGTH.get(str(array.dtype), LENGTH),
        read=read,
        empty_periods=numbers("extrapolated"),
        frames=numbers("frames_inside"),
        sources=sources,
        uncertain=uncertainty is not None,
    )


def open_store(path: Path, period: Period | None) -> Store:
    """The group and its array of embeddings. Raises BadInput, in the reader's words, where there is none."""
    import zarr
    from zarr.errors import GroupNotFoundError

    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
        found = {name: array for name, array in root.arrays() if len(array.shape) > 2}
    except (GroupNotFoundError, *BROKEN):
        found = {}
    name = next((name for name in ("embeddings", "embedding") if name in found), "")
    if not name and len(found) != 1:
        published.open_vectors(path, period)  # which says what is wrong with it
        raise BadInput(f"{path} is not an embedding store", "name one with an array named embeddings")
    for key, array in root.arrays():
        check_block(path / key, math.prod(array.chunks) * array.dtype.itemsize)
        if array.ndim < 3 and math.prod(array.shape) > _LONGEST:
            raise BadInput(f"{path}: {key} has {math.prod(array.shape)} values", f"up to {_LONGEST} are read")
    return Store(path, root, found[name or next(iter(found))], period)
