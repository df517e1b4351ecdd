"""GeoTIFFs and tiles of TESSERA under examination."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from aefcli import field as fields
from aefcli import item, published
from aefcli.errors import BadInput
from aefcli.extent import Period, Tile
from aefcli.published.vectors import POWER, Vectors
from aefcli.validate.check import UNSAID, Check, agrees, hold, none, north, ok
from aefcli.validate.vectors import Block, Content, foreign, tile_of


@dataclass
class File:
    """A GeoTIFF or a tile of TESSERA."""

    path: Path
    vectors: Vectors
    told: bool  # whether the file says its period
    kind: str
    notes: list[str]

    @property
    def content(self) -> Content:
        return foreign(self.vectors)

    @property
    def thinned(self) -> Content | None:
        """The vectors of the first overview, where there is one of codes."""
        import rasterio

        if self.kind != "GeoTIFF" or self.vectors.decoding != POWER or not self._overviews:
            return None
        with rasterio.open(self.path, driver="GTiff", overview_level=0) as file:
            shape, block = file.shape, file.block_shapes[0]

        def read(tile: Tile, time: int) -> Block:
            with rasterio.open(self.path, driver="GTiff", overview_level=0, sharing=False) as file:
                return Block(file.read(window=((tile.top, tile.bottom), (tile.left, tile.right))))

        whole = foreign(self.vectors)
        return replace(whole, shape=shape, tile=tile_of(shape, block, self.vectors.dimensions), read=read)

    @cached_property
    def _overviews(self) -> list[int]:
        import rasterio

        with rasterio.open(self.path, driver="GTiff") as file:
            return [int(factor) for factor in file.overviews(1)]

    def metadata(self, quick: bool) -> Iterator[Check]:
        grid = self.vectors.grid
        affine, crs = grid.transform, grid.crs
        yield ok("opens", f"{self.vectors.decoding.partition(';')[0]}; {self.vectors.dimensions} dimensions")
        yield ok("CRS", f"{crs.proj.name if crs else ''}, corner {affine.c:.12g} {affine.f:.12g}")
        yield north(affine, False, self.notes)
        unsaid = "neither its tags nor its name say when; --period does"
        yield hold("periods", self.told, str(self.vectors.periods[0]) if self.told else unsaid)
        if self.kind == "GeoTIFF":
            yield from self._bands()
        beside = item.beside(self.path.with_suffix(""))
        yield agrees(beside, lambda: {"bbox": item.place(grid)[0]})

    def _bands(self) -> Iterator[Check]:
        import rasterio

        with rasterio.open(self.path, driver="GTiff") as file:
            names, nodata, dtype = file.descriptions, file.nodata, file.dtypes[0]
            layout = file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT", "")
        first = ", ".join(str(name) for name in names[:3])
        if any(names) and dtype == "int8":
            yield hold("labels", tuple(names) == fields.LABELS, f"bands {first} ... {names[-1]}, to be A00 ... A63")
        else:
            yield none("labels", "its bands have no names" if not any(names) else f"bands {first} ...")
            self.notes.append(f"bands are not named: {fields.LABELS[0]} ... are taken in their order")
        told = "none" if nodata is None else f"{nodata:g}"
        if dtype == "int8" and nodata is None:
            yield none("type and nodata", "int8, no nodata")
            self.notes.append(f"it does not say its nodata: {fields.NODATA} is taken for it")
        elif dtype == "int8":
            yield hold("type and nodata", nodata == fields.NODATA, f"int8, nodata {told}, to be {fields.NODATA}")
        else:
            yield ok("type and nodata", f"{dtype}, nodata {told}")
        parts = f"layout {layout or 'plain'}, overviews {', '.join(map(str, self._overviews)) or 'none'}"
        yield ok("layout", parts) if self._overviews else none("layout", parts)


def open_file(path: Path, period: Period | None) -> File:
    try:
        vectors, told = published.open_vectors(path, period), True
    except BadInput as error:
        if "--period" not in error.hint:
            raise
        vectors, told = published.open_vectors(path, UNSAID), False
    kind = "tile" if path.suffix.lower() == ".npy" else "GeoTIFF"
    return File(path, vectors, told, kind, list(vectors.notes))
