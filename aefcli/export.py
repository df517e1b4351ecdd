"""An embedding field for those who read no Zarr: GeoTIFFs that any GIS opens, and tables of its vectors at points.

Owns the cloud-optimised GeoTIFF of one valid period, and the table:

    <field>_<start>_<end>.tif   both days included; a band per dimension, A00, A01 ...; north up
                                codes as the field has them (int8, nodata -128), or float32 (nodata NaN)
    overviews                   halves, down to one tile: means of the decoded vectors that have data, of length 1
                                where those of the field are, and codes again. Codes are never averaged
    tags                        period, decoding, model, source, and what the field says of itself in words
    table                       the points' own columns; period_start and period_end (half open, UTC); A00 ... float32

Reads fields of anybody, through `published`. Each file is made aside, in `.<name>.part/`, and renamed. Memory is
bounded by tiles; beside a GeoTIFF that is being made, the disk holds 1.4 times the plain bytes of its pixels.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from aefcli import field, ledger
from aefcli.errors import BadInput, Locked, NoResources
from aefcli.extent import Period, Tile, tiles
from aefcli.probe import Places, read_places
from aefcli.published import Vectors
from aefcli.published.vectors import POWER, UNIT

if TYPE_CHECKING:
    import pandas as pd
    from affine import Affine
    from rasterio.io import DatasetReader, DatasetWriter

Progress = Callable[[int, int], None]
BLOCK = 256  # pixels along y and x of a tile of the file: 4 MiB of 64 codes

_DAY = 86_400_000  # ms
_READ = 512  # pixels along y and x that are read together, if the field's blocks let them
_HELD = 256 << 20  # bytes that threads may hold at once, where one tile is not more
_CACHE = 128 << 20  # GDAL's own, which would grow with the machine; with 1 GiB it copied no faster
_KEY = "aef_export"  # the tag by which a file is known to be what is asked for; GDAL splits names at a colon
# Measured on AEF's field of Wisconsin, of its plain size: deflate .59, LZW .67, zstd .53, without the predictor .82,
# 1.17 and .83; higher levels of deflate are slower and no smaller. Zstd would be the better one, but a TIFF library
# may be built without it, and none is without deflate.
_LAYOUT = {"blocksize": BLOCK, "compress": "deflate", "level": 1, "predictor": "yes", "bigtiff": "if_safer"}

_T = TypeVar("_T")
_S = TypeVar("_S")


def held(vectors: Vectors, periods: Sequence[Period]) -> list[int]:
    """The time indices of some valid periods of a field, in its order; of all by default."""
    for period in periods:
        if period not in vectors.periods:
            listed = ", ".join(map(str, vectors.periods[:12])) + (" ..." if len(vectors.periods) > 12 else "")
            raise BadInput(
                f"{vectors.path} holds {listed}, not {period}", f"--period {vectors.periods[0]}, or embed it"
            )
    for period in vectors.periods:
        if (times := vectors.periods.count(period)) > 1:
            raise BadInput(f"{vectors.path} holds {period} {times} times", "write it again")
    return [index for index, period in enumerate(vectors.periods) if not periods or period in periods]


def names_of(vectors: Vectors) -> list[str]:
    """A00, A01 ...: what bands and columns are called."""
    return [f"A{index:02d}" for index in range(vectors.dimensions)]


# --- GeoTIFFs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cog:
    """A GeoTIFF of one valid period."""

    path: Path
    period: Period
    nodata: float | None  # share of its pixels; None of a file that was there, made by the same request


def write_cogs(
    vectors: Vectors,
    folder: Path,
    periods: Sequence[Period] = (),
    *,
    dequantised: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Cog]:
    """Write a GeoTIFF into `folder` for each of some valid periods, by default all; leave finished ones alone.

    Codes stay codes, unless `dequantised` asks for the vectors as float32; whatever else the field holds is float32
    too. Raises BadInput where a file is there already that is not of the same request, or a period is not held.
    """
    codes = vectors.decoding == POWER and not dequantised
    plans = [_Plan(vectors, index, codes) for index in held(vectors, periods)]
    paths = [folder / f"{_safe(vectors.name)}_{_stamp(plan.period)}.tif" for plan in plans]
    made = [not overwrite and _is_made(path, plan) for path, plan in zip(paths, plans, strict=True)]
    total, done = sum(plan.steps for plan, there in zip(plans, made, strict=True) if not there), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    return [
        Cog(path, plan.period, None if there else _write_cog(plan, path, workers, tick))
        for path, plan, there in zip(paths, plans, made, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a GeoTIFF holds of a field: the codes of one valid period, or its vectors."""

    vectors: Vectors
    index: int
    codes: bool

    @property
    def period(self) -> Period:
        return self.vectors.periods[self.index]

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.vectors.grid.shape[0]), int(self.vectors.grid.shape[1])

    @property
    def dtype(self) -> str:
        return "int8" if self.codes else "float32"

    @property
    def unit(self) -> bool:
        """Whether its vectors have the length 1, so that their means are to have it too."""
        return self.vectors.decoding in (POWER, UNIT)

    @property
    def steps(self) -> int:
        levels = _levels(self.shape)
        return len(list(_tiles(self.shape, self.vectors.block))) + (len(list(_leaves(levels))) if levels else 0)

    @property
    def key(self) -> str:
        """What a finished file is known by; "" where the field does not say what it was made from."""
        request = self.vectors.attrs.get("aef:request")
        if not isinstance(request, Mapping):
            return ""
        field_of = {name: value for name, value in request.items() if name != "periods"}  # it may gain some
        return ledger.digest({"field": field_of, "period": [self.period.start, self.period.end], "dtype": self.dtype})

    def read(self, tile: Tile) -> np.ndarray:
        """What the file holds of a tile, (d, h, w), in rows as the field has them."""
        return self.vectors.codes(tile, self.index) if self.codes else self.vectors.window(tile, self.index)

    def there(self, stored: np.ndarray) -> np.ndarray:
        """Where what the file holds (d, h, w) decodes: bool (h, w). A vector of zeros has no direction."""
        if self.codes:
            return np.asarray((stored != field.NODATA).all(axis=0) & stored.any(axis=0))
        return np.asarray(np.isfinite(stored).all(axis=0))

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """float32 vectors of what the file holds (d, h, w); NaN where nodata."""
        return field.dequantise(stored, axis=0) if self.codes else stored

    def mean(self, sums: np.ndarray) -> np.ndarray:
        """What the file holds of sums of vectors and, last, their number (d + 1, h, w)."""
        mean = sums[:-1] / np.where(sums[-1] > 0, sums[-1], np.float32(np.nan))
        if self.unit:
            length = np.sqrt(np.square(mean).sum(axis=0))
            mean /= np.where(length > 0, length, np.float32(np.nan))
        return field.quantise(mean, axis=0) if self.codes else mean


def _is_made(path: Path, plan: _Plan) -> bool:
    """Whether the file is there, of the same request; another one is refused."""
    import rasterio
    from rasterio.errors import RasterioError

    if not path.exists():
        return False
    with suppress(RasterioError), rasterio.open(path, driver="GTiff") as file:
        if plan.key and file.tags().get(_KEY) == plan.key:
            return True
    raise BadInput(f"{path} is there already", "--overwrite replaces it, --out names another folder")


def _safe(name: str) -> str:
    """A field's name as part of a file's, on any system."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "field"


def _stamp(period: Period) -> str:
    """First and last day; of a period that is not of whole days (UTC), its two instants."""
    if period.start % _DAY == period.end % _DAY == 0:
        return str(period).replace(":", "_")
    return "_".join(_instant(when).replace(":", "") for when in period.dates())


def _instant(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S") + (f".{when.microsecond // 1000:03d}" if when.microsecond else "") + "Z"


def _write_cog(plan: _Plan, out: Path, workers: int, tick: Callable[[], None]) -> float:
    """Write one GeoTIFF aside and put it in place; the share of its pixels without data."""
    import rasterio

    with _aside(out) as work, rasterio.Env(GDAL_CACHEMAX=_CACHE):
        plain, made = work / "plain.tif", work / out.name
        valid = _write_plain(plan, plain, workers, tick)
        smaller, seen = _write_overviews(plan, plain, workers, tick)
        # What GDAL could not write when it closed a file goes unsaid, and reads as nodata
        if seen != valid:
            raise NoResources(f"cannot write {out}: {valid - seen} pixels were lost", "make room, then run again")
        _as_cog(plain, smaller, made, workers)
        _check(made, plan)
        _put(made, out)
    return 1 - valid / (plan.shape[0] * plan.shape[1])


# The plain file: all of the field, north up, tile by tile


def _tiles(shape: tuple[int, int], block: tuple[int, int]) -> Iterator[Tile]:
    """Tiles of whole blocks, row by row: `_READ` along each side, or as many pixels where blocks are long ones."""
    columns = block[1] * max(1, _READ // block[1])
    rows = block[0] * max(1, _READ**2 // max(columns, _READ) // block[0])
    for top in range(0, shape[0], rows):
        for left in range(0, shape[1], columns):
            yield Tile(top, left, min(top + rows, shape[0]), min(left + columns, shape[1]))


def _write_plain(plan: _Plan, path: Path, workers: int, tick: Callable[[], None]) -> int:
    """Copy the period into a plain GeoTIFF, north up; how many of its pixels have data."""
    (height, width), affine, valid = plan.shape, plan.vectors.grid.transform, 0
    south_up = affine.e > 0
    if south_up:
        affine = affine * type(affine)(1, 0, 0, 0, -1, height)
    parts = list(_tiles((height, width), plan.vectors.block))
    size = plan.vectors.dimensions * parts[0].shape[0] * parts[0].shape[1] * np.dtype(plan.dtype).itemsize
    with _create(path, plan, (height, width), affine) as file, closing(_ahead(plan.read, parts, workers, size)) as read:
        file.update_tags(**_tags(plan))
        for tile, stored in read:
            top = height - tile.bottom if south_up else tile.top
            rows = stored[:, ::-1] if south_up else stored
            file.write(np.ascontiguousarray(rows), window=((top, top + tile.shape[0]), (tile.left, tile.right)))
            valid += int(plan.there(stored).sum())
            tick()
    return valid


def _create(path: Path, plan: _Plan, shape: tuple[int, int], affine: Affine) -> DatasetWriter:
    """An open, plain GeoTIFF, written window by window in any order; uncompressed, so that no window moves."""
    import rasterio

    crs = plan.vectors.grid.crs
    nodata = field.NODATA if plan.codes else float("nan")
    what = {"count": plan.vectors.dimensions, "dtype": plan.dtype, "nodata": nodata}
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel", "bigtiff": "if_safer"}
    place = {"height": shape[0], "width": shape[1], "transform": affine, "crs": crs.to_wkt() if crs else None}
    file = rasterio.open(path, "w", driver="GTiff", sparse_ok=True, **what, **layout, **place)
    file.descriptions = names_of(plan.vectors)
    return file


def _ahead(
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


def _tags(plan: _Plan) -> dict[str, str]:
    """What the file says of itself: what the field says in words and numbers, and what is known here."""
    vectors, attrs = plan.vectors, plan.vectors.attrs
    start, end = plan.period.dates()
    sensors, cube = attrs.get("geoemb:source_data"), attrs.get("aef:cube")
    from_ = ", ".join(map(str, sensors)) if isinstance(sensors, list | tuple) else ""
    own = {
        "field": vectors.path.name,
        "source": " of ".join(part for part in (from_, str(cube or "")) if part) or vectors.path.name,
        **({"model": str(attrs["aef:model"])} if "aef:model" in attrs else {}),
        "period": str(plan.period),
        "period_start": _instant(start),
        "period_end": _instant(end),
        "decoding": vectors.decoding if plan.codes else "values as they stand",
        "overviews": "means of the decoded vectors" + (", brought to the length 1" if plan.unit else ""),
        **({_KEY: plan.key} if plan.key else {}),
    }
    said = {name: str(value) for name, value in attrs.items() if isinstance(value, str | int | float)}
    about = {name: text for name, text in said.items() if len(text) < 1000 and not _FORMAL.match(name)}
    if "source" in {name.lower() for name in about}:  # whom it is from, by its own words
        own.pop("source")
    taken = {name.lower() for name in own}  # GDAL's names have no case
    return {**{name: text for name, text in about.items() if name.lower() not in taken}, **own}


# What is of a store or of GDAL, and not of the field
_FORMAL = re.compile(
    r"_|aef:|geoemb:|proj:|spatial:|STATISTICS_|TIFFTAG_|AREA_OR_POINT$|Conventions$|coordinates$|crs$|crs_wkt$"
    r"|GeoTransform$|grid of$|grid_mapping$|long_name$|quantisation$|spatial_ref$|state$|units$",
    re.IGNORECASE,
)


# Overviews: sums of vectors go up a tree of tiles, so that each level is the mean of the pixels themselves


def _levels(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of each overview, halves of the one before it; none where all is one tile."""
    found = []
    while max(shape) > BLOCK:
        shape = (-(-shape[0] // 2), -(-shape[1] // 2))
        found.append(shape)
    return found


Node = tuple[int, int, int]  # a tile of an overview: level from 1, row and column in tiles


def _under(levels: Sequence[tuple[int, int]], node: Node) -> Iterator[Node]:
    """The tiles of the next finer overview that lie under a tile."""
    level, row, column = node
    rows, columns = levels[level - 2]
    for below in ((2 * row + down, 2 * column + across) for down in (0, 1) for across in (0, 1)):
        if below[0] * BLOCK < rows and below[1] * BLOCK < columns:
            yield level - 1, *below


def _leaves(levels: Sequence[tuple[int, int]], node: Node | None = None) -> Iterator[Node]:
    """The tiles of the finest overview, in the order in which `_Pyramid` asks for them."""
    node = node or (len(levels), 0, 0)
    if node[0] == 1:
        yield node
        return
    for below in _under(levels, node):
        yield from _leaves(levels, below)


def _write_overviews(plan: _Plan, plain: Path, workers: int, tick: Callable[[], None]) -> tuple[list[Path], int]:
    """Write each overview into a file of its own beside `plain`; and how many pixels of that have data."""
    import rasterio

    levels = _levels(plan.shape)
    paths = [plain.with_name(f"{2**level}.tif") for level in range(1, len(levels) + 1)]
    with rasterio.open(plain) as file:
        affine = file.transform
        if not levels:
            return [], int(plan.there(file.read()).sum())

    def leaf(node: Node) -> tuple[np.ndarray, np.ndarray]:
        with rasterio.open(plain, sharing=False) as file:
            sums = _summed(plan, file, node)
        return sums, plan.mean(sums)

    size = 16 * plan.vectors.dimensions * BLOCK**2  # decoding takes four times the floats of a tile
    with ExitStack() as stack:
        files = []
        for path, (rows, columns) in zip(paths, levels, strict=True):
            wider = affine * type(affine).scale(plan.shape[1] / columns, plan.shape[0] / rows)
            files.append(stack.enter_context(_create(path, plan, (rows, columns), wider)))
        leaves = stack.enter_context(closing(_ahead(leaf, _leaves(levels), workers, size)))
        top = _Pyramid(plan, levels, files, leaves, tick).climb((len(levels), 0, 0))
    return paths, int(top[-1].sum(dtype="float64"))


def _summed(plan: _Plan, file: DatasetReader, node: Node) -> np.ndarray:
    """Sums of vectors and, last, their number (d + 1, h, w): a tile of the finest overview."""
    sums = _empty(plan, node)
    (height, width), (_, row, column) = plan.shape, node
    for part in tiles((2 * sums.shape[1], 2 * sums.shape[2]), BLOCK):
        top, left = 2 * BLOCK * row + part.top, 2 * BLOCK * column + part.left
        window = ((top, min(top + part.shape[0], height)), (left, min(left + part.shape[1], width)))
        found = plan.decode(file.read(window=window))
        there = np.isfinite(found).all(axis=0)
        _add(sums, np.concatenate([np.where(there, found, 0), there[None]]), part.top // BLOCK, part.left // BLOCK)
    return sums


def _empty(plan: _Plan, node: Node) -> np.ndarray:
    """Zeros (d + 1, h, w), of the size of a tile of an overview; those at the far edges are smaller."""
    level, row, column = node
    rows, columns = _levels(plan.shape)[level - 1]
    height, width = min(BLOCK, rows - BLOCK * row), min(BLOCK, columns - BLOCK * column)
    return np.zeros((plan.vectors.dimensions + 1, height, width), dtype="float32")


def _add(sums: np.ndarray, finer: np.ndarray, down: int, across: int) -> None:
    """Add a finer tile (n, h, w) to its quarter of a tile: four pixels, of which some lie outside, to each."""
    quarter = sums[:, BLOCK // 2 * down :, BLOCK // 2 * across :]
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = finer[:, corner[0] :: 2, corner[1] :: 2]
        quarter[:, : part.shape[1], : part.shape[2]] += part


@dataclass(frozen=True, eq=False)
class _Pyramid:
    """Overviews in the making: their sizes, their files, and the tiles of the finest one as they become ready."""

    plan: _Plan
    levels: Sequence[tuple[int, int]]
    files: Sequence[DatasetWriter]
    leaves: Iterator[tuple[Node, tuple[np.ndarray, np.ndarray]]]
    tick: Callable[[], None]

    def climb(self, node: Node) -> np.ndarray:
        """Write a tile and all that lie under it; its sums and numbers (d + 1, h, w).

        Of each level one tile of sums is held: 16 MiB of 64 floats.
        """
        level, row, column = node
        if level == 1:
            ready, (sums, stored) = next(self.leaves)
            assert ready == node, f"{ready} came for {node}"
            self.tick()
        else:
            sums = _empty(self.plan, node)
            for below in _under(self.levels, node):
                _add(sums, self.climb(below), below[1] - 2 * row, below[2] - 2 * column)
            stored = self.plan.mean(sums)
        window = ((BLOCK * row, BLOCK * row + sums.shape[1]), (BLOCK * column, BLOCK * column + sums.shape[2]))
        self.files[level - 1].write(stored, window=window)
        return sums


# The file


def _as_cog(plain: Path, smaller: Sequence[Path], made: Path, workers: int) -> None:
    """Have GDAL put the plain file and its overviews into one, in the order that a COG has.

    A VRT says that they belong together: GDAL then takes these overviews, and makes none of its own. It copies in a
    thread, so that Ctrl-C and SIGTERM reach us meanwhile.
    """
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
    thread = ThreadPoolExecutor(1)
    try:
        how = {**_LAYOUT, "overviews": "force_use_existing", "num_threads": workers}
        thread.submit(copy, both, made, driver="COG", **how).result()
    finally:
        thread.shutdown(wait=False)


def _check(made: Path, plan: _Plan) -> None:
    """Refuse a file whose tiles do not all lie in it: GDAL may not have said that the disk was full."""
    import rasterio

    size, levels = made.stat().st_size, _levels(plan.shape)
    with rasterio.open(made) as file:
        assert file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG", f"{made} is no COG"
        assert len(file.overviews(1)) == len(levels), f"{made} has the overviews {file.overviews(1)}"
        for level, (rows, columns) in enumerate([plan.shape, *levels]):
            ovr = {"ovr": level - 1} if level else {}
            for tile in tiles((-(-rows // BLOCK), -(-columns // BLOCK)), 1):
                at, length = (
                    int(file.get_tag_item(f"BLOCK_{what}_{tile.left}_{tile.top}", "TIFF", bidx=1, **ovr) or 0)
                    for what in ("OFFSET", "SIZE")
                )
                if not at or at + length > size:
                    raise NoResources(f"cannot write {made}: tiles of it were lost", "make room, then run again")


def _put(made: Path, out: Path) -> None:
    """Flush a finished file to disk and put it in place."""
    with made.open("rb") as handle:
        os.fsync(handle.fileno())
    made.replace(out)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """The folder `.<name>.part` beside `out`, locked, emptied of what a killed process left there, gone afterwards.

    What cannot be written there is one line; folders that were made for it go with it.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    folder = out.with_name(f".{out.name}.part")
    absent = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"--out {out} lies in what is no folder", "name another") from error
    except OSError as error:
        raise NoResources(f"cannot write {out}: {error.strerror}", "make room, or name another --out") from error
    try:
        with ledger.locked(lock := folder / "lock", out):
            if not lock.exists():  # its holder has just ended, and taken the folder with it
                raise Locked(f"{out} was being written by another process", "run again")
            for left in folder.iterdir():
                if left != lock:
                    left.unlink()
            try:
                yield folder
            except (RasterioError, CPLE_BaseError, OSError) as error:
                why = error.__cause__ or error  # rasterio's own says no more than that there is one
                raise NoResources(f"cannot write {out}: {why}", "make room, or name another --out") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not out.exists():
            for parent in absent:
                with suppress(OSError):  # it holds something by now
                    parent.rmdir()


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Vectors at points. Counts are of rows."""

    path: Path
    points: int
    rows: int
    periods: tuple[Period, ...]  # of the field, those that were asked for
    missing: Mapping[str, int]  # rows whose vector is empty, by why: outside, nodata, other periods


def write_table(
    vectors: Vectors, points: Path, out: Path, periods: Sequence[Period] = (), *, overwrite: bool = False
) -> Table:
    """Write a table, .parquet or .csv, of a field's vectors at points: float32, decoded.

    It has a row for each point and each of some valid periods, by default all, period by period; where the points name
    valid periods of their own (`valid_time_start_ms`, `valid_time_end_ms`), a row for each point, with what the field
    has of its period. Rows that the field has nothing for are kept, their vectors empty. Geometries become `longitude`
    and `latitude`. Raises BadInput where all would be empty, or a column has the name of one that is added.
    """
    chosen = held(vectors, periods)
    _check_out(out, points, overwrite)
    kinds = {points.suffix.lower(), out.suffix.lower()}
    places = read_places(points, as_text=kinds == {".csv"})
    added = ["period_start", "period_end", *names_of(vectors)]
    if taken := [name for name in added if name in places.table.columns]:
        raise BadInput(f"{points} has a column {taken[0]!r} of its own", "rename it, or leave it out")
    asked = list(_asked(vectors, chosen, places))
    inside = field.locate(vectors.grid, places.lon, places.lat)[2]
    _check_some(vectors, points, places, asked, inside)
    missing = dict.fromkeys(("outside", "nodata", "other periods"), 0)
    with _aside(out) as work:
        with _sink(work / out.name) as write:
            for ask in asked:
                found = _sampled(vectors, places, ask.index)
                empty = ~np.isfinite(found).all(axis=1)
                missing["other periods"] += int((ask.index < 0).sum())
                missing["outside"] += int((~inside & (ask.index >= 0)).sum())
                missing["nodata"] += int((empty & inside & (ask.index >= 0)).sum())
                write(_frame(places, ask, names_of(vectors), found))
        if sum(missing.values()) == len(asked) * len(places):
            raise BadInput(f"{vectors.path} is nodata at all points of {points}", "give points where it has data")
        _put(work / out.name, out)
    held_periods = tuple(vectors.periods[index] for index in chosen)
    return Table(out, len(places), len(asked) * len(places), held_periods, missing)


def _check_out(out: Path, points: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise BadInput(f"--out {out} is no table", "name a .parquet or .csv file")
    if out.is_dir():
        raise BadInput(f"--out {out} is a folder", "name a .parquet or .csv file")
    if out.exists() and points.exists() and out.samefile(points):
        raise BadInput(f"--out {out} is the table of the points", "name another")
    if out.exists() and not overwrite:
        raise BadInput(f"{out} is there already", "--overwrite replaces it, --out names another")


@dataclass(frozen=True, eq=False)
class _Ask:
    """What is asked of every point: a valid period (ms, half open), and its time index; -1 where it is not held."""

    start: np.ndarray  # int64 (n,)
    end: np.ndarray
    index: np.ndarray


def _asked(vectors: Vectors, chosen: Sequence[int], places: Places) -> Iterator[_Ask]:
    """One for each period of the field, or the one of the points' own."""
    if places.valid_start is None or places.valid_end is None:
        for index in chosen:
            period = vectors.periods[index]
            yield _Ask(*(np.full(len(places), value) for value in (period.start, period.end, index)))
        return
    start, end = places.valid_start.copy(), places.valid_end.copy()
    found = np.full(len(places), -1)
    for index in chosen:
        period = vectors.periods[index]
        exact = (places.valid_start == period.start) & (places.valid_end == period.end)
        days = (start // _DAY * _DAY == period.start) & (-(-end // _DAY) * _DAY == period.end)
        found[exact | days] = index
        start[found == index], end[found == index] = period.start, period.end
    yield _Ask(start, end, found)


def _check_some(vectors: Vectors, points: Path, places: Places, asked: Sequence[_Ask], inside: np.ndarray) -> None:
    """Refuse points that the field has nothing for: of other periods, or in another place."""
    if all((ask.index < 0).all() for ask in asked):
        first = Period(int(asked[0].start[0]), int(asked[0].end[0]))
        listed = ", ".join(map(str, vectors.periods[:12]))
        raise BadInput(f"{points}: no point is of a period of {listed}; the first is of {first}", "embed that period")
    if not inside.any():
        raise BadInput(f"all {len(places)} points of {points} lie outside of {vectors.path}", "give points inside it")


def _sampled(vectors: Vectors, places: Places, index: np.ndarray) -> np.ndarray:
    """float32 (n, d); NaN where the field has nothing."""
    found = np.full((len(places), vectors.dimensions), np.nan, dtype="float32")
    for each in np.unique(index[index >= 0]):
        here = index == each
        found[here] = vectors.sample(places.lon[here], places.lat[here], int(each))[0]
    return found


def _frame(places: Places, ask: _Ask, names: Sequence[str], found: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    bounds = {"period_start": ask.start, "period_end": ask.end}
    when = pd.DataFrame({name: pd.to_datetime(values, unit="ms", utc=True) for name, values in bounds.items()})
    return pd.concat(
        [places.table, when.astype("datetime64[ms, UTC]"), pd.DataFrame(found, columns=list(names))], axis=1
    )


@contextmanager
def _sink(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """What writes frames of the same columns one after the other into a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened: list[Any] = []
    with ExitStack() as stack:

        def as_csv(frame: pd.DataFrame) -> None:
            first = not opened
            if first:
                opened.append(stack.enter_context(path.open("w", newline="", encoding="utf-8")))
            when = {name: frame[name].map(_instant) for name in ("period_start", "period_end")}
            frame.assign(**when).to_csv(opened[0], index=False, header=first)

        def as_parquet(frame: pd.DataFrame) -> None:
            try:
                table = pa.Table.from_pandas(frame, opened[0].schema if opened else None, preserve_index=False)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise BadInput(f"the points do not go into Parquet: {error}", "--out points.csv") from error
            if not opened:
                opened.append(stack.enter_context(pq.ParquetWriter(path, table.schema)))
            opened[0].write_table(table)

        yield as_csv if path.suffix.lower() == ".csv" else as_parquet
