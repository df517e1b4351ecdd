"""Cloud-optimised GeoTIFFs (COG), written part by part: no raster is ever whole in memory.

Owns the file, and nothing of what it shows: a plain GeoTIFF north up, its overviews, GDAL's copy of both in the order
that a COG has, and a look at what a full disk may have lost. Memory is bounded by parts and GDAL's cache; while a file
is made, the disk holds 1.4 times the plain bytes of its pixels beside it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from aefcli import aside
from aefcli.extent import Tile, tiles

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from rasterio.io import DatasetReader, DatasetWriter

_PART = 512  # pixels along y and x that are made together, if blocks let them
_HELD = 256 << 20  # bytes that threads may hold at once, where one part is not more
_CACHE = 128 << 20  # GDAL's own, which would grow with the machine; with 1 GiB it copied no faster

_T = TypeVar("_T")
_S = TypeVar("_S")
Parts = Generator[tuple[Tile, np.ndarray], None, None]  # bands (b, h, w) of each part of a grid, in any order


@dataclass(frozen=True, eq=False, kw_only=True)
class Raster:
    """What a file is, apart from its pixels.

    grid      where they lie; its rows may run south to north, those of the file never do
    there     where bands (b, h, w) have data: bool (h, w). Pixels that were never written must have none
    describe  says in the open file what the bands are; what it puts beside the file (.aux.xml) goes with it
    block     pixels along y and x of a tile of the file
    options   of GDAL for the plain file, such as photometric
    packing   of GDAL for the COG, such as level and predictor
    """

    grid: GeoBox
    count: int
    dtype: str
    nodata: float | None
    there: Callable[[np.ndarray], np.ndarray]
    describe: Callable[[DatasetWriter], None]
    block: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)
    packing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    @property
    def south_up(self) -> bool:
        return bool(self.grid.transform.e > 0)

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Rows and columns of each overview, halves of the one before it; none where all is one tile."""
        found, (rows, columns) = [], self.shape
        while max(rows, columns) > self.block:
            rows, columns = -(-rows // 2), -(-columns // 2)
            found.append((rows, columns))
        return found


@dataclass(frozen=True)
class Means:
    """Overviews that are means of what pixels stand for: of the pixels themselves at each level, never of means.

    decode   what the file holds (b, h, w) -> float32 (b, h, w); NaN where there is no data
    encode   means float32 (b, h, w), NaN where there are none -> what the file holds
    """

    decode: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]


def parts(shape: tuple[int, int], block: tuple[int, int]) -> Iterator[Tile]:
    """Tiles of whole blocks, row by row: 512 px along each side, or as many pixels where blocks are long ones."""
    columns = block[1] * max(1, _PART // block[1])
    rows = block[0] * max(1, _PART**2 // max(columns, _PART) // block[0])
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], columns):
            yield Tile(top, left, min(top + rows, shape[0]), min(left + columns, shape[1]))


def ahead(
    work: Callable[[_T], _S], items: Iterable[_T], workers: int, size: int
) -> Generator[tuple[_T, _S], None, None]:
    """Each item and what `work` makes of it, in order: threads work ahead, as far as memory for `size` bytes lets."""
    workers = max(1, min(workers, _HELD // size))
    waiting: deque[tuple[_T, Future[_S]]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for item in items:
                waiting.append((item, threads.submit(work, item)))
                if len(waiting) > workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def leaves(raster: Raster) -> list[Tile]:
    """The tiles of the finest overview, in an order in which the four of each square follow each other (Morton's)."""

    def place(tile: Tile) -> int:
        row, column = tile.top // raster.block, tile.left // raster.block
        return sum((row >> bit & 1) << 2 * bit + 1 | (column >> bit & 1) << 2 * bit for bit in range(24))

    return sorted(tiles(raster.levels[0], raster.block), key=place) if raster.levels else []


def write(
    out: Path,
    raster: Raster,
    made: Parts,
    overviews: str | Means,
    *,
    workers: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Write the file aside and put it in place; how many of its pixels have data.

    `made` brings the bands of each part of `raster.grid`, in its rows. Overviews are resampled by GDAL in the way that
    is named, or are `Means`. `tick` is called after each part, and after each of `leaves` where they are means. Raises
    NoResources where the disk refuses, BadInput where `out` lies in no folder, Locked where another process writes it.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    with aside.making(out, RasterioError, CPLE_BaseError) as cog, rasterio.Env(GDAL_CACHEMAX=_CACHE):
        source = plain = cog.with_name("plain.tif")
        valid = _write_plain(plain, raster, made, tick)
        how = {"blocksize": raster.block, "compress": "deflate", "bigtiff": "if_safer", "num_threads": workers}
        if isinstance(overviews, Means):
            smaller, seen = _write_overviews(plain, raster, overviews, workers, tick)
            source, how["overviews"] = _together(plain, smaller), "force_use_existing"
        else:
            seen, how["overview_resampling"] = _seen(plain, raster), overviews
        # What GDAL could not write when it closed a file goes unsaid, and reads as nodata
        if seen != valid:
            raise OSError(f"{valid - seen} pixels were lost")
        _copy(source, cog, {**how, **raster.packing})
        if raster.count > 1 and raster.options.get("photometric") == "palette":
            _clear_alpha(cog)
        _check(cog, raster)
        beside, named = (path.with_name(f"{path.name}.aux.xml") for path in (cog, out))
        if beside.is_file():
            beside.replace(named)
        else:
            named.unlink(missing_ok=True)
    return valid


# --- the plain file -------------------------------------------------------------------------------------------------


def _write_plain(path: Path, raster: Raster, made: Parts, tick: Callable[[], None]) -> int:
    """All parts; how many of their pixels have data."""
    valid = 0
    with _create(path, raster, raster.shape) as file, closing(made):
        raster.describe(file)
        for tile, bands in made:
            top = raster.shape[0] - tile.bottom if raster.south_up else tile.top
            rows = bands[:, ::-1] if raster.south_up else bands
            file.write(np.ascontiguousarray(rows), window=((top, top + tile.shape[0]), (tile.left, tile.right)))
            valid += int(raster.there(bands).sum())
            tick()
    return valid


def _create(path: Path, raster: Raster, shape: tuple[int, int]) -> DatasetWriter:
    """An open, plain GeoTIFF, north up, written window by window in any order; uncompressed, so that none moves."""
    import rasterio

    (height, width), affine, crs, side = raster.shape, raster.grid.transform, raster.grid.crs, raster.block
    if raster.south_up:
        affine = affine * type(affine)(1, 0, 0, 0, -1, height)
    what = {"count": raster.count, "dtype": raster.dtype, "nodata": raster.nodata, **raster.options}
    layout = {"tiled": True, "blockxsize": side, "blockysize": side, "interleave": "pixel", "bigtiff": "if_safer"}
    place = {"transform": affine * type(affine).scale(width / shape[1], height / shape[0]), "crs": crs and crs.to_wkt()}
    size = {"height": shape[0], "width": shape[1]}
    return rasterio.open(path, "w", driver="GTiff", sparse_ok=True, **what, **layout, **place, **size)


def _seen(plain: Path, raster: Raster) -> int:
    """How many pixels of the plain file have data."""
    import rasterio

    with rasterio.open(plain) as file:
        windows = (file.read(window=tile.slices) for tile in tiles(raster.shape, raster.block))
        return sum(int(raster.there(bands).sum()) for bands in windows)


# --- overviews: sums go up a tree of tiles, so that each level is the mean of the pixels themselves ------------------


def _write_overviews(
    plain: Path, raster: Raster, means: Means, workers: int, tick: Callable[[], None]
) -> tuple[list[Path], int]:
    """Write each overview into a file of its own beside `plain`; and how many pixels of that have data."""
    import rasterio

    if not raster.levels:
        return [], _seen(plain, raster)

    def leaf(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        with rasterio.open(plain, sharing=False) as file:
            sums = _summed(file, raster, means, tile)
        return sums, _mean(sums, means)

    paths = [plain.with_name(f"{2**level}.tif") for level in range(1, len(raster.levels) + 1)]
    seen, size = 0, 16 * raster.count * raster.block**2  # decoding takes four times the floats of a tile
    growing: dict[int, np.ndarray] = {}
    with ExitStack() as stack:
        files = [stack.enter_context(_create(*each)) for each in zip(paths, repeat(raster), raster.levels)]
        for first, (finest, ready) in stack.enter_context(closing(ahead(leaf, leaves(raster), workers, size))):
            for level, tile, sums in _completed(raster, growing, first, finest):
                files[level].write(_mean(sums, means) if level else ready, window=tile.slices)
            seen += int(finest[-1].sum(dtype="float64"))
            tick()
    return paths, seen


def _completed(
    raster: Raster, growing: dict[int, np.ndarray], tile: Tile, sums: np.ndarray
) -> Iterator[tuple[int, Tile, np.ndarray]]:
    """The tiles that one of the finest overview completes, itself and those above it: level from 0, place, sums.

    `growing` keeps those that are not complete, one of each level: 16 MiB of 64 bands.
    """
    block, levels = raster.block, raster.levels
    for level, (rows, columns) in enumerate(levels):
        yield level, tile, sums
        if level + 1 == len(levels):
            return
        row, column = tile.top // block, tile.left // block
        top, left = block * (row // 2), block * (column // 2)
        above = Tile(top, left, min(top + block, levels[level + 1][0]), min(left + block, levels[level + 1][1]))
        if level not in growing:
            growing[level] = np.zeros((raster.count + 1, *above.shape), dtype="float32")
        _add(growing[level][:, tile.top // 2 - top :, tile.left // 2 - left :], sums)
        if (row % 2 == 0 and tile.bottom < rows) or (column % 2 == 0 and tile.right < columns):
            return  # another quarter is to come
        tile, sums = above, growing.pop(level)


def _summed(file: DatasetReader, raster: Raster, means: Means, tile: Tile) -> np.ndarray:
    """Sums of pixels and, last, their number (b + 1, h, w): a tile of the finest overview."""
    sums = np.zeros((raster.count + 1, *tile.shape), dtype="float32")
    top, left = 2 * tile.top, 2 * tile.left
    bottom, right = min(2 * tile.bottom, raster.shape[0]), min(2 * tile.right, raster.shape[1])
    for part in tiles((bottom - top, right - left), raster.block):
        here = Tile(top + part.top, left + part.left, top + part.bottom, left + part.right)
        found = means.decode(file.read(window=here.slices))
        there = np.isfinite(found).all(axis=0)
        pixels = np.concatenate([np.where(there, found, 0), there[None]])
        _add(sums[:, part.top // 2 :, part.left // 2 :], pixels)
    return sums


def _add(sums: np.ndarray, finer: np.ndarray) -> None:
    """Add finer pixels (n, h, w) to the first rows and columns of sums: four to each, of which some may lie outside."""
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = finer[:, down::2, across::2]
        sums[:, : part.shape[1], : part.shape[2]] += part


def _mean(sums: np.ndarray, means: Means) -> np.ndarray:
    """What the file holds of sums and, last, their number (b + 1, h, w)."""
    return means.encode(sums[:-1] / np.where(sums[-1] > 0, sums[-1], np.float32(np.nan)))


# --- the file -------------------------------------------------------------------------------------------------------


def _together(plain: Path, smaller: Sequence[Path]) -> Path:
    """A VRT that says that these overviews are those of the plain file: GDAL takes them, and makes none of its own."""
    from xml.etree import ElementTree as xml

    from rasterio.shutil import copy

    both = plain.with_suffix(".vrt")
    copy(plain, both, driver="VRT")
    tree = xml.parse(both)
    for band in tree.getroot().iter("VRTRasterBand"):
        for path in smaller:
            overview = xml.SubElement(band, "Overview")
            xml.SubElement(overview, "SourceFilename", relativeToVRT="1").text = path.name
            xml.SubElement(overview, "SourceBand").text = band.get("band")
    tree.write(both)
    return both


def _copy(source: Path, made: Path, how: Mapping[str, Any]) -> None:
    """Have GDAL make the COG, in a thread: so Ctrl-C and SIGTERM reach us meanwhile."""
    from rasterio.shutil import copy

    thread = ThreadPoolExecutor(1)
    try:
        thread.submit(copy, source, made, driver="COG", **how).result()
    finally:
        thread.shutdown(wait=False)


def _clear_alpha(path: Path) -> None:
    """Have a TIFF say that its second band is no alpha: GDAL's copy says so of any that follows a palette.

    A GIS would draw it as transparency. The tag (ExtraSamples, 338) is changed where it stands, in each directory, so
    that the layout stays a COG's.
    """
    with path.open("r+b") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", head[2:4])[0] == 43
        count, entry, offset = ("Q", "HHQ", "Q") if big else ("H", "HHL", "L")
        (at,) = struct.unpack_from(order + offset, head, 8 if big else 4)
        while at:
            file.seek(at)
            (entries,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
            for _ in range(entries):
                tag, _, _ = struct.unpack(order + entry, file.read(struct.calcsize(order + entry)))
                if tag == 338:
                    file.write(bytes(struct.calcsize(order + offset)))
                else:
                    file.seek(struct.calcsize(order + offset), 1)
            (at,) = struct.unpack(order + offset, file.read(struct.calcsize(order + offset)))


def _check(made: Path, raster: Raster) -> None:
    """Refuse a file whose tiles do not all lie in it: GDAL may not have said that the disk was full."""
    import rasterio

    size, levels = made.stat().st_size, raster.levels
    with rasterio.open(made) as file:
        assert file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG", f"{made} is no COG"
        assert len(file.overviews(1)) == len(levels), f"{made} has the overviews {file.overviews(1)}"
        for level, shape in enumerate([raster.shape, *levels]):
            ovr = {"ovr": level - 1} if level else {}
            for tile in tiles(shape, raster.block):
                name = f"{tile.left // raster.block}_{tile.top // raster.block}"
                asked = (f"BLOCK_OFFSET_{name}", f"BLOCK_SIZE_{name}")
                at, length = (int(file.get_tag_item(each, "TIFF", bidx=1, **ovr) or 0) for each in asked)
                if not at or at + length > size:
                    raise OSError("tiles of it were lost")
