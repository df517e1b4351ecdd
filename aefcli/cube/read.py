"""Reading windows of an archive's files: what may be opened, and what the two loaders read through.

GDAL decodes; the bytes of files on the web come from `web`. A file that calls itself a GeoTIFF may be a recipe (VRT)
that reads other files and hosts, so two drivers open files and no other. Each window opens its file anew.

Which files make a frame is `load`'s. Sources: `sources.md`, `reliability.md`.
"""

from __future__ import annotations

import atexit
import io
import itertools
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from weakref import WeakSet

import numpy as np
import rasterio
from affine import Affine
from odc.geo.converters import rio_geobox
from odc.geo.geobox import GeoBox
from odc.geo.overlap import ReprojectInfo, compute_reproject_roi
from odc.geo.roi import roi_is_empty, roi_pad, roi_shape
from odc.geo.warp import resampling_s2rio
from odc.loader import RasterLoadParams
from odc.loader._reader import pick_overview
from odc.loader._rio import _do_read
from rasterio.abc import MultiByteRangeResourceContainer
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from aefcli.cube.web import TRIES, Unreadable, fetch, pause_before, quick, without_query
from aefcli.sources import valid

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_NUM_THREADS": "1"}
_HEAD, _HEADS = 16384, 1024  # bytes of a file's beginning that are kept, and of how many files
_AHEAD = (65536, 1 << 20)  # bytes fetched at once where GDAL reads bit by bit; doubled while it reads straight on
_STRIP = 64  # rows of a file that are doubled at a time: they stay in the processor's cache
_GAP = 16384  # bytes between two ranges that are cheaper to fetch than to ask apart

_running: WeakSet[threading.Event] = WeakSet()
_listing = threading.Lock()  # a set that grows while it is gone through raises

Open = Callable[..., AbstractContextManager["DatasetReader"]]  # with options such as the level of an overview


@dataclass(frozen=True)
class Reads:
    """What the readers of one load share: what is masked if it is gone, what was, and when to end."""

    mask: Container[str]  # uris
    gone: set[str] = field(default_factory=set)  # uris
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    places: dict[Any, ReprojectInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with _listing:
            _running.add(self.stop)

    def place(self, file: DatasetReader, grid: GeoBox) -> ReprojectInfo:
        """What of a file makes what of a grid of this load's CRS: the same for all files of a tile of an archive."""
        key = (file.crs.wkt, file.transform, file.shape, grid.transform, *grid.shape)
        return self.places.get(key) or self.places.setdefault(key, _place(file, grid))

    def window(self, uri: str, read: Callable[[Open], Any]) -> Any:
        """What `read` makes of the file, given a function that opens it; None if it is gone, and masked.

        Raises Unreadable.
        """
        try:
            return self._tried(uri, read)
        except Unreadable as error:
            if not (error.gone and uri in self.mask):
                raise
            with self.lock:
                self.gone.add(uri)
            return None

    def _tried(self, uri: str, read: Callable[[Open], Any]) -> Any:
        """Tries again, from the first byte, where what came from the web does not decode."""
        for attempt in range(1, TRIES + 1):
            try:
                with rasterio.Env(**_ENV):
                    return _volume().context.copy().run(read, lambda **options: _opened(uri, self.stop, **options))
            except RasterioError as error:
                _Web.heads.pop(without_query(uri), None)
                if not _is_web(uri) or attempt == TRIES or self.stop.wait(pause_before(attempt)):
                    why = str(error).removeprefix(f"{uri}: ")
                    raise Unreadable(uri, why, gone="://" not in uri and not Path(uri).exists()) from error
        raise AssertionError("unreachable: the last try raises")


def abandon() -> None:
    """End all reading in this process, for whoever waits for it no more: threads that try again hold up its exit."""
    with _listing:
        stops = list(_running)
    for stop in stops:
        stop.set()


def forget() -> None:
    """Drop the beginnings of files that this process holds."""
    _Web.heads.clear()


def _is_web(uri: str) -> bool:
    return urlparse(uri).scheme in ("http", "https")


@contextmanager
def _opened(uri: str, stop: threading.Event, **options: Any) -> Iterator[DatasetReader]:
    """A GeoTIFF or JPEG 2000 that lies on a grid."""
    name = without_query(uri)
    driver = "JP2OpenJPEG" if name.lower().endswith(".jp2") else "GTiff"
    web = _Web(uri, stop) if _is_web(uri) else None
    with _volume().holding(web) if web else nullcontext(uri) as path:
        try:
            with rasterio.open(path, driver=driver, sharing=False, **options) as file:
                if file.crs is None or file.transform.is_identity:  # radar in slant range
                    raise Unreadable(uri, "the file has no georeference but control points, if any")
                yield file
        except RasterioError as error:
            if web and web.error:
                raise web.error from error
            raise RasterioError(str(error).replace(f"'{path}' not", "not")) from error
    if web and web.error:  # GDAL passes over what it can do without, such as the list of overviews
        raise web.error


# ---------------------------------------------------------------- what the loaders read through


def pixels(reads: Reads, uri: str, cfg: RasterLoadParams, grid: GeoBox) -> Any:
    """(where on the grid, pixels there), resampled as odc-loader does it; None where the file is gone, and masked.

    Of a file that does not state its nodata, what fills the grid counts as such. Within 0.05 of a cell two grids are
    one, whose values are taken as they are. (odc-loader takes 0.9 for the nearest; of two cells equally near, which it
    takes then hangs on the window.)
    """
    cfg = replace(cfg, src_nodata_fallback=cfg.fill_value)

    def read(opened: Open) -> Any:
        with opened() as file:
            place = reads.place(file, grid)
            level = pick_overview(place.read_shrink, file.overviews(1)) if place.read_shrink > 1 else None
            if level is None:
                enlarged = _enlarged(file, cfg, place)
                return enlarged or _do_read(rasterio.band(file, 1), cfg, grid, place)
        with opened(overview_level=level) as file:
            return _do_read(rasterio.band(file, 1), cfg, grid, place)

    return reads.window(uri, read)


def _place(file: DatasetReader, grid: GeoBox) -> ReprojectInfo:
    """What of a file makes what of the grid."""
    return compute_reproject_roi(rio_geobox(file), grid, ttol=0.05)


def _enlarged(file: DatasetReader, cfg: RasterLoadParams, place: ReprojectInfo) -> Any:
    """As `pixels`, where each cell of the file is a few whole ones of the grid; None where a warp is due.

    GDAL's resampling while it reads gives there what the warp gives, to the bit, for a third of the time. Beside nodata
    it does not. Nor does it where more cells, or numbers with fractions, leave it to rounding.
    """
    to_grid = place.transform.linear  # from cells of the file
    if to_grid is None or roi_is_empty(place.roi_dst) or cfg.resampling not in ("nearest", "bilinear"):
        return None
    times, left, top = round(to_grid.a), round(to_grid.c), round(to_grid.f)
    if times not in (2, 3, 4) or not to_grid.almost_equals(Affine(times, 0, left, 0, times, top), 1e-6):
        return None
    kind, nodata, fill = np.dtype(file.dtypes[0]), file.nodatavals[0], cfg.fill_value
    if kind != cfg.dtype or kind.kind not in "iu" or fill is None or nodata not in (None, fill):
        return None
    (rows, columns), shape = place.roi_dst, roi_shape(place.roi_dst)
    if cfg.resampling == "bilinear":
        if fill not in (np.iinfo(kind).min, np.iinfo(kind).max):  # a mean may come out as it, and is moved
            return None
        if times == 2 and kind in ("uint8", "uint16"):
            return place.roi_dst, _doubled(file, (rows, columns), (top, left), int(fill))
        around = Window.from_slices(*roi_pad(place.roi_src, 2, file.shape))
        if not valid(file.read(1, window=around), fill).all():
            return None
    window = Window((columns.start - left) / times, (rows.start - top) / times, shape[1] / times, shape[0] / times)
    return place.roi_dst, file.read(1, window=window, out_shape=shape, resampling=resampling_s2rio(cfg.resampling))


def _doubled(file: DatasetReader, part: Sequence[Any], origin: tuple[int, int], fill: int) -> np.ndarray:
    """A part of a grid twice as fine as the file, which begins at `origin` of it: GDAL's bilinear, for half its time.

    A cell of the grid is 9/16 the one that it lies in, 3/16 each of two beside that and 1/16 of the one between them,
    of those that have a value; none where it lies in one without.
    """
    first = [(cells.start - begin) // 2 for cells, begin in zip(part, origin, strict=True)]
    last = [-(-(cells.stop - begin) // 2) for cells, begin in zip(part, origin, strict=True)]
    inside = [slice(max(0, a - 1), min(b + 1, size)) for a, b, size in zip(first, last, file.shape, strict=True)]
    beyond = [(cells.start - a + 1, b + 1 - cells.stop) for a, b, cells in zip(first, last, inside, strict=True)]
    cells = np.pad(file.read(1, window=Window.from_slices(*inside)), beyond, "edge")
    out = np.empty((2 * cells.shape[0] - 4, 2 * cells.shape[1] - 4), cells.dtype)
    for top in range(0, cells.shape[0] - 2, _STRIP):
        strip = cells[top : top + _STRIP + 2].astype("uint32")
        middle, wide = 3 * strip[:, 1:-1], np.empty((len(strip), out.shape[1]), "uint32")
        np.add(middle, strip[:, :-2], out=wide[:, 0::2])
        np.add(middle, strip[:, 2:], out=wide[:, 1::2])
        middle, into = 3 * wide[1:-1] + 8, out[2 * top : 2 * (top + _STRIP)]
        np.right_shift(middle + wide[:-2], 4, out=into[0::2], casting="unsafe")
        np.right_shift(middle + wide[2:], 4, out=into[1::2], casting="unsafe")
    lost = cells == fill
    if lost.any():
        _beside(cells, lost, out)
        quarters = out.reshape(len(out) // 2, 2, -1, 2)
        np.copyto(quarters, fill, where=lost[1:-1, None, 1:-1, None], casting="unsafe")
    rows, columns = (_moved(cells, -begin - 2 * a) for cells, begin, a in zip(part, origin, first, strict=True))
    return out[rows, columns]


def _beside(cells: np.ndarray, lost: np.ndarray, out: np.ndarray) -> None:
    """Put right what `_doubled` made of the cells beside those that are lost. `out` lacks the margin of the others."""
    tall = lost[:-2] | lost[1:-1] | lost[2:]
    rows, columns = np.nonzero((tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]) & ~lost[1:-1, 1:-1])
    for down in (0, 1):
        for right in (0, 1):
            total, weights = np.zeros(len(rows), "uint32"), np.zeros(len(rows), "uint32")
            for row, column, weight in ((1, 1, 9), (2 * down, 1, 3), (1, 2 * right, 3), (2 * down, 2 * right, 1)):
                at = rows + row, columns + column
                there = np.where(lost[at], 0, weight).astype("uint32")
                total, weights = total + there * cells[at], weights + there
            out[2 * rows + down, 2 * columns + right] = (2 * total + weights) // (2 * weights)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


class Stacked:
    """A file as stackstac wants its readers to be: pixels of windows of `spec`, which is one grid for all files."""

    def __init__(self, reads: Reads, how: str, *, url: str, spec: Any, dtype: Any, fill_value: Any, **_: Any) -> None:
        self.reads, self.url = reads, url
        self.cfg = RasterLoadParams(np.dtype(dtype).name, fill_value, resampling=how)
        self.grid = GeoBox(spec.shape, spec.transform, f"EPSG:{spec.epsg}")

    def read(self, window: Any) -> np.ndarray:
        """The window's pixels (y, x), nodata where the file has none."""
        grid = self.grid[window.toslices()]
        out = np.full(grid.shape, self.cfg.fill_value, self.cfg.dtype)
        found = pixels(self.reads, self.url, self.cfg, grid)
        if found is not None:
            out[found[0]] = found[1]
        return out

    def close(self) -> None:
        """Nothing is held open."""


# ---------------------------------------------------------------- files on the web, as GDAL sees them


class _Web:
    """The bytes of one file on the web, while one dataset is open. The first failure is kept, and ends all reading."""

    heads: dict[str, tuple[bytes, int]] = {}  # noqa: RUF012 - of the process: name -> (beginning, size of the file)

    def __init__(self, uri: str, stop: threading.Event) -> None:
        self.uri, self.name, self.stop = uri, without_query(uri), stop
        self.error: Unreadable | None = None
        self.head, self.size = self.heads.get(self.name) or self._begin()
        self.ahead, self.start = memoryview(b""), 0  # what was fetched last, and where it lies

    def _begin(self) -> tuple[bytes, int]:
        """The first bytes and the size of the file."""
        try:
            head, size = fetch(self.uri, 0, _HEAD, self.stop)
        except Unreadable as error:
            self.error = error
            return b"", 0
        while len(self.heads) >= _HEADS:
            self.heads.pop(next(iter(self.heads)), None)
        return self.heads.setdefault(self.name, (bytes(head), size))

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start to stop, fewer at the end of the file, none after a failure."""
        stop = min(stop, self.size)
        if self.error or start >= stop:
            return b""
        if stop <= len(self.head):
            return self.head[start:stop]
        if not self.start <= start <= stop <= self.start + len(self.ahead):
            straight = start == self.start + len(self.ahead)
            least = min(2 * len(self.ahead), _AHEAD[1]) if straight else _AHEAD[0]
            self.start, self.ahead = start, self.fetch((start, min(max(stop, start + least), self.size)))
        return bytes(self.ahead[start - self.start : stop - self.start])

    def fetch(self, span: tuple[int, int]) -> memoryview:
        """The bytes of a span; zeros after a failure."""
        if not self.error:
            try:
                data, size = fetch(self.uri, *span, self.stop)
                if size == self.size:
                    return data
                self.heads.pop(self.name, None)
                raise Unreadable(self.uri, f"the file changed its size from {self.size} to {size} bytes meanwhile")
            except Unreadable as error:
                self.error = error
        return memoryview(bytes(span[1] - span[0]))


class _Raw(io.RawIOBase):
    """An open file, as Python's own buffers want it."""

    def __init__(self, web: _Web) -> None:
        self.web, self.position = web, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.web.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self.web.read(self.position, self.position + len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class _Handle(io.BufferedReader):
    """An open file as GDAL sees it, which reads its beginning in some seventy bits."""

    def __init__(self, web: _Web) -> None:
        super().__init__(_Raw(web), _HEAD)
        self.web = web

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """The blocks of a window, asked for at once: those that lie close together as one."""
        spans: list[tuple[int, int]] = []
        for start, size in sorted(zip(offsets, sizes, strict=True)):
            if spans and start - spans[-1][1] <= _GAP:
                spans[-1] = spans[-1][0], max(spans[-1][1], start + size)
            else:
                spans.append((start, start + size))
        few = len(spans) == 1 or quick(self.web.uri)
        fetched = map(self.web.fetch, spans) if few else _pool().map(self.web.fetch, spans)
        parts = list(zip(spans, fetched, strict=True))

        def block(start: int, stop: int) -> bytes:
            return next(bytes(data[start - a : stop - a]) for (a, b), data in parts if a <= start and stop <= b)

        return [block(start, start + size) for start, size in zip(offsets, sizes, strict=True)]


class _Volume(MultiByteRangeResourceContainer):
    """The file system that GDAL is given: the files on the web that are open, one of them for each time it is.

    One for the process, for as long as it lives. rasterio would add one for each file and drop it after, to a table
    that GDAL looks into from all threads without a lock: that opened a sixth as many files, and a crash in GDAL is put
    down to it. Its openers are known in one context alone, so `context` is entered, as a copy, by whoever opens a file
    of the volume.
    """

    def __init__(self) -> None:
        self.webs: dict[str, _Web] = {}
        self.numbers = itertools.count()
        self.context = copy_context()
        seed = self.context.run(rasterio.open, "seed", driver="GTiff", opener=self)
        self.prefix = seed.name.removesuffix("seed")
        atexit.register(self.context.run, seed.close)

    @contextmanager
    def holding(self, web: _Web) -> Iterator[str]:
        """The path of a file in the volume."""
        name = str(next(self.numbers))
        self.webs[name] = web
        try:
            yield self.prefix + name
        finally:
            del self.webs[name]

    def open(self, path: str, mode: str = "r", **_: Any) -> io.BufferedReader | io.BytesIO:
        return io.BytesIO(_seed()) if path == "seed" else _Handle(self.webs[path])

    def isfile(self, path: str) -> bool:
        return path in self.webs

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def size(self, path: str) -> int:
        return self.webs[path].size

    def rm(self, path: str) -> None:
        raise NotImplementedError


def _seed() -> bytes:
    """The smallest GeoTIFF: a volume comes into being with a file that is opened in it."""
    with MemoryFile() as file:
        shape = {"width": 1, "height": 1, "count": 1, "dtype": "uint8", "transform": Affine.scale(2)}
        file.open(driver="GTiff", **shape).close()
        return bytes(file.read())


_making = threading.Lock()


def _volume() -> _Volume:
    with _making:
        return _made()


@lru_cache(maxsize=1)
def _made() -> _Volume:
    return _Volume()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    """Threads for the ranges of one window, beside the readers' own."""
    return ThreadPoolExecutor(8, thread_name_prefix="ranges")
